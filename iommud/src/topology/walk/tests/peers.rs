//! Functions above 7, virtual functions, and isolation that registers do not show.

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::topology::groups::{is_isolating, partition};
use crate::topology::table::FunctionTable;

/// A root port with a slot, as QEMU shows it: Slot Implemented, Hot-Plug Capable; version 2 of the capability.
fn slot(config: &mut Fake, at: PciAddress, secondary: u32, forwards_ari: bool) {
    root_port(config, at, secondary, 0x1d);
    let control = if forwards_ari { 1 << 5 } else { 0 };
    config.put(at, &[(0x68, 0x0002_0060), (0x7c, control)]);
}

/// An endpoint with PCI Express at 0x40 and these extended capabilities.
fn express(config: &mut Fake, at: PciAddress, identity: u32, extended: &[(u16, u32)]) {
    config.put(at, &[(0, identity), (4, 0x0010_0006), (8, 0x0200_0000), (0x34, 0x40)]);
    config.put(at, &[(0x40, 0x0002_0010)]);
    config.put(at, extended);
}

#[test]
fn a_slot_where_devices_come_and_go_is_told() {
    let mut config = Fake::default();
    slot(&mut config, address(0, 1, 0), 1, false);
    root_port(&mut config, address(0, 2, 0), 2, 0);
    slot(&mut config, address(0, 3, 0), 3, false);
    config.put(address(0, 3, 0), &[(0x68, 0x0002_0020)]);
    let found: Vec<_> = walk(&mut config, ROOT).iter().map(|f| f.hot_plug).collect();
    assert_eq!(found, [true, false, false]);
}

// PCI Express Base 6.0 section 7.8.8.2: bits 15:8 of the word at offset 4 are the next function number.
fn ari(next: u32) -> [(u16, u32); 2] {
    [(0x100, 0x0001_000e), (0x104, next << 8)]
}

#[test]
fn functions_above_7_are_found_behind_a_port_that_forwards_them() {
    let mut config = Fake::default();
    slot(&mut config, address(0, 1, 0), 1, true);
    for (at, next) in [((0, 0), 1), ((0, 1), 0x0d), ((1, 5), 0xf8), ((31, 0), 0)] {
        express(&mut config, address(1, at.0, at.1), 0x0001_1af4, &ari(next));
    }
    // No function names this one. On a bus of several devices it would be one of those.
    edu(&mut config, address(1, 2, 0));
    let found = walk(&mut config, ROOT);
    let seen: Vec<_> = found.iter().map(|f| (f.address, f.multifunction)).collect();
    let expected = [(0, 0), (0, 1), (1, 5), (31, 0)].map(|at| (address(1, at.0, at.1), true));
    assert_eq!(seen[1..], expected);

    config.put(address(0, 1, 0), &[(0x7c, 0)]);
    let found = walk(&mut config, ROOT);
    assert_eq!(found.iter().filter(|f| f.address == address(1, 1, 5)).count(), 0);
}

#[test]
fn a_chain_of_functions_that_does_not_ascend_ends() {
    let mut config = Fake::default();
    slot(&mut config, address(0, 1, 0), 1, true);
    express(&mut config, address(1, 0, 0), 0x0001_1af4, &ari(9));
    express(&mut config, address(1, 1, 1), 0x0001_1af4, &ari(9));
    assert_eq!(walk(&mut config, ROOT).len(), 3);
    config.put(address(1, 1, 1), &ari(1));
    assert_eq!(walk(&mut config, ROOT).len(), 3);
    config.put(address(1, 0, 0), &ari(8));
    assert_eq!(walk(&mut config, ROOT).len(), 2, "function 8 does not answer");
}

#[test]
fn a_device_without_ari_behind_a_port_that_forwards_it_is_walked_as_ever() {
    let mut config = Fake::default();
    slot(&mut config, address(0, 1, 0), 1, true);
    for number in [0, 3] {
        express(&mut config, address(1, 0, number), 0x0001_1af4, &[]);
    }
    config.put(address(1, 0, 0), &[(0x0c, 0x0080_0000)]);
    let found: Vec<_> = walk(&mut config, ROOT).iter().map(|f| f.address).collect();
    assert_eq!(found[1..], [address(1, 0, 0), address(1, 0, 3)]);
}

/// Registers of an SR-IOV capability at 0x160 (PCI Express Base 6.0 section 9.3.3): VF Enable, 8 that can be, a number
/// that is, first offset and stride, device id. An 82576 has offset 0x180 and stride 2 (datasheet 9.6.4).
fn sr_iov(enabled: u32, number: u32, offset: u32, stride: u32) -> [(u16, u32); 7] {
    [
        (0x100, 0x1601_0001),
        (0x160, 0x0001_0010),
        (0x168, enabled),
        (0x16c, 0x0008_0008),
        (0x170, number),
        (0x174, stride << 16 | offset),
        (0x178, 0x10ca_0000),
    ]
}

