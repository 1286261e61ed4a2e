//! The story of a driver: it claims its device, gets memory, does DMA. Other memory stays out of reach, and attempts
//! are reported as faults.

use iommu_protocol::Refusal;
use iommu_protocol::fault::FaultAccess;
use iommu_protocol::wire::{Access, BufferRequest, BufferResult, Operation, SessionFlags};
use iommud::policy::Mode;

use super::{Bed, FAMILY, absent_page, compat, devices, each, matrix, reach, setup, start};
use iommud_tests::machine::Watch;

const PATTERN: &[u8] = b"the device and its driver see the same memory";

#[test]
fn a_driver_and_its_device_share_a_buffer_and_nothing_else() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        assert_eq!(reach(stack, device), compat(stack), "under policy");
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        assert_eq!(reach(stack, device), [], "attached, nothing granted");
        let buffer = stack.allocate(session, 0x5000).unwrap();
        assert_eq!(buffer.length, 0x5000);
        let share = stack.share(1, session, buffer.slot).unwrap();
        // Driver to device and device to driver, across pages of several segments.
        stack.machine.share_write(&share, 0x0ff0, PATTERN);
        assert_eq!(
            stack.device_read(device, buffer.iova + 0x0ff0, PATTERN.len()).unwrap(),
            PATTERN
        );
        stack.device_write(device, buffer.iova + 0x3ff8, PATTERN).unwrap();
        let length = u64::try_from(PATTERN.len()).unwrap();
        assert_eq!(stack.machine.share_read(&share, 0x3ff8, length), PATTERN);
        // Exactly the buffer is reachable at its addresses, with no byte before or behind it.
        let runs = reach(stack, device);
        assert_eq!(runs.first().unwrap().iova, buffer.iova);
        assert_eq!(runs.last().unwrap().last, buffer.iova + 0x4fff);
        let physical: u64 = runs.iter().map(|run| run.last - run.iova + 1).sum();
        assert_eq!(physical, 0x5000);
        assert!(stack.device_write(device, buffer.iova + 0x5000, &[1]).is_err());
        assert!(stack.device_write(device, buffer.iova - 1, &[1]).is_err());
        // No client ever sees a physical address.
        let physical = share.segments[0].first().0;
        for path in ["status", "faults", "metrics", "activity", "groups/0", "units/0"] {
            let text = stack.text(path);
            assert!(!text.contains(&format!("{physical:x}")), "{path}: {text}");
        }
        assert_eq!(reach(stack, other), compat(stack), "the others are as before");
        // A device that is given back is under policy again. (A device left attached is blocked: its driver gave it
        // I/O virtual addresses, which mean other memory under policy.)
        stack.give_back(session);
        assert_eq!(reach(stack, device), compat(stack), "back under policy");
    });
}

#[test]
fn under_compat_nothing_of_the_servers_can_be_reached() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let before = stack.snapshot();
        let (tables, size) = stack.setup.layout.tables;
        let unit = stack.unit_of(device);
        let source = device.requester.0;
        for at in (tables..tables + size).step_by(0x4_0000).chain([tables + size - 1]) {
            assert!(stack.machine.access(unit, source, at, 1, true).is_err(), "{at:#x}");
            assert!(stack.machine.access(unit, source, at, 1, false).is_err(), "{at:#x}");
        }
        stack.snapshot().assert_same(&before, "bit for bit");
        // An unclaimed device works as before.
        stack.device_write(device, 0x0390_0123, PATTERN).unwrap();
        assert_eq!(stack.device_read(device, 0x0390_0123, PATTERN.len()).unwrap(), PATTERN);
        stack.server.tick();
        assert!(stack.text("faults").contains("0000--00--03.0"), "{}", stack.text("faults"));
    });
}

/// With memory above 4 GiB: the gap below it is mapped one to one as well (other devices), except the registers of
/// units and the interrupt window.
#[test]
fn under_compat_units_and_interrupts_cannot_be_reached() {
    let mut setup = setup(Mode::Compat);
    setup.layout.ram.push((1 << 32, 4 << 20));
    setup.behind_first = vec![devices()[0]];
    let mut stack = Bed::start(&matrix()[..1], setup);
    assert_eq!(compat(&stack).len(), 5, "{:x?}", compat(&stack));
    for device in devices() {
        assert_eq!(reach(&stack, device), compat(&stack));
        let registers = stack.registers();
        let (first, second) = (registers[0].0, registers[1].0);
        for at in [first, first + 0xfff, second + 0x18, 0xfee0_0000, 0xfeef_ffff] {
            assert!(stack.device_write(device, at, &[1]).is_err(), "{at:#x}");
        }
    }
    stack.device_write(devices()[0], (1 << 32) + 0x123, PATTERN).unwrap();
    stack.server.shutdown();
    stack.machine.assert_clean();
}

