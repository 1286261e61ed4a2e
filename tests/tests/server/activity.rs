//! What `activity` counts, to the last byte.

use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, BatchItem, Grant, MapList, Operation,
    ReplyHeader, Wire,
};
use iommud::policy::{ClientId, Mode};
use iommud::server::{Caller, Handle};
use iommud_tests::machine::Trouble;
use iommud_tests::stack::{Setup, endpoint};

use super::input::{batch, list};
use super::{Bed, FAMILY, devices, each, matrix, setup, start};

/// The line of a device or unit.
fn line(stack: &mut Bed, of: &str) -> String {
    let text = stack.text("activity");
    let found = text.lines().find(|line| line.starts_with(&format!("{of}, ")));
    found.unwrap_or_else(|| panic!("no {of}: {text}")).to_owned()
}

/// A field of a line.
fn field(line: &str, name: &str) -> String {
    let value = line.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
}

fn number(line: &str, name: &str) -> u64 {
    field(line, name).parse().unwrap()
}

/// Mappings made and ended, and their bytes.
fn tally(stack: &mut Bed, device: PciAddress) -> [u64; 4] {
    let line = line(stack, &format!("device: {device}"));
    ["maps", "unmaps", "mapped", "unmapped"].map(|name| number(&line, name))
}

/// Fails unless what was made and has not ended is what the server says is mapped.
fn balanced(stack: &mut Bed, device: PciAddress) {
    let [maps, unmaps, ..] = tally(stack, device);
    let text = stack.text(&format!("devices/{device}"));
    let mapped = text.lines().find_map(|line| line.strip_prefix("mappings: "));
    let mapped: u64 = mapped.map_or(0, |count| count.parse().unwrap());
    assert_eq!(maps - unmaps, mapped, "{text}");
}

fn reply(stack: &mut Bed, session: Handle, bytes: &[u8]) -> Vec<u8> {
    let reply = stack.raw(session, bytes, 4096).unwrap();
    let header = ReplyHeader::decode(&reply).unwrap();
    assert_eq!(header.refusal, 0);
    reply[ReplyHeader::SIZE..].to_vec()
}

/// A refused request.
fn refused(stack: &mut Bed, session: Handle, bytes: &[u8]) {
    let reply = stack.raw(session, bytes, 4096).unwrap();
    assert_ne!(ReplyHeader::decode(&reply).unwrap().refusal, 0);
}

fn attached(stack: &mut Bed, device: PciAddress) -> Handle {
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    session
}

#[test]
fn a_server_that_did_nothing_says_so() {
    let mut stack = start(Mode::Compat);
    let text = stack.text("activity");
    let (counts, rest) = text.split_once("unit: ").unwrap();
    let expected = "opens: 1\ncalls: 0\nrefusals: 0\nfaults: 0\nfaults of unknown devices: 0\n\
                    faults lost in hardware: 0\n";
    assert_eq!(counts, expected);
    let line = rest.strip_suffix('\n').unwrap();
    assert_eq!(line.lines().count(), 1, "no device did anything: {text}");
    assert!(line.starts_with(&format!("0, kind {FAMILY}, state enabled, commands ")), "{line}");
    assert!(line.ends_with(", iotlb none"), "{line}");
    assert_eq!((number(line, "unanswered"), field(line, "times").split(' ').count()), (0, 7));
    // It was enabled by invalidations.
    assert!(number(line, "commands") > 0 && number(line, "waits") > 0, "{line}");
}

#[test]
fn a_line_of_a_device_has_its_owner_and_its_counts() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let buffer = stack.allocate(session, 0x5000).unwrap();
        let path = format!("device: {device}");
        let expected = format!(
            "{path}, id 1234:11e8, owner client 1, silenced false, \
             maps 1, unmaps 0, mapped 20480, unmapped 0, faults 0"
        );
        assert_eq!(line(stack, &path), expected);
        stack.server.set_process(ClientId(1), 4711);
        stack.unmap(session, buffer.iova, 0x5000).unwrap();
        let expected = format!(
            "{path}, id 1234:11e8, owner process 4711, silenced false, \
             maps 1, unmaps 1, mapped 20480, unmapped 20480, faults 0"
        );
        assert_eq!(line(stack, &path), expected);
        let physical = stack.share(1, session, buffer.slot).unwrap().segments[0].first().0;
        assert!(!stack.text("activity").contains(&format!("{physical:x}")));
    });
}

