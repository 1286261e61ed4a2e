//! What the next server finds of the sessions, buffers and mappings of one that died, and says about it.

use iommu_protocol::Refusal;
use iommud::facts::{CellMemory, Left, LostSession};
use iommud::policy::{ClientId, Mode};
use iommud::server::Handle;
use iommud_tests::conformance::UnderTest;

use super::{Bed, devices, matrix, setup, start, subjects};

/// The lines of `status` about what was lost.
fn lines(stack: &mut Bed) -> Vec<String> {
    let text = stack.text("status");
    text.lines()
        .filter_map(|line| line.strip_prefix("lost by restart: "))
        .map(String::from)
        .collect()
}

fn left(stack: &Bed) -> Vec<LostSession> {
    stack.facts.left().unwrap().unwrap().sessions
}

/// Buffers and mappings of each kind are counted by device, and the next server says so in `status`. A server after it
/// in which nobody opened anything has nothing to say.
#[test]
fn the_next_server_says_which_driver_lost_what() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut stack = Bed::start(&[subject], setup(Mode::Compat));
        assert_eq!(lines(&mut stack), [""; 0], "there was no server before");
        let [attached, open, closed, ..] = devices();
        let session = stack.claim(1, attached).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let iova = stack.map(session, buffer.slot, 0x1000, 0x2000).unwrap();
        stack.map(session, buffer.slot, 0, 0x1000).unwrap();
        stack.allocate(session, 0x1000).unwrap();
        stack.unmap(session, iova, 0x2000).unwrap();
        stack.claim(2, open).unwrap();
        let ended = stack.claim(3, closed).unwrap();
        stack.attach(ended).unwrap();
        stack.allocate(ended, 0x3000).unwrap();
        stack.give_back(ended);
        let expected = LostSession {
            device: attached,
            client: ClientId(1),
            attached: true,
            buffers: 2,
            buffer_bytes: 0x5000,
            mappings: 3,
            mapped_bytes: 0x6000,
        };
        assert_eq!(left(&stack)[0], expected);
        let mut stack = stack.restart(&[matrix().remove(0)]);
        let said = [
            format!("{attached}: attached, 2 buffers of 20480 bytes, 3 mappings of 24576 bytes"),
            format!("{open}: not attached, 0 buffers of 0 bytes, 0 mappings of 0 bytes"),
        ];
        assert_eq!(lines(&mut stack), said);
        stack.claim(1, open).unwrap();
        assert_eq!(lines(&mut stack), said, "what was lost stays lost");
        let mut stack = stack.restart(&[matrix().remove(0)]);
        assert_eq!(lines(&mut stack), said[1..]);
        let mut stack = stack.restart(&[matrix().remove(0)]);
        assert_eq!(lines(&mut stack), [""; 0]);
        stack.machine.assert_clean();
    }
}

/// A server that ends as it should leaves no session.
#[test]
fn a_shutdown_loses_nothing() {
    let mut stack = start(Mode::Compat);
    let [device, other, ..] = devices();
    for (client, device) in [(1, device), (2, other)] {
        let session = stack.claim(client, device).unwrap();
        stack.attach(session).unwrap();
        stack.allocate(session, 0x4000).unwrap();
    }
    assert_eq!(left(&stack).len(), 2);
    stack.server.shutdown();
    assert_eq!(left(&stack), []);
    let text = stack.text("metrics");
    assert!(text.contains("\nfacts_kept 0\nfacts_missed 0\n"), "{text}");
}

/// What a client does in the event in which its server dies.
type Act = fn(&mut Bed, Handle, u32, u64) -> Result<(), Refusal>;

const ACTS: [(&str, Act); 6] = [
    ("attach", |stack, session, _, _| stack.attach(session)),
    ("detach", |stack, session, _, _| stack.detach(session)),
    ("map", |stack, session, slot, _| stack.map(session, slot, 0, 0x1000).map(drop)),
    ("unmap", |stack, session, _, iova| stack.unmap(session, iova, 0x4000)),
    ("release", |stack, session, slot, _| stack.release(session, slot)),
    ("close", |stack, session, _, _| {
        stack.server.close(session);
        Ok(())
    }),
];

