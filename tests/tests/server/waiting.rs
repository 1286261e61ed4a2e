//! Claims that wait for their unit: limits, order, deadlines, ends. `tests/src/explore` explores their interleavings.

use iommu_protocol::Refusal;
use iommud::hw::{Nanos, UnitError};
use iommud::policy::{ClientId, Mode, UnitIndex};
use iommud::server::{
    Caller, Handle, LONGEST_WAIT, MOST_WAITING, MOST_WAITING_OF_ONE, Opened, Ticket,
};

use super::{Bed, devices, pair, setup};

const SECOND: u64 = 1_000_000_000;

/// The second unit is brought up later. The first device is behind the first unit.
fn late() -> Bed {
    let mut setup = setup(Mode::Strict);
    setup.behind_first = vec![devices()[0]];
    setup.off = vec![1];
    Bed::start(&pair(), setup)
}

fn claim(stack: &mut Bed, client: u32, wait: u64) -> Result<Opened, Refusal> {
    claim_below(stack, client, None, wait)
}

fn claim_below(
    stack: &mut Bed,
    client: u32,
    at: Option<Handle>,
    wait: u64,
) -> Result<Opened, Refusal> {
    let caller = Caller { client: ClientId(client), uid: 0 };
    let path = format!("devices/{}", devices()[1]);
    stack.server.open_within(caller, at, &path, (Nanos(0), Nanos(wait)))
}

fn waits(opened: Result<Opened, Refusal>) -> Ticket {
    match opened {
        Ok(Opened::Later(ticket)) => ticket,
        other => panic!("{other:?}"),
    }
}

fn arrive(stack: &mut Bed) {
    let [_, subject] = pair();
    stack.arrive(&subject, 1).unwrap();
}

#[test]
fn the_unit_comes_and_the_first_who_asked_gets_the_device() {
    let mut stack = late();
    let first = waits(claim(&mut stack, 1, SECOND));
    let second = waits(claim(&mut stack, 2, SECOND));
    assert_eq!(stack.claim(3, devices()[1]), Err(Refusal::NotReady), "who does not wait");
    assert_eq!(stack.server.next_answer(Nanos(0)), None);
    assert!(stack.text("metrics").contains("claims_waiting 2"), "{}", stack.text("metrics"));
    arrive(&mut stack);
    // A claim made before the answers are fetched is too late all the same.
    assert_eq!(stack.claim(3, devices()[1]), Err(Refusal::NotOwner));
    let (ticket, granted) = stack.server.next_answer(Nanos(0)).unwrap();
    assert_eq!(ticket, first);
    let handle = granted.unwrap();
    assert_eq!(stack.server.next_answer(Nanos(0)), Some((second, Err(Refusal::NotOwner))));
    assert_eq!(stack.server.next_answer(Nanos(u64::MAX)), None);
    stack.attach(handle).unwrap();
    stack.machine.assert_clean();
}

#[test]
fn a_deadline_passes() {
    let mut stack = late();
    let short = waits(claim(&mut stack, 1, SECOND));
    let long = waits(claim(&mut stack, 2, u64::MAX));
    assert_eq!(stack.server.next_answer(Nanos(SECOND - 1)), None);
    let refused = |ticket| Some((ticket, Err(Refusal::NotReady)));
    assert_eq!(stack.server.next_answer(Nanos(SECOND)), refused(short));
    assert_eq!(stack.server.next_answer(Nanos(LONGEST_WAIT.0 - 1)), None);
    assert_eq!(stack.server.next_answer(LONGEST_WAIT), refused(long), "nobody waits longer");
    assert!(!stack.server.has_claims());
}

