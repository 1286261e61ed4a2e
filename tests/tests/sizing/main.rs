//! Memory that fits the machine: what is taken at start without a word on the command line brings every unit up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod fleet;

use fleet::Fleet;
use iommud_tests::conformance::{amdvi, vtd};
use iommud_tests::vtd::Config;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Two device tables of 2 MiB do not leave room for anything else in 4 MiB.
#[test]
fn two_amd_units_come_up() {
    let subject = amdvi::matrix().remove(0);
    let mut fleet = Fleet::new(vec![subject.clone(), subject], &[(0, 2 * GIB)]).start();
    assert_eq!(fleet.states(), ["enabled", "enabled"]);
}

/// 64 GiB without superpages take 33,000 tables of pages, shared by all units.
#[test]
fn eight_units_without_superpages_come_up() {
    let config = Config {
        large_2m: false,
        large_1g: false,
        levels: vec![3, 4],
        guest_width: 48,
        host_width: 46,
        domain_bits: 8,
        ..Config::default()
    };
    let subject = vtd::Subject { name: "8 units of 2011", config };
    let ram = [(0, 3 * GIB), (4 * GIB, 61 * GIB)];
    let mut fleet = Fleet::new(vec![subject; 8], &ram).start();
    assert_eq!(fleet.states(), ["enabled"; 8]);
}
