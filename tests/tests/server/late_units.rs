//! Units that come when clients have tables already: what bringing them up takes was set aside.

use std::ops::Range;

use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::{MemoryError, Nanos, UnitError};
use iommud::policy::{Mode, UnitIndex};
use iommud::server::Handle;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Layout;
use iommud_tests::stack::{Setup, endpoint};

use super::budgets::scatter;
use super::{Bed, FAMILY, Subject, reach, setup, subjects};

const LATE: UnitIndex = UnitIndex(1);

/// Eight devices, six of them behind the first unit; the second one is not up. Tables have so many MiB.
fn late(tables: u64) -> Setup {
    let mut setup = setup(Mode::Compat);
    setup.functions = (0..8).map(|at| endpoint(1, at, 0)).collect();
    setup.behind_first = setup.functions[..6].iter().map(|f| f.address).collect();
    setup.off = vec![1];
    setup.layout = Layout { tables: (16 << 20, tables << 20), ..setup.layout };
    setup
}

/// Three clients take all the tables that they may have, a mapping of each in turn.
fn crowd(stack: &mut Bed) -> Vec<Handle> {
    let devices: Vec<_> = stack.setup.behind_first[..3].to_vec();
    let sessions: Vec<Handle> =
        (1..).zip(devices).map(|(client, device)| stack.claim(client, device).unwrap()).collect();
    for session in &sessions {
        stack.attach(*session).unwrap();
        scatter(stack, *session, u64::MAX);
    }
    sessions
}

fn state(stack: &mut Bed) -> String {
    let status = stack.text("status");
    status.lines().find(|line| line.starts_with("unit 1")).unwrap().to_string()
}

fn enabled() -> String {
    format!("unit 1: {FAMILY} enabled")
}

/// The last devices are under policy again, as soon as their unit is up.
fn assert_confined(stack: &Bed) {
    let device = stack.setup.functions[7].address;
    assert_eq!(reach(stack, device), super::compat(stack));
}

/// Whether the late unit is to be tried at one of these seconds.
fn is_due(stack: &mut Bed, mut seconds: Range<u64>) -> bool {
    seconds.any(|at| stack.server.recover_units(Nanos(at * 1_000_000_000)) == Some(LATE))
}

fn arrives(subject: &Subject, prepare: impl Fn(&mut Bed)) {
    println!("subject: {}", subject.name());
    let mut stack = Bed::start(&[subject.clone(), subject.clone()], late(6));
    prepare(&mut stack);
    assert_eq!(stack.arrive(subject, 1), Ok(()));
    assert_eq!(state(&mut stack), enabled());
    assert_confined(&stack);
    stack.machine.assert_clean();
}

#[test]
fn a_unit_that_comes_late_finds_its_memory_whatever_clients_have() {
    for subject in subjects() {
        arrives(&subject, |stack| drop(crowd(stack)));
    }
}

/// The tables of the client in the middle are all that is free: no long run lies between the others.
#[test]
fn a_unit_that_comes_late_finds_its_memory_between_gaps() {
    for subject in subjects() {
        arrives(&subject, |stack| {
            let sessions = crowd(stack);
            stack.server.close(sessions[1]);
        });
    }
}

/// A unit that is dead at start and at each try loses nothing of what is kept for it.
#[test]
fn tries_in_vain_cost_nothing() {
    for subject in subjects() {
        arrives(&subject, |stack| {
            stack.server.unit_not_arrived(LATE, &UnitError::Dead);
            let used = stack.metric("table_frames");
            for second in 0..1000 {
                let due = stack.server.recover_units(Nanos(second * 1_000_000_000));
                if due == Some(LATE) {
                    stack.server.unit_not_arrived(LATE, &UnitError::Dead);
                }
            }
            assert_eq!(stack.metric("table_frames"), used);
            crowd(stack);
        });
    }
}

/// With too little memory for both units the one that is up has it. The other one is not tried in vain, and comes when
/// there is more: then its memory is set aside before clients get any.
#[test]
fn what_is_not_there_at_start_is_set_aside_when_more_memory_comes() {
    const MORE: (u64, u64) = (40 << 20, 2 << 20);
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = late(3);
        setup.config.default = Mode::Strict;
        let mut stack = Bed::start(&[subject.clone(), subject.clone()], setup);
        // VT-d units need a few frames, which there are.
        assert_eq!(stack.metric("table_frames_reserved") > 0, FAMILY == "vt-d");
        stack.server.unit_not_arrived(LATE, &UnitError::Memory(MemoryError::Exhausted));
        let used = stack.metric("table_frames");
        assert_eq!(is_due(&mut stack, 0..1000), FAMILY == "vt-d");
        assert_eq!(stack.metric("table_frames"), used);
        let range = PhysRange::new(PhysAddr(MORE.0), MORE.1).unwrap();
        let added = stack.server.add_tables(range, (), |tables, ()| tables.add(MORE));
        assert_eq!(added, Ok(()));
        assert!(stack.metric("table_frames_reserved") > 0);
        crowd(&mut stack);
        assert!(is_due(&mut stack, 1000..3000), "not tried again");
        assert_eq!(stack.arrive(&subject, 1), Ok(()));
        assert_eq!(state(&mut stack), enabled());
        assert_eq!(stack.metric("table_frames_reserved"), 0);
        stack.machine.assert_clean();
    }
}