#[test]
fn an_ungranted_access_is_blocked_and_told_to_the_owner_alone() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        let stranger = stack.claim(2, other).unwrap();
        stack.attach(session).unwrap();
        stack.attach(stranger).unwrap();
        assert_eq!(stack.server.watch(session, 1), Ok(0));
        assert_eq!(stack.faults(session), []);
        for (write, access) in [(true, FaultAccess::Write), (false, FaultAccess::Read)] {
            let denied = if write {
                stack.device_write(device, 0x1234_5678, &[1]).map(drop)
            } else {
                stack.device_read(device, 0x1234_5678, 1).map(drop)
            };
            assert!(denied.is_err());
            stack.server.tick();
            assert_eq!(stack.server.next_ready(), Some(session));
            assert_eq!(stack.server.next_ready(), None);
            assert_eq!(stack.server.watch(session, 1), Ok(1));
            let flags = stack.query(session).unwrap().flags;
            assert_eq!(flags & SessionFlags::FAULTS.bits(), SessionFlags::FAULTS.bits());
            let records = stack.faults(session);
            assert_eq!(records.len(), 1, "{records:?}");
            let record = records[0];
            assert_eq!((record.source, record.access, record.lost), (device, access, 0));
            assert_eq!(record.address.map(|at| at & !0xfff), Some(0x1234_5000));
            // Second-level entry without permission: 5 for writing, 6 for reading.
            assert_eq!(record.reason, absent_page(write));
            assert!(record.words().len() > 8, "{record}");
            assert_eq!(stack.server.watch(session, 1), Ok(0), "read");
        }
        assert_eq!(stack.faults(stranger), []);
    });
}

#[test]
fn the_other_drivers_buffer_is_out_of_reach() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        let neighbour = stack.claim(2, other).unwrap();
        stack.attach(session).unwrap();
        stack.attach(neighbour).unwrap();
        let mine = stack.allocate(session, 0x4000).unwrap();
        let theirs = stack.allocate(neighbour, 0x8000).unwrap();
        let share = stack.share(2, neighbour, theirs.slot).unwrap();
        stack.machine.share_write(&share, 0x6000, PATTERN);
        let length = u64::try_from(PATTERN.len()).unwrap();
        // By the neighbour's I/O addresses (unless the client has the same ones), and by its physical addresses.
        for segment in &share.segments {
            let at = segment.first().0;
            assert!(stack.device_write(device, at, &[0xee; 64]).is_err(), "{at:#x}");
        }
        for at in (theirs.iova..theirs.iova + 0x8000).step_by(0x1000) {
            let mine_too = (mine.iova..mine.iova + 0x4000).contains(&at);
            assert_eq!(stack.device_write(device, at, &[0xee; 64]).is_ok(), mine_too);
        }
        assert_eq!(stack.machine.share_read(&share, 0x6000, length), PATTERN);
        assert!(stack.machine.share_read(&share, 0, 0x8000).iter().all(|byte| *byte != 0xee));
    });
}

#[test]
fn after_unmap_it_is_blocked_again() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let share = stack.share(1, session, buffer.slot).unwrap();
        let second = stack.map(session, buffer.slot, 0x1000, 0x2000).unwrap();
        assert_ne!(second, buffer.iova);
        stack.device_write(device, second, PATTERN).unwrap();
        assert_eq!(stack.machine.share_read(&share, 0x1000, 4), &PATTERN[..4]);
        let request = BufferRequest { slot: buffer.slot, reserved: 0 };
        let told: BufferResult = stack.call(session, Operation::QueryBuffer, &request).unwrap();
        assert_eq!((told.iova, told.length, told.mappings), (buffer.iova, 0x4000, 2));
        stack.unmap(session, second, 0x2000).unwrap();
        assert!(stack.device_write(device, second, &[0xee; 16]).is_err());
        assert!(stack.device_write(device, second + 0x1fff, &[0xee; 1]).is_err());
        assert_eq!(stack.machine.share_read(&share, 0x1000, 4), &PATTERN[..4], "untouched");
        stack.device_write(device, buffer.iova + 0x1000, b"still").unwrap();
        stack.unmap(session, buffer.iova, 0x4000).unwrap();
        assert_eq!(reach(stack, device), []);
        stack.release(session, buffer.slot).unwrap();
        assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        let told: Result<BufferResult, _> = stack.call(session, Operation::QueryBuffer, &request);
        assert_eq!(told.err(), Some(Refusal::BadHandle));
    });
}

