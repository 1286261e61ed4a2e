//! Domain tags over the lives of servers. A unit keeps items cached for the previous server. No tag that it may hold
//! is given to a domain before the unit was flushed.

use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::Nanos;
use iommud::policy::{Config, Mode};
use iommud::server::{Driven, Server, Startup, TableState};
use iommud::topology::capabilities::DomainTag;
use iommud::topology::firmware::{EntryRange, Firmware, ReservedRegion};
use iommud::topology::tags::TagRecord;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Machine, Trouble, Watch};
use iommud_tests::stack::{Setup, scope};

use super::recovery::heal;
use super::{Bed, Subject, compat, devices, pair, reach, setup, start, subjects};

/// System memory that the first client's domain does not map.
const PLAIN: u64 = 0x0100_0000 - 0x1000;

/// Gives a first server under `strict` a client, whose domain is its only one. Returns the device, its buffer's
/// address, and the buffer's memory.
fn owned(stack: &mut Bed) -> (PciAddress, u64, Vec<(u64, u64)>) {
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x4000).unwrap();
    let share = stack.share(1, session, buffer.slot).unwrap();
    let mine = share.segments.iter().map(|s| (s.first().0, s.length())).collect();
    stack.device_write(device, buffer.iova, b"before").unwrap();
    (device, buffer.iova, mine)
}

/// Watches a restart under another policy. The device of the dead server's client may reach only its own buffer. A
/// device under `compat` may reach only `compat`'s grants.
fn watch(stack: &Bed, device: PciAddress, iova: u64, mine: &[(u64, u64)]) {
    let everything: Vec<_> =
        compat(stack).iter().map(|run| (run.physical, run.last - run.iova + 1)).collect();
    // The other device comes first: its cached translations are the ones that the first device would find under the
    // same tag.
    for (source, granted) in [(devices()[1], everything), (device, mine.to_vec())] {
        for iova in [PLAIN, iova, iova + 0x3000] {
            let source = source.requester.0;
            let (granted, must_pass) = (granted.clone(), false);
            let watch = Watch { unit: 0, source, iova, write: true, granted, must_pass };
            stack.machine.watch(watch);
        }
    }
}

/// The administrator changes the policy between two servers, so that the new one creates its domains in another
/// order. A write of the cut-off device does not land at the physical address of the same number. No other device
/// reaches its buffer.
#[test]
fn old_translations_serve_no_domain_of_the_next_server() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut stack = Bed::start(std::slice::from_ref(&subject), setup(Mode::Strict));
        let (device, iova, mine) = owned(&mut stack);
        stack.setup.config.default = Mode::Compat;
        watch(&stack, device, iova, &mine);
        let stack = stack.restart(std::slice::from_ref(&subject));
        stack.machine.clear_watches();
        stack.machine.assert_clean();
        assert_eq!(reach(&stack, device), []);
        assert_eq!(reach(&stack, devices()[1]), compat(&stack));
    }
}

/// Gives a first server a client that never uses its buffer. So the unit has the device's entry cached, but no
/// translation. Returns the device and the buffer's address.
fn owned_and_unused(stack: &mut Bed) -> (PciAddress, u64) {
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    assert_eq!(stack.machine.probe(0, device.requester.0, 1 << 38, true), None);
    (device, buffer.iova)
}

/// Chooses the actions at which the server dies: the last 100, and others spread evenly. (The first actions write a
/// device table of 65,536 entries, which no unit uses yet.)
fn points(count: u64) -> Vec<u64> {
    let last = count.saturating_sub(100);
    (0..count).filter(|at| *at >= last || at % (last / 8 + 1) == 0).collect()
}

/// A machine with room for the tables of four servers.
fn roomy(mode: Mode) -> Setup {
    let mut setup = setup(mode);
    setup.layout.tables = (16 << 20, 16 << 20);
    setup
}

