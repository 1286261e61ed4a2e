//! Expectations are written by hand from the specifications' field tables.

use alloc::vec;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use super::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::topology::firmware::{
    DeviceScope, EntryRange, Firmware, NamedDevice, ScopeKind, UnitDefect, UnitKind,
};

/// A table with a good length and checksum.
fn table(signature: &[u8; 4], rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend([0; 4]);
    bytes.extend(b"\x01\x00OEM   TABLE   \0\0\0\0TOOL\0\0\0\0");
    bytes.extend(rest.concat());
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    bytes[9] = 0u8.wrapping_sub(sum);
    bytes
}

/// Width 39 bits, interrupt remapping and opt-in set.
const DMAR_FIXED: &[u8] = &[38, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// DRHD at 0xfed90000, endpoint 00:02.0.
const DRHD_GPU: &[u8] =
    &[0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 2, 0];
/// DRHD at 0xfed91000, INCLUDE_PCI_ALL, I/O APIC 2 at f0:1f.0.
const DRHD_ALL: &[u8] =
    &[0, 0, 24, 0, 1, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0, 3, 8, 0, 0, 2, 0xf0, 0x1f, 0];

#[test]
fn units_of_a_dmar_in_order() {
    let firmware = parse_dmar(&table(b"DMAR", &[DMAR_FIXED, DRHD_GPU, DRHD_ALL])).unwrap();
    assert_eq!((firmware.host_address_width, firmware.dma_opt_in), (Some(39), true));
    assert!(firmware.anomalies.is_empty(), "{:?}", firmware.anomalies);
    let [gpu, all] = &firmware.units[..] else { panic!("{:?}", firmware.units) };
    let page = |at| PhysRange::new(PhysAddr(at), 4096).unwrap();
    assert_eq!((gpu.registers, gpu.include_all), (Ok(page(0xfed9_0000)), false));
    assert_eq!((all.registers, all.include_all), (Ok(page(0xfed9_1000)), true));
    let endpoint = DeviceScope { kind: ScopeKind::Endpoint, start_bus: 0, path: vec![(2, 0)] };
    let io_apic =
        DeviceScope { kind: ScopeKind::IoApic(2), start_bus: 0xf0, path: vec![(0x1f, 0)] };
    assert_eq!((&gpu.scopes, &all.scopes), (&vec![endpoint], &vec![io_apic]));
    assert_eq!((firmware.default_unit(0), firmware.default_unit(1)), (Some(1), None));
}

#[test]
fn a_unit_with_a_broken_scope_keeps_its_place_and_takes_the_unnamed_devices() {
    let mut broken = DRHD_GPU.to_vec();
    broken[17] = 9; // the scope says nine bytes where eight are left
    let firmware = parse_dmar(&table(b"DMAR", &[DMAR_FIXED, DRHD_ALL, &broken])).unwrap();
    assert_eq!(firmware.units[1].registers, Err(UnitDefect::BadScope { offset: 48 + 24 + 16 }));
    assert!(firmware.units[0].registers.is_ok());
    assert_eq!(firmware.default_unit(0), Some(1));
}

#[test]
fn bytes_after_a_lying_length_are_a_failed_unit() {
    let mut broken = DRHD_GPU.to_vec();
    broken[2] = 0;
    let firmware = parse_dmar(&table(b"DMAR", &[DMAR_FIXED, DRHD_ALL, &broken])).unwrap();
    assert_eq!(firmware.units[1].registers, Err(UnitDefect::RestUnreadable { offset: 72 }));
    assert_eq!((firmware.default_unit(0), firmware.default_unit(7)), (Some(1), Some(1)));
}

#[test]
fn a_table_that_does_not_add_up_is_refused() {
    let mut bytes = table(b"DMAR", &[DMAR_FIXED, DRHD_GPU]);
    bytes[60] ^= 1;
    assert!(matches!(parse_dmar(&bytes), Err(TableError::Checksum { .. })));
    assert_eq!(parse_ivrs(&bytes), Err(TableError::Signature(*b"DMAR")));
    assert_eq!(parse_dmar(&bytes[..35]), Err(TableError::Short { available: 35, needed: 36 }));
    assert_eq!(parse_dmar(&bytes[..40]), Err(TableError::Short { available: 40, needed: 48 }));
    assert_eq!(parse_dmar(&bytes[..71]), Err(TableError::Length { stated: 72, available: 71 }));
}

/// PASize 48.
const IVRS_FIXED: &[u8] = &[0x43, 0x30, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An IVHD of unit 00:00.2 at 0xfeb80000 with capability 0x40.
fn ivhd(kind: u8, entries: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0xb0, 0, 0, 2, 0, 0x40, 0, 0, 0, 0xb8, 0xfe, 0, 0, 0, 0];
    bytes.extend([0, 0, 0, 0, 0x6e, 0x8f, 4, 0x80]);
    if kind != 0x10 {
        bytes.extend(0x2465_77ef_a225_48fau64.to_le_bytes());
        bytes.extend([0; 8]);
    }
    bytes.extend(entries);
    bytes[2] = u8::try_from(bytes.len()).unwrap();
    bytes
}

#[test]
fn blocks_of_one_unit_are_merged() {
    let range = [3, 8, 0, 0, 4, 0xfe, 0xff, 0];
    let alias = [0x43, 0, 0xff, 0, 0, 0xa5, 0, 0, 4, 0xff, 0xff, 0];
    let special = [0x48, 0, 0, 0xd7, 0x21, 0xa0, 0, 1];
    let bytes = table(
        b"IVRS",
        &[
            IVRS_FIXED,
            &ivhd(0x10, &[2, 3, 0, 1]),
            &ivhd(0x11, &range),
            &ivhd(0x40, &[&range[..], &alias, &special].concat()),
        ],
    );
    let firmware = parse_ivrs(&bytes).unwrap();
    assert!(firmware.anomalies.is_empty(), "{:?}", firmware.anomalies);
    let [unit] = &firmware.units[..] else { panic!("{:?}", firmware.units) };
    assert_eq!(
        unit.kind,
        UnitKind::AmdVi {
            function: RequesterId(2),
            capability: 0x40,
            flags: 0xb0,
            features: Some(0x2465_77ef_a225_48fa)
        }
    );
    assert_eq!(unit.registers, Ok(PhysRange::new(PhysAddr(0xfeb8_0000), 0x4000).unwrap()));
    let entry = |first, last, alias: Option<u16>, settings| EntryRange {
        first: RequesterId(first),
        last: RequesterId(last),
        alias: alias.map(RequesterId),
        settings,
    };
    assert_eq!(
        unit.entries,
        [
            entry(3, 3, None, 1),
            entry(8, 0xfffe, None, 0),
            entry(0xff00, 0xffff, Some(0xa5), 0),
            entry(0xa0, 0xa0, None, 0xd7),
        ]
    );
    let io_apic =
        DeviceScope { kind: ScopeKind::IoApic(0x21), start_bus: 0, path: vec![(0x14, 0)] };
    assert_eq!(unit.scopes, [io_apic]);
}

/// Devices and functions from a bus on.
type Path = Vec<(u8, u8)>;

/// The places and names of devices that are no PCI functions.
fn named(firmware: &Firmware) -> Vec<(usize, u8, Path, &str)> {
    let of = |named: &'_ NamedDevice| (named.unit, named.start_bus, named.path.clone());
    let all = firmware.named.iter();
    all.map(|device| {
        let (unit, bus, path) = of(device);
        (unit, bus, path, device.name.as_str())
    })
    .collect()
}

#[test]
fn name_space_devices_of_a_dmar_have_a_unit_a_place_and_a_name() {
    let all = [
        &[0, 0, 40, 0, 1, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0][..],
        &[5, 8, 0, 0, 1, 0, 0x15, 0, 5, 8, 0, 0, 9, 0, 0x1e, 0, 5, 8, 0, 0, 3, 0, 0x15, 2],
    ]
    .concat();
    // As in a real DMAR, the name ends with zeros. The second name has characters that cannot be printed.
    let i2c = [&[4, 0, 28, 0, 0, 0, 0, 1][..], b"\\_SB.PCI0.I2C0\0\0\0\0\0\0"].concat();
    let uart = [&[4, 0, 16, 0, 0, 0, 0, 9][..], b"\\_SB.\nA\0"].concat();
    let bytes = table(b"DMAR", &[DMAR_FIXED, DRHD_GPU, &all, &i2c, &uart]);
    let firmware = parse_dmar(&bytes).unwrap();
    let expected = [
        (1, 0, vec![(0x15, 0)], "\\_SB.PCI0.I2C0"),
        (1, 0, vec![(0x1e, 0)], "\\_SB.?A"),
        (1, 0, vec![(0x15, 2)], "name space device 3"),
    ];
    assert_eq!(named(&firmware), expected);
}

#[test]
fn name_space_devices_of_an_ivrs_have_a_unit_a_place_and_a_name() {
    let hid = |id: u8, uid: &[u8]| {
        let mut bytes = vec![0xf0, id, 0, 0x40];
        bytes.extend(b"AMDI0020\0\0\0\0\0\0\0\0");
        bytes.extend(uid);
        bytes
    };
    let text = [&[2, 9][..], b"\\_SB.FUR0"].concat();
    let number = [1, 8, 2, 1, 0, 0, 0, 0, 0, 0];
    let entries = [hid(0xa5, &text), hid(0xa6, &number), hid(0xa7, &[0, 0])].concat();
    let special = [0x48, 0, 0, 0xd7, 0x21, 0xa0, 0, 1];
    let all = [&entries[..], &special].concat();
    let bytes = table(b"IVRS", &[IVRS_FIXED, &ivhd(0x11, &entries), &ivhd(0x40, &all)]);
    let firmware = parse_ivrs(&bytes).unwrap();
    let expected = [
        (0, 0, vec![(0x14, 5)], "AMDI0020 \\_SB.FUR0"),
        (0, 0, vec![(0x14, 6)], "AMDI0020 258"),
        (0, 0, vec![(0x14, 7)], "AMDI0020"),
    ];
    assert_eq!(named(&firmware), expected, "each once; the I/O APIC does no DMA");
}
