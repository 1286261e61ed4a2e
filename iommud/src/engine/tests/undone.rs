//! What is proved after steps were undone, over units that refuse or do not answer, and what is kept until it is.

use super::super::Fault;
use super::*;

/// A requester whose entry was never written.
const SECOND: RequesterId = RequesterId(0x28);

/// A failure that is no fault of a unit.
const fn fault() -> Fault {
    Fault { unit: None, error: UnitError::Memory(MemoryError::Exhausted) }
}

/// A step that fails, and leaves every unit reliable.
const NOTHING: Step = Step::Enable { unit: UnitIndex(9) };

/// An entry cannot be written; the unit stays reliable.
const REFUSED: UnitError = UnitError::Unsupported { what: "test" };

/// Undoes the change of an entry from one binding to another. Returns whether the reach of the requester is unproved,
/// and whether the unit is lost. The unit refuses to write, or does not answer.
fn undone((from, to): (Binding, Binding), refuses: bool, answers: bool) -> (bool, bool) {
    let mut engine = machine();
    let written = engine.entry(to).ok().unwrap();
    let unit = unit(&mut engine, 0);
    unit.entries.insert(SOURCE.0, written);
    unit.refuses = refuses.then_some(REFUSED);
    unit.budget = if answers { usize::MAX } else { 0 };
    let failure = engine.undo(&[set(from, to)], 1, fault());
    assert_eq!((failure.step, failure.unit), (1, None));
    (failure.unproved, !failure.lost.is_empty())
}

/// Only an entry that was opened leaves a reach that must be proved gone.
#[test]
fn an_entry_is_proved_closed_when_it_was_written_and_invalidated() {
    let (old, closed) = (Binding::Domain(OLD), Binding::Blocked);
    for (refuses, answers) in [(false, true), (true, true), (false, false), (true, false)] {
        let sure = !refuses && answers;
        assert_eq!(undone((closed, old), refuses, answers), (!sure, !answers), "opened");
        for change in [(old, closed), (old, old), (closed, closed)] {
            assert_eq!(undone(change, refuses, answers), (false, !answers), "{change:?}");
        }
    }
}

/// The unit refuses to take the entry back, so it may walk the new table: its root is kept, although what was mapped
/// below it was undone and invalidated.
#[test]
fn a_table_that_an_entry_may_lead_to_is_kept_until_no_unit_walks_it() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    let (from, to) = (Binding::Blocked, Binding::Domain(NEW));
    let steps = [
        create(NEW, 3),
        map(NEW, 0x1000, 0x3000),
        Step::SetEntry { unit: UNIT, source: SECOND, from, to },
    ];
    assert!(engine.complete(&Orders::of(&steps), &mut Buffers::default()).is_ok());
    unit(&mut engine, 0).refuses = Some(REFUSED);
    let failure = engine.undo(&steps, 3, fault());
    assert!(failure.unproved && failure.lost.is_empty(), "{failure:?}");
    assert_eq!(engine.memory.frames_in_use(), before.len() + 1);
    let mut run = |step| {
        assert!(engine.complete(&Orders::of(&[step]), &mut Buffers::default()).is_ok(), "{step:?}");
        engine.memory.snapshot()
    };
    // No unit is known to walk it, so it is not enough that one was revived.
    assert_eq!(run(Step::Revive { unit: UNIT }).len(), before.len() + 1);
    assert_eq!(run(Step::ReleaseAbandoned), before);
}

/// The same for a unit that does not answer: what it may walk is freed when it was revived.
#[test]
fn tables_that_a_lost_unit_may_walk_are_freed_when_it_is_revived() {
    for last in [Step::Revive { unit: UNIT }, Step::ReleaseAbandoned] {
        let mut engine = machine();
        let before = engine.memory.frames_in_use();
        unit(&mut engine, 0).budget = 1;
        let failure = engine.complete(&moving(), &mut Buffers::default()).unwrap_err();
        assert_eq!((&failure.lost[..], failure.unproved), (&[UNIT][..], true));
        let kept = engine.memory.frames_in_use();
        assert!(kept > before);
        unit(&mut engine, 0).budget = usize::MAX;
        let mut run = |step| {
            assert!(engine.complete(&Orders::of(&[step]), &mut Buffers::default()).is_ok());
            engine.memory.frames_in_use()
        };
        assert_eq!(run(Step::Revive { unit: OTHER }), kept, "another unit");
        assert_eq!(run(last), before);
    }
}

/// A unit is told that the word of the entry is as before, unless it is lost: it would only take time.
#[test]
fn a_suppression_that_is_undone_is_invalidated_in_a_unit_that_answers() {
    let was = Binding::Domain(OLD);
    let suppress = Step::SuppressFaults { unit: UNIT, source: SOURCE, silent: true, was };
    let invalidate = Step::InvalidateEntry { unit: UNIT, source: SOURCE, was };
    for (budget, last) in [(usize::MAX, NOTHING), (0, invalidate)] {
        let mut engine = machine();
        unit(&mut engine, 0).budget = budget;
        let plan = Orders::of(&[suppress, last]);
        let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
        assert_eq!((failure.step, failure.unproved), (1, false));
        assert!(unit(&mut engine, 0).silent.is_empty());
        assert_eq!(unit(&mut engine, 0).forgotten, [SOURCE], "once");
    }
}

/// Every unit has invalidated the superpage, so the table of the split is freed at once.
#[test]
fn a_split_that_is_undone_is_freed_when_every_unit_answers() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    let plan = Orders::of(&[unmap(OLD, 0x21_0000, 0x1000), NOTHING]);
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
    assert_eq!(engine.memory.snapshot(), before);
    assert_eq!(engine.tables[0].as_ref().unwrap().frames, before.len());
    for index in 0..2 {
        let superpage = range(0x20_0000, 0x20_0000);
        assert_eq!(unit(&mut engine, index).invalidated, [superpage]);
    }
}

