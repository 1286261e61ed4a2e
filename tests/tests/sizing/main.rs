//! Memory sized for the machine: the amount taken at start without command-line options brings every unit up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod fleet;
mod random;

use fleet::Fleet;
use iommud_tests::conformance::{UnderTest, amdvi, vtd};
use iommud_tests::machine::Machine;
use iommud_tests::vtd::Config;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The fixed default amount, used before the server sized memory by the machine.
const FIXED: u64 = 4 * MIB;

/// A unit of 2011: no large leaves.
fn old() -> vtd::Subject {
    let config = Config {
        large_2m: false,
        large_1g: false,
        levels: vec![3, 4],
        guest_width: 48,
        host_width: 46,
        domain_bits: 8,
        ..Config::default()
    };
    vtd::Subject { name: "2011", config }
}

fn amd() -> amdvi::Subject {
    amdvi::matrix().remove(0)
}

/// Two device tables of 2 MiB leave no room in 4 MiB. The log and `status` report a sufficient amount.
#[test]
fn two_amd_units_come_up() {
    let fleet = Fleet::new(vec![amd(), amd()], &[(0, 2 * GIB)]);
    assert_eq!(fleet.start().states(), ["enabled", "enabled"]);
    let mut short = fleet.start_with(&fleet.need(), FIXED);
    // 547 frames of its own, 5 for the domain of `compat` (sizing/tests.rs); 32 MiB of buffers, 4 functions.
    let reason = "failed(needs 2,208 KiB for tables; --tables 10 would do)";
    assert_eq!(short.states(), ["enabled", reason]);
}

/// 64 GiB without superpages take 33,280 tables of pages, shared by all units.
#[test]
fn eight_units_without_superpages_come_up() {
    let ram = [(0, 3 * GIB), (4 * GIB, 61 * GIB)];
    let fleet = Fleet::new(vec![old(); 8], &ram);
    let mut running = fleet.start();
    assert_eq!(running.states(), ["enabled"; 8]);
    // No device maps the server's own 204 MiB: 102 tables fewer, one for each 2 MiB.
    let used = running.frames();
    assert!((33_280 - 102..33_500).contains(&used), "{used}");
    let mut short = fleet.start_with(&fleet.need(), FIXED);
    let reason = "failed(needs 133,404 KiB for tables; --tables 140 would do)";
    assert_eq!(short.states(), [reason; 8]);
}

/// The survey of a unit predicts the properties and the frames of its bring-up.
fn a_look_tells<T: UnderTest>(subjects: Vec<T>) {
    for subject in subjects {
        let machine = Machine::default();
        let unit = subject.add(&machine);
        let survey = subject.survey(&machine, unit).unwrap();
        let mut tables = machine.tables();
        let running = subject.bring_up(&machine, unit, &mut tables).unwrap();
        let mut found = iommud::hw::Unit::capabilities(&running);
        if !survey.coherence_known {
            found.coherent = false;
        }
        assert_eq!(survey.capabilities, found, "{}", subject.name());
        assert_eq!(machine.table_frames(), survey.runs.iter().sum::<usize>(), "{}", subject.name());
    }
}

#[test]
fn a_look_at_a_unit_tells_what_bring_up_finds() {
    a_look_tells(vtd::matrix());
    a_look_tells(amdvi::matrix());
}
