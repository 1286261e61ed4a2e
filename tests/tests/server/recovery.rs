//! Failed units that are revived, on the server's own attempt or on an administrator's request, and the memory that
//! is returned then.

use std::collections::BTreeSet;

use iommu_protocol::Refusal;
use iommud::hw::Nanos;
use iommud::policy::{ClientId, Mode, UnitIndex};
use iommud::server::{Caller, FIRST_PAUSE, Handle, LONGEST_PAUSE, Opened};

use super::units::two;
use super::{Bed, FAMILY, compat, devices, pair, reach, setup, start};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Reach, Trouble, Watch};

const SECOND: u64 = FIRST_PAUSE.0;

fn state(stack: &mut Bed) -> String {
    let status = stack.text("status");
    status.lines().find(|line| line.starts_with("unit 0")).unwrap().to_string()
}

fn is_up(stack: &mut Bed) -> bool {
    state(stack) == format!("unit 0: {FAMILY} enabled")
}

/// Stalls the queue of the first unit and lets a request detect it.
pub(super) fn stall(stack: &mut Bed, session: Handle) {
    stack.machine.set_relax(10_000_000);
    stack.machine.trouble(0, Trouble::StallQueueAfter(0));
    assert_eq!(stack.detach(session), Err(Refusal::UnitFailed));
    assert!(!is_up(stack));
}

pub(super) fn heal(stack: &Bed) {
    stack.machine.trouble(0, Trouble::None);
    stack.machine.set_relax(1_000);
}

/// Lets time pass from second `from` to second `to`, and recovers units each second, as a platform does. Translation
/// of the first unit stays on.
pub(super) fn pass(stack: &mut Bed, from: u64, to: u64) {
    for second in from..=to {
        assert_eq!(stack.server.recover_units(Nanos(second * SECOND)), None);
        assert!(stack.machine.translates(0), "off at {second} s");
    }
}

/// Claims and attaches the first device, and allocates a buffer. Returns session, address and slot of the buffer.
pub(super) fn drive(stack: &mut Bed, client: u32) -> (Handle, u64, u32) {
    let session = stack.claim(client, devices()[0]).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x4000).unwrap();
    stack.device_write(devices()[0], buffer.iova, &[1]).unwrap();
    (session, buffer.iova, buffer.slot)
}

/// The physical pages of a buffer.
fn pages(stack: &mut Bed, client: u32, session: Handle, slot: u32) -> BTreeSet<u64> {
    let segments = stack.share(client, session, slot).unwrap().segments;
    segments.iter().flat_map(|s| (s.first().0..=s.last().0).step_by(0x1000)).collect()
}

#[test]
fn a_unit_that_failed_comes_back_and_clients_elsewhere_notice_nothing() {
    for mode in [Mode::Strict, Mode::Compat] {
        let mut stack = two(mode);
        let [device, other, ..] = devices();
        let (session, iova, _) = drive(&mut stack, 1);
        let elsewhere = stack.claim(2, other).unwrap();
        stack.attach(elsewhere).unwrap();
        let theirs = stack.allocate(elsewhere, 0x4000).unwrap();
        let share = stack.share(2, elsewhere, theirs.slot).unwrap();
        stack.machine.watch(Watch {
            unit: 1,
            source: other.requester.0,
            iova: theirs.iova,
            write: true,
            granted: share.segments.iter().map(|s| (s.first().0, s.length())).collect(),
            must_pass: true,
        });
        let untouched = (reach(&stack, other), stack.machine.table_content(1));
        stall(&mut stack, session);
        pass(&mut stack, 0, 0);
        heal(&stack);
        assert!(!is_up(&mut stack), "not before its time");
        pass(&mut stack, 1, 1);
        assert!(is_up(&mut stack), "{}", state(&mut stack));
        assert_eq!((reach(&stack, other), stack.machine.table_content(1)), untouched);
        assert_eq!(stack.metric("units_recovered"), 1);
        // Nothing has shown that the device is quiet.
        assert_eq!(reach(&stack, device), []);
        assert!(stack.device_write(device, iova, &[1]).is_err());
        assert_eq!(stack.attach(session), Err(Refusal::UnitFailed), "its domain is lost");
        stack.server.close(session);
        let (session, ..) = drive(&mut stack, 1);
        stack.give_back(session);
        let policy = if mode == Mode::Compat { compat(&stack) } else { Vec::<Reach>::new() };
        assert_eq!(reach(&stack, device), policy);
        stack.machine.assert_clean();
    }
}

