//! Requests for one unit, memory for units that are not up, and the frames of tables.

use std::string::String;

use super::*;

#[test]
fn a_request_goes_to_the_unit_that_it_names() {
    let mut engine = machine();
    let again = Orders::of(&[set(Binding::Domain(OLD), Binding::Domain(OLD))]);
    assert!(engine.complete(&again, &mut Buffers::default()).is_ok());
    assert_eq!(engine.enable_fault_interrupt(OTHER, 0xfee0_1000, 0x31), Ok(()));
    assert_eq!(unit(&mut engine, 0).interrupt, None);
    assert_eq!(unit(&mut engine, 1).interrupt, Some((0xfee0_1000, 0x31)));
    let nobody = engine.enable_fault_interrupt(UnitIndex(2), 0xfee0_1000, 0x31);
    let what = "interrupt of a unit that is not there";
    assert_eq!(nobody, Err(UnitError::Unsupported { what }));

    let mut words = |unit| {
        let mut out = String::new();
        engine.describe(UnitIndex(unit), &mut out).unwrap();
        out
    };
    assert_eq!([0, 1, 2].map(&mut words), ["2 entries written", "1 entries written", ""]);
}

/// A unit takes two runs, of four frames and of one.
#[test]
fn memory_is_set_aside_once_for_a_unit_that_is_not_up() {
    let mut engine: Engine<FakeUnit> = Engine::new(TestMemory::new());
    let frames =
        |engine: &Engine<FakeUnit>| (engine.frames_set_aside(), engine.memory.frames_in_use());
    assert_eq!(frames(&engine), (0, 0));
    assert!(engine.set_aside(UNIT) && engine.set_aside(UNIT));
    assert_eq!(frames(&engine), (5, 5));
    assert!(engine.set_aside(OTHER));
    assert_eq!(frames(&engine), (10, 10));
    engine.install(UNIT, FakeUnit::new(usize::MAX));
    assert_eq!(frames(&engine), (5, 5));
    assert!(engine.set_aside(UNIT), "it has its memory");
    assert_eq!(frames(&engine), (5, 5));
    engine.memory.budget = 1;
    assert!(!engine.set_aside(UnitIndex(2)), "there is no second run");
    assert_eq!(frames(&engine), (5, 5));
}

/// Frames are charged by table: the root, one table of level 3, two of level 2, and one of pages.
#[test]
fn a_table_counts_the_frames_that_it_has() {
    let frames = |engine: &Engine<FakeUnit>| {
        let count = |table: &super::super::Table<FakeUnit>| table.frames;
        engine.tables.iter().map(|table| table.as_ref().map_or(0, count)).collect::<Vec<_>>()
    };
    let mut engine = machine();
    assert_eq!(frames(&engine), [5]);
    // A second table of pages, and a table whose root has three tables below it.
    let pages: Vec<PhysAddr> = (0..600_u64).map(|n| PhysAddr(n * 0x7000)).collect();
    let many = range(0x8000_1000, 600 * 0x1000);
    let steps = [
        Step::MapList { domain: OLD, range: many, access: ALL },
        create(NEW, 3),
        map(NEW, 0x1000, 0x3000),
    ];
    let plan = Orders::with_pages(&steps, &pages);
    assert!(engine.complete(&plan, &mut Buffers::default()).is_ok());
    assert_eq!(frames(&engine), [6, 4]);
    // A split takes a table. Tables that are unlinked count until they are freed.
    let steps = [
        unmap(OLD, 0x21_0000, 0x1000),
        invalidate(UNIT, OLD, 0x21_0000, 0x1000),
        unmap(NEW, 0x1000, 0x3000),
        invalidate(UNIT, NEW, 0x1000, 0x3000),
    ];
    assert!(engine.complete(&Orders::of(&steps), &mut Buffers::default()).is_ok());
    assert_eq!(frames(&engine), [7, 4]);
    let last = [OLD, NEW].map(|domain| Step::ReleaseTables { domain });
    assert!(engine.complete(&Orders::of(&last), &mut Buffers::default()).is_ok());
    assert_eq!(frames(&engine), [7, 1]);
    assert_eq!(engine.memory.frames_in_use(), 8);
}