/// Map, unmap, list and batch; none counts that was refused, as a whole or in the middle of a batch.
#[test]
fn maps_and_unmaps_are_counted_one_by_one() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let buffer = stack.allocate(session, 0x8000).unwrap();
        let slot = buffer.slot;
        let first = stack.map(session, slot, 0x1000, 0x3000).unwrap();
        let second = stack.map(session, slot, 0, 0x1000).unwrap();
        assert_eq!(tally(stack, device), [3, 0, 0xc000, 0]);
        stack.unmap(session, first, 0x3000).unwrap();
        assert_eq!(tally(stack, device), [3, 1, 0xc000, 0x3000]);
        assert!(stack.unmap(session, first, 0x3000).is_err());
        assert!(stack.map(session, slot, 0x8000, 0x1000).is_err());
        assert_eq!(tally(stack, device), [3, 1, 0xc000, 0x3000], "refused");

        let access = Access::all().bits();
        let pages = [4, 1, 3];
        let scattered = MapList { slot, access, count: 3, ..MapList::default() };
        let told = reply(stack, session, &list(&scattered, &pages));
        let iova = u64::from_le_bytes(told[..8].try_into().unwrap());
        assert_eq!(tally(stack, device), [4, 1, 0xf000, 0x3000], "a list is one mapping");
        stack.unmap(session, iova, 0x3000).unwrap();
        assert_eq!(tally(stack, device), [4, 2, 0xf000, 0x6000]);

        let map = BatchItem {
            operation: Operation::Map.code(),
            slot,
            access,
            length: 0x2000,
            ..BatchItem::default()
        };
        let unmap = BatchItem {
            operation: Operation::Unmap.code(),
            iova: second,
            length: 0x1000,
            ..BatchItem::default()
        };
        reply(stack, session, &batch(&[map, unmap, map]));
        assert_eq!(tally(stack, device), [6, 3, 0x13000, 0x7000]);
        balanced(stack, device);
        let missing = BatchItem { iova: 0x1000, ..unmap };
        let again = BatchItem { iova: buffer.iova, length: 0x8000, ..unmap };
        refused(stack, session, &batch(&[map, again, map, missing]));
        assert_eq!(tally(stack, device), [6, 3, 0x13000, 0x7000], "taken back");
        stack.release(session, slot).unwrap();
        assert_eq!(tally(stack, device), [6, 6, 0x13000, 0x13000]);
        balanced(stack, device);
    });
}

#[test]
fn grants_and_revokes_are_counted() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let access = Access::all().bits();
        let flags = AllocateFlags::UNMAPPED.bits();
        let request = Allocate { length: 0x8000, access, flags, ..Allocate::default() };
        let buffer: AllocateResult = stack.call(session, Operation::Allocate, &request).unwrap();
        assert_eq!(tally(stack, device), [0, 0, 0, 0], "addresses alone are no mapping");
        let grant = Grant { slot: buffer.slot, access, length: 0x2000, ..Grant::default() };
        let call = |stack: &mut Bed, operation, grant: &Grant| {
            let bytes = iommud_tests::stack::request(operation, grant);
            reply(stack, session, &bytes)
        };
        call(stack, Operation::Grant, &grant);
        call(stack, Operation::Grant, &Grant { offset: 0x4000, length: 0x1000, ..grant });
        assert_eq!(tally(stack, device), [2, 0, 0x3000, 0]);
        call(stack, Operation::Revoke, &Grant { access: 0, ..grant });
        assert_eq!(tally(stack, device), [2, 1, 0x3000, 0x2000]);
        balanced(stack, device);
        stack.release(session, buffer.slot).unwrap();
        assert_eq!(tally(stack, device), [2, 2, 0x3000, 0x3000]);
    });
}

