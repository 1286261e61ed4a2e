//! One client cannot exhaust the resources of others.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::SessionFlags;
use iommud::policy::{ClientId, Mode};
use iommud::server::Caller;

use super::{Bed, devices, each, matrix, reach, setup, start};
use iommud_tests::stack::endpoint;

fn caller(client: u32) -> Caller {
    Caller { client: ClientId(client), uid: 0 }
}

#[test]
fn ten_thousand_opens_hit_the_quota_of_one_client_alone() {
    let mut stack = start(Mode::Compat);
    let before = stack.snapshot();
    let limit = usize::try_from(stack.setup.config.quotas.handles).unwrap();
    let mut open = Vec::new();
    for _ in 0..10_000 {
        match stack.server.open(caller(1), None, "status", false) {
            Ok(handle) => open.push(handle),
            Err(refusal) => assert_eq!(refusal, Refusal::Quota),
        }
    }
    assert_eq!(open.len(), limit);
    // Another client is not affected.
    let [device, ..] = devices();
    let session = stack.claim(2, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    stack.device_write(device, buffer.iova, b"fine").unwrap();
    stack.give_back(session);
    for handle in open {
        stack.server.close(handle);
    }
    stack.snapshot().assert_same(&before, "");
    assert_eq!(stack.metric("handles"), 0);
    let again = stack.server.open(caller(1), None, "status", false).unwrap();
    stack.server.close(again);
}

#[test]
fn ten_thousand_claims_of_a_claimed_device_change_nothing() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let before = stack.snapshot();
    for _ in 0..10_000 {
        assert_eq!(stack.claim(2, device), Err(Refusal::NotOwner));
    }
    stack.snapshot().assert_same(&before, "");
    stack.machine.assert_clean();
}

#[test]
fn memory_is_bounded_for_each_client() {
    let mut setup = setup(Mode::Compat);
    setup.config.quotas.memory = 0x10_0000;
    let mut stack = Bed::start(&[matrix().remove(0)], setup);
    let [device, other, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let empty = stack.snapshot();
    assert_eq!(stack.query(session).unwrap().memory_left, 0x10_0000);
    assert_eq!(stack.allocate(session, 0x10_1000).err(), Some(Refusal::Quota));
    let first = stack.allocate(session, 0xf_0000).unwrap();
    assert_eq!(stack.query(session).unwrap().memory_left, 0x1_0000);
    let full = stack.snapshot();
    assert_eq!(stack.allocate(session, 0x1_1000).err(), Some(Refusal::Quota));
    stack.snapshot().assert_same(&full, "");
    let second = stack.allocate(session, 0x1_0000).unwrap();
    assert_eq!(stack.allocate(session, 0x1000).err(), Some(Refusal::Quota));
    // Another client has a quota of its own.
    let neighbour = stack.claim(2, other).unwrap();
    stack.attach(neighbour).unwrap();
    stack.allocate(neighbour, 0x10_0000).unwrap();
    stack.give_back(neighbour);
    stack.release(session, first.slot).unwrap();
    stack.release(session, second.slot).unwrap();
    assert_eq!(stack.query(session).unwrap().memory_left, 0x10_0000);
    stack.snapshot().assert_same(&empty, "");
}

#[test]
fn mappings_are_bounded_for_each_client() {
    let mut setup = setup(Mode::Compat);
    setup.config.quotas.mappings = 10;
    let mut stack = Bed::start(&[matrix().remove(0)], setup);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x4000).unwrap();
    let mut mapped = Vec::new();
    while let Ok(iova) = stack.map(session, buffer.slot, 0x1000, 0x1000) {
        mapped.push(iova);
        assert!(mapped.len() <= 10);
    }
    assert_eq!(mapped.len(), 9, "the buffer's own mapping is one");
    assert_eq!(stack.query(session).unwrap().mappings_left, 0);
    let full = stack.snapshot();
    let refused = stack.map(session, buffer.slot, 0, 0x1000);
    assert_eq!(refused.err(), Some(Refusal::Quota));
    assert_eq!(stack.allocate(session, 0x1000).err(), Some(Refusal::Quota));
    stack.snapshot().assert_same(&full, "");
    stack.unmap(session, mapped[3], 0x1000).unwrap();
    stack.map(session, buffer.slot, 0, 0x1000).unwrap();
    stack.server.close(session);
    assert_eq!(stack.metric("mappings"), 0);
}

