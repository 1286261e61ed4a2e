//! Bring-up: of a fresh unit, of one that translates for somebody else, and of what cannot be driven.

use super::*;

#[test]
fn a_fresh_unit_is_brought_up_in_order() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().capability |= 0x60;
    fake.0.borrow_mut().protected = 0x8000_0001;
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    let expected = [
        W32(0x38, 0x8000_0000),
        W32(0xa0, 0x8000_0000),
        W32(0x22c, 0x8000_0000),
        W32(0x34, 0x7d),
        W32(0x88, 0),
        W64(0x90, QUEUE),
        W32(0x18, 0x0400_0000),
        W32(0x88, 0x10),
        Did([0x0000_0001_0000_0025, STATUS]),
    ];
    assert_eq!(fake.acts(), expected);
    unit.enable(&mut memory).unwrap();
    let expected = [
        W64(0x20, ROOT),
        W32(0x18, 0x4400_0000),
        W32(0x88, 0x40),
        Did([0x11, 0]),
        Did([0xd2, 0]),
        Did([0x0000_0002_0000_0025, STATUS]),
        W32(0x18, 0x8400_0000),
        W32(0x64, 0x0000_0001),
    ];
    assert_eq!(fake.acts(), expected);
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.acts(), []);
}

#[test]
fn a_unit_that_translates_goes_on_translating() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        // TES, RTPS, AFLS, QIES, IRES, IRTPS, CFIS; a queue that is empty; a fault and all error bits.
        state.status = 0xd780_0000;
        state.root = 0x8_8888_8000;
        (state.head, state.tail) = (0x230, 0x230);
        state.records[0] = [0x5000, 0x8000_0005_0000_0008];
        state.fault_status = 0x71;
    }
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    let first = fake.acts();
    assert_eq!(fake.0.borrow().root, 0x8_8888_8000, "the old tables translate");
    assert_eq!(fake.0.borrow().fault_status, 0);
    unit.write_entry(&mut memory, source(0, 1, 0), translate(1)).unwrap();
    unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(7))).unwrap();
    unit.publish_pages(&mut memory, DomainTag(1), pages(0x1000, 1)).unwrap();
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), true).unwrap();
    assert_eq!(fake.acts(), [], "hardware knows none of this yet");
    unit.enable(&mut memory).unwrap();
    let second = fake.acts();
    let commands: Vec<u32> = [first, second.clone()]
        .concat()
        .into_iter()
        .filter_map(|act| if let W32(0x18, value) = act { Some(value) } else { None })
        .collect();
    // EAFL off, QIE off, QIE on, SRTP. TE, IRE and CFI are never touched, one-shot bits never repeated.
    assert_eq!(commands, [0x8680_0000, 0x8280_0000, 0x8680_0000, 0xc680_0000]);
    let wait = Did([0x0000_0002_0000_0025, STATUS]);
    let swap = [W64(0x20, ROOT), W32(0x18, 0xc680_0000), W32(0x88, 0x40)];
    assert_eq!(second, [&swap[..], &[Did([0x11, 0]), Did([0xd2, 0]), wait]].concat());
}

#[test]
fn a_stuck_queue_of_the_previous_owner_is_given_up() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        state.status = 0xc400_0000;
        (state.head, state.tail) = (0x40, 0x90);
        state.stalled = true;
    }
    let result = bring_up(&fake, &mut memory);
    // The fake stays stalled, so our own queue does not run either. The test checks only how the old one was stopped.
    assert_eq!(result.err(), Some(UnitError::Timeout { what: "an invalidation" }));
    let acts = fake.acts();
    let stop = acts.iter().position(|act| *act == W32(0x88, 0x40)).unwrap();
    assert_eq!(acts[stop + 1], W32(0x18, 0x8000_0000));
    assert_eq!(fake.0.borrow().status & 0x8000_0000, 0x8000_0000);
}

#[test]
fn a_bad_descriptor_of_the_previous_owner_is_not_ours() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    {
        let mut state = fake.0.borrow_mut();
        state.status = 0xc400_0000;
        // At its head, a descriptor of the reserved type 0.
        state.queue = memory.allocate_run(1).unwrap().0;
        state.refused = Some(0);
        (state.head, state.tail) = (0x40, 0x90);
        state.fault_status = 0x10;
    }
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    assert_eq!(fake.0.borrow().fault_status, 0);
    unit.enable(&mut memory).unwrap();
}

#[test]
fn what_cannot_be_driven_is_refused_before_it_is_touched() {
    let refused = |change: &dyn Fn(&Fake)| {
        let mut memory = TestMemory::new();
        let fake = Fake::new(memory.bus.clone());
        change(&fake);
        let error = bring_up(&fake, &mut memory).err();
        assert_eq!((fake.acts(), memory.frames_in_use()), (vec![], 0));
        error.unwrap()
    };
    let unsupported = |error| matches!(error, UnitError::Unsupported { .. });
    assert_eq!(refused(&|fake| fake.0.borrow_mut().dead = true), UnitError::Dead);
    assert!(unsupported(refused(&|fake| fake.0.borrow_mut().extended &= !2)));
    assert!(unsupported(refused(&|fake| fake.0.borrow_mut().capability &= !0x0e00)));
    assert!(unsupported(refused(&|fake| {
        fake.0.borrow_mut().status = 0x8000_0000;
        fake.0.borrow_mut().root = 0x8_8888_8400;
    })));
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    fake.0.borrow_mut().status = 0x8000_0000;
    fake.0.borrow_mut().root = 0x8_8888_8400;
    fake.0.borrow_mut().capability |= 1 << 63;
    bring_up(&fake, &mut memory).unwrap();
    assert!(
        !fake.acts().iter().any(|act| matches!(act, Did(_))),
        "narrow descriptors in scalable mode"
    );
}

#[test]
fn commands_that_never_finish_end_with_their_deadline() {
    for (bit, what) in [(26, "the invalidation queue to start"), (30, "the root table to be taken")]
    {
        let mut memory = TestMemory::new();
        let fake = Fake::new(memory.bus.clone());
        fake.0.borrow_mut().stuck = 1 << bit;
        let result = bring_up(&fake, &mut memory).and_then(|mut unit| unit.enable(&mut memory));
        assert_eq!(result, Err(UnitError::Timeout { what }));
        assert_eq!(fake.0.borrow().status >> 31, 0, "translation must not start");
    }
}

#[test]
fn nothing_is_taken_for_forgotten_once_hardware_was_told_of_the_tables() {
    let mut memory = TestMemory::new();
    let fake = Fake::new(memory.bus.clone());
    let mut unit = bring_up(&fake, &mut memory).unwrap();
    fake.0.borrow_mut().stuck = 1 << 31;
    let what = "translation to start";
    assert_eq!(unit.enable(&mut memory), Err(UnitError::Timeout { what }));
    fake.acts();
    unit.invalidate_entry(&mut memory, source(0, 1, 0), Some(DomainTag(5))).unwrap();
    unit.invalidate_pages(&mut memory, DomainTag(5), pages(0x1000, 1), false).unwrap();
    assert_eq!(fake.did().len(), 3);
    fake.0.borrow_mut().stuck = 0;
    unit.enable(&mut memory).unwrap();
    assert_eq!(fake.did(), [[0x11, 0], [0xd2, 0]]);
    assert_eq!(fake.0.borrow().status >> 31, 1);
}