/// A root port in front of buses 1 to 3, and a controller with virtual functions.
fn with_virtuals(registers: &[(u16, u32)]) -> (Fake, PciAddress) {
    let mut config = Fake::default();
    root_port(&mut config, address(0, 1, 0), 1, 0x1d);
    config.put(address(0, 1, 0), &[(0x18, 0x0003_0100)]);
    express(&mut config, address(1, 0, 0), 0x10c9_8086, registers);
    (config, address(1, 0, 0))
}

fn ids(found: &[PciFunction]) -> Vec<u16> {
    found.iter().map(|function| function.address.requester.0).collect()
}

#[test]
fn virtual_functions_are_found_where_registers_put_them() {
    let (mut config, physical) = with_virtuals(&sr_iov(1, 3, 0x180, 2));
    let found = walk(&mut config, ROOT);
    assert_eq!(ids(&found), [0x0008, 0x0100, 0x0280, 0x0282, 0x0284]);
    let expected = PciFunction {
        address: address(2, 0x10, 0),
        vendor: 0x8086,
        device: 0x10ca,
        class: 0x02_0000,
        kind: FunctionKind::Endpoint,
        multifunction: true,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    };
    assert_eq!(found[2], expected);
    assert!(found[1].multifunction && found[1].address == physical);
}

#[test]
fn a_virtual_function_is_apart_when_it_has_acs() {
    // Not an 82576, whose physical functions are known to be apart.
    let (mut config, physical) = with_virtuals(&sr_iov(1, 3, 0x180, 2));
    config.put(physical, &[(0, 0x0010_1b36)]);
    let apart = |config: &mut Fake| {
        let mut table = FunctionTable::default();
        for function in walk(config, ROOT) {
            table.insert(function);
        }
        partition(&table)
    };
    assert_eq!(apart(&mut config)[1].len(), 4, "the physical function and three virtual ones");
    config.put(address(2, 0x10, 2), &[(0, u32::MAX), (0x100, 0x0001_000d), (0x104, 0x001d_001d)]);
    let groups = apart(&mut config);
    assert_eq!(groups[1].len(), 3);
    assert_eq!(groups[2], [address(2, 0x10, 2)]);
}

#[test]
fn virtual_functions_that_are_not_enabled_are_not_there_but_may_come() {
    let (mut config, _) = with_virtuals(&sr_iov(0, 3, 0x180, 2));
    let found = walk(&mut config, ROOT);
    assert_eq!(ids(&found), [0x0008, 0x0100]);
    assert!(found[1].multifunction, "they would be its peers");
    let (mut config, _) = with_virtuals(&sr_iov(1, 500, 0x180, 2));
    assert_eq!(walk(&mut config, ROOT).len(), 2 + 8, "no more than can be");
}

#[test]
fn a_device_does_not_put_virtual_functions_on_ids_of_others() {
    // Beyond the buses of its port, on its own id, past the highest id, on another function's id, twice on one id.
    for (offset, stride, there) in
        [(0x2fe, 2, 1), (0, 1, 0), (0xfe00, 0x200, 0), (8, 8, 2), (0x180, 0, 1)]
    {
        let (mut config, _) = with_virtuals(&sr_iov(1, 4, offset, stride));
        edu(&mut config, address(1, 3, 0));
        assert_eq!(walk(&mut config, ROOT).len(), 3 + there, "{offset:#x} {stride:#x}");
    }
    // Behind another bridge.
    let (mut config, _) = with_virtuals(&sr_iov(1, 4, 0x100, 1));
    root_port(&mut config, address(1, 4, 0), 2, 0);
    assert_eq!(walk(&mut config, ROOT).len(), 3);
}

/// No bridge states which buses are a root complex endpoint's own. It cannot fill all that have no bridge.
#[test]
fn without_a_bridge_virtual_functions_are_on_the_bus_of_the_physical_one() {
    for (offset, stride, there) in [(1, 1, 4), (0xd6, 1, 2), (0x100, 1, 0)] {
        let mut config = Fake::default();
        express(&mut config, address(0, 5, 0), 0x10c9_8086, &sr_iov(1, 4, offset, stride));
        let found = walk(&mut config, ROOT);
        assert_eq!(found.len(), 1 + there, "{offset:#x}");
        assert!(found.iter().all(|function| function.address.requester.bus() == 0));
    }
}