/// Translation of a unit does not come on, at start and at every try. What was built for it is given back before it is
/// built again, so that it comes up when it can.
#[test]
fn a_unit_that_stays_off_takes_no_more_memory_with_each_try() {
    for subject in super::subjects() {
        println!("subject: {}", subject.name());
        let mut fresh = Bed::start(std::slice::from_ref(&subject), setup(Mode::Compat));
        let frames = fresh.metric("table_frames");
        let mut stack = Bed::start_prepared(&[subject], setup(Mode::Compat), |machine| {
            machine.set_relax(10_000_000);
            machine.trouble(0, Trouble::StaysOff);
        });
        assert!(!is_up(&mut stack) && !stack.machine.translates(0));
        let mut taken = Vec::new();
        for second in 0..20 {
            assert_eq!(stack.server.recover_units(Nanos(second * SECOND)), None);
            taken.push(stack.metric("table_frames"));
        }
        assert!(taken.iter().all(|now| *now <= frames), "{taken:?}, fresh {frames}");
        heal(&stack);
        assert_eq!(stack.server.recover_units(Nanos(10 * LONGEST_PAUSE.0)), None);
        assert!(is_up(&mut stack), "{}", state(&mut stack));
        assert_eq!(stack.metric("table_frames"), frames);
        assert_eq!(reach(&stack, devices()[0]), compat(&stack));
        stack.machine.assert_clean();
    }
}

#[test]
fn pauses_grow_and_go_on_growing_when_it_fails_again() {
    let mut stack = two(Mode::Strict);
    let (session, ..) = drive(&mut stack, 1);
    let tries = |stack: &mut Bed| {
        let text = stack.text("units/0");
        let line = text.lines().find_map(|line| line.strip_prefix("brought up again: "));
        line.map_or(0, |line| line.strip_suffix(" times").unwrap().parse::<u32>().unwrap())
    };
    stall(&mut stack, session);
    let frames = stack.metric("table_frames");
    let mut times = Vec::new();
    for second in 0..40 {
        let before = tries(&mut stack);
        pass(&mut stack, second, second);
        if tries(&mut stack) > before {
            times.push(second);
        }
    }
    assert_eq!(times, [1, 4, 9, 18, 35]);
    assert_eq!(stack.metric("table_frames"), frames, "tries in vain cost no memory");
    heal(&stack);
    pass(&mut stack, 40, 70);
    assert!(is_up(&mut stack));
    stack.server.close(session);
    let (session, ..) = drive(&mut stack, 1);
    stall(&mut stack, session);
    pass(&mut stack, 71, 71);
    heal(&stack);
    pass(&mut stack, 72, 71 + 63);
    assert!(!is_up(&mut stack), "it was up for a few seconds only");
    pass(&mut stack, 71 + 64, 71 + 64);
    assert!(is_up(&mut stack));
    let long = 136 + LONGEST_PAUSE.0 / SECOND;
    pass(&mut stack, 136, long);
    assert_eq!(tries(&mut stack), 0, "forgiven");
    stack.machine.assert_clean();
}

#[test]
fn quarantine_is_given_back_when_the_unit_is() {
    for take_memory in [false, true] {
        let mut setup = setup(Mode::Compat);
        setup.behind_first = vec![devices()[0]];
        setup.take_memory = take_memory;
        let mut stack = Bed::start(&pair(), setup);
        stack.machine.set_returns(take_memory);
        // Tables that policy's domains need for ends of sessions and for memory taken from compat are created once
        // and stay. Creates them before counting.
        for device in [devices()[0], devices()[1]] {
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            stack.allocate(session, 0x8000).unwrap();
            stack.give_back(session);
        }
        let frames = stack.metric("table_frames");
        let (session, _, slot) = drive(&mut stack, 1);
        let first = pages(&mut stack, 1, session, slot);
        stall(&mut stack, session);
        stack.server.close(session);
        assert_eq!(stack.metric("quarantined_bytes"), 0x4000);
        // The pool hands out memory from its start, but not memory in quarantine.
        let elsewhere = stack.claim(2, devices()[1]).unwrap();
        stack.attach(elsewhere).unwrap();
        let theirs = stack.allocate(elsewhere, 0x4000).unwrap();
        assert!(pages(&mut stack, 2, elsewhere, theirs.slot).is_disjoint(&first));
        stack.give_back(elsewhere);
        pass(&mut stack, 0, 0);
        heal(&stack);
        pass(&mut stack, 1, 1);
        assert_eq!(stack.metric("quarantined_bytes"), 0);
        assert_eq!(stack.metric("quarantine_returned_bytes"), 0x4000);
        assert_eq!(stack.metric("clients"), 0, "nothing is charged to anybody");
        let now = stack.metric("table_frames");
        assert_eq!(now, frames, "tables too");
        let (session, _, slot) = drive(&mut stack, 1);
        assert_eq!(pages(&mut stack, 1, session, slot), first);
        stack.machine.assert_clean();
    }
}