/// A detach ends no mapping; the end of a session ends all of its own, and its counts go on with the next one.
#[test]
fn counts_outlive_detach_and_death() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let buffer = stack.allocate(session, 0x4000).unwrap();
        stack.map(session, buffer.slot, 0x1000, 0x1000).unwrap();
        stack.detach(session).unwrap();
        assert_eq!(tally(stack, device), [2, 0, 0x5000, 0]);
        balanced(stack, device);
        stack.attach(session).unwrap();
        stack.server.close(session);
        assert_eq!(tally(stack, device), [2, 2, 0x5000, 0x5000]);
        assert_eq!(field(&line(stack, &format!("device: {device}")), "owner"), "none");
        let session = attached(stack, device);
        assert_eq!(tally(stack, device), [2, 2, 0x5000, 0x5000], "the next owner goes on");
        stack.allocate(session, 0x1000).unwrap();
        assert_eq!(tally(stack, device), [3, 2, 0x6000, 0x5000]);
        balanced(stack, device);
    });
}

/// Two devices of one owner share a domain, and each has its own counts, also when only one session ends.
#[test]
fn devices_of_one_owner_are_counted_apart() {
    each(Mode::Compat, |stack| {
        let [.., device, neighbour] = devices();
        let session = attached(stack, device);
        let caller = Caller { client: ClientId(1), uid: 0 };
        let path = format!("devices/{neighbour}");
        let member = stack.server.open(caller, Some(session), &path, true).unwrap();
        stack.attach(member).unwrap();
        stack.allocate(session, 0x3000).unwrap();
        let other = stack.allocate(member, 0x2000).unwrap();
        stack.unmap(member, other.iova, 0x2000).unwrap();
        assert_eq!(tally(stack, device), [1, 0, 0x3000, 0]);
        assert_eq!(tally(stack, neighbour), [1, 1, 0x2000, 0x2000]);
        stack.allocate(member, 0x1000).unwrap();
        stack.server.close(member);
        assert_eq!(tally(stack, neighbour), [2, 2, 0x3000, 0x3000]);
        assert_eq!(tally(stack, device), [1, 0, 0x3000, 0]);
    });
}

/// A plan that the unit does not carry out leaves the counts as they were.
#[test]
fn what_is_undone_is_not_counted() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let before = tally(stack, device);
        stack.machine.set_relax(1_000_000);
        stack.machine.trouble(0, Trouble::StallQueueAfter(0));
        assert!(stack.unmap(session, buffer.iova, 0x4000).is_err());
        assert_eq!(tally(stack, device), before);
        let unit = line(stack, "unit: 0");
        assert_eq!(field(&unit, "state"), "failed");
        assert!(number(&unit, "unanswered") > 0, "{unit}");
    });
}

/// A device that goes while it is in use is counted on, as gone, and the next one at its address too.
#[test]
fn a_device_that_goes_is_counted_on() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        stack.allocate(session, 0x4000).unwrap();
        stack.server.function_gone(device);
        let told = line(stack, &format!("device: {device}"));
        assert!(!told.contains("owner "), "{told}");
        assert_eq!(tally(stack, device), [1, 0, 0x4000, 0]);
        stack.server.function_arrived(endpoint(0, 3, 0)).unwrap();
        assert_eq!(tally(stack, device), [1, 0, 0x4000, 0]);
        stack.server.close(session);
        assert_eq!(tally(stack, device), [1, 1, 0x4000, 0x4000]);
    });
}

