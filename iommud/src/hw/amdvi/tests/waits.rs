//! Waits for a unit: what is read in them, what is noticed, and how they end.

use super::*;
use crate::hw::Invalidations;

const MILLISECOND: u64 = 1_000_000;

#[test]
fn a_wait_reads_the_status_once_for_64_looks() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().hangs = true;
    let reads = shared.machine.borrow().reads;
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap_err();
    // The clock advances by 0.1 ms for each look, and the deadline is 100 ms: 1002 looks, with 15 reads in between
    // and one at the end.
    let machine = shared.machine.borrow();
    assert_eq!((machine.time, machine.reads - reads), (100 * MILLISECOND, 16));
}

#[test]
fn a_ring_that_stops_is_noticed_long_before_the_deadline() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().stop_after = Some(0);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands, [[domain(5), 0x1000]]);
    assert!(machine.time < 7 * MILLISECOND, "{}", machine.time);
}

#[test]
fn a_ring_that_stops_just_before_the_deadline_is_restarted() {
    let (mut shared, mut unit) = running();
    // The status was last read after 96 ms.
    shared.machine.borrow_mut().hangs = true;
    shared.machine.borrow_mut().stops_at = Some(98 * MILLISECOND);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!(machine.commands, [[domain(5), 0x1000]]);
    assert_eq!(machine.time, 100 * MILLISECOND);
}

#[test]
fn a_ring_that_does_not_start_is_an_error() {
    let what = "command ring to start";
    let timeout = Some(UnitError::Timeout { what });
    // A unit that was off: nothing runs before IommuEn is set.
    let mut shared = Shared::new();
    let mut unit = bring_up(&mut shared).unwrap();
    shared.machine.borrow_mut().never_runs = true;
    assert_eq!(unit.enable(&mut shared).err(), timeout);
    assert_eq!(shared.machine.borrow().time, 100 * MILLISECOND);
    // A unit that was on.
    let mut shared = Shared::new();
    {
        let mut machine = shared.machine.borrow_mut();
        machine.set(CONTROL, 0x1405);
        machine.set(STATUS, 0x18);
        machine.never_runs = true;
    }
    assert_eq!(bring_up(&mut shared).err(), timeout);
    // A ring that stopped while the unit ran.
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().stop_after = Some(0);
    shared.machine.borrow_mut().never_runs = true;
    let error = unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).err();
    assert_eq!(error, timeout);
}

#[test]
fn a_log_that_does_not_start_again_is_an_error() {
    for (base, tail, overflow, what) in [
        (0x10, EVENT_TAIL, 1, "event log to start"),
        (0x38, PPR_TAIL, 0x20, "page request log to start"),
    ] {
        let (mut shared, mut unit) = running();
        {
            let mut machine = shared.machine.borrow_mut();
            machine.log(base, tail, [0x1100_0042_4321_00a8, 0x7000]);
            let status = machine.get(STATUS);
            machine.set(STATUS, status | overflow);
            machine.never_runs = true;
        }
        let error = unit.take_faults(&mut shared, 10, &mut |_| {}).err();
        assert_eq!(error, Some(UnitError::Timeout { what }));
    }
}

/// Turning the unit on was one command and one wait, which was done at once.
#[test]
fn waits_are_counted_by_how_they_end() {
    let (mut shared, mut unit) = running();
    let mut told = Invalidations { commands: 1, at_once: 1, ..Invalidations::default() };
    assert_eq!(unit.invalidations(), told);
    unit.invalidate_entry(&mut shared, SOURCE, Some(DomainTag(5))).unwrap();
    (told.commands, told.at_once) = (3, 3);
    assert_eq!(unit.invalidations(), told, "the entry, and then the domain");

    shared.machine.borrow_mut().hangs = true;
    shared.machine.borrow_mut().answers_at = Some(300_000);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap();
    (told.commands, told.nanos, told.times[4]) = (4, 300_000, 1);
    assert_eq!(unit.invalidations(), told, "0.3 ms is between 0.1 and 1 ms");

    shared.machine.borrow_mut().stop_after = Some(0);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap();
    (told.commands, told.unanswered, told.at_once) = (6, 1, 4);
    assert_eq!(unit.invalidations(), told, "it stopped, and was given the command again");

    shared.machine.borrow_mut().hangs = true;
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), false).unwrap_err();
    (told.commands, told.unanswered) = (7, 2);
    assert_eq!(unit.invalidations(), told);
}