/// Quarantined memory may be reachable through any failed unit. One revived unit proves nothing about another.
#[test]
fn quarantine_stays_while_another_unit_is_failed() {
    let mut stack = two(Mode::Strict);
    let (session, ..) = drive(&mut stack, 1);
    let elsewhere = stack.claim(2, devices()[1]).unwrap();
    stack.attach(elsewhere).unwrap();
    stack.allocate(elsewhere, 0x4000).unwrap();
    stall(&mut stack, session);
    stack.server.close(session);
    stack.machine.trouble(1, Trouble::StallQueueAfter(0));
    assert_eq!(stack.detach(elsewhere), Err(Refusal::UnitFailed));
    stack.server.close(elsewhere);
    assert_eq!(stack.metric("quarantined_bytes"), 0x8000);
    pass(&mut stack, 0, 0);
    heal(&stack);
    pass(&mut stack, 1, 1);
    assert!(is_up(&mut stack));
    assert_eq!(stack.metric("quarantined_bytes"), 0x8000, "the other unit is failed");
    stack.machine.trouble(1, Trouble::None);
    pass(&mut stack, 2, 30);
    assert_eq!(stack.metric("quarantined_bytes"), 0);
    stack.machine.assert_clean();
}

/// A session that lost its unit but is still open keeps its mapped memory from being reused.
#[test]
fn what_a_session_still_maps_is_given_back_with_it() {
    let mut stack = two(Mode::Strict);
    let (session, iova, _) = drive(&mut stack, 1);
    stall(&mut stack, session);
    pass(&mut stack, 0, 0);
    heal(&stack);
    pass(&mut stack, 1, 1);
    assert_eq!(stack.unmap(session, iova, 0x4000), Err(Refusal::UnitFailed));
    stack.server.close(session);
    pass(&mut stack, 2, 2);
    assert_eq!((stack.metric("quarantined_bytes"), stack.metric("buffers")), (0, 0));
    drive(&mut stack, 2);
    stack.machine.assert_clean();
}

#[test]
fn a_claim_that_waits_is_answered_when_the_unit_is_back() {
    let mut stack = two(Mode::Strict);
    let (session, ..) = drive(&mut stack, 1);
    stall(&mut stack, session);
    stack.server.close(session);
    let caller = Caller { client: ClientId(7), uid: 0 };
    let path = format!("devices/{}", devices()[0]);
    let opened = stack.server.open_within(caller, None, &path, (Nanos(0), Nanos(5 * SECOND)));
    let Ok(Opened::Later(ticket)) = opened else { panic!("{opened:?}") };
    pass(&mut stack, 0, 0);
    assert_eq!(stack.server.next_answer(Nanos(0)), None);
    heal(&stack);
    pass(&mut stack, 1, 1);
    let (answered, result) = stack.server.next_answer(Nanos(SECOND)).unwrap();
    assert_eq!(answered, ticket);
    stack.attach(result.unwrap()).unwrap();
    stack.machine.assert_clean();
}

#[test]
fn administrators_need_not_wait_and_others_may_not_ask() {
    let mut stack = two(Mode::Strict);
    for path in ["units/0", "rescan"] {
        let user = Caller { client: ClientId(7), uid: 1000 };
        assert_eq!(stack.server.open(user, None, path, true), Err(Refusal::Permission));
    }
    assert_eq!(stack.write("units/0", b"reset"), Err(Refusal::Busy), "it is up");
    assert_eq!(stack.write("units/9", b"reset"), Err(Refusal::NotFound));
    let (session, ..) = drive(&mut stack, 1);
    stall(&mut stack, session);
    assert_eq!(stack.server.write(session, b"reset"), Err(Refusal::BadOperation));
    for word in [&b""[..], b"\n", b"rese", b"reset\n\n", b"reset now"] {
        assert_eq!(stack.write("units/0", word), Err(Refusal::BadOperation), "{word:?}");
    }
    heal(&stack);
    assert!(!is_up(&mut stack));
    assert_eq!(stack.write("units/0", b"reset\n"), Ok(6));
    pass(&mut stack, 0, 0);
    assert!(is_up(&mut stack), "at once");
    // After a requested attempt fails, the pauses start short again.
    stack.server.close(session);
    let (session, ..) = drive(&mut stack, 1);
    stall(&mut stack, session);
    pass(&mut stack, 1, 300);
    assert_eq!(stack.write("units/0", b"reset"), Ok(5));
    pass(&mut stack, 301, 302);
    heal(&stack);
    pass(&mut stack, 303, 304);
    assert!(is_up(&mut stack));
    stack.machine.assert_clean();
}

