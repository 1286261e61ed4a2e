//! The firmware's table of a setup, byte by byte (VT-d 4.1 section 8, AMD 48882 section 5.2).

use iommud::topology::firmware::{
    DeviceScope, EntryRange, Firmware, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};

/// The bytes of a DMAR or IVRS that describes these units and regions.
///
/// # Panics
/// When the table cannot say it.
#[must_use]
pub fn table(firmware: &Firmware) -> Vec<u8> {
    let amd = matches!(firmware.units[0].kind, UnitKind::AmdVi { .. });
    let mut bytes = if amd { b"IVRS".to_vec() } else { b"DMAR".to_vec() };
    bytes.resize(48, 0);
    bytes[8] = 1;
    // A DMAR has the width of addresses here, minus one.
    bytes[36] = if amd { 1 } else { 51 };
    for unit in &firmware.units {
        bytes.extend(if amd { ivhd(unit) } else { drhd(unit) });
    }
    for region in &firmware.reserved {
        bytes.extend(if amd { ivmd(region) } else { rmrr(region) });
    }
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    bytes
}

/// Sets the length of a structure, at bytes 2 and 3.
fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn drhd(unit: &UnitDescription) -> Vec<u8> {
    let base = unit.registers.unwrap().first().0;
    let mut bytes = vec![0, 0, 0, 0, u8::from(unit.include_all), 0];
    bytes.extend(unit.segment.to_le_bytes());
    bytes.extend(base.to_le_bytes());
    bytes.extend(unit.scopes.iter().flat_map(scope));
    with_length(bytes)
}

fn scope(scope: &DeviceScope) -> Vec<u8> {
    assert_eq!(scope.kind, ScopeKind::Endpoint);
    let length = u8::try_from(6 + 2 * scope.path.len()).unwrap();
    let mut bytes = vec![1, length, 0, 0, 0, scope.start_bus];
    bytes.extend(scope.path.iter().flat_map(|(device, function)| [*device, *function]));
    bytes
}

fn rmrr(region: &ReservedRegion) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0, 0, 0];
    bytes.extend(region.segment.to_le_bytes());
    bytes.extend(region.range.first().0.to_le_bytes());
    bytes.extend(region.range.last().0.to_le_bytes());
    bytes.extend(region.scopes.iter().flat_map(scope));
    with_length(bytes)
}

fn ivhd(unit: &UnitDescription) -> Vec<u8> {
    let UnitKind::AmdVi { function, capability, flags, features } = unit.kind else {
        panic!("{:?}", unit.kind)
    };
    let mut bytes = vec![if features.is_some() { 0x11 } else { 0x10 }, flags, 0, 0];
    bytes.extend(function.0.to_le_bytes());
    bytes.extend(capability.to_le_bytes());
    bytes.extend(unit.registers.unwrap().first().0.to_le_bytes());
    bytes.extend(unit.segment.to_le_bytes());
    bytes.extend([0; 6]);
    if let Some(features) = features {
        bytes.extend(features.to_le_bytes());
        bytes.extend([0; 8]);
    }
    bytes.extend(unit.entries.iter().flat_map(entry));
    with_length(bytes)
}

fn entry(range: &EntryRange) -> Vec<u8> {
    assert_eq!(range.alias, None, "{range:?}");
    let [a, b] = range.first.0.to_le_bytes();
    if range.first == range.last {
        return vec![2, a, b, range.settings];
    }
    let [c, d] = range.last.0.to_le_bytes();
    vec![3, a, b, range.settings, 4, c, d, 0]
}

fn ivmd(region: &ReservedRegion) -> Vec<u8> {
    let [entry] = &region.entries[..] else { panic!("{region:?}") };
    let access = u8::from(region.read) << 1 | u8::from(region.write) << 2;
    let mut bytes = vec![0x22, 1 | access, 32, 0];
    bytes.extend(entry.first.0.to_le_bytes());
    bytes.extend(entry.last.0.to_le_bytes());
    bytes.extend(region.segment.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(region.range.first().0.to_le_bytes());
    bytes.extend(region.range.length().to_le_bytes());
    bytes
}
