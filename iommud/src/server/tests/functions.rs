//! Functions that come and go: when the bus is walked, and what a walk takes in.

use super::*;
use crate::server::tests::lines::logged;
use crate::server::{Driven, Notes, Refusal, Rescanned};
use crate::topology::pci::Buses;
use crate::topology::tags::TagRecord;

/// Gives the server a bus with the functions that it knows.
fn bus(server: &mut Tested, functions: Vec<PciFunction>) -> Bus {
    let bus = Bus::default();
    *bus.there.borrow_mut() = functions;
    server.discover_with(Box::new(bus.clone()));
    bus
}

fn both() -> Vec<PciFunction> {
    [3, 4].map(|device| endpoint(address(0, device))).into()
}

/// A driven function that a walk misses may be in a reset: the bus is walked again after 20 ticks, and no sooner.
#[test]
fn a_missed_function_is_looked_for_in_its_time() {
    let (mut server, _) = one();
    let functions = bus(&mut server, both());
    let session = claim(&mut server, address(0, 3));
    attach(&mut server, session);
    functions.there.borrow_mut().remove(0);
    assert_eq!(server.rescan(), Some(Rescanned { added: 0, removed: 0 }));
    for tick in 0..20 {
        server.tick();
        assert_eq!(functions.walks.get(), 1, "tick {tick}");
        assert!(server.has_unfinished(), "tick {tick}");
    }
    server.tick();
    assert_eq!(functions.walks.get(), 2);
    assert_eq!(server.text(Path::Rescan).unwrap(), "last walk: 0 new, 1 gone\n");
    for _ in 0..50 {
        server.tick();
    }
    assert_eq!(functions.walks.get(), 2, "it is known to be gone");
    assert!(!server.has_unfinished());
}

#[test]
fn a_walk_is_logged_when_it_changed_something() {
    let (mut server, _) = one();
    let functions = bus(&mut server, both());
    let mut walk = || logged(|| assert!(server.rescan().is_some()));
    assert_eq!(walk(), Vec::<String>::new());
    functions.there.borrow_mut().push(endpoint(address(0, 9)));
    assert_eq!(walk(), ["INFO functions: 1 new, 0 gone"]);
    functions.there.borrow_mut().remove(0);
    assert_eq!(walk(), ["INFO functions: 0 new, 1 gone"]);
    assert_eq!(walk(), Vec::<String>::new());
}

fn at(segment: u16, bus: u8, device: u8) -> PciAddress {
    PciAddress::new(segment, bus, device, 0).unwrap()
}

/// A root port in use, in front of buses 5 and 6, has changed. Returns the server, and the bus with the port, the
/// function that uses it, and new ones.
fn with_changed_port(new: &[PciAddress]) -> (Tested, Bus) {
    let buses = Buses { secondary: 5, subordinate: 6 };
    let port = PciFunction { kind: FunctionKind::RootPort(buses), ..endpoint(address(0, 8)) };
    let driven = PciFunction { kind: FunctionKind::Endpoint, ..endpoint(at(0, 5, 0)) };
    let mut startup = machine([UnitStart::Ready(FakeUnit::default())]);
    startup.functions.extend([port, driven]);
    let mut server = Tested::start(startup);
    let session = claim(&mut server, driven.address);
    attach(&mut server, session);
    let changed = PciFunction { class: 0x06_0401, ..port };
    let mut found = both();
    found.extend([changed, driven]);
    found.extend(new.iter().copied().map(endpoint));
    let bus = bus(&mut server, found);
    (server, bus)
}

/// Only what is behind a port that has changed waits for it: other buses of its segment do not, nor the bus of the same
/// number in another segment.
#[test]
fn only_functions_behind_a_bridge_that_changed_wait_for_it() {
    let new = [at(0, 0, 9), at(0, 5, 1), at(0, 6, 0), at(0, 7, 0), at(1, 5, 0)];
    let (mut server, _) = with_changed_port(&new);
    assert_eq!(server.rescan(), Some(Rescanned { added: 3, removed: 0 }));
    let text = "last walk: 3 new, 0 gone\n\
                changed: 0000--00--08.0: taken over when it is free\n\
                not taken in: 0000--05--01.0: the object is in use\n\
                not taken in: 0000--06--00.0: the object is in use\n";
    assert_eq!(server.text(Path::Rescan).unwrap(), text);
    let known = new.map(|address| server.text(Path::Device(address)).is_some());
    assert_eq!(known, [true, false, false, true, true]);
}

