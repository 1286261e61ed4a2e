//! Compares groups on a machine with many bridges with the groups of a Linux kernel on the same machine. The input is
//! its captured configuration space (tests/data/pci/README.md).
//!
//! Exactly one place differs: see [`SWITCH`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::collections::{BTreeMap, BTreeSet};

use iommu_protocol::ids::PciAddress;
use iommud::topology::groups::partition;
use iommud::topology::pci::{ConfigSpace, PciFunction};
use iommud::topology::table::FunctionTable;
use iommud::topology::walk::{Roots, walk};

const CAPTURED: &str = include_str!("../data/pci/qemu-bridges.txt");

/// Extended capability id of ACS, and the offset of the word with its control register (PCI Express Base 6.0 section
/// 7.7.11).
const ACS: u32 = 0x000d;

/// The downstream ports of a switch without ACS. The kernel makes one group of each port and the devices behind it.
/// But devices behind different ports reach each other inside the switch, where no unit is. For iommud all of them
/// form one group.
const SWITCH: [&str; 2] = ["0000:06:00.0", "0000:06:01.0"];

/// Captured configuration space.
#[derive(Clone, Default)]
struct Captured(BTreeMap<PciAddress, (u16, BTreeMap<u16, u32>)>);

impl ConfigSpace for Captured {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        match self.0.get(&address) {
            Some((length, words)) if offset < *length => words.get(&offset).copied().unwrap_or(0),
            _ => u32::MAX,
        }
    }
}

fn address(name: &str) -> PciAddress {
    name.replace(':', "--").parse().unwrap()
}

fn captured() -> Captured {
    let mut all = Captured::default();
    for line in CAPTURED.lines().filter_map(|line| line.strip_prefix("config ")) {
        let mut parts = line.split(' ');
        let (name, length) = (parts.next().unwrap(), parts.next().unwrap());
        let word = |part: &str| {
            let (offset, value) = part.split_once(':').unwrap();
            (u16::from_str_radix(offset, 16).unwrap(), u32::from_str_radix(value, 16).unwrap())
        };
        all.0.insert(address(name), (length.parse().unwrap(), parts.map(word).collect()));
    }
    all
}

fn kernels() -> BTreeSet<Vec<PciAddress>> {
    let groups = CAPTURED.lines().filter_map(|line| line.strip_prefix("group "));
    groups
        .map(|line| {
            let mut group: Vec<_> = line.split(' ').map(address).collect();
            group.sort_unstable();
            group
        })
        .collect()
}

/// Returns the kernel's groups, with those of the ports of [`SWITCH`] merged.
fn expected() -> BTreeSet<Vec<PciAddress>> {
    let ports = SWITCH.map(address);
    let of_switch = |group: &Vec<PciAddress>| group.iter().any(|member| ports.contains(member));
    let (merged, mut groups): (BTreeSet<_>, BTreeSet<_>) =
        kernels().into_iter().partition(of_switch);
    assert_eq!(merged.len(), SWITCH.len(), "the kernel keeps them apart");
    let mut one: Vec<_> = merged.into_iter().flatten().collect();
    one.sort_unstable();
    assert_eq!(one.len(), 4, "two ports, a device behind each");
    groups.insert(one);
    groups
}

fn functions(config: &mut Captured) -> Vec<PciFunction> {
    let buses: BTreeSet<_> = config.0.keys().map(|at| (at.segment, at.requester.bus())).collect();
    let roots: Vec<_> = buses.into_iter().collect();
    walk(config, Roots::Known(&roots))
}

fn groups(functions: impl IntoIterator<Item = PciFunction>) -> BTreeSet<Vec<PciAddress>> {
    let mut table = FunctionTable::default();
    for function in functions {
        table.insert(function);
    }
    partition(&table).into_iter().collect()
}

#[test]
fn the_partition_is_the_kernels_but_for_one_switch() {
    let mut config = captured();
    let found = functions(&mut config);
    assert_eq!(found.len(), config.0.len());
    assert!(found.len() >= 30, "the machine has {} functions", found.len());
    assert_eq!(groups(found), expected());
}

#[test]
fn the_order_of_discovery_does_not_matter() {
    let mut found = functions(&mut captured());
    found.reverse();
    assert_eq!(groups(found.clone()), expected());
    let half = found.len() / 2;
    found.rotate_left(half);
    assert_eq!(groups(found), expected());
}

/// The captured kernel had enabled ACS controls. Without them ports do not isolate, so groups may grow but never
/// shrink.
#[test]
fn without_acs_controls_groups_only_grow() {
    let mut config = captured();
    let mut cleared = 0;
    for (length, words) in config.0.values_mut() {
        let mut at = if *length > 0x100 { 0x100 } else { 0 };
        while at != 0 {
            let header = words.get(&at).copied().unwrap_or(0);
            if header & 0xffff == ACS {
                *words.get_mut(&(at + 4)).unwrap() &= 0xffff;
                cleared += 1;
            }
            at = u16::try_from(header >> 20).unwrap();
        }
    }
    assert!(cleared >= 5, "{cleared} ports with ACS");
    let grown = groups(functions(&mut config));
    assert!(grown.len() < kernels().len());
    for group in kernels() {
        let whole = |larger: &Vec<PciAddress>| group.iter().all(|member| larger.contains(member));
        assert_eq!(grown.iter().filter(|larger| whole(larger)).count(), 1, "{group:?}");
    }
}
