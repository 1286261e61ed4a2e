//! Claims that wait over the socket for a software unit that is brought up late.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use iommu_client::platform::linux::Socket;
use iommu_client::{Connection, Device, Error, Refusal};
use iommu_protocol::frame::{ROOT, Request};
use iommud::hw::{Nanos, UnitError};
use iommud::policy::UnitIndex;
use iommud::server::{FIRST_PAUSE, UnitStart};
use iommud_tests::conformance::UnderTest;

use crate::harness::{DEVICES, Raw, pair, turn};
use crate::units::{Loop, arrive, late, with_unit};

const OPEN: u16 = 1;
const CLOSE: u16 = 2;
/// The argument that opens for writing and waits this many milliseconds.
const fn wait(milliseconds: u64) -> u64 {
    1 | milliseconds << 32
}

fn ask(client: &Raw, tag: u64, argument: u64, name: &str) {
    let header = Request { kind: OPEN, handle: ROOT, tag, argument }.encode();
    client.send(&[&header[..], format!("devices/{name}").as_bytes()].concat());
}

/// Runs the loop until the client has a reply. Returns its tag and result.
fn reply(looped: &mut Loop, client: &Raw) -> (u64, i64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        turn(looped);
        if let Some(reply) = client.receive() {
            let (reply, _) = reply.expect("hung up");
            return (reply.tag, reply.result);
        }
    }
    panic!("no reply");
}

#[test]
fn a_claim_is_answered_when_the_unit_comes_and_others_meanwhile() {
    let (mut looped, machine, subject) = late();
    let (first, second) = (Raw::join(&mut looped), Raw::join(&mut looped));
    ask(&first, 1, wait(60_000), DEVICES[0]);
    turn(&mut looped);
    ask(&second, 2, wait(60_000), DEVICES[0]);
    turn(&mut looped);
    ask(&first, 3, 1, DEVICES[1]);
    assert_eq!(reply(&mut looped, &first), (3, -11), "who does not wait");
    ask(&first, 4, 0, DEVICES[1]);
    assert_eq!(reply(&mut looped, &first), (4, 0), "a text");
    arrive(&mut looped, &machine, &subject);
    assert_eq!(reply(&mut looped, &first), (1, 1));
    let (tag, refused) = reply(&mut looped, &second);
    assert!(tag == 2 && refused < 0, "{refused}");
    assert_eq!(first.ask(&mut looped, CLOSE, 1, 0, &[]).0, 0, "it is a handle as any other");
    turn(&mut looped);
    assert!(first.receive().is_none() && second.receive().is_none(), "answered once");
    assert!(machine.take_violations().is_empty());
}

/// The loop calls the platform, which tries the unit again: in vain at first, and after a longer pause with success.
/// Nothing else happens that could answer the claim.
#[test]
fn the_loop_brings_a_unit_up_that_failed() {
    let (mut looped, machine, subject) = with_unit(UnitStart::Failed(UnitError::Dead));
    let client = Raw::join(&mut looped);
    ask(&client, 1, wait(60_000), DEVICES[0]);
    turn(&mut looped);
    assert_eq!(client.receive(), None, "it waits");
    let calls = Rc::new(RefCell::new(Vec::<Nanos>::new()));
    let tries = Rc::new(RefCell::new(Vec::<Nanos>::new()));
    let (called, tried, platform) = (calls.clone(), tries.clone(), machine.clone());
    looped.recover_by(Box::new(move |server, now| {
        called.borrow_mut().push(now);
        while let Some(unit) = server.recover_units(now) {
            assert_eq!(unit, UnitIndex(0));
            tried.borrow_mut().push(now);
            if tried.borrow().len() == 1 {
                server.unit_not_arrived(unit, &UnitError::Dead);
                continue;
            }
            let unit = subject.bring_up(&platform, 0, server.bring_up_memory(unit)).unwrap();
            server.unit_arrived(UnitIndex(0), unit);
        }
    }));
    assert_eq!(reply(&mut looped, &client), (1, 0));
    let (calls, tries) = (calls.borrow(), tries.borrow());
    assert!(calls.is_sorted() && calls.len() > 50, "called {} times", calls.len());
    let pauses = (tries[0].0 - calls[0].0, tries[1].0 - tries[0].0);
    assert!(tries.len() == 2 && pauses.0 >= FIRST_PAUSE.0, "{pauses:?}");
    assert!(pauses.1 >= 2 * FIRST_PAUSE.0, "the pauses grow: {pauses:?}");
    assert!(machine.take_violations().is_empty());
}

#[test]
fn a_claim_is_refused_at_its_deadline() {
    let (mut looped, ..) = late();
    let client = Raw::join(&mut looped);
    let start = Instant::now();
    ask(&client, 5, wait(50), DEVICES[0]);
    assert_eq!(reply(&mut looped, &client), (5, -11));
    assert!(start.elapsed() >= Duration::from_millis(50));
    // Only claims may wait.
    ask(&client, 6, wait(50) & !1, DEVICES[0]);
    assert_eq!(reply(&mut looped, &client), (6, -71));
}

#[test]
fn a_client_that_ends_waits_no_longer() {
    let (mut looped, machine, subject) = late();
    let (gone, other) = (Raw::join(&mut looped), Raw::join(&mut looped));
    ask(&gone, 1, wait(60_000), DEVICES[0]);
    turn(&mut looped);
    assert!(looped.server().has_claims());
    ask(&other, 2, wait(60_000), DEVICES[0]);
    turn(&mut looped);
    drop(gone);
    turn(&mut looped);
    arrive(&mut looped, &machine, &subject);
    assert_eq!(reply(&mut looped, &other), (2, 0), "its claim was behind the other's");
    assert!(!looped.server().has_claims());
}

#[test]
fn the_library_waits() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (tell, waits) = std::sync::mpsc::channel();
    let (ours, theirs) = pair();
    let client = std::thread::spawn(move || {
        let connection = Connection::over(Socket::over(ours));
        let refused = Device::open_within(&connection, DEVICES[0], Duration::from_millis(20));
        assert!(matches!(refused, Err(Error::Refused(Refusal::NotReady))), "{refused:?}");
        sender.send(()).unwrap();
        let other = connection.clone();
        let asking = std::thread::spawn(move || {
            waits.recv().unwrap();
            assert!(!other.text("status").unwrap().is_empty());
            sender.send(()).unwrap();
        });
        let device = Device::open_within(&connection, DEVICES[0], Duration::from_secs(30));
        let _ = device.unwrap().attach().unwrap();
        asking.join().unwrap();
    });
    let (mut looped, machine, subject) = late();
    looped.adopt_as(theirs, 0).unwrap();
    while receiver.try_recv().is_err() {
        turn(&mut looped);
    }
    while !looped.server().has_claims() {
        turn(&mut looped);
    }
    // Another thread uses the connection while the claim waits.
    tell.send(()).unwrap();
    let start = Instant::now();
    while receiver.try_recv().is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "the claim holds others up");
        turn(&mut looped);
    }
    assert!(looped.server().has_claims());
    arrive(&mut looped, &machine, &subject);
    while !client.is_finished() {
        turn(&mut looped);
    }
    client.join().unwrap();
}