/// A claim of a function that cannot be added makes one walk. A second one makes another only after something has
/// changed, which is not the case when other walks remove nothing.
#[test]
fn claims_that_are_in_vain_walk_once_for_each_function() {
    let new = [at(0, 5, 1), at(0, 6, 0)];
    let (mut server, bus) = with_changed_port(&new);
    for (claimed, walks) in [(new[0], 1), (new[1], 2), (new[0], 2), (new[1], 2)] {
        let claim = server.open(ROOT, None, &format!("devices/{claimed}"), true);
        assert_eq!((claim, bus.walks.get()), (Err(Refusal::NotProbed), walks), "{claimed}");
    }
    server.function_gone(address(0, 4));
    assert!(server.open(ROOT, None, &format!("devices/{}", new[0]), true).is_err());
    assert_eq!(bus.walks.get(), 3, "something has changed");
}

/// A walk that finds many new functions, or misses many, is one plan for each: a plan copies what is known.
#[test]
fn a_walk_adds_and_removes_all_functions_at_once() {
    let (mut server, _) = one();
    let crowd: Vec<_> = (5..31).map(|device| endpoint(address(0, device))).collect();
    let functions = bus(&mut server, both());
    functions.there.borrow_mut().extend(crowd);
    let plans = metric(&mut server, "plans");
    assert_eq!(server.rescan(), Some(Rescanned { added: 26, removed: 0 }));
    assert_eq!(metric(&mut server, "plans"), plans + 1);
    assert_eq!(metric(&mut server, "table_frames_promised"), 28 * 16);
    *functions.there.borrow_mut() = both();
    assert_eq!(server.rescan(), Some(Rescanned { added: 0, removed: 26 }));
    assert_eq!(metric(&mut server, "plans"), plans + 2);
    assert_eq!(metric(&mut server, "table_frames_promised"), 2 * 16);
}

/// Notes that no later server reads.
struct Unread;

impl Notes for Unread {
    fn set(&mut self, _: PciAddress, _: bool) -> bool {
        true
    }

    fn set_tags(&mut self, _: TagRecord) {}
}

/// A driven device that went is remembered until a walk finds another one in its place.
#[test]
fn another_device_takes_the_note_of_a_driven_one_away() {
    for (device, noted) in [(0x11e8, true), (0x4321, false)] {
        let startup = machine([UnitStart::Ready(FakeUnit::default())]);
        let mut server = Tested::start_after(startup, Driven::new([], Box::new(Unread)));
        let session = claim(&mut server, address(0, 3));
        attach(&mut server, session);
        server.function_gone(address(0, 3));
        let mut found = both();
        found[0].device = device;
        found.push(endpoint(address(0, 9)));
        bus(&mut server, found);
        assert_eq!(server.rescan(), Some(Rescanned { added: 2, removed: 0 }));
        let noted = if noted { vec![address(0, 3)] } else { vec![] };
        assert_eq!(server.driven.iter().collect::<Vec<_>>(), noted, "{device:#x}");
    }
}

/// A function that cannot be added keeps no other one out.
#[test]
fn a_function_that_is_refused_is_refused_alone() {
    for refused in [5, 6, 9, 11] {
        let (mut server, _) = one();
        let mut all: Vec<_> = (5..12).map(|device| endpoint(address(0, device))).collect();
        // A walk that finds two functions at one address: the first one stays.
        all.push(PciFunction { device: 0x4321, ..endpoint(address(0, refused)) });
        let functions = bus(&mut server, both());
        functions.there.borrow_mut().extend(all);
        assert_eq!(server.rescan(), Some(Rescanned { added: 7, removed: 0 }));
        let text = server.text(Path::Rescan).unwrap();
        let device = address(0, refused);
        assert!(text.starts_with(&format!("last walk: 7 new, 0 gone\nnot taken in: {device}: ")));
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
