//! The fields that `iasl` must print and their offsets, derived from the JSON of `iommuctl decode`.
//!
//! Offsets of fields within their structures are stated here a second time, independently of the decoder. They come
//! from VT-d 4.1 section 8 and AMD IOMMU 48882 rev 3.10 section 5.2.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::disassembly::Line;

/// One field.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// Its names in different versions of `iasl`.
    names: &'static [&'static str],
    value: Expectation,
}

#[derive(Clone, Debug)]
enum Expectation {
    Number(u64),
    Text(String),
    /// Device and function of one step of a path.
    Step(u64, u64),
}

type Fields = BTreeMap<usize, Expected>;

impl Expected {
    /// Whether `iasl` printed the same name and value.
    pub(crate) fn agrees(&self, line: &Line) -> bool {
        let same = match &self.value {
            Expectation::Number(number) => {
                u64::from_str_radix(&line.value, 16).is_ok_and(|printed| printed == *number)
            }
            Expectation::Text(text) => said(&line.value, text),
            Expectation::Step(device, function) => {
                line.value == format!("{device:02X},{function:02X}")
            }
        };
        same && self.names.contains(&line.name.as_str())
    }
}

/// Whether `printed` is `text` in quotes. `iasl` prints an identifier of only zeros as zero.
fn said(printed: &str, text: &str) -> bool {
    match printed.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => {
            // `iasl` prints unprintable characters as blanks.
            let shown = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
            inner == text.chars().map(shown).collect::<String>()
        }
        None => text.is_empty() && printed.bytes().all(|byte| byte == b'0'),
    }
}

struct Builder<'a> {
    fields: Fields,
    object: &'a Value,
    at: usize,
}

impl<'a> Builder<'a> {
    fn number(&mut self, offset: usize, key: &str, names: &'static [&'static str]) {
        let value = self.object[key].as_u64().unwrap_or_else(|| panic!("{key} in {}", self.object));
        self.put(offset, names, Expectation::Number(value));
    }

    fn text(&mut self, offset: usize, key: &str, names: &'static [&'static str]) {
        let value = self.object[key].as_str().unwrap_or_else(|| panic!("{key} in {}", self.object));
        self.put(offset, names, Expectation::Text(value.to_owned()));
    }

    fn put(&mut self, offset: usize, names: &'static [&'static str], value: Expectation) {
        let before = self.fields.insert(self.at + offset, Expected { names, value });
        assert!(before.is_none(), "two fields at {}", self.at + offset);
    }

    fn with(&mut self, object: &'a Value, at: usize) {
        self.object = object;
        self.at = at;
    }
}

/// Returns all fields of a table by their offsets.
pub(crate) fn fields(table: &Value) -> Fields {
    let mut builder = Builder { fields: Fields::new(), object: table, at: 0 };
    header(&mut builder);
    for structure in table["structures"].as_array().unwrap() {
        let at = usize::try_from(structure["offset"].as_u64().unwrap()).unwrap();
        builder.with(structure, at);
        match table["signature"].as_str().unwrap() {
            "DMAR" => dmar(&mut builder),
            _ => ivrs(&mut builder),
        }
    }
    builder.fields
}

/// Returns the ranges of structures of unknown type. Versions of `iasl` print different parts of them.
pub(crate) fn unknown(table: &Value) -> Vec<Range<usize>> {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let structures = table["structures"].as_array().unwrap().iter();
    structures
        .filter(|structure| structure["name"] == "unknown")
        .map(|structure| {
            let at = number(&structure["offset"]);
            at..at + number(&structure["length"])
        })
        .collect()
}

fn header(builder: &mut Builder<'_>) {
    builder.text(0, "signature", &["Signature"]);
    builder.number(4, "length", &["Table Length"]);
    builder.number(8, "revision", &["Revision"]);
    builder.number(9, "checksum", &["Checksum"]);
    builder.text(10, "oem_id", &["Oem ID"]);
    builder.text(16, "oem_table_id", &["Oem Table ID"]);
    builder.number(24, "oem_revision", &["Oem Revision"]);
    builder.text(28, "creator_id", &["Asl Compiler ID"]);
    builder.number(32, "creator_revision", &["Asl Compiler Revision"]);
    if builder.object["signature"] == "DMAR" {
        builder.number(36, "host_address_width", &["Host Address Width"]);
        builder.number(37, "flags", &["Flags"]);
    } else {
        builder.number(36, "iv_info", &["Virtualization Info"]);
    }
}

fn dmar(builder: &mut Builder<'_>) {
    builder.number(0, "type", &["Subtable Type"]);
    builder.number(2, "length", &["Length"]);
    let segment = &["PCI Segment Number"];
    match builder.object["name"].as_str().unwrap() {
        "DRHD" => {
            builder.number(4, "flags", &["Flags"]);
            builder.number(5, "size", &["Size"]);
            builder.number(6, "segment", segment);
            builder.number(8, "register_base_address", &["Register Base Address"]);
            scopes(builder, 16);
        }
        "RMRR" => {
            builder.number(6, "segment", segment);
            builder.number(8, "base_address", &["Base Address"]);
            builder.number(16, "limit_address", &["End Address (limit)"]);
            scopes(builder, 24);
        }
        "ATSR" | "SATC" => {
            builder.number(4, "flags", &["Flags"]);
            builder.number(6, "segment", segment);
            scopes(builder, 8);
        }
        "RHSA" => {
            builder.number(8, "register_base_address", &["Base Address"]);
            builder.number(16, "proximity_domain", &["Proximity Domain"]);
        }
        "ANDD" => {
            builder.number(7, "device_number", &["Device Number"]);
            builder.text(8, "object_name", &["Device Name"]);
        }
        "SIDP" => {
            builder.number(6, "segment", segment);
            scopes(builder, 8);
        }
        other => panic!("structure {other}"),
    }
}