#[test]
fn a_device_and_its_group_have_one_owner() {
    each(Mode::Compat, |stack| {
        let [device, _, _, first, second] = devices();
        let session = stack.claim(1, device).unwrap();
        assert_eq!(stack.claim(2, device), Err(Refusal::NotOwner));
        stack.attach(session).unwrap();
        assert_eq!(stack.claim(2, device), Err(Refusal::NotOwner));
        // Two functions of one device form one group.
        let pair = stack.claim(3, first).unwrap();
        assert_eq!(stack.claim(4, second), Err(Refusal::NotOwner));
        let member = stack
            .server
            .open(
                iommud::server::Caller { client: iommud::policy::ClientId(3), uid: 0 },
                Some(pair),
                &format!("devices/{second}"),
                true,
            )
            .unwrap();
        stack.attach(pair).unwrap();
        stack.attach(member).unwrap();
        let buffer = stack.allocate(pair, 0x1000).unwrap();
        stack.device_write(second, buffer.iova, PATTERN).unwrap();
        assert_eq!(stack.device_read(first, buffer.iova, 4).unwrap(), &PATTERN[..4]);
        stack.server.close(pair);
        assert_eq!(stack.claim(4, first), Err(Refusal::NotOwner), "the other member is still held");
        stack.server.close(member);
        stack.server.close(session);
        for (client, device) in [(2, device), (4, first)] {
            let session = stack.claim(client, device).unwrap();
            stack.server.close(session);
        }
    });
}

#[test]
fn the_neighbour_notices_nothing() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let neighbour = stack.claim(2, other).unwrap();
        stack.attach(neighbour).unwrap();
        let buffer = stack.allocate(neighbour, 0x3000).unwrap();
        let share = stack.share(2, neighbour, buffer.slot).unwrap();
        for (page, physical) in [(0, share.segments[0]), (0x2000, share.segments[0])] {
            stack.machine.watch(Watch {
                unit: stack.unit_of(other),
                source: other.requester.0,
                iova: buffer.iova + page,
                write: true,
                granted: share
                    .segments
                    .iter()
                    .map(|segment| (segment.first().0, segment.length()))
                    .collect(),
                must_pass: true,
            });
            let _ = physical;
        }
        for round in 0..3 {
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            let buffer = stack.allocate(session, 0x20_0000 + 0x1000 * round).unwrap();
            let _ = stack.device_write(device, 0x7777_0000, &[1]);
            stack.unmap(session, buffer.iova, buffer.length).unwrap();
            stack.detach(session).unwrap();
            stack.attach(session).unwrap();
            stack.server.close(session);
        }
        stack.machine.clear_watches();
        assert_eq!(stack.faults(neighbour), []);
        assert_eq!(stack.query(neighbour).unwrap().faults_lost, 0);
    });
}

#[test]
fn texts_tell_the_truth() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let status = stack.text("status");
    for line in
        [&*format!("unit 0: {FAMILY} enabled"), "policy: compat", "confinement: on", "groups: 4"]
    {
        assert!(status.contains(line), "{status}");
    }
    let text = stack.text(&format!("devices/{device}"));
    assert!(
        text.contains("reaches: what policy maps") && text.contains("claimed: false"),
        "{text}"
    );
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let text = stack.text(&format!("devices/{device}"));
    assert!(text.contains("reaches: what its session maps"), "{text}");
    assert!(text.contains("claimed: true"), "{text}");
    assert_eq!(stack.metric("sessions_attached"), 1);
    let told = stack.query(session).unwrap();
    let flags = SessionFlags::ATTACHED | SessionFlags::CONFINED;
    assert_eq!(told.flags, flags.bits());
    assert_eq!((told.segment, told.requester, told.generation), (0, 0x18, 1));
    assert_eq!(told.page_sizes & 0x1000, 0x1000);
    assert!(told.iova_first > 0 && told.iova_last > 0xffff_ffff, "{told:?}");
    assert_eq!(stack.names("devices").len(), 5);
    assert_eq!(
        stack.names(""),
        [
            "status", "units", "groups", "devices", "domains", "faults", "metrics", "activity",
            "rescan"
        ]
    );
    let _ = Access::READ;
}