/// One unmap is one command and one wait. The software unit takes its time, and the time is counted in one range.
#[test]
fn an_unmap_is_one_command_and_one_wait() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = attached(stack, device);
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let counts = |line: &str| -> Vec<u64> {
            let times = field(line, "times");
            let times = times.split(' ').map(|count| count.parse().unwrap());
            let alone = ["commands", "waits", "unanswered", "at-once", "nanoseconds"];
            alone.into_iter().map(|name| number(line, name)).chain(times).collect()
        };
        stack.machine.set_relax(200_000);
        let (before, start) = (counts(&line(stack, "unit: 0")), stack.machine.now());
        stack.unmap(session, buffer.iova, 0x4000).unwrap();
        let (after, spent) = (counts(&line(stack, "unit: 0")), stack.machine.now() - start);
        let added: Vec<u64> = after.iter().zip(&before).map(|(now, then)| now - then).collect();
        let [commands, waits, unanswered, at_once, nanos, times @ ..] = &added[..] else {
            panic!()
        };
        assert_eq!((commands, waits, unanswered), (&1, &1, &0), "{added:?}");
        assert!(*nanos <= spent, "{nanos} of {spent}");
        let expected = if *at_once == 1 {
            [0; 7]
        } else {
            let place = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
            let mut one = [0; 7];
            one[place.iter().filter(|end| nanos >= *end).count()] = 1;
            assert!(*nanos >= 200_000, "at least one pause: {nanos}");
            one
        };
        assert_eq!(times, expected, "{added:?}");
        stack.machine.set_relax(1_000);
    });
}

/// Faults count for the device that has them, claimed or not. Those of an id that no function has are counted together.
#[test]
fn faults_are_counted_by_device() {
    each(Mode::Strict, |stack| {
        let [device, other, ..] = devices();
        let session = attached(stack, device);
        for at in 0..3 {
            assert!(stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]).is_err());
            // Some units have room for one fault only.
            stack.server.tick();
        }
        assert!(stack.device_write(other, 0x1000, &[1]).is_err());
        stack.server.tick();
        assert!(stack.machine.access(0, 0x4208, 0x1000, 8, true).is_err());
        stack.server.tick();
        let told = line(stack, &format!("device: {device}"));
        assert_eq!((number(&told, "faults"), field(&told, "owner")), (3, "client 1".to_owned()));
        let told = line(stack, &format!("device: {other}"));
        assert_eq!((number(&told, "faults"), field(&told, "owner")), (1, "none".to_owned()));
        let text = stack.text("activity");
        assert!(text.contains("faults: 5\nfaults of unknown devices: 1\n"), "{text}");
        stack.server.close(session);
        assert_eq!(number(&line(stack, &format!("device: {device}")), "faults"), 3);
    });
}

/// In a storm no more faults are counted than are reported, and the line says why.
#[test]
fn a_storm_is_counted_until_it_is_silenced() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        attached(stack, device);
        let mut longest = 0;
        for at in 0..200 {
            let _ = stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]);
            stack.server.tick();
            longest = longest.max(stack.text("activity").len());
        }
        let told = line(stack, &format!("device: {device}"));
        assert_eq!((number(&told, "faults"), field(&told, "silenced")), (16, "true".to_owned()));
        assert!(longest < 600, "{longest} bytes for one unit and one device, however many faults");
    });
}

/// However many devices there are, the text is bounded and says that it is not all.
#[test]
fn many_devices_have_a_bounded_text() {
    let mut functions = Vec::new();
    for (bus, device) in (0..18).flat_map(|bus| (0..32).map(move |device| (bus, device))) {
        if bus > 0 || device > 1 {
            functions.push(endpoint(bus, device, 0));
        }
    }
    let given = Setup { functions, ..setup(Mode::Strict) };
    let mut stack = Bed::start(&[matrix().remove(0)], given);
    let fault = |stack: &mut Bed, count: usize| {
        let functions = stack.setup.functions.clone();
        for function in functions.iter().take(count) {
            assert!(stack.device_write(function.address, 0x1000, &[1]).is_err());
            stack.server.tick();
        }
    };
    fault(&mut stack, 512);
    let text = stack.text("activity");
    assert_eq!(text.matches("device: ").count(), 512);
    assert!(!text.contains("not listed"), "all of them are");
    fault(&mut stack, 515);
    let text = stack.text("activity");
    assert_eq!(text.matches("device: ").count(), 512);
    assert!(text.ends_with("\ndevices not listed: 3\n") && text.len() < 96 << 10, "{}", text.len());
}

/// Others than administrators are not told.
#[test]
fn activity_is_for_administrators() {
    let mut stack = start(Mode::Compat);
    let caller = Caller { client: ClientId(1), uid: 1000 };
    let refusal = stack.server.open(caller, None, "activity", false).unwrap_err();
    assert_eq!(refusal, iommu_protocol::Refusal::Permission);
}
