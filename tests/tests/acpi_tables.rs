//! Compares the tables under `data/acpi` with their expected decoding. `data/acpi/README.md` gives the source of the
//! expectations; none comes from the decoder.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::{Path, PathBuf};

use iommuctl::decode::{self, Decoded};
use iommud::acpi::{TableError, parse_dmar, parse_ivrs};
use iommud::topology::firmware::Firmware;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/acpi").join(name)
}

/// Returns the tables in a folder, with their names and their expectations.
fn tables(name: &str) -> Vec<(String, Vec<u8>, Value)> {
    let mut tables = Vec::new();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = match path.extension().and_then(|extension| extension.to_str()) {
            Some("bin") => std::fs::read(&path).unwrap(),
            Some("hex") => unhex(&std::fs::read_to_string(&path).unwrap()),
            _ => continue,
        };
        let expected = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        tables.push((name, bytes, serde_json::from_str(&expected).unwrap()));
    }
    tables.sort_by(|a, b| a.0.cmp(&b.0));
    tables
}

/// Decodes pairs of hex digits. A `#` starts a comment to the end of the line.
fn unhex(text: &str) -> Vec<u8> {
    let plain = text.lines().filter_map(|line| line.split('#').next());
    plain
        .flat_map(str::split_whitespace)
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

fn parse(bytes: &[u8]) -> Result<Firmware, TableError> {
    if bytes.starts_with(b"DMAR") { parse_dmar(bytes) } else { parse_ivrs(bytes) }
}

fn decode(name: &str, bytes: &[u8]) -> Decoded {
    decode::table(bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Lists where two values differ.
fn differences(path: &str, found: &Value, expected: &Value, out: &mut Vec<String>) {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let (a, b) = (a.get(key), b.get(key));
                let null = Value::Null;
                differences(&format!("{path}.{key}"), a.unwrap_or(&null), b.unwrap_or(&null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{index}]"), a, b, out);
            }
        }
        _ if found == expected => {}
        _ => out.push(format!("{path}: {found}, expected {expected}")),
    }
}

#[test]
fn tables_that_qemu_makes() {
    let tables = tables("qemu");
    assert_eq!(tables.len(), 13);
    let mut wrong = Vec::new();
    for (name, bytes, expected) in &tables {
        differences(name, &decode(name, bytes).json(), expected, &mut wrong);
        let firmware = parse(bytes).unwrap();
        assert_eq!(firmware.units.len(), 1, "{name}");
        assert!(firmware.units[0].registers.is_ok(), "{name}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tables_made_by_hand() {
    let tables = tables("hand");
    assert_eq!(tables.len(), 28);
    let mut wrong = Vec::new();
    for (name, bytes, expected) in &tables {
        let decoded = decode(name, bytes);
        differences(name, &decoded.json(), &expected["decoded"], &mut wrong);
        let outlook = Value::from(decoded.outlook().to_vec());
        differences(&format!("{name} outlook"), &outlook, &expected["outlook"], &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `decode` reports the same problems of a table as the server.
#[test]
fn the_server_refuses_and_reports_what_decode_does() {
    for (name, bytes, expected) in tables("hand") {
        let anomalies = &expected["decoded"]["anomalies"];
        match parse(&bytes) {
            Ok(firmware) => assert_eq!(Value::from(firmware.anomalies), *anomalies, "{name}"),
            Err(error) => {
                assert!(matches!(error, TableError::Checksum { .. } | TableError::Length { .. }));
                assert_eq!(anomalies[0], error.to_string(), "{name}");
            }
        }
    }
}

/// The text form has every field of the JSON form, by name.
#[test]
fn text_has_every_field() {
    for (name, bytes, _) in tables("hand").into_iter().chain(tables("qemu")) {
        let decoded = decode(&name, &bytes);
        let (text, mut missing) = (decoded.text(), 0);
        count_missing(&decoded.json(), &text, &mut missing);
        assert_eq!(missing, 0, "{name}");
    }
}

fn count_missing(value: &Value, text: &str, missing: &mut usize) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                *missing += usize::from(!text.contains(&format!("{key}:")));
                count_missing(value, text, missing);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| count_missing(item, text, missing)),
        _ => {}
    }
}

/// A dump of several tables, known and unknown.
#[test]
fn a_dump_has_its_tables_decoded_in_order() {
    let mut text = String::new();
    let ours = [&tables("qemu")[0], &tables("hand")[3]];
    for (index, bytes) in
        [ours[0].1.as_slice(), b"FACP only looks like a table", &ours[1].1].into_iter().enumerate()
    {
        let signature = String::from_utf8_lossy(&bytes[..4]).into_owned();
        text.push_str(&format!("{signature} @ 0x{index:016x}\n"));
        for (line, chunk) in bytes.chunks(16).enumerate() {
            let pairs: String = chunk.iter().map(|byte| format!("{byte:02X} ")).collect();
            text.push_str(&format!("    {:04X}: {pairs:48} {}\n", line * 16, "ABCD 0123456789A"));
        }
        text.push('\n');
    }
    let decoded = decode::tables(text.as_bytes()).unwrap();
    let found: Vec<Value> = decoded.iter().map(Decoded::json).collect();
    assert_eq!(found, [ours[0].2.clone(), ours[1].2["decoded"].clone()]);
    let only_others = "FACP @ 0x1\n    0000: 46 41 43 50\n";
    assert!(matches!(decode::tables(only_others.as_bytes()), Err(decode::DecodeError::NoTable(1))));
}
