//! A unit that failed, or that was reset, is brought back.

use super::*;

/// All of the unit's interrupts are masked, its one record and its error bits are cleared.
const MASKED: [Act; 4] =
    [W32(0x38, 1 << 31), W32(0xa0, 1 << 31), W32(0x22c, 1 << 31), W32(0x34, 0x7d)];

/// The queue is given up at the head 40h, and stopped while TE stays on or off.
fn dropped(command: u32) -> [Act; 3] {
    [W32(0x88, 0x40), W32(0x18, command), W32(0x34, 0x7d)]
}

/// The queue starts at its first descriptor.
fn started(command: u32) -> [Act; 3] {
    [W32(0x88, 0), W64(0x90, QUEUE), W32(0x18, command)]
}

/// Both caches are invalidated, by the third request since bring-up.
const INVALIDATED: [Act; 4] =
    [W32(0x88, 0x30), Did([0x11, 0]), Did([0xd2, 0]), Did([0x0000_0003_0000_0025, STATUS])];

/// Checks what the unit is told when it is revived, with this status and root table register.
fn revived(status: u32, root: u64, expected: &[&[Act]]) -> (Fake, TestMemory, TestUnit) {
    let (fake, mut memory, mut unit) = translating(|_| ());
    assert_eq!((fake.0.borrow().status, fake.0.borrow().root), (0xc400_0000, ROOT));
    {
        let mut state = fake.0.borrow_mut();
        (state.status, state.root) = (status, root);
        if status & 1 << 26 == 0 {
            // A unit whose queue is off is at its start (section 11.4.9.1).
            (state.head, state.tail) = (0, 0);
        }
    }
    unit.revive(&mut memory).unwrap();
    assert_eq!(fake.acts(), expected.concat(), "{status:#x} {root:#x}");
    (fake, memory, unit)
}

fn change_an_entry(memory: &mut TestMemory, unit: &mut TestUnit) {
    unit.write_entry(memory, source(0, 1, 0), translate(7)).unwrap();
    unit.invalidate_entry(memory, source(0, 1, 0), Some(DomainTag(7))).unwrap();
}

#[test]
fn a_unit_that_walks_our_tables_forgets_all_of_them() {
    let expected = [&MASKED[..], &dropped(0x8000_0000), &started(0x8400_0000), &INVALIDATED];
    let (fake, mut memory, mut unit) = revived(0xc400_0000, ROOT, &expected);
    change_an_entry(&mut memory, &mut unit);
    assert_eq!(fake.did(), [[0x0000_0008_0007_0031, 0], [0x0007_00e2, 0]]);
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]], "all steps again");
    // The queue was off: it need not be stopped.
    revived(0xc000_0000, ROOT, &[&MASKED[..], &started(0x8400_0000), &INVALIDATED]);
}

/// After a reset the unit translates nothing, or it walks tables of its firmware. It caches nothing of ours.
#[test]
fn a_unit_that_does_not_walk_our_tables_is_prepared_anew() {
    let other = 0x8_8888_8000;
    let cases: [(u32, u64, &[&[Act]]); 5] = [
        (0, 0, &[&MASKED, &started(0x0400_0000)]),
        (0, ROOT, &[&MASKED, &started(0x0400_0000)]),
        (0x4400_0000, ROOT, &[&MASKED, &dropped(0), &started(0x0400_0000)]),
        (0x4400_0000, other, &[&MASKED, &dropped(0), &started(0x0400_0000)]),
        (0xc400_0000, other, &[&MASKED, &dropped(0x8000_0000), &started(0x8400_0000)]),
    ];
    for (status, root, expected) in cases {
        let (fake, mut memory, mut unit) = revived(status, root, expected);
        change_an_entry(&mut memory, &mut unit);
        assert_eq!(fake.acts(), [], "the unit does not know the tables");
        unit.enable(&mut memory).unwrap();
        assert_eq!(fake.0.borrow().root, ROOT);
        assert_eq!(fake.0.borrow().status >> 31, 1);
        assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]]);
    }
}

#[test]
fn a_write_buffer_is_flushed_before_the_caches_are_invalidated() {
    let (fake, mut memory, mut unit) = translating(|fake| fake.0.borrow_mut().capability |= 0x10);
    unit.revive(&mut memory).unwrap();
    let flush = [W32(0x18, 0x8c00_0000)];
    let expected =
        [&MASKED[..], &dropped(0x8000_0000), &started(0x8400_0000), &flush, &INVALIDATED];
    assert_eq!(fake.acts(), expected.concat());
}

#[test]
fn a_queue_that_stands_still_is_given_up() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().stalled = true;
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false).unwrap_err();
    assert_eq!((fake.0.borrow().head, fake.0.borrow().tail), (0x40, 0x60));
    fake.acts();
    let what = "an invalidation";
    assert_eq!(unit.revive(&mut memory), Err(UnitError::Timeout { what }));
    let doorbell = [W32(0x88, 0x30)];
    let expected = [&MASKED[..], &dropped(0x8000_0000), &started(0x8400_0000), &doorbell].concat();
    assert_eq!(fake.acts(), expected);
}
