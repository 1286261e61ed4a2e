//! Units that are brought back: what they are told, and what they confirm when that fails.

use super::*;

/// Invalidates a page of domain 5. True when the unit has done so, false when it does not answer.
fn confirms(shared: &mut Shared, unit: &mut TestUnit) -> bool {
    shared.machine.borrow_mut().commands.clear();
    let confirmed = unit.invalidate_pages(shared, DomainTag(5), page(1), true).is_ok();
    let done = shared.machine.borrow().commands.contains(&[domain(5), 0x1002]);
    assert!(done || !confirmed, "an invalidation is confirmed that was not done");
    confirmed
}

#[test]
fn a_unit_whose_rings_are_not_replaced_confirms_nothing_that_it_does_not_do() {
    for (stuck, what) in
        [(true, "rings of the previous owner to stop"), (false, "command ring to start")]
    {
        let (mut shared, mut unit) = running();
        unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
        {
            let mut machine = shared.machine.borrow_mut();
            (machine.hangs, machine.logs_hang, machine.never_runs) = (true, stuck, !stuck);
        }
        for _ in 0..2 {
            assert_eq!(unit.revive(&mut shared), Err(UnitError::Timeout { what }));
            let machine = shared.machine.borrow();
            assert_eq!(machine.get(CONTROL) & 1, 1, "the unit translates with our table");
            drop(machine);
            assert!(!confirms(&mut shared, &mut unit), "{what}");
            unit.invalidate_entry(&mut shared, SOURCE, Some(DomainTag(5))).unwrap_err();
        }
        // Entries that are written meanwhile are named when the unit is back.
        unit.write_entry(&mut shared, SOURCE, Entry::Blocked).unwrap();
        {
            let mut machine = shared.machine.borrow_mut();
            (machine.hangs, machine.logs_hang, machine.never_runs) = (false, false, false);
        }
        shared.machine.borrow_mut().commands.clear();
        unit.revive(&mut shared).unwrap();
        assert_eq!(shared.machine.borrow().commands, [device(0xa8), INVALIDATE_ALL], "{what}");
        assert!(confirms(&mut shared, &mut unit));
    }
}

#[test]
fn a_unit_that_is_to_come_back_twice_keeps_what_was_entered() {
    let (mut shared, mut unit) = running();
    unit.revive(&mut shared).unwrap();
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    shared.machine.borrow_mut().never_runs = true;
    unit.revive(&mut shared).unwrap_err();
    unit.write_entry(&mut shared, RequesterId(1), Entry::Blocked).unwrap();
    shared.machine.borrow_mut().never_runs = false;
    shared.machine.borrow_mut().commands.clear();
    unit.revive(&mut shared).unwrap();
    let expected = [device(1), device(0xa8), INVALIDATE_ALL];
    assert_eq!(shared.machine.borrow().commands, expected);
}

/// A unit that lost power caches nothing, and does not walk our table until it is turned on.
#[test]
fn a_unit_that_lost_power_has_nothing_to_forget() {
    let (mut shared, mut unit) = running();
    {
        let mut machine = shared.machine.borrow_mut();
        (0..=0x38).step_by(8).filter(|at| *at != 0x30).for_each(|at| machine.set(at, 0));
        machine.set(STATUS, 0);
    }
    unit.revive(&mut shared).unwrap();
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), true).unwrap();
    assert!(shared.machine.borrow().commands.is_empty());
    unit.enable(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().commands, [INVALIDATE_ALL]);
    assert!(confirms(&mut shared, &mut unit));
}

