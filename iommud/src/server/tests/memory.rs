//! Memory of tables: promises, lack, what is kept for units, and what is added.

use super::*;
use crate::hw::{MemoryError, Nanos, UnitError};
use crate::policy::UnitIndex;
use crate::topology::firmware::UnitDefect;

const SECOND: u64 = 1_000_000_000;

/// Each group that may be claimed is promised 16 frames, at start and whenever groups change.
#[test]
fn every_group_is_promised_its_share() {
    let (mut server, _) = one();
    assert_eq!(metric(&mut server, "table_frames_promised"), 32);
    server.function_arrived(endpoint(address(0, 9))).unwrap();
    assert_eq!(metric(&mut server, "table_frames_promised"), 48);
    for device in [9, 4] {
        server.function_gone(address(0, device));
    }
    assert_eq!(metric(&mut server, "table_frames_promised"), 16);
}

/// The group of a device that is gone while its session is open falls apart with the session.
#[test]
fn the_end_of_a_session_changes_the_promises() {
    let (mut server, _) = one();
    let session = claim(&mut server, address(0, 3));
    server.function_gone(address(0, 3));
    // The domain of the session has one frame of its promise, its root.
    assert_eq!(metric(&mut server, "table_frames_promised"), 15 + 16);
    server.close(session);
    assert_eq!(metric(&mut server, "table_frames_promised"), 16);
}

/// 256 frames beyond the 32 that are promised are enough.
#[test]
fn tables_are_short_with_less_than_256_frames() {
    let (mut server, _) = one();
    for (frames, lacks) in [(32 + 256, false), (32 + 255, true), (32 + 257, false)] {
        server.table_memory().budget = frames;
        assert_eq!(server.lacks_tables(), lacks, "{frames}");
    }
}

#[test]
fn memory_that_is_added_is_added_up() {
    let (mut server, _) = one();
    assert_eq!(server.add_tables(range(0x2000_0000, 0x20_0000), (), |_, ()| ()), Ok(()));
    assert_eq!(metric(&mut server, "memory_added_bytes"), 0x20_0000);
    assert_eq!(server.add_tables(range(0x3000_0000, 0x1000), (), |_, ()| ()), Ok(()));
    assert_eq!(metric(&mut server, "memory_added_bytes"), 0x20_1000);
    assert_eq!(server.budget().table_frames_total, 513);
    assert_eq!(server.add_buffers(range(0x3800_0000, 0x40_0000), (), |_, ()| ()), Ok(()));
    assert_eq!(metric(&mut server, "memory_added_bytes"), 0x60_1000);
}

/// A unit takes five frames when it comes up. They are kept for those that may come: one that is off, one that was dead,
/// one that found no memory. None are kept for one that is up, one that lacks a capability, or one that firmware
/// describes badly.
#[test]
fn memory_is_kept_for_each_unit_that_may_come() {
    let failed = |error| UnitStart::Failed(error);
    let defect = UnitDefect::BadAddress { address: 0 };
    let kept = |units: Vec<UnitStart<FakeUnit>>| {
        let mut startup = machine(units);
        for (unit, start) in startup.firmware.units.iter_mut().zip(&startup.units) {
            if matches!(start, UnitStart::Unusable(_)) {
                unit.registers = Err(defect);
            }
        }
        metric(&mut Tested::start(startup), "table_frames_reserved")
    };
    let unsupported = UnitError::Unsupported { what: "a page table" };
    assert_eq!(kept(vec![UnitStart::Ready(FakeUnit::default())]), 0);
    assert_eq!(kept(vec![UnitStart::Off]), 5);
    assert_eq!(kept(vec![failed(UnitError::Dead)]), 5);
    assert_eq!(kept(vec![failed(UnitError::Memory(MemoryError::Exhausted))]), 5);
    assert_eq!(kept(vec![failed(unsupported)]), 0);
    assert_eq!(kept(vec![UnitStart::Unusable(defect)]), 0);
    assert_eq!(kept(vec![UnitStart::Off, failed(unsupported), UnitStart::Off]), 10);
}

/// A unit that found no memory is tried when there is some, and not before.
#[test]
fn a_unit_without_memory_comes_when_there_is_some() {
    let mut startup = machine([UnitStart::Failed(UnitError::Memory(MemoryError::Exhausted))]);
    startup.memory.budget = 1;
    let mut server = Tested::start(startup);
    let due = |server: &mut Tested, mut seconds: core::ops::Range<u64>| {
        seconds.find_map(|at| Some((at, server.recover_units(Nanos(at * SECOND))?)))
    };
    assert_eq!(due(&mut server, 0..500), None);
    assert_eq!(metric(&mut server, "table_frames_reserved"), 0);
    let more = |memory: &mut TestMemory, ()| memory.budget += 512;
    assert_eq!(server.add_tables(range(0x2000_0000, 0x20_0000), (), more), Ok(()));
    assert_eq!(metric(&mut server, "table_frames_reserved"), 5);
    assert_eq!(due(&mut server, 500..600), Some((501, UnitIndex(0))));
}
