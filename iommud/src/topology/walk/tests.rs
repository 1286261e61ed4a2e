//! Checks the functions that a walk finds in given words of configuration space.

mod lost;
mod peers;

use super::look::kind;
use super::*;
use crate::topology::pci::{Buses, FunctionKind};
use crate::topology::testing::address;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

/// Configuration space from words written down by hand.
#[derive(Default)]
struct Fake {
    words: BTreeMap<(PciAddress, u16), u32>,
    chipset: BTreeMap<u64, u32>,
    reads: usize,
}

impl ConfigSpace for Fake {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096);
        self.reads += 1;
        let present = self.words.contains_key(&(address, 0));
        self.words.get(&(address, offset)).copied().unwrap_or(if present { 0 } else { u32::MAX })
    }

    fn chipset(&mut self, address: u64) -> Option<u32> {
        self.chipset.get(&address).copied()
    }
}

impl Fake {
    fn put(&mut self, at: PciAddress, words: &[(u16, u32)]) {
        self.words.extend(words.iter().map(|(offset, word)| ((at, *offset), *word)));
    }
}

const ROOT: Roots<'_> = Roots::Known(&[(0, 0)]);

// Words that QEMU 7.2 (q35, after SeaBIOS) shows with the monitor's `xp` in the window at 0xb0000000: edu, a
// conventional endpoint; pcie-root-port, with PCI Express at 0x54 and ACS at 0x148, not enabled.
fn edu(config: &mut Fake, at: PciAddress) {
    config.put(
        at,
        &[(0, 0x11e8_1234), (4, 0x0010_0103), (8, 0x00ff_0010), (0x34, 0x40), (0x40, 0x0080_0005)],
    );
}

fn root_port(config: &mut Fake, at: PciAddress, secondary: u32, control: u32) {
    config.put(
        at,
        &[
            (0, 0x000c_1b36),
            (4, 0x0010_0103),
            (8, 0x0604_0000),
            (0x0c, 0x0001_0000),
            (0x18, secondary << 16 | secondary << 8),
            (0x34, 0x54),
            (0x54, 0x0142_4810),
            (0x100, 0x1482_0001),
            (0x148, 0x0001_000d),
            (0x14c, control << 16 | 0x005f),
        ],
    );
}

#[test]
fn a_conventional_endpoint_is_read_exactly() {
    let mut config = Fake::default();
    edu(&mut config, address(0, 4, 0));
    let found = walk(&mut config, ROOT);
    assert_eq!(
        found,
        [PciFunction {
            address: address(0, 4, 0),
            vendor: 0x1234,
            device: 0x11e8,
            class: 0x00_ff00,
            kind: FunctionKind::Conventional,
            multifunction: false,
            acs: None,
            acs_capability: 0,
            hot_plug: false,
        }]
    );
    assert_eq!(config.reads, 31 + 6, "one read for what is absent, 6 for the device");
}

#[test]
fn what_is_behind_a_port_is_found_after_it() {
    let mut config = Fake::default();
    root_port(&mut config, address(0, 1, 0), 5, 0x1d);
    edu(&mut config, address(5, 0, 0));
    let found = walk(&mut config, ROOT);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].kind, FunctionKind::RootPort(Buses { secondary: 5, subordinate: 5 }));
    assert_eq!((found[0].acs, found[0].acs_capability), (Some(0x1d), 0x5f));
    assert_eq!(found[1].address, address(5, 0, 0));
}

#[test]
fn functions_beyond_0_are_looked_for_only_where_function_0_says_so() {
    let mut config = Fake::default();
    for number in [0, 2, 7] {
        edu(&mut config, address(0, 31, number));
        edu(&mut config, address(0, 30, number));
    }
    config.put(address(0, 31, 0), &[(0x0c, 0x0080_0000)]);
    edu(&mut config, address(0, 29, 3));
    let found: Vec<_> = walk(&mut config, ROOT).into_iter().collect();
    let seen: Vec<_> = found.iter().map(|f| (f.address, f.multifunction)).collect();
    let expected = [(30, 0, false), (31, 0, true), (31, 2, true), (31, 7, true)]
        .map(|(device, number, multi)| (address(0, device, number), multi));
    assert_eq!(seen, expected);
}

#[test]
fn every_bus_or_only_the_named_ones() {
    let mut config = Fake::default();
    edu(&mut config, address(0x40, 0, 0));
    assert_eq!(walk(&mut config, ROOT), []);
    assert_eq!(walk(&mut config, Roots::Known(&[(0, 0), (0, 0x40)])).len(), 1);
    config.reads = 0;
    assert_eq!(walk(&mut config, Roots::All(&[0])).len(), 1);
    assert_eq!(config.reads, 256 * 32 + 5);
}

#[test]
fn bridges_in_a_circle_and_twice_the_same_bus_are_walked_once() {
    let mut config = Fake::default();
    root_port(&mut config, address(0, 1, 0), 1, 0);
    root_port(&mut config, address(0, 2, 0), 1, 0);
    root_port(&mut config, address(1, 0, 0), 0, 0);
    root_port(&mut config, address(1, 1, 0), 1, 0);
    assert_eq!(walk(&mut config, Roots::All(&[0])).len(), 4);
}

#[test]
fn capability_chains_in_a_circle_end() {
    let mut config = Fake::default();
    let at = address(0, 1, 0);
    root_port(&mut config, at, 1, 0);
    config.put(at, &[(0x54, 0x0142_5405), (0x148, 0x1481_0003)]);
    let found = walk(&mut config, ROOT);
    assert!(matches!(found[0].kind, FunctionKind::ConventionalBridge(_)));
    config.put(at, &[(0x54, 0x0142_0010)]);
    assert_eq!(walk(&mut config, ROOT)[0].acs, None);
    assert!(config.reads < 400);
}

#[test]
fn contradictions_are_read_as_what_isolates_least() {
    assert_eq!(kind(Some(4), None), FunctionKind::Conventional);
    let buses = Buses { secondary: 1, subordinate: 1 };
    assert_eq!(kind(Some(0), Some(buses)), FunctionKind::ConventionalBridge(buses));
    assert_eq!(kind(Some(15), None), FunctionKind::Conventional);
}

#[test]
fn reads_stay_below_13_a_function_on_a_full_machine() {
    let mut config = Fake::default();
    for device in 0..8 {
        root_port(&mut config, address(0, device, 0), u32::from(device) * 8 + 1, 0x1d);
        for below in 0..32 {
            let at = address(device * 8 + 1, below, 0);
            edu(&mut config, at);
            config.put(at, &[(0x34, 0x40), (0x40, 0x0080_5005), (0x50, 0x0002_0010)]);
        }
    }
    let found = walk(&mut config, ROOT).len();
    assert_eq!(found, 8 + 256);
    assert!(config.reads <= 13 * found, "{} reads", config.reads);
}

struct Noise(u64, u32);

impl ConfigSpace for Noise {
    fn read(&mut self, _: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096);
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = u32::try_from(self.0 >> 32).unwrap();
        if word % 16 < self.1 { word } else { u32::MAX }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_content_is_survived(seed: u64, density in 0_u32..=2) {
        let found = walk(&mut Noise(seed, density), ROOT);
        prop_assert!(found.len() <= 65536);
    }
}