#[test]
fn few_may_wait() {
    let mut stack = late();
    let mut waiting = 0;
    for client in 0..u32::MAX {
        for _ in 0..MOST_WAITING_OF_ONE {
            waits(claim(&mut stack, client, SECOND));
            waiting += 1;
        }
        assert_eq!(
            claim(&mut stack, client, SECOND),
            Err(Refusal::NotReady),
            "one more of {client}"
        );
        if waiting == MOST_WAITING {
            assert_eq!(claim(&mut stack, client + 1, SECOND), Err(Refusal::NotReady));
            break;
        }
    }
    arrive(&mut stack);
    let answers: Vec<_> = std::iter::from_fn(|| stack.server.next_answer(Nanos(0))).collect();
    assert_eq!(answers.len(), MOST_WAITING);
    assert!(answers.is_sorted_by_key(|(ticket, _)| *ticket));
    assert_eq!(answers.iter().filter(|(_, answer)| answer.is_ok()).count(), 1);
}

#[test]
fn who_is_gone_waits_no_longer() {
    let mut stack = late();
    let gone = waits(claim(&mut stack, 1, SECOND));
    let other = waits(claim(&mut stack, 2, SECOND));
    stack.server.forget_claims(&[gone]);
    arrive(&mut stack);
    // The claim is granted but not fetched. A client that ends now holds nothing either.
    stack.server.forget_claims(&[other]);
    assert_eq!(stack.server.next_answer(Nanos(u64::MAX)), None);
    assert!(stack.text("status").contains("sessions: 0"), "{}", stack.text("status"));
    stack.claim(3, devices()[1]).unwrap();
    stack.machine.assert_clean();
}

#[test]
fn what_it_is_relative_to_is_closed() {
    let mut stack = late();
    let session = stack.claim(1, devices()[0]).unwrap();
    let ticket = waits(claim_below(&mut stack, 1, Some(session), SECOND));
    stack.server.close(session);
    assert_eq!(stack.server.next_answer(Nanos(0)), Some((ticket, Err(Refusal::BadHandle))));
    arrive(&mut stack);
    assert_eq!(stack.server.next_answer(Nanos(u64::MAX)), None);
}

#[test]
fn there_is_nothing_left_to_wait_for() {
    let mut stack = late();
    let ticket = waits(claim(&mut stack, 1, SECOND));
    stack.server.function_gone(devices()[1]);
    assert_eq!(stack.server.next_answer(Nanos(0)), Some((ticket, Err(Refusal::NotProbed))));
    let mut stack = late();
    let ticket = waits(claim(&mut stack, 1, SECOND));
    let lasting = UnitError::Unsupported { what: "a unit like this" };
    stack.server.unit_not_arrived(UnitIndex(1), &lasting);
    assert_eq!(stack.server.next_answer(Nanos(0)), Some((ticket, Err(Refusal::UnitFailed))));
    assert!(
        stack.text("status").contains("NOT CONFINED behind unit 1"),
        "{}",
        stack.text("status")
    );
}

/// A unit that did not come up is tried again. Claims for it keep waiting, and get the unit's error at their
/// deadline.
#[test]
fn a_unit_that_failed_is_waited_for_as_long_as_it_may_come_back() {
    let mut stack = late();
    let ticket = waits(claim(&mut stack, 1, SECOND));
    stack.server.unit_not_arrived(UnitIndex(1), &UnitError::Dead);
    assert_eq!(stack.server.next_answer(Nanos(0)), None);
    let second = waits(claim(&mut stack, 2, 2 * SECOND));
    assert_eq!(stack.claim(3, devices()[1]), Err(Refusal::UnitFailed), "who does not wait");
    assert_eq!(stack.server.next_answer(Nanos(SECOND)), Some((ticket, Err(Refusal::UnitFailed))));
    assert_eq!(stack.server.recover_units(Nanos(0)), None);
    assert_eq!(stack.server.recover_units(Nanos(SECOND)), Some(UnitIndex(1)));
    arrive(&mut stack);
    let (ticket, granted) = stack.server.next_answer(Nanos(SECOND)).unwrap();
    assert_eq!(ticket, second);
    stack.attach(granted.unwrap()).unwrap();
    stack.machine.assert_clean();
}
