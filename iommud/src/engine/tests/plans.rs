//! Plans that fail midway: everything is as before, whatever failed.

use super::*;

#[test]
fn without_memory_everything_is_as_before_at_every_allocation() {
    let mut refused = 0;
    for budget in 0.. {
        let mut engine = machine();
        let before = engine.memory.snapshot();
        let entries = unit(&mut engine, 0).entries.clone();
        engine.memory.budget = budget;
        match engine.complete(&moving(), &mut Buffers::default()) {
            Ok(()) => break,
            Err(failure) => {
                refused += 1;
                assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
                assert_eq!(engine.memory.snapshot(), before);
                assert_eq!(unit(&mut engine, 0).entries, entries);
            }
        }
    }
    assert!(refused >= 6, "{refused} allocations were refused");
}

#[test]
fn a_unit_that_stops_answering_reaches_nothing_new_and_nothing_is_freed() {
    for budget in 0..3 {
        let mut engine = machine();
        let frames = engine.memory.frames_in_use();
        unit(&mut engine, 0).budget = budget;
        let failure = engine.complete(&moving(), &mut Buffers::default()).unwrap_err();
        assert_eq!(failure.lost, [UNIT], "{budget}");
        assert!(failure.unproved, "{budget}");
        assert!(engine.memory.frames_in_use() > frames, "{budget}: freed what it may walk");
        let entry = unit(&mut engine, 0).entries[&SOURCE.0];
        let old = Entry::Translate { tag: DomainTag(2), root: engine_root(&engine), levels: 4 };
        assert!(entry == Entry::Blocked || (budget == 0 && entry == old), "{budget}: {entry:?}");
    }
}

fn engine_root(engine: &Engine<FakeUnit>) -> PhysAddr {
    engine.tables[0].as_ref().unwrap().pages.root()
}

#[test]
fn the_other_unit_is_told_and_goes_on() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    let entries = unit(&mut engine, 0).entries.clone();
    unit(&mut engine, 1).budget = 0;
    let failure = engine.complete(&moving(), &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.unit, &failure.lost[..]), (Some(OTHER), &[OTHER][..]));
    assert_eq!(unit(&mut engine, 0).entries, entries);
    for (frame, content) in before {
        assert_eq!(engine.memory.snapshot().get(&frame), Some(&content));
    }
}

#[test]
fn an_unmap_that_fails_is_bit_identical_whichever_unit_fails() {
    for index in 0..2 {
        let mut engine = machine();
        let before = engine.memory.snapshot();
        unit(&mut engine, index).budget = 0;
        let plan = Orders::of(&[
            unmap(OLD, 0x20_0000, 0x20_0000),
            unmap(OLD, 0x8000_0000, 0x1000),
            invalidate(UNIT, OLD, 0x20_0000, 0x7fe0_1000),
            invalidate(OTHER, OLD, 0x20_0000, 0x7fe0_1000),
            Step::ReleaseTables { domain: OLD },
            Step::ReleaseBuffer { buffer: BufferId(7) },
        ]);
        let mut buffers = Buffers::default();
        let failure = engine.complete(&plan, &mut buffers).unwrap_err();
        assert_eq!(failure.step, 2 + index);
        assert!(!failure.unproved);
        assert_eq!(engine.memory.snapshot(), before);
        assert!(buffers.0.is_empty());
    }
}

#[test]
fn tables_and_buffers_are_freed_after_the_invalidation() {
    let mut engine = machine();
    let frames = engine.memory.frames_in_use();
    let plan = Orders::of(&[
        unmap(OLD, 0x8000_0000, 0x1000),
        invalidate(UNIT, OLD, 0x8000_0000, 0x1000),
        Step::ReleaseTables { domain: OLD },
        Step::ReleaseBuffer { buffer: BufferId(7) },
    ]);
    let mut buffers = Buffers::default();
    assert!(engine.complete(&plan, &mut buffers).is_ok());
    assert_eq!(unit(&mut engine, 0).frames_at_invalidation, [frames]);
    assert_eq!(engine.memory.frames_in_use(), frames - 2);
    assert_eq!(buffers.0, [7]);
}