#[test]
fn sessions_and_domains_are_bounded_for_each_client() {
    let mut setup = setup(Mode::Compat);
    setup.functions = (0..30).map(|device| endpoint(1, device, 0)).collect();
    setup.config.quotas.domains = 4;
    setup.config.quotas.sessions = 6;
    let mut stack = Bed::start(&[matrix().remove(0)], setup);
    let before = stack.snapshot();
    let device = |device| PciAddress::new(0, 1, device, 0).unwrap();
    let mut sessions = Vec::new();
    for at in 0..30 {
        match stack.claim(1, device(at)) {
            Ok(session) => sessions.push(session),
            Err(refusal) => assert_eq!(refusal, Refusal::Quota),
        }
    }
    assert_eq!(sessions.len(), 4);
    let other = stack.claim(2, device(29)).unwrap();
    stack.server.close(other);
    for session in sessions {
        stack.server.close(session);
    }
    stack.snapshot().assert_same(&before, "");
}

#[test]
fn unread_faults_are_bounded_and_the_loss_is_told() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    for at in 0..200_u64 {
        assert!(stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]).is_err());
        stack.server.tick();
        // A second tick makes a pause, so that this is not a storm.
        stack.server.tick();
    }
    let lost = stack.query(session).unwrap().faults_lost;
    let records = stack.faults(session);
    assert!(records.len() <= usize::try_from(stack.setup.config.quotas.faults).unwrap());
    assert!(lost > 0 && records.len() > 4, "{lost} {}", records.len());
    assert_eq!(stack.faults(session), []);
    stack.machine.assert_clean();
}

/// S31: 16 faults are taken from a device that never stops. The silence is reported, the device keeps its reach,
/// other devices' faults are reported, and the next attach ends the silence.
#[test]
fn s31_a_storm_is_silenced_and_others_are_heard() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let (session, neighbour) =
            (stack.claim(1, device).unwrap(), stack.claim(2, other).unwrap());
        stack.attach(session).unwrap();
        stack.attach(neighbour).unwrap();
        let buffer = stack.allocate(session, 0x1000).unwrap();
        let silenced = SessionFlags::SILENCED.bits();
        let total = |stack: &mut Bed| {
            let metrics = stack.text("metrics");
            let line = metrics.lines().find_map(|line| line.strip_prefix("faults ")).unwrap();
            line.parse::<u64>().unwrap()
        };
        for round in 1..=2 {
            let before = total(stack);
            for at in 0..200 {
                assert!(stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]).is_err());
                stack.server.tick();
                stack.device_write(device, buffer.iova, &[1]).unwrap();
            }
            assert_eq!(total(stack) - before, 16, "round {round}");
            let records = stack.faults(session);
            assert_eq!(records.len(), 17);
            assert!(records[16].words().starts_with("silenced: 16 faults"), "{}", records[16]);
            assert_eq!((records[16].address, records[16].sequence), (None, records[15].sequence));
            assert_eq!(stack.query(session).unwrap().flags & silenced, silenced);
            assert!(stack.text("status").contains(&format!("silenced: {device} after 16 faults")));
            assert!(stack.text(&format!("devices/{device}")).contains("silenced: true"));

            assert!(stack.device_write(other, 0x6000_0000, &[1]).is_err());
            assert_eq!(stack.faults(neighbour).len(), 1);
            assert_eq!(stack.query(neighbour).unwrap().flags & silenced, 0);

            stack.detach(session).unwrap();
            stack.attach(session).unwrap();
            assert_eq!(stack.query(session).unwrap().flags & silenced, 0);
            assert!(!stack.text("status").contains("silenced"));
        }
        stack.machine.assert_clean();
    });
}

/// Devices that are blocked altogether can storm too.
#[test]
fn s31_a_blocked_device_is_silenced_and_stays_blocked() {
    each(Mode::Strict, |stack| {
        let [device, ..] = devices();
        for at in 0..40 {
            assert!(stack.device_write(device, 0x1000 * at, &[1]).is_err());
            stack.server.tick();
        }
        assert!(stack.text("metrics").contains("\nfaults 16\n"), "{}", stack.text("metrics"));
        assert_eq!(reach(stack, device), []);
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x1000).unwrap();
        stack.device_write(device, buffer.iova, &[1]).unwrap();
        assert!(stack.device_write(device, 0x5000_0000, &[1]).is_err());
        assert_eq!(stack.faults(session).len(), 1);
        stack.machine.assert_clean();
    });
}

