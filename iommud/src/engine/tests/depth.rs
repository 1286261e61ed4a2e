//! Tables that grow deeper, and every failure of this.

use super::*;

/// A table that becomes two levels deeper for a page beyond its reach.
fn deepening() -> Orders {
    let far = 1 << 50;
    Orders::of(&[
        Step::Grow { domain: OLD, from: 4, levels: 6 },
        Step::Deepen { unit: UNIT, source: SOURCE, domain: OLD, from: 4 },
        Step::InvalidateEntry { unit: UNIT, source: SOURCE, was: Binding::Domain(OLD) },
        map(OLD, far, 0x1000),
        publish(UNIT, OLD, far, 0x1000),
        invalidate(OTHER, OLD, 0x4000_0000, 0x1000),
    ])
}

fn entry_of(engine: &Engine<FakeUnit>) -> Entry {
    let pages = &engine.tables[0].as_ref().unwrap().pages;
    Entry::Translate { tag: DomainTag(2), root: pages.root(), levels: pages.levels() }
}

#[test]
fn an_entry_follows_its_table_and_never_denies() {
    let mut engine = machine();
    let before = entry_of(&engine);
    unit(&mut engine, 0).written.clear();
    assert!(engine.complete(&deepening(), &mut Buffers::default()).is_ok());
    let after = entry_of(&engine);
    assert!(matches!(after, Entry::Translate { levels: 6, .. }) && before != after);
    assert_eq!(unit(&mut engine, 0).written, [after]);
    let pages = &engine.tables[0].as_ref().unwrap().pages;
    for iova in [0x20_0000, 0x8000_0000, 1 << 50] {
        assert_eq!(pages.lookup(&engine.memory, Iova(iova)), Some((PhysAddr(iova), ALL)));
    }
}

#[test]
fn a_table_that_cannot_become_deeper_is_as_before_at_every_allocation() {
    let mut refused = 0;
    for budget in 0.. {
        let mut engine = machine();
        let (before, entry) = (engine.memory.snapshot(), entry_of(&engine));
        engine.memory.budget = budget;
        match engine.complete(&deepening(), &mut Buffers::default()) {
            Ok(()) => break,
            Err(failure) => {
                refused += 1;
                assert!(failure.lost.is_empty() && !failure.unproved, "{failure:?}");
                assert_eq!((engine.memory.snapshot(), entry_of(&engine)), (before, entry));
                assert_eq!(unit(&mut engine, 0).entries[&SOURCE.0], entry);
                assert_eq!(engine.tables[0].as_ref().unwrap().frames, 5, "a root and four tables");
            }
        }
    }
    assert_eq!(refused, 6, "two roots, and four tables down to the page");
}

/// The entry is restored, in one store, before the new roots are freed.
#[test]
fn a_deeper_table_is_undone_when_another_unit_stops() {
    let mut engine = machine();
    let (before, entry) = (engine.memory.snapshot(), entry_of(&engine));
    unit(&mut engine, 1).budget = 0;
    unit(&mut engine, 0).written.clear();
    let failure = engine.complete(&deepening(), &mut Buffers::default()).unwrap_err();
    assert_eq!((failure.step, &failure.lost[..]), (5, &[OTHER][..]));
    assert_eq!(entry_of(&engine).levels(), 4);
    assert_eq!(unit(&mut engine, 0).entries[&SOURCE.0], entry);
    let written = unit(&mut engine, 0).written.clone();
    assert_eq!(written.len(), 2);
    assert!(written.iter().all(|entry| matches!(entry, Entry::Translate { .. })));
    // The mapped tables are kept: the other unit may walk them.
    for (frame, content) in &before {
        assert_eq!(engine.memory.snapshot().get(frame), Some(content));
    }
}

/// A unit that does not confirm the invalidation of a new root may walk it. The root stays, and translates the same.
#[test]
fn a_root_that_a_unit_may_walk_is_not_freed() {
    for budget in 0..2 {
        let mut engine = machine();
        let entry = entry_of(&engine);
        unit(&mut engine, 0).budget = budget;
        let failure = engine.complete(&deepening(), &mut Buffers::default()).unwrap_err();
        assert_eq!((&failure.lost[..], failure.unproved), (&[UNIT][..], true));
        assert_eq!(unit(&mut engine, 0).entries[&SOURCE.0], entry, "the old root again");
        assert_eq!(entry_of(&engine).levels(), 6, "{budget}: freed what it may walk");
        let pages = &engine.tables[0].as_ref().unwrap().pages;
        assert_eq!(
            pages.lookup(&engine.memory, Iova(0x8000_0000)),
            Some((PhysAddr(0x8000_0000), ALL))
        );
        assert_eq!(pages.lookup(&engine.memory, Iova(1 << 50)), None);
    }
}

impl Entry {
    fn levels(self) -> u8 {
        match self {
            Self::Translate { levels, .. } => levels,
            _ => 0,
        }
    }
}