/// A server dies at each action of its take-over. Another device reads the old address, then the cut-off device
/// writes there. The bytes land in the old buffer or nowhere, but not at the physical address of the same number.
/// Then a third server takes over from both, watched throughout.
#[test]
fn a_server_that_dies_taking_over_leaves_tags_to_the_third() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let subject = std::slice::from_ref(&subject);
        let mut stack = Bed::start(subject, roomy(Mode::Strict));
        let (device, iova) = owned_and_unused(&mut stack);
        stack.setup.config.default = Mode::Compat;
        let other = devices()[1];
        let mine = reach(&stack, device);
        let (saved, noted, tags) = (stack.machine.save(), stack.notes.noted(), stack.notes.tags());
        let before = stack.machine.steps();
        stack.reboot(subject);
        let actions = stack.machine.steps() - before;
        let mut died = 0;
        for action in points(actions) {
            stack.machine.restore(&saved);
            stack.notes.restore(&noted);
            stack.notes.restore_tags(tags);
            died += u64::from(stack.reboot_dying(subject, action));
            stack.machine.with_memory(|memory| memory.write_bytes(iova, &[0x11; 5]));
            let _ = stack.device_read(other, iova, 5);
            let _ = stack.device_write(device, iova, b"rogue");
            let mut bytes = [0; 5];
            stack.machine.with_memory(|memory| memory.read_bytes(iova, &mut bytes));
            assert_eq!(bytes, [0x11; 5], "at the physical address, after {action} of {actions}");
            let everything: Vec<_> =
                compat(&stack).iter().map(|run| (run.physical, run.last - run.iova + 1)).collect();
            let buffer = mine.iter().map(|run| (run.physical, run.last - run.iova + 1)).collect();
            for (source, granted) in [(other, everything), (device, buffer)] {
                let (source, must_pass) = (source.requester.0, false);
                stack.machine.watch(Watch {
                    unit: 0,
                    source,
                    iova,
                    write: true,
                    granted,
                    must_pass,
                });
            }
            // Starting a process takes longer than any command of a unit.
            stack.machine.pass_time(5_000_000);
            stack.reboot(subject);
            stack.machine.clear_watches();
            stack.machine.assert_clean();
            assert_eq!(reach(&stack, device), [], "after {action} of {actions}");
            assert_eq!(reach(&stack, other), compat(&stack), "after {action} of {actions}");
        }
        assert_eq!(died, points(actions).len() as u64);
    }
}

/// Devices under `compat` keep working throughout a restart, and throughout one in which a server dies half-way. They
/// are denied at no instant.
#[test]
fn what_compat_grants_is_granted_throughout() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let subject = std::slice::from_ref(&subject);
        let mut stack = Bed::start(subject, roomy(Mode::Compat));
        let source = devices()[1].requester.0;
        let before = stack.machine.steps();
        for (iova, granted) in [(PLAIN, (PLAIN, 0x1000)), (0x0390_0000, (0x0390_0000, 0x1000))] {
            let granted = vec![granted];
            stack.machine.watch(Watch {
                unit: 0,
                source,
                iova,
                write: true,
                granted,
                must_pass: true,
            });
        }
        stack.reboot(subject);
        let actions = stack.machine.steps() - before;
        assert!(stack.reboot_dying(subject, actions - 40));
        stack.reboot(subject);
        stack.machine.clear_watches();
        stack.machine.assert_clean();
    }
}

/// Returns the tags of the entries of all devices behind a unit, by its tables.
fn tags_of(stack: &Bed, unit: usize) -> Vec<u16> {
    let behind = devices().into_iter().filter(|device| stack.unit_of(*device) == unit);
    let bindings = behind.filter_map(|device| stack.machine.binding(unit, device.requester.0));
    // A blocked entry has no domain, or domain 0.
    let mut tags: Vec<u16> = bindings.map(|(tag, ..)| tag).filter(|tag| *tag != 0).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// No entry of a server has a tag of an entry of its predecessor.
#[test]
fn tags_of_servers_one_after_the_other_are_disjoint() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let subject = std::slice::from_ref(&subject);
        let mut stack = Bed::start(subject, roomy(Mode::Compat));
        let [first, second, ..] = devices();
        let mut before = Vec::new();
        for client in 1..4 {
            for device in [first, second] {
                let session = stack.claim(client, device).unwrap();
                stack.attach(session).unwrap();
            }
            let tags = tags_of(&stack, 0);
            assert_eq!(tags.len(), 3);
            assert!(before.iter().all(|tag| !tags.contains(tag)), "{before:?}, then {tags:?}");
            let held = stack.notes.tags().unwrap().held;
            assert!(tags.iter().all(|tag| held.contains(DomainTag(*tag))), "{tags:?}: {held:?}");
            // Every unit was flushed, so the predecessor's tags are no longer noted.
            assert!(
                !before.iter().any(|tag| held.contains(DomainTag(*tag))),
                "{before:?}: {held:?}"
            );
            before = tags;
            stack.reboot(subject);
        }
        stack.machine.assert_clean();
    }
}