/// A requester without a known function is denied, and silenced like others; its id is reported. The faults of a
/// function that appears there are reported again.
#[test]
fn s31_requesters_that_nobody_knows_are_silenced() {
    each(Mode::Strict, |stack| {
        let faults = |stack: &mut Bed| number(&stack.text("metrics"), "faults");
        let silenced = |stack: &mut Bed| number(&stack.text("metrics"), "silenced");
        let storm = |stack: &mut Bed, source: u16| {
            let before = faults(stack);
            for at in 0..40 {
                let got = stack.machine.access(0, source, 0x1000 * at, 8, true);
                assert!(got.is_err(), "{source:#x} got through");
                stack.server.tick();
            }
            faults(stack) - before
        };
        // On the bus of known functions, and on a bus without any.
        for (count, source) in [0x00f8, 0x4208].into_iter().enumerate() {
            assert_eq!(storm(stack, source), 16, "{source:#x}");
            assert_eq!(silenced(stack), u64::try_from(count).unwrap() + 1);
        }
        let status = stack.text("status");
        let line = "silenced: 0000--42--01.0 after 16 faults, no function is known there";
        assert!(status.contains(line), "{status}");

        let function = endpoint(0x42, 1, 0);
        stack.server.function_arrived(function).unwrap();
        assert_eq!(silenced(stack), 1, "what is there now is another device");
        assert_eq!(storm(stack, 0x4208), 16);
        assert_eq!(silenced(stack), 2);
        // It is removed while silenced. The next function's faults are reported.
        stack.server.function_gone(function.address);
        assert_eq!(silenced(stack), 1);
        assert_eq!(storm(stack, 0x4208), 16);

        let frames = stack.machine.table_frames();
        for more in 2..70 {
            let taken = storm(stack, 0x5000 + 8 * more);
            assert_eq!(taken, if more < 64 { 16 } else { 40 }, "the {more}th");
        }
        assert_eq!(silenced(stack), 64);
        assert!(stack.machine.table_frames() <= frames + 3, "a table for each bus at most");
        stack.machine.assert_clean();
    });
}

/// Without memory for the table of a bus, its requesters cannot be silenced, and nothing changes.
#[test]
fn s31_without_memory_strangers_go_on() {
    each(Mode::Strict, |stack| {
        let before = stack.snapshot();
        stack.machine.fail_table_allocations(0, u64::MAX);
        for at in 0..40 {
            assert!(stack.machine.access(0, 0x4208, 0x1000 * at, 8, true).is_err());
            stack.server.tick();
        }
        stack.machine.fail_table_allocations(0, 0);
        let silenced = number(&stack.text("metrics"), "silenced");
        if silenced == 0 {
            stack.snapshot().assert_same(&before, "nobody is silenced");
        }
        stack.machine.assert_clean();
    });
}

fn number(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

/// Attaching polls faults too, but does not count as a pause. So a client that attaches repeatedly does not keep
/// another's storm from being detected.
#[test]
fn s31_attaching_makes_no_pause_in_a_storm() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let (session, neighbour) =
            (stack.claim(1, device).unwrap(), stack.claim(2, other).unwrap());
        stack.attach(session).unwrap();
        for at in 0..40 {
            assert!(stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]).is_err());
            for _ in 0..3 {
                stack.attach(neighbour).unwrap();
                stack.detach(neighbour).unwrap();
            }
        }
        assert!(stack.text("metrics").contains("\nfaults 16\n"), "{}", stack.text("metrics"));
        stack.machine.assert_clean();
    });
}

/// Nor can a device's own driver prevent it by attaching again as soon as the device is silenced.
#[test]
fn s31_attaching_in_a_storm_gives_16_faults_more_and_no_others() {
    each(Mode::Compat, |stack| {
        let [device, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        for round in 1..=3 {
            for at in 0..40 {
                assert!(stack.device_write(device, 0x5000_0000 + 0x1000 * at, &[1]).is_err());
                stack.server.tick();
                if stack.query(session).unwrap().flags & SessionFlags::SILENCED.bits() != 0 {
                    break;
                }
            }
            let faults = format!("\nfaults {}\n", 16 * round);
            assert!(stack.text("metrics").contains(&faults), "{}", stack.text("metrics"));
            stack.detach(session).unwrap();
            stack.attach(session).unwrap();
        }
        stack.machine.assert_clean();
    });
}