fn scopes(builder: &mut Builder<'_>, first: usize) {
    let mut at = builder.at + first;
    for scope in builder.object["scopes"].as_array().unwrap() {
        builder.with(scope, at);
        let path = scope["path"].as_array().unwrap();
        let length = 6 + 2 * path.len();
        builder.number(0, "type", &["Device Scope Type"]);
        builder.put(1, &["Entry Length"], Expectation::Number(u64::try_from(length).unwrap()));
        builder.number(2, "flags", &["Flags"]);
        builder.number(4, "enumeration_id", &["Enumeration ID"]);
        builder.number(5, "bus", &["PCI Bus Number"]);
        for (index, step) in path.iter().enumerate() {
            let value = Expectation::Step(step[0].as_u64().unwrap(), step[1].as_u64().unwrap());
            builder.put(6 + 2 * index, &["PCI Path"], value);
        }
        at += length;
    }
}

fn ivrs(builder: &mut Builder<'_>) {
    builder.number(0, "type", &["Subtable Type"]);
    builder.number(2, "length", &["Length"]);
    match builder.object["name"].as_str().unwrap() {
        "IVHD" => ivhd(builder),
        "IVMD" => {
            builder.number(1, "flags", &["Flags"]);
            builder.number(4, "device_id", &["DeviceId"]);
            builder.number(6, "auxiliary", &["Auxiliary Data"]);
            builder.number(8, "segment", &["PCI Segment Group"]);
            builder.number(16, "start_address", &["Start Address"]);
            builder.number(24, "memory_length", &["Memory Length"]);
        }
        "unknown" => unknown_ivrs(builder),
        other => panic!("structure {other}"),
    }
}

/// `iasl` prints the first fields even of an unknown block. Their values are in the decoder's raw bytes.
fn unknown_ivrs(builder: &mut Builder<'_>) {
    let raw = builder.object["raw"].as_str().unwrap();
    let byte = |at: usize| u64::from_str_radix(&raw[2 * at..2 * at + 2], 16).unwrap();
    builder.put(1, &["Flags"], Expectation::Number(byte(1)));
    builder.put(4, &["DeviceId"], Expectation::Number(byte(4) | byte(5) << 8));
}

fn ivhd(builder: &mut Builder<'_>) {
    let plain = builder.object["type"] == 0x10;
    builder.number(1, "flags", &["Flags"]);
    builder.number(4, "device_id", &["DeviceId"]);
    builder.number(6, "capability_offset", &["Capability Offset"]);
    builder.number(8, "base_address", &["Base Address"]);
    builder.number(16, "segment", &["PCI Segment Group"]);
    builder.number(18, "iommu_info", &["Virtualization Info"]);
    builder.number(20, "feature_reporting", &["Feature Reporting", "Attributes"]);
    if !plain {
        builder.number(24, "efr", &["EFR Image"]);
        builder.number(32, "efr2", &["EFR Image 2"]);
    }
    let mut at = builder.at + if plain { 24 } else { 40 };
    for entry in builder.object["entries"].as_array().unwrap() {
        builder.with(entry, at);
        at += device_entry(builder, entry);
    }
}

/// Adds the fields of a device entry and returns its length.
fn device_entry(builder: &mut Builder<'_>, entry: &Value) -> usize {
    let kind = entry["type"].as_u64().unwrap();
    builder.number(0, "type", &["Entry Type", "Subtable Type"]);
    builder.number(1, "device_id", &["Device ID"]);
    builder.number(3, "data_setting", &["Data Setting"]);
    match kind {
        0x42 | 0x43 => builder.number(5, "source_device_id", &["Source Used Device ID"]),
        0x46 | 0x47 => builder.number(4, "extended_data_setting", &["Extended Data"]),
        0x48 => {
            builder.number(4, "handle", &["Handle"]);
            builder.number(5, "source_device_id", &["Source Used Device ID"]);
            builder.number(7, "variety", &["Variety"]);
        }
        0xf0 => {
            builder.text(4, "hardware_id", &["ACPI HID"]);
            builder.text(12, "compatible_id", &["ACPI CID"]);
            // `iasl` prints nothing for a missing unique id. Its length still counts, below.
            if entry["uid_format"] != 0 {
                builder.number(20, "uid_format", &["UID Format"]);
                builder.number(21, "uid_length", &["UID Length"]);
            }
            if entry["uid_format"] == 2 {
                builder.text(22, "uid", &["UID"]);
            }
            return 22 + usize::try_from(entry["uid_length"].as_u64().unwrap()).unwrap();
        }
        _ => {}
    }
    4 << (kind >> 6)
}