/// An unmap that split nothing is undone by new entries only: no unit has to invalidate anything.
#[test]
fn an_unmap_that_is_undone_is_invalidated_nowhere() {
    let mut engine = machine();
    let plan = Orders::of(&[unmap(OLD, 0x8000_0000, 0x1000), NOTHING]);
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
    assert!((0..2).all(|index| unit(&mut engine, index).invalidated.is_empty()));
}

/// A unit without an entry of the domain is not asked, whatever has become of it: a dead one would keep tables of a
/// client that it never served.
#[test]
fn a_unit_that_never_had_an_entry_keeps_no_table() {
    const THIRD: UnitIndex = UnitIndex(2);
    let mut engine = machine();
    engine.install(THIRD, FakeUnit::new(0));
    let before = engine.memory.snapshot();
    let plan = Orders::of(&[map(OLD, 0x9000_0000, 0x1000), NOTHING]);
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
    assert_eq!(engine.memory.snapshot(), before);
    assert_eq!(engine.tables[0].as_ref().unwrap().frames, before.len());
}

/// The unit is asked until its last entry has left, and the plan with it.
#[test]
fn a_unit_is_asked_until_its_entry_has_left() {
    let mut engine = machine();
    let entry = |from, to| Step::SetEntry { unit: OTHER, source: SOURCE, from, to };
    let (closed, old) = (Binding::Blocked, Binding::Domain(OLD));
    let probe = Orders::of(&[map(OLD, 0x9000_0000, 0x1000), NOTHING]);
    let asked = |engine: &mut Engine<FakeUnit>| {
        unit(engine, 1).invalidated.clear();
        engine.complete(&probe, &mut Buffers::default()).unwrap_err();
        !unit(engine, 1).invalidated.is_empty()
    };
    // A plan that fails moves no entry for good.
    assert!(
        engine
            .complete(&Orders::of(&[entry(old, closed), NOTHING]), &mut Buffers::default())
            .is_err()
    );
    assert!(asked(&mut engine));
    let other = Orders::of(&[map(OLD, 0xa000_0000, 0x1000)]);
    assert!(engine.complete(&other, &mut Buffers::default()).is_ok());
    assert!(asked(&mut engine), "nor does a later plan that succeeds");
    assert!(engine.complete(&Orders::of(&[entry(old, closed)]), &mut Buffers::default()).is_ok());
    assert!(!asked(&mut engine));
    assert!(
        engine
            .complete(&Orders::of(&[entry(closed, old), NOTHING]), &mut Buffers::default())
            .is_err()
    );
    assert!(!asked(&mut engine), "the entry was taken back, and the unit has confirmed it");
}

/// What a lost unit kept of a domain that has ended is charged to no later one of the same number.
#[test]
fn frames_that_were_kept_are_not_those_of_a_later_domain() {
    let mut engine = machine();
    unit(&mut engine, 0).budget = 0;
    let plan = Orders::of(&[map(OLD, 0x9000_0000, 0x1000), NOTHING]);
    assert!(engine.complete(&plan, &mut Buffers::default()).is_err());
    unit(&mut engine, 0).budget = usize::MAX;
    for plan in [&[Step::DestroyTable { domain: OLD }][..], &[create(OLD, 7)]] {
        assert!(engine.complete(&Orders::of(plan), &mut Buffers::default()).is_ok());
    }
    let kept = engine.memory.frames_in_use();
    let revived = Orders::of(&[Step::Revive { unit: UNIT }]);
    assert!(engine.complete(&revived, &mut Buffers::default()).is_ok());
    assert_eq!(engine.memory.frames_in_use(), kept - 1, "the table of the page");
    assert_eq!(engine.tables[0].as_ref().unwrap().frames, 1);
}

/// What a lost unit kept is no client's any more when it is freed: its table has the frames that it has.
#[test]
fn frames_that_were_kept_are_charged_until_they_are_freed() {
    let mut engine = machine();
    let frames = |engine: &Engine<FakeUnit>| {
        let table = engine.tables[0].as_ref().unwrap();
        (table.frames, engine.memory.frames_in_use())
    };
    let before = frames(&engine);
    unit(&mut engine, 0).budget = 0;
    let plan = Orders::of(&[map(OLD, 0x9000_0000, 0x1000), NOTHING]);
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert_eq!((&failure.lost[..], failure.unproved), (&[UNIT][..], true));
    let kept = frames(&engine);
    assert!(kept.0 > before.0 && kept.1 > before.1, "{kept:?}");
    unit(&mut engine, 0).budget = usize::MAX;
    let revived = Orders::of(&[Step::Revive { unit: UNIT }]);
    assert!(engine.complete(&revived, &mut Buffers::default()).is_ok());
    assert_eq!(frames(&engine), before);
}

/// A unit that refuses an entry does not walk the table that it was to lead to. One that dies over it may.
#[test]
fn a_table_is_kept_for_an_entry_that_may_have_been_written() {
    for (error, kept) in [(REFUSED, 0), (UnitError::Dead, 1)] {
        let mut engine = machine();
        let before = engine.memory.frames_in_use();
        unit(&mut engine, 0).refuses = Some(error);
        let (from, to) = (Binding::Blocked, Binding::Domain(NEW));
        let entry = Step::SetEntry { unit: UNIT, source: SECOND, from, to };
        let plan = Orders::of(&[create(NEW, 3), entry]);
        let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
        assert_eq!((failure.step, failure.lost.len()), (1, kept), "{error:?}");
        assert_eq!(engine.memory.frames_in_use(), before + kept, "{error:?}");
    }
}
