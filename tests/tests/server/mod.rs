//! Requirements for the whole server over the units of any vendor, through the scheme's calls. They cover the story
//! of the demo in miniature, bad input, and lives and deaths of clients. Compiled once for each vendor;
//! `crate::vendor` names the units.

mod activity;
mod budgets;
mod depth;
mod earlier_memory;
mod endings;
mod facts;
mod failures;
mod growth;
mod input;
mod large_pages;
mod late_units;
mod lives;
mod lost_units;
mod named;
mod narrowing;
mod policies;
mod promises;
mod quotas;
mod ranges;
mod recovery;
mod released;
mod rescan;
mod rescan_driven;
mod restarts;
mod room;
mod story;
mod tags;
mod texts;
pub(crate) mod units;
mod virtuals;
mod waiting;

use iommu_protocol::ids::PciAddress;
use iommud::policy::{Config as Policy, Mode};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Layout, Reach, Through};
use iommud_tests::stack::{Setup, Stack, endpoint};

pub(crate) use crate::vendor::{Subject, absent_page, matrix, pair, subjects};

/// The server's name for the vendor's units.
pub(crate) const FAMILY: &str = <Subject as UnderTest>::FAMILY;

/// A stack over the vendor's units.
pub(crate) type Bed = Stack<Subject>;

/// The functions of the machine: three alone in their groups, and one device with two functions.
pub(crate) fn devices() -> [PciAddress; 5] {
    [(3, 0), (4, 0), (5, 0), (6, 0), (6, 1)]
        .map(|(device, function)| PciAddress::new(0, 0, device, function).unwrap())
}

pub(crate) fn setup(mode: Mode) -> Setup {
    let mut functions = vec![endpoint(0, 3, 0), endpoint(0, 4, 0), endpoint(0, 5, 0)];
    for function in [0, 1] {
        let mut pair = endpoint(0, 6, function);
        pair.multifunction = true;
        functions.push(pair);
    }
    let config = Policy { default: mode, ..Policy::default() };
    // Memory is small, so that a unit without large pages does not dominate the test's time.
    let layout = Layout {
        ram: vec![(0, 96 << 20)],
        tables: (16 << 20, 8 << 20),
        buffers: (64 << 20, 32 << 20),
        ..Layout::default()
    };
    Setup { config, functions, layout, ..Setup::default() }
}

pub(crate) fn start(mode: Mode) -> Bed {
    Bed::start(&[matrix().remove(0)], setup(mode))
}

/// Runs a test over the subjects.
pub(crate) fn each(mode: Mode, test: impl Fn(&mut Bed)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut stack = Bed::start(&[subject], setup(mode));
        test(&mut stack);
        stack.machine.assert_clean();
    }
}

/// Returns a device's reach, whatever its unit has cached.
pub(crate) fn reach(stack: &Bed, device: PciAddress) -> Vec<Reach> {
    let unit = stack.unit_of(device);
    let source = device.requester.0;
    let all = stack.machine.reach(unit, source, Through::TablesAndCaches);
    assert_eq!(stack.machine.reach(unit, source, Through::Tables), all, "stale caches");
    all
}

/// Returns the grants of `compat`: every address from 0 to the end of memory, at least to 4 GiB, one to one. It
/// leaves out the server's own memory, the registers of units and the interrupt window.
pub(crate) fn compat(stack: &Bed) -> Vec<Reach> {
    let layout = &stack.setup.layout;
    let mut own = vec![layout.tables, (0xfee0_0000, 0x10_0000)];
    if !stack.setup.take_memory {
        own.push(layout.buffers);
    }
    own.extend(stack.registers());
    own.sort_unstable();
    let end = layout.ram.iter().map(|(start, length)| start + length).max().unwrap();
    let end = end.max(1 << 32);
    let (mut runs, mut at) = (Vec::new(), 0);
    for (hole, size) in own.into_iter().filter(|(hole, _)| *hole < end) {
        runs.push((at, hole - at));
        at = hole + size;
    }
    runs.push((at, end - at));
    let identity = |(start, length): (u64, u64)| Reach {
        iova: start,
        last: start + length - 1,
        physical: start,
        read: true,
        write: true,
    };
    runs.into_iter().filter(|(_, length)| *length > 0).map(identity).collect()
}
