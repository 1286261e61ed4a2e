//! Units that fail while there is no memory.

use iommu_protocol::Refusal;
use iommud::policy::{ClientId, Mode};
use iommud::server::Caller;

use super::endings::{SMALL, identity, region_of, unfinished, without_memory};
use super::{Bed, compat, devices, pair, reach, setup};
use iommud_tests::machine::Trouble;

/// A unit fails while there is no memory. Policy treats it as failed at once.
#[test]
fn a_unit_fails_without_memory() {
    let mut setup = setup(Mode::Compat);
    setup.behind_first = vec![devices()[0]];
    setup.reserved = vec![region_of(&devices()[..2], SMALL)];
    let mut stack = Bed::start(&pair(), setup);
    let [device, other, third, ..] = devices();
    let caller = Caller { client: ClientId(1), uid: 0 };
    let session = stack.claim(1, other).unwrap();
    let path = format!("devices/{device}");
    let below = stack.server.open(caller, Some(session), &path, true);
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x3000).unwrap();
    stack.machine.set_relax(1_000_000);
    without_memory(&mut stack, |stack| {
        stack.machine.trouble(1, Trouble::StallQueueAfter(0));
        // The next request detects the failure.
        assert_eq!(stack.unmap(session, buffer.iova, 0x3000), Err(Refusal::UnitFailed));
        let status = stack.text("status");
        assert!(status.contains("failed("), "{status}");
        assert_eq!(stack.attach(session), Err(Refusal::UnitFailed));
        assert_eq!(stack.claim(2, third), Err(Refusal::UnitFailed), "policy knows it too");
        stack.server.close(session);
        if let Ok(below) = below {
            stack.server.close(below);
        }
    });
    let next = stack.claim(2, device).unwrap();
    stack.attach(next).unwrap();
    stack.give_back(next);
    assert_eq!(reach(&stack, device), compat(&stack));
}

/// A group lies behind two units, of which one comes later: no claim can prepare the domain that its member there needs.
/// When the other unit fails, that takes memory, and there is none. The unit counts as failed at once, the member is
/// blocked, and has its region when there is memory.
#[test]
fn a_failure_that_takes_memory_is_known_without_any() {
    let [other, _, _, first, second] = devices();
    let mut setup = setup(Mode::Strict);
    setup.behind_first = vec![other, first];
    setup.reserved = vec![region_of(&[second], SMALL)];
    setup.off = vec![1];
    let subjects = pair();
    let mut stack = Bed::start(&subjects, setup);
    let session = stack.claim(1, first).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x3000).unwrap();
    stack.arrive(&subjects[1], 1).unwrap();
    stack.machine.set_relax(1_000_000);
    without_memory(&mut stack, |stack| {
        stack.machine.trouble(0, Trouble::StallQueueAfter(0));
        assert_eq!(stack.unmap(session, buffer.iova, 0x3000), Err(Refusal::UnitFailed));
        assert_eq!(stack.attach(session), Err(Refusal::UnitFailed));
        assert_eq!(stack.claim(2, other), Err(Refusal::UnitFailed), "policy knows it");
        assert_eq!(reach(stack, second), []);
        let words = format!("unfinished: {second} is blocked until there is memory for its policy");
        assert_eq!(unfinished(stack), [words]);
    });
    stack.server.tick();
    assert_eq!(unfinished(&mut stack), Vec::<String>::new());
    assert_eq!(reach(&stack, second), [identity(SMALL)]);
}