#[test]
fn a_split_that_is_undone_is_bit_identical() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    unit(&mut engine, 1).budget = 0;
    let plan = Orders::of(&[
        unmap(OLD, 0x21_0000, 0x1000),
        invalidate(UNIT, OLD, 0x21_0000, 0x1000),
        invalidate(OTHER, OLD, 0x21_0000, 0x1000),
    ]);
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert!(!failure.unproved);
    // A unit may hold the superpage as one translation, so all of it is invalidated.
    assert_eq!(unit(&mut engine, 0).invalidated[0], range(0x20_0000, 0x20_0000));
    for (frame, content) in &before {
        assert_eq!(engine.memory.snapshot().get(frame), Some(content));
    }
}

#[test]
fn what_does_not_exist_is_an_error_and_changes_nothing() {
    let mut engine = machine();
    let before = engine.memory.snapshot();
    for step in [
        map(DomainId(9), 0x1000, 0x1000),
        map(OLD, 0x20_0000, 0x1000),
        Step::Enable { unit: UnitIndex(9) },
        set(Binding::Blocked, Binding::Domain(DomainId(u32::MAX))),
    ] {
        let failure = engine.complete(&Orders::of(&[step]), &mut Buffers::default()).unwrap_err();
        assert!(failure.lost.is_empty(), "{step:?}");
        assert_eq!(engine.memory.snapshot(), before, "{step:?}");
    }
}

/// Pages of a list across two tables, one of them live.
fn list(budget: usize) -> (Engine<FakeUnit>, Orders) {
    let mut engine = machine();
    unit(&mut engine, 1).budget = budget;
    let pages: Vec<PhysAddr> = (0..600_u64).map(|n| PhysAddr(n * 0x7000)).collect();
    let (first, length) = (0x8000_1000, 600 * 0x1000);
    let steps = [
        Step::MapList { domain: OLD, range: range(first, length), access: ALL },
        publish(UNIT, OLD, first, length),
        publish(OTHER, OLD, first, length),
    ];
    (engine, Orders::with_pages(&steps, &pages))
}

#[test]
fn a_list_is_entered_whole_or_not_at_all() {
    let (mut engine, plan) = list(usize::MAX);
    let before = engine.memory.snapshot();
    assert!(engine.complete(&plan, &mut Buffers::default()).is_ok());
    let table = &engine.tables[OLD.0 as usize].as_ref().unwrap().pages;
    for (number, page) in (0..).zip(plan.pages()) {
        let found = table.lookup(&engine.memory, Iova(0x8000_1000 + number * 0x1000));
        assert_eq!(found, Some((*page, ALL)), "page {number}");
    }
    assert_ne!(engine.memory.snapshot(), before);

    let (mut engine, plan) = list(0);
    let before = engine.memory.snapshot();
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.unproved), (2, true), "the unit may have seen it");
    for (frame, content) in &before {
        assert_eq!(engine.memory.snapshot().get(frame), Some(content));
    }

    let (mut engine, plan) = list(usize::MAX);
    engine.memory.budget = 0;
    let failure = engine.complete(&plan, &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.refusal()), (0, iommu_protocol::Refusal::NoMemory));
    assert_eq!(engine.memory.snapshot(), before);
}

#[test]
fn a_storm_that_cannot_be_told_of_is_reported_as_before() {
    let was = Binding::Domain(OLD);
    let silence = |silent| {
        Orders::of(&[
            Step::SuppressFaults { unit: UNIT, source: SOURCE, silent, was },
            Step::InvalidateEntry { unit: UNIT, source: SOURCE, was },
        ])
    };
    let mut engine = machine();
    let entries = unit(&mut engine, 0).entries.clone();
    unit(&mut engine, 0).budget = 0;
    let failure = engine.complete(&silence(true), &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, failure.unproved), (1, false));
    assert!(unit(&mut engine, 0).silent.is_empty());
    unit(&mut engine, 0).budget = usize::MAX;
    assert!(engine.complete(&silence(true), &mut Buffers::default()).is_ok());
    assert!(unit(&mut engine, 0).silent.contains(&SOURCE.0));
    unit(&mut engine, 0).budget = 0;
    assert!(engine.complete(&silence(false), &mut Buffers::default()).is_err());
    assert!(unit(&mut engine, 0).silent.contains(&SOURCE.0));
    assert_eq!(unit(&mut engine, 0).entries, entries);
}