/// It lost power before it answered a wait, which nobody answers any more.
#[test]
fn a_unit_that_lost_power_over_a_wait_comes_back_at_the_first_try() {
    let (mut shared, mut unit) = running();
    shared.machine.borrow_mut().hangs = true;
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), true).unwrap_err();
    {
        let mut machine = shared.machine.borrow_mut();
        machine.hangs = false;
        (0..=0x38).step_by(8).filter(|at| *at != 0x30).for_each(|at| machine.set(at, 0));
        machine.set(STATUS, 0);
        machine.commands.clear();
    }
    unit.revive(&mut shared).unwrap();
    unit.enable(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().commands, [INVALIDATE_ALL]);
    assert!(confirms(&mut shared, &mut unit));
}

/// Somebody else gave the unit a table while it was failed.
#[test]
fn a_unit_that_reads_another_table_gets_ours_when_it_is_turned_on() {
    let (mut shared, mut unit) = running();
    let ours = shared.machine.borrow().get(0);
    shared.machine.borrow_mut().set(0, 0x1_0000_01ff);
    shared.machine.borrow_mut().never_runs = true;
    unit.revive(&mut shared).unwrap_err();
    assert!(!confirms(&mut shared, &mut unit), "it may still cache what it read in ours");
    shared.machine.borrow_mut().never_runs = false;
    unit.revive(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().get(0), 0x1_0000_01ff);
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), true).unwrap();
    unit.enable(&mut shared).unwrap();
    let machine = shared.machine.borrow();
    assert_eq!((machine.get(0), &machine.commands[..]), (ours, &[INVALIDATE_ALL][..]));
}

#[test]
fn a_unit_that_dies_while_it_comes_back_confirms_nothing() {
    let (mut shared, mut unit) = running();
    let ours = shared.machine.borrow().get(0);
    shared.machine.borrow_mut().set(0, u64::MAX);
    assert_eq!(unit.revive(&mut shared), Err(UnitError::Dead));
    shared.machine.borrow_mut().hangs = true;
    assert!(!confirms(&mut shared, &mut unit));
    // All of its registers read all ones.
    let (mut shared, mut unit) = running();
    let control = shared.machine.borrow().get(CONTROL);
    shared.machine.borrow_mut().set(CONTROL, u64::MAX);
    shared.machine.borrow_mut().hangs = true;
    assert_eq!(unit.revive(&mut shared), Err(UnitError::Dead));
    assert!(!confirms(&mut shared, &mut unit));
    // It answers again.
    shared.machine.borrow_mut().set(CONTROL, control);
    shared.machine.borrow_mut().hangs = false;
    unit.revive(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().get(0), ours);
    assert!(confirms(&mut shared, &mut unit));
}

/// Somebody else turned it on with our table, before the server did: it may cache what is there.
#[test]
fn a_unit_that_was_turned_on_with_our_table_forgets_everything() {
    let mut shared = Shared::new();
    let mut unit = bring_up(&mut shared).unwrap();
    unit.write_entry(&mut shared, SOURCE, translate(5, 0x1234_5000)).unwrap();
    let control = shared.machine.borrow().get(CONTROL);
    shared.machine.borrow_mut().set(CONTROL, control | 1);
    unit.revive(&mut shared).unwrap();
    assert_eq!(shared.machine.borrow().commands, [device(0xa8), INVALIDATE_ALL]);
    assert!(confirms(&mut shared, &mut unit));
}

/// The unit translates for its previous owner and never read our table. It has nothing to confirm.
#[test]
fn a_unit_that_never_had_our_table_has_nothing_to_forget() {
    let mut shared = Shared::new();
    shared.machine.borrow_mut().set(CONTROL, 0x1405);
    shared.machine.borrow_mut().set(STATUS, 0x18);
    shared.machine.borrow_mut().set(0, 0x1_0000_01ff);
    let mut unit = bring_up(&mut shared).unwrap();
    shared.machine.borrow_mut().never_runs = true;
    let what = "command ring to start";
    assert_eq!(unit.revive(&mut shared), Err(UnitError::Timeout { what }));
    unit.invalidate_pages(&mut shared, DomainTag(5), page(1), true).unwrap();
    assert!(shared.machine.borrow().commands.is_empty());
}
