//! The notes that a server has of devices which an earlier one left driven or cut off.

use std::cell::RefCell;
use std::rc::Rc;

use iommud::policy::Mode;
use iommud::topology::pci::PciFunction;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Through;

use super::{Bed, compat, devices, matrix, reach, setup, start, subjects};

fn restart(stack: Bed) -> Bed {
    stack.restart(&[matrix().remove(0)])
}

/// An attached device and one cut off before are both blocked under the next server and the one after it. An owner
/// must attach and detach them first. A device that was detached is under policy at once.
#[test]
fn what_was_driven_stays_blocked_until_its_owner_says_that_it_is_quiet() {
    let mut setup = setup(Mode::Compat);
    // Room for the tables of four servers.
    setup.layout.tables = (16 << 20, 16 << 20);
    let mut stack = Bed::start(&[matrix().remove(0)], setup);
    let [attached, cut, quiet, ..] = devices();
    let session = stack.claim(1, attached).unwrap();
    stack.attach(session).unwrap();
    let session = stack.claim(2, cut).unwrap();
    stack.attach(session).unwrap();
    stack.server.close(session);
    let session = stack.claim(3, quiet).unwrap();
    stack.attach(session).unwrap();
    stack.detach(session).unwrap();
    for _ in 0..2 {
        stack = restart(stack);
        assert_eq!(reach(&stack, attached), []);
        assert_eq!(reach(&stack, cut), []);
        assert_eq!(reach(&stack, quiet), compat(&stack));
        let text = stack.text(&format!("devices/{attached}"));
        assert!(text.contains("reaches: nothing: its owner ended while it was attached"), "{text}");
    }
    for device in [attached, cut] {
        let session = stack.claim(1, device).unwrap();
        assert_eq!(reach(&stack, device), [], "a claim is not a word about the device");
        stack.attach(session).unwrap();
        stack.give_back(session);
        assert_eq!(reach(&stack, device), compat(&stack));
    }
    assert_eq!(stack.notes.noted(), []);
    let stack = restart(stack);
    for device in devices() {
        assert_eq!(reach(&stack, device), compat(&stack));
    }
    stack.machine.assert_clean();
}

/// A group is blocked as a whole, whichever member was driven.
#[test]
fn a_member_that_was_driven_blocks_its_group() {
    let mut stack = start(Mode::Compat);
    let [_, _, _, first, second] = devices();
    let session = stack.claim(1, second).unwrap();
    stack.attach(session).unwrap();
    let stack = restart(stack);
    assert_eq!(reach(&stack, first), []);
    assert_eq!(reach(&stack, second), []);
}

/// Whenever the server dies, the notes name every device whose reach differs from policy's grants. Checked before
/// every note and between events.
#[test]
fn a_note_is_there_before_the_device_is_let_in_and_until_policy_has_it_back() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut stack = Bed::start(&[subject], setup(Mode::Compat));
        let [device, ..] = devices();
        let policy = compat(&stack);
        let changes = Rc::new(RefCell::new(Vec::new()));
        let (machine, log, expected) = (stack.machine.clone(), changes.clone(), policy.clone());
        stack.notes.on_change(move |function, driven| {
            let now = machine.reach(0, function.requester.0, Through::TablesAndCaches);
            log.borrow_mut().push((function, driven, now == expected));
        });
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        assert_eq!(stack.notes.noted(), [device]);
        stack.allocate(session, 0x4000).unwrap();
        stack.detach(session).unwrap();
        assert_eq!(reach(&stack, device), policy);
        stack.attach(session).unwrap();
        stack.server.close(session);
        assert_eq!(stack.notes.noted(), [device], "cut off");
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        stack.give_back(session);
        assert_eq!(stack.notes.noted(), []);
        let in_order = [true, false, true, false].map(|driven| (device, driven, true));
        assert_eq!(*changes.borrow(), in_order);
        stack.machine.assert_clean();
    }
}

/// An attach that is refused or undone leaves no note.
#[test]
fn what_did_not_happen_is_not_noted() {
    let mut stack = start(Mode::Strict);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.server.function_gone(device);
    assert!(stack.attach(session).is_err());
    assert_eq!(stack.notes.noted(), []);
}

/// A device that disappears while it is driven may come back and still be working, for example if a walk missed it.
/// So its note stays until a different device appears in its place.
#[test]
fn the_note_of_a_device_that_went_stays_until_a_different_one_comes() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let function = stack.setup.functions[0];
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    stack.server.function_gone(device);
    assert_eq!(stack.notes.noted(), [device]);
    stack.server.function_arrived(function).unwrap();
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![device], vec![]));
    let mut stack = restart(stack);
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![device], vec![]));
    stack.server.function_gone(device);
    let other = PciFunction { device: 0x4321, ..function };
    stack.server.function_arrived(other).unwrap();
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![], compat(&stack)));
}