/// The server dies at each action of an event: on hardware, tables and registers, and at each store of a word of facts. The
/// facts are those before the event or after it, all of them. Where memory of a buffer was given back, they are those
/// after it: the record comes before anything is freed.
#[test]
fn whenever_the_server_dies_the_facts_are_those_before_or_after_the_event() {
    for (name, act) in ACTS {
        let whole = dying(name, act, u64::MAX / 2);
        assert!(!whole.died && whole.before != whole.after, "{name}");
        let mut deaths = [0; 2];
        for actions in 0.. {
            let found = dying(name, act, actions);
            let at = if found.after == whole.before {
                0
            } else {
                assert_eq!(found.after, whole.after, "{name} after {actions} actions");
                1
            };
            assert!(
                at == 1 || !found.freed,
                "{name}: freed before the record, after {actions} actions"
            );
            if !found.died {
                break;
            }
            deaths[at] += 1;
        }
        println!("{name}: {deaths:?} deaths before and after the commit");
        // An attach, detach, map or unmap changes one cell, which is applied word by word behind the mark.
        assert!(deaths[0] > 4 && deaths[1] >= 4, "{name}: {deaths:?}");
    }
}

/// The facts before and after an event in which a server may have died.
struct Found {
    died: bool,
    before: Left,
    after: Left,
    /// The memory of the buffer was given back.
    freed: bool,
}

fn dying(name: &str, act: Act, actions: u64) -> Found {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    if name != "attach" {
        stack.attach(session).unwrap();
    }
    let buffer = stack.allocate(session, 0x4000).unwrap();
    let before = stack.facts.left().unwrap().unwrap();
    stack.facts.count_stores(&stack.machine);
    let machine = stack.machine.clone();
    let ended = machine.dying_after(actions, || {
        act(&mut stack, session, buffer.slot, buffer.iova).unwrap();
    });
    let after = stack.facts.left().unwrap().unwrap();
    let freed = stack.machine.buffers_in_use().is_empty();
    Found { died: ended.is_none(), before, after, freed }
}

/// However often the next server dies while it takes over, the one that comes to serve says what the first one lost.
#[test]
fn servers_that_die_while_they_take_over_forget_nothing() {
    let mut setup = setup(Mode::Compat);
    setup.layout.tables = (16 << 20, 16 << 20);
    let mut stack = Bed::start(&[matrix().remove(0)], setup);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    for after in [0, 100] {
        assert!(stack.reboot_dying(&[matrix().remove(0)], after), "it came to serve");
    }
    stack.reboot(&[matrix().remove(0)]);
    let said = format!("{device}: attached, 0 buffers of 0 bytes, 0 mappings of 0 bytes");
    assert_eq!(lines(&mut stack), [said]);
}

/// A store that does not check is said to be so, and replaced.
#[test]
fn a_store_that_cannot_be_read_is_no_obstacle() {
    let mut stack = start(Mode::Compat);
    stack.claim(1, devices()[0]).unwrap();
    let cells = stack.facts.count();
    stack.facts.write_word(cells - 1, 1, 7);
    let mut stack = stack.restart(&[matrix().remove(0)]);
    assert_eq!(lines(&mut stack), [format!("not known: cell {} is damaged", cells - 1)]);
    assert_eq!(left(&stack), []);
}

/// More mappings than the store has cells: the rest is counted, and every driver is named all the same.
#[test]
fn what_a_full_store_has_no_room_for_is_counted() {
    let mut stack = start(Mode::Compat);
    let [device, other, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    for _ in 0..1000 {
        stack.map(session, buffer.slot, 0, 0x1000).unwrap();
    }
    stack.claim(2, other).unwrap();
    let found = stack.facts.left().unwrap().unwrap();
    // 1024 cells: a header, two records of 64 places, and 895, of which mappings leave 111. One is the session's, one
    // the slot's; the buffer has a mapping from its allocation.
    assert_eq!((found.missed, found.sessions.len(), found.sessions[0].mappings), (219, 2, 782));
    let mut stack = stack.restart(&[matrix().remove(0)]);
    assert_eq!(lines(&mut stack).last().unwrap(), "more than that: 219 facts had no room");
}