/// A unit whose commands stalled at start is revived later. A unit that could not be prepared at all is brought up by
/// the platform.
#[test]
fn a_unit_that_failed_at_start_comes_later() {
    for trouble in [Trouble::StallCommands, Trouble::StallQueueAfter(0)] {
        let mut setup = setup(Mode::Compat);
        setup.behind_first = vec![devices()[0]];
        let mut stack = Bed::start_prepared(&pair(), setup, |machine| {
            machine.set_relax(10_000_000);
            machine.trouble(0, trouble);
        });
        assert!(!is_up(&mut stack));
        let elsewhere = stack.claim(2, devices()[1]).unwrap();
        stack.attach(elsewhere).unwrap();
        let untouched = (reach(&stack, devices()[1]), stack.machine.table_content(1));
        assert_eq!(stack.claim(1, devices()[0]), Err(Refusal::UnitFailed));
        heal(&stack);
        assert_eq!(stack.server.recover_units(Nanos(0)), None);
        assert_eq!(stack.server.recover_units(Nanos(SECOND)), None);
        assert!(is_up(&mut stack), "{}", state(&mut stack));
        assert_eq!(reach(&stack, devices()[0]), compat(&stack));
        assert_eq!((reach(&stack, devices()[1]), stack.machine.table_content(1)), untouched);
        drive(&mut stack, 1);
        stack.machine.assert_clean();
    }
    let mut setup = setup(Mode::Compat);
    setup.behind_first = vec![devices()[0]];
    let mut stack = Bed::start_prepared(&pair(), setup, |machine| {
        machine.fail_table_allocations(0, u64::MAX);
    });
    stack.machine.fail_table_allocations(0, 0);
    assert!(state(&mut stack).contains("no memory"), "{}", state(&mut stack));
    pass_unasked(&mut stack);
    assert_eq!(stack.write("units/0", b"reset"), Ok(5));
    assert_eq!(stack.server.recover_units(Nanos(1000 * SECOND)), Some(UnitIndex(0)));
    stack.arrive(&pair()[0], 0).unwrap();
    assert!(is_up(&mut stack));
    drive(&mut stack, 1);
    stack.machine.assert_clean();
}

/// Without memory each attempt might cost some, so the server makes none by itself.
pub(super) fn pass_unasked(stack: &mut Bed) {
    for second in 0..1000 {
        assert_eq!(stack.server.recover_units(Nanos(second * SECOND)), None);
    }
}

/// Memory is exhausted when the unit is tried again. It stays failed, nothing opens, and the next attempt succeeds.
#[test]
fn a_unit_that_comes_back_without_memory_is_tried_again() {
    let mut setup = setup(Mode::Compat);
    setup.behind_first = vec![devices()[0]];
    let mut stack = Bed::start_prepared(&pair(), setup, |machine| {
        machine.set_relax(10_000_000);
        machine.trouble(0, Trouble::StallCommands);
    });
    heal(&stack);
    assert_eq!(stack.server.recover_units(Nanos(0)), None);
    stack.machine.fail_table_allocations(0, u64::MAX);
    assert_eq!(stack.server.recover_units(Nanos(SECOND)), None);
    // An AMD-Vi unit needs none: it has its device table and shares policy's domain.
    assert_eq!(is_up(&mut stack), FAMILY == "amd-vi");
    stack.machine.fail_table_allocations(0, 0);
    for second in 2..=5 {
        assert_eq!(stack.server.recover_units(Nanos(second * SECOND)), None);
    }
    assert!(is_up(&mut stack), "{}", state(&mut stack));
    assert_eq!(reach(&stack, devices()[0]), compat(&stack));
    stack.machine.assert_clean();
}

/// Devices under policy keep working behind a failed unit. They are not blocked for an instant when it is revived.
#[test]
fn devices_under_policy_lose_no_transfer() {
    let mut stack = start(Mode::Compat);
    let (session, ..) = drive(&mut stack, 1);
    let legacy = devices()[1];
    stack.machine.watch(Watch {
        unit: 0,
        source: legacy.requester.0,
        iova: 0x20_0000,
        write: true,
        granted: vec![(0x20_0000, 0x1000)],
        must_pass: true,
    });
    stall(&mut stack, session);
    pass(&mut stack, 0, 0);
    heal(&stack);
    pass(&mut stack, 1, 1);
    assert!(is_up(&mut stack));
    stack.machine.clear_watches();
    assert_eq!(reach(&stack, legacy), compat(&stack));
    stack.machine.assert_clean();
}