/// A root port of a Lynx Point-LP chipset: no ACS capability.
fn pch(config: &mut Fake, number_check: u32, peers: u32, decode: u32) {
    let port = address(0, 0x1c, 0);
    root_port(config, port, 1, 0);
    config.put(port, &[(0, 0x9c10_8086), (0x100, 0), (0xd8, number_check << 26)]);
    edu(config, address(0, 0x1f, 0));
    config.put(address(0, 0x1f, 0), &[(0xf0, 0xfed1_c001)]);
    config.chipset.extend([(0xfed1_d104, peers), (0xfed1_d014, decode)]);
}

#[test]
fn older_root_ports_isolate_when_registers_of_the_chipset_say_so() {
    for (number_check, peers, decode, isolates) in [
        (1, 0x300, 0x3f, true),
        (1, 0x100, 0, true),
        (1, 0x100, 1, false),
        (0, 0x300, 0, false),
        (1, 0xffff_ffff, 0, false),
    ] {
        let mut config = Fake::default();
        pch(&mut config, number_check, peers, decode);
        let found = walk(&mut config, ROOT);
        assert_eq!(is_isolating(&found[0]), isolates, "{peers:#x}");
    }
    let mut config = Fake::default();
    pch(&mut config, 1, 0x300, 0);
    config.put(address(0, 0x1f, 0), &[(0xf0, 0xfed1_c000)]);
    assert_eq!(walk(&mut config, ROOT)[0].acs, None, "the address is not enabled");
    config.put(address(0, 0x1f, 0), &[(0xf0, 0xfed1_c001)]);
    config.chipset.clear();
    assert_eq!(walk(&mut config, ROOT)[0].acs, None, "nobody can read them");
}

#[test]
fn the_control_register_of_sunrise_point_is_a_double_word_further_on() {
    // Intel 100 series datasheet volume 2, 12.1.46 and 12.1.47: capability at 144h, control at 148h.
    let mut config = Fake::default();
    let port = address(0, 0x1c, 0);
    root_port(&mut config, port, 1, 0);
    config.put(port, &[(0, 0xa110_8086), (0x100, 0x1401_0001), (0x140, 0x0001_000d)]);
    config.put(port, &[(0x144, 0x0000_000f), (0x148, 0x0000_000f)]);
    let found = walk(&mut config, ROOT);
    assert_eq!((found[0].acs, found[0].acs_capability), (Some(0x0f), 0x0f));
    config.put(port, &[(0x148, 0)]);
    assert_eq!(walk(&mut config, ROOT)[0].acs, Some(0));
}

/// 00:14 of a Comet Lake-U laptop: ids as `lspci -nn` prints them there (8086:02ed, 02ef, 02f0), places of capabilities
/// as `lspci -v` prints them of this chipset family. Only the Wi-Fi has a PCI Express capability: Root Complex
/// Integrated Endpoint, without ACS; its extended capabilities begin with an empty one at 100h.
#[test]
fn wi_fi_and_usb_of_a_laptop_are_apart() {
    let mut config = Fake::default();
    let (usb, memory, wi_fi) = (address(0, 20, 0), address(0, 20, 2), address(0, 20, 3));
    config.put(usb, &[(0, 0x02ed_8086), (4, 0x0290_0406), (8, 0x0c03_3000), (0x0c, 0x0080_0000)]);
    config.put(usb, &[(0x34, 0x70), (0x70, 0xc1c2_8001), (0x80, 0x0086_9005), (0x90, 0x0014_0009)]);
    config.put(memory, &[(0, 0x02ef_8086), (4, 0x0010_0000), (8, 0x0500_0000), (0x34, 0x80)]);
    config.put(memory, &[(0x80, 0x0003_0001)]);
    config.put(wi_fi, &[(0, 0x02f0_8086), (4, 0x0010_0406), (8, 0x0280_0000), (0x0c, 0x0080_0000)]);
    config.put(wi_fi, &[(0x34, 0xc8), (0xc8, 0xc823_d001), (0xd0, 0x0080_4005)]);
    config.put(wi_fi, &[(0x40, 0x0092_8010), (0x80, 0x800f_0011)]);
    config.put(wi_fi, &[(0x100, 0x14c0_0000), (0x14c, 0x1641_0018), (0x164, 0x0001_000b)]);
    let found = walk(&mut config, ROOT);
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].kind, FunctionKind::RootComplexEndpoint);
    let mut table = FunctionTable::default();
    for function in found {
        table.insert(function);
    }
    let groups = partition(&table);
    assert_eq!(groups, [vec![usb, memory], vec![wi_fi]]);
}
