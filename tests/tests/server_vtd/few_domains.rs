//! Units with 16 domains, the smallest number (CAP.ND 0), so that tags run short.

use iommu_protocol::{PciAddress, Refusal};
use iommud::policy::Mode;
use iommud::topology::capabilities::DomainTag;
use iommud::topology::tags::HeldTags;
use iommud_tests::machine::{Violation, Watch};
use iommud_tests::stack::endpoint;

use crate::server::{Bed, compat, reach, setup};
use crate::vendor::{Subject, matrix};

/// System memory that policy `compat` maps.
const PLAIN: u64 = 0x0080_0000;

fn subject() -> Subject {
    matrix().into_iter().find(|subject| subject.name == "16 domains, 2 MiB").unwrap()
}

fn device(number: u8) -> PciAddress {
    endpoint(0, 3 + number, 0).address
}

/// Starts ten devices, each alone in its group, under `compat`.
fn bed() -> Bed {
    let mut setup = setup(Mode::Compat);
    setup.functions = (0..10).map(|number| endpoint(0, 3 + number, 0)).collect();
    setup.layout.tables = (16 << 20, 16 << 20);
    Bed::start(&[subject()], setup)
}

/// Watches an unclaimed device, which must keep its access at every instant.
fn watch(stack: &Bed) {
    let (source, granted) = (device(9).requester.0, vec![(PLAIN, 0x1000)]);
    stack.machine.watch(Watch {
        unit: 0,
        source,
        iova: PLAIN,
        write: true,
        granted,
        must_pass: true,
    });
}

fn tag(stack: &Bed, number: u8) -> u16 {
    stack.machine.binding(0, device(number).requester.0).map_or(0, |(tag, ..)| tag)
}

/// Of tags 2 to 15 one server takes seven: one for `compat`, six for clients. The next server uses other tags.
#[test]
fn a_server_leaves_half_of_the_tags_to_the_next_one() {
    let mut stack = bed();
    let mut sessions = Vec::new();
    for number in 0..6 {
        let session = stack.claim(u32::from(number), device(number)).unwrap();
        stack.attach(session).unwrap();
        sessions.push(session);
    }
    assert_eq!(stack.claim(6, device(6)), Err(Refusal::NoMemory));
    stack.give_back(sessions.remove(0));
    let session = stack.claim(6, device(6)).unwrap();
    stack.attach(session).unwrap();
    let before: Vec<u16> = [1, 2, 3, 4, 5, 6, 9].map(|number| tag(&stack, number)).into();
    watch(&stack);
    stack.reboot(&[subject()]);
    stack.machine.clear_watches();
    stack.machine.assert_clean();
    assert!(!before.contains(&tag(&stack, 9)), "{before:?}, then {}", tag(&stack, 9));
    let held = stack.notes.tags().unwrap().held;
    assert!(!before.iter().any(|tag| held.contains(DomainTag(*tag))), "{held:?}");
}

/// One client that claims device after device, each with a domain of its own, has a quarter of the seven tags: one. So
/// four others have one each; the rest is promised to groups that nobody has claimed.
#[test]
fn one_client_leaves_tags_to_others() {
    let mut stack = bed();
    let first = stack.claim(1, device(0)).unwrap();
    stack.attach(first).unwrap();
    for number in 1..9 {
        assert_eq!(stack.claim(1, device(number)), Err(Refusal::Quota));
    }
    let next = stack.claim(1, device(0));
    assert!(next.is_err(), "it has that one");
    for number in 1..5 {
        let session = stack.claim(u32::from(number) + 1, device(number)).unwrap();
        stack.attach(session).unwrap();
    }
    stack.machine.assert_clean();
}

/// Several servers in a row die before they have flushed the unit. Each takes a tag that none before it had, and a
/// device under `compat` is not disturbed. When no tag is left, the device is denied from the change of tables to the
/// flush, but never reaches wrong memory.
#[test]
fn when_no_tag_is_left_devices_are_denied_until_the_flush() {
    let mut stack = bed();
    let (steps, saved, tags) = (stack.machine.steps(), stack.machine.save(), stack.notes.tags());
    stack.reboot(&[subject()]);
    let actions = stack.machine.steps() - steps;
    stack.machine.restore(&saved);
    stack.notes.restore_tags(tags);
    watch(&stack);
    let mut deaths = 0;
    for _ in 0..13 {
        assert!(stack.reboot_dying(&[subject()], actions - 30));
        deaths += 1;
        let held = stack.notes.tags().unwrap().held;
        let all = (2..=2 + deaths).all(|tag| held.contains(DomainTag(tag)));
        assert!(all && held != HeldTags::Everything, "after {deaths}: {held:?}");
    }
    stack.machine.assert_clean();
    stack.reboot(&[subject()]);
    stack.machine.clear_watches();
    let violations = stack.machine.take_violations();
    let denied = |violation: &Violation| matches!(violation, Violation::Denied { .. });
    assert!(!violations.is_empty() && violations.iter().all(denied), "{violations:x?}");
    assert_eq!(reach(&stack, device(9)), compat(&stack));
    // All tags are usable again.
    let tag = tag(&stack, 9);
    let held = stack.notes.tags().unwrap().held;
    assert!((2..16).all(|other| held.contains(DomainTag(other)) == (other == tag)), "{held:?}");
}
