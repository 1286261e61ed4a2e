//! Firmware tables.

use iommuctl::decode;
use iommud::acpi::dmar::{self, Dmar};
use iommud::acpi::ivrs::{self, Ivrs};
use iommud::acpi::{Table, build_dmar, build_ivrs, parse_dmar, parse_ivrs};
use iommud::addr::INTERRUPT_WINDOW;
use iommud::topology::firmware::{DeviceScope, Firmware, UnitDefect};

/// Parses the bytes as a DMAR, and again with signature, length and checksum repaired.
pub fn dmar(data: &[u8]) {
    if let Ok(firmware) = parse_dmar(data) {
        sound(&firmware);
    }
    let bytes = repaired(*b"DMAR", data);
    let Ok(table) = Table::read(&bytes) else { return };
    let Ok(table) = Dmar::new(table) else { return };
    cover(
        &bytes,
        table.structures().map(|s| (s.offset, s.bytes, matches!(s.body, dmar::Body::BadLength))),
    );
    table.structures().for_each(|structure| scopes_lie_within(&structure));
    let (firmware, anomalies) = build_dmar(&table);
    sound(&firmware);
    let units =
        table.structures().filter(|s| s.kind == 0 || matches!(s.body, dmar::Body::BadLength));
    assert_eq!(units.count(), firmware.units.len(), "every DRHD keeps its place");
    let parsed = parse_dmar(&bytes).unwrap();
    let said: Vec<String> = anomalies.iter().map(ToString::to_string).collect();
    assert_eq!(parsed, Firmware { anomalies: said, ..firmware });
    decodes(&bytes, table.structures().count());
}

/// Parses the bytes as an IVRS, and again with signature, length and checksum repaired.
pub fn ivrs(data: &[u8]) {
    if let Ok(firmware) = parse_ivrs(data) {
        sound(&firmware);
    }
    let bytes = repaired(*b"IVRS", data);
    let Ok(table) = Table::read(&bytes) else { return };
    let Ok(table) = Ivrs::new(table) else { return };
    cover(
        &bytes,
        table.structures().map(|s| (s.offset, s.bytes, matches!(s.body, ivrs::Body::BadLength))),
    );
    table.structures().for_each(|structure| entries_lie_within(&structure));
    let (firmware, anomalies) = build_ivrs(&table);
    sound(&firmware);
    let parsed = parse_ivrs(&bytes).unwrap();
    let said: Vec<String> = anomalies.iter().map(ToString::to_string).collect();
    assert_eq!(parsed, Firmware { anomalies: said, ..firmware });
    decodes(&bytes, table.structures().count());
}

/// Builds a table from these bytes, with signature, length and checksum of its header repaired.
#[must_use]
pub fn repaired(signature: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().clamp(48, iommud::acpi::LONGEST), 0);
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&signature);
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
    bytes
}

/// Structures follow each other from byte 48 to the end of the table, and none is empty. Only the last one may have a
/// length that ends the walk.
fn cover<'a>(table: &[u8], structures: impl Iterator<Item = (usize, &'a [u8], bool)>) {
    let mut next = 48;
    let mut ended = false;
    for (offset, bytes, bad_length) in structures {
        assert!(!ended, "a structure after the end of the walk");
        assert_eq!(offset, next);
        assert!(!bytes.is_empty());
        assert_eq!(&table[offset..offset + bytes.len()], bytes);
        assert!(bad_length || bytes.len() >= 4);
        next = offset + bytes.len();
        ended = bad_length;
    }
    assert_eq!(next, table.len());
}

fn scopes_lie_within(structure: &dmar::Structure<'_>) {
    let Some(scopes) = structure.scopes() else { return };
    let end = structure.offset + structure.bytes.len();
    let mut next = structure.offset;
    for scope in scopes {
        match scope {
            Ok(scope) => {
                assert!(scope.offset >= next && scope.length >= 6);
                next = scope.offset + usize::from(scope.length);
                assert!(next <= end);
                assert!(
                    scope.path().count() * 2 + scope.odd_bytes() + 6 == usize::from(scope.length)
                );
            }
            Err(bad) => {
                assert!(bad.offset >= next && bad.offset + bad.room == end && bad.room > 0);
                assert!(bad.length < 6 || usize::from(bad.length) > bad.room);
                next = end;
            }
        }
    }
}

fn entries_lie_within(structure: &ivrs::Structure<'_>) {
    let ivrs::Body::Ivhd { entries, .. } = &structure.body else { return };
    let end = structure.offset + structure.bytes.len();
    let mut next = structure.offset;
    for entry in entries.clone() {
        match entry {
            Ok(entry) => {
                assert!(entry.offset >= next && entry.bytes.len() >= 4);
                let start = entry.offset - structure.offset;
                assert_eq!(&structure.bytes[start..start + entry.bytes.len()], entry.bytes);
                next = entry.offset + entry.bytes.len();
            }
            Err(bad) => {
                assert!(bad.offset >= next && bad.offset + bad.room == end && bad.room > 0);
                next = end;
            }
        }
    }
    assert_eq!(next.max(structure.offset), next);
}

/// Properties that the rest of the server relies on.
fn sound(firmware: &Firmware) {
    let width = firmware.host_address_width.map_or(64, u32::from);
    let usable: Vec<_> = firmware.units.iter().filter_map(|unit| unit.registers.ok()).collect();
    for (index, registers) in usable.iter().enumerate() {
        assert!(registers.first().0 != 0 && registers.first().is_aligned(4096));
        assert!(registers.last().0.checked_shr(width).unwrap_or(0) == 0);
        assert!(!usable[..index].iter().any(|other| other.overlaps(*registers)));
    }
    for region in &firmware.reserved {
        assert_eq!(region.range.page_aligned(), region.range);
        assert!(!region.range.identity().overlaps(INTERRUPT_WINDOW));
        assert!(!usable.iter().any(|registers| registers.overlaps(region.range)));
        region.scopes.iter().for_each(possible);
        assert!(region.entries.iter().all(|entry| entry.first <= entry.last));
    }
    for unit in &firmware.units {
        unit.scopes.iter().for_each(possible);
        assert!(unit.entries.iter().all(|entry| entry.first <= entry.last));
        unreadable_units_come_first(firmware, unit.segment);
    }
}

/// While the devices of some unit are unknown, no device counts as behind a unit that takes "all others".
fn unreadable_units_come_first(firmware: &Firmware, segment: u16) {
    let unknown = firmware.units.iter().any(|unit| match unit.registers {
        Err(UnitDefect::TooShort { .. } | UnitDefect::RestUnreadable { .. }) => true,
        Err(UnitDefect::BadScope { .. } | UnitDefect::SecondIncludeAll { .. }) => {
            unit.segment == segment
        }
        _ => false,
    });
    if unknown {
        let index = firmware.default_unit(segment).unwrap();
        assert!(firmware.units[index].registers.is_err());
    }
}

fn possible(scope: &DeviceScope) {
    assert!(!scope.path.is_empty());
    assert!(scope.path.iter().all(|(device, function)| *device < 32 && *function < 8));
}

fn decodes(bytes: &[u8], structures: usize) {
    let decoded = decode::table(bytes).unwrap();
    let json = decoded.json();
    assert_eq!(json["structures"].as_array().unwrap().len(), structures);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json.to_string()).unwrap(), json);
    let text = decoded.text();
    assert!(text.bytes().all(|byte| byte == b'\n' || byte == b' ' || byte.is_ascii_graphic()));
}