/// One of two units does not come up under the second server. It holds the first server's items until the third has
/// flushed it.
#[test]
fn a_unit_that_was_not_flushed_keeps_its_tags_from_all_servers() {
    let subjects = pair();
    let mut setup = roomy(Mode::Compat);
    setup.behind_first = vec![devices()[0], devices()[1]];
    let mut stack = Bed::start(&subjects, setup);
    let session = stack.claim(1, devices()[2]).unwrap();
    stack.attach(session).unwrap();
    let first = tags_of(&stack, 1);
    // Only a few reads of the clock fit within the deadline of either vendor; the other unit comes up.
    stack.machine.set_relax(20_000_000);
    stack.machine.trouble(1, Trouble::StallQueueAfter(0));
    stack.reboot(&subjects);
    assert!(stack.text("status").contains("unit 1: "), "{}", stack.text("status"));
    assert!(!stack.server.all_units_enabled());
    let session = stack.claim(1, devices()[0]).unwrap();
    stack.attach(session).unwrap();
    let second = tags_of(&stack, 0);
    let held = |stack: &Bed, tags: &[u16]| {
        let held = stack.notes.tags().unwrap().held;
        tags.iter().all(|tag| held.contains(DomainTag(*tag)))
    };
    assert!(held(&stack, &first) && held(&stack, &second));
    assert!(first.iter().all(|tag| !second.contains(tag)), "{first:?}, then {second:?}");
    stack.machine.trouble(1, Trouble::None);
    stack.machine.set_relax(1_000);
    stack.reboot(&subjects);
    assert!(stack.server.all_units_enabled(), "{}", stack.text("status"));
    let third: Vec<u16> = [tags_of(&stack, 0), tags_of(&stack, 1)].concat();
    assert!(first.iter().chain(&second).all(|tag| !third.contains(tag)));
    assert!(held(&stack, &third) && !held(&stack, &first[..1]) && !held(&stack, &second[..1]));
    stack.machine.assert_clean();
}

/// A server that knows no units writes no note about their tags; the old note stays.
#[test]
fn a_server_without_units_leaves_the_note_alone() {
    let stack = start(Mode::Compat);
    let noted = stack.notes.tags();
    assert!(noted.is_some());
    let startup = Startup::<<Subject as UnderTest>::Unit, _> {
        config: Config::default(),
        table: TableState::Failed("DMAR", "unreadable".into()),
        firmware: Firmware::default(),
        units: Vec::new(),
        functions: Vec::new(),
        ram: Vec::new(),
        own: Vec::new(),
        left: Vec::new(),
        memory: stack.machine.tables(),
        buffers: stack.machine.buffers(),
        budget: iommud::server::Budget::default(),
    };
    let driven = Driven::new([], Box::new(stack.notes.clone())).after(noted);
    let _server = Server::start_after(startup, driven);
    assert_eq!(stack.notes.tags(), noted);
}

/// No server has flushed the unit yet, and its owner left no note. Firmware granted a device a page under the tag
/// that the server uses first. A device in one of policy's domains must not reach that page. Where the held tags are
/// unknown, it is denied until the unit was flushed.
#[test]
fn tags_of_an_owner_without_a_note_serve_no_domain() {
    const PAGE: u64 = 0x0390_0000;
    const REGION: (u64, u64) = (0x0398_0000, 0x1000);
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let [owned, other, ..] = devices();
        let mut setup = setup(Mode::Strict);
        setup.reserved = vec![ReservedRegion {
            segment: 0,
            range: PhysRange::new(PhysAddr(REGION.0), REGION.1).unwrap(),
            read: true,
            write: true,
            exclusion: false,
            scopes: vec![scope(other.requester)],
            entries: vec![EntryRange {
                first: other.requester,
                last: other.requester,
                alias: None,
                settings: 0,
            }],
        }];
        let prepared = |machine: &Machine| {
            let theirs = [(owned.requester, vec![PAGE])];
            subject.inherit_as(machine, 0, 0x0300_0000, &theirs, 2);
            for (source, granted) in [(owned, vec![(PAGE, 0x1000)]), (other, vec![REGION])] {
                for iova in [PAGE, REGION.0] {
                    let (source, granted) = (source.requester.0, granted.clone());
                    let watch =
                        Watch { unit: 0, source, iova, write: true, granted, must_pass: false };
                    machine.watch(watch);
                }
            }
        };
        // A unit that cannot be taken over at start is tried again later.
        for (unknown, stuck) in [(false, false), (true, false), (false, true), (true, true)] {
            println!("all tags may be held: {unknown}, stuck at start: {stuck}");
            let mut stack = Bed::start_noted(
                std::slice::from_ref(&subject),
                setup.clone(),
                |machine, notes| {
                    prepared(machine);
                    if stuck {
                        machine.set_relax(10_000_000);
                        machine.trouble(0, Trouble::StallQueueAfter(0));
                    }
                    if unknown {
                        let mut record = TagRecord::default();
                        record.strangers.insert(0);
                        notes.restore_tags(Some(record));
                    }
                },
            );
            assert_eq!(stack.server.all_units_enabled(), !stuck);
            heal(&stack);
            for second in [0, 1] {
                stack.server.recover_units(Nanos(second * 1_000_000_000));
            }
            assert!(stack.server.all_units_enabled());
            stack.machine.clear_watches();
            stack.machine.assert_clean();
            assert_eq!(reach(&stack, owned), []);
            let region = stack.machine.probe(0, other.requester.0, REGION.0, true);
            assert_eq!(region, Some(REGION.0));
            assert!(!stack.notes.tags().unwrap().strangers.contains(0), "it was flushed");
        }
    }
}
