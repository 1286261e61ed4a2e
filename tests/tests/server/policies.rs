//! The access of unclaimed devices, and regions that firmware reserves.

use iommu_protocol::Refusal;
use iommu_protocol::wire::{Access, Map, MapFlags, MapResult, Operation};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{Matcher, Mode, Rule};
use iommud::topology::firmware::ReservedRegion;

use super::{Bed, compat, devices, each, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Reach, Watch};
use iommud_tests::stack::{Setup, scope};

/// The region that firmware reserves for the first device.
const RESERVED: (u64, u64) = (0x0380_0000, 0x3000);

fn reserved() -> ReservedRegion {
    ReservedRegion {
        segment: 0,
        range: PhysRange::new(PhysAddr(RESERVED.0), RESERVED.1).unwrap(),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![scope(devices()[0].requester)],
        entries: Vec::new(),
    }
}

fn region() -> Reach {
    let last = RESERVED.0 + RESERVED.1 - 1;
    Reach { iova: RESERVED.0, last, physical: RESERVED.0, read: true, write: true }
}

#[test]
fn strict_blocks_what_nobody_claimed() {
    each(Mode::Strict, |stack| {
        for device in devices() {
            assert_eq!(reach(stack, device), []);
            assert!(stack.device_write(device, 0x1000, &[1]).is_err());
        }
        let [device, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        assert_eq!(reach(stack, device), []);
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x1000).unwrap();
        stack.device_write(device, buffer.iova, &[1]).unwrap();
        stack.detach(session).unwrap();
        assert_eq!(reach(stack, device), []);
        stack.attach(session).unwrap();
        stack.device_write(device, buffer.iova, &[1]).unwrap();
        stack.server.close(session);
        assert_eq!(reach(stack, device), []);
    });
}

#[test]
fn each_device_has_its_own_mode() {
    for subject in subjects() {
        let mut setup = setup(Mode::Compat);
        let [device, other, third, ..] = devices();
        let rule = |address, mode| Rule { matcher: Matcher::Address(address), mode };
        setup.config.rules = vec![rule(device, Mode::Strict), rule(other, Mode::Off)];
        let mut stack = Bed::start(std::slice::from_ref(&subject), setup);
        assert_eq!(reach(&stack, device), [], "{}", subject.name());
        assert_eq!(reach(&stack, third), compat(&stack));
        // `off` passes everything through where the unit can, and acts like `compat` where it cannot.
        stack.device_write(other, 0x0390_0000, &[1]).unwrap();
        let session = stack.claim(1, other).unwrap();
        stack.attach(session).unwrap();
        assert_eq!(reach(&stack, other), []);
        stack.give_back(session);
        stack.device_write(other, 0x0390_0000, &[1]).unwrap();
        stack.machine.assert_clean();
    }
}

#[test]
fn what_firmware_reserves_is_reached_at_every_step() {
    for mode in [Mode::Compat, Mode::Strict] {
        for subject in subjects() {
            let mut setup = setup(mode);
            setup.reserved = vec![reserved()];
            let mut stack = Bed::start(std::slice::from_ref(&subject), setup);
            let [device, other, ..] = devices();
            stack.machine.watch(Watch {
                unit: 0,
                source: device.requester.0,
                iova: RESERVED.0 + 0x1000,
                write: true,
                granted: vec![RESERVED],
                // A move blocks the entry in between, and the device retries. It never reaches other memory.
                must_pass: false,
            });
            if mode == Mode::Strict {
                assert_eq!(reach(&stack, device), [region()], "{}", subject.name());
                assert_eq!(reach(&stack, other), []);
            }
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            assert_eq!(reach(&stack, device), [region()]);
            let buffer = stack.allocate(session, 0x2000).unwrap();
            assert!(reach(&stack, device).contains(&region()));
            let refused = fixed(&mut stack, session, buffer.slot, RESERVED.0 + 0x2000);
            assert_eq!(refused, Err(Refusal::Reserved));
            let refused = stack.unmap(session, RESERVED.0, RESERVED.1);
            assert!(matches!(refused, Err(Refusal::Reserved | Refusal::NotMapped)), "{refused:?}");
            stack.server.close(session);
            assert_eq!(
                reach(&stack, device),
                [region()],
                "cut off, but for what firmware reserves"
            );
            stack.device_write(device, RESERVED.0, &[1]).unwrap();
            stack.machine.clear_watches();
            stack.machine.assert_clean();
        }
    }
}

fn fixed(
    stack: &mut Bed,
    session: iommud::server::Handle,
    slot: u32,
    iova: u64,
) -> Result<(), Refusal> {
    let (access, flags) = (Access::READ.bits(), MapFlags::FIXED.bits());
    let map = Map { slot, access, length: 0x1000, iova, flags, ..Map::default() };
    stack.call::<MapResult>(session, Operation::Map, &map).map(drop)
}

/// Firmware left translation on, with the reserved region mapped. The region stays reachable throughout. At no step
/// does a device reach memory that neither firmware nor policy granted.
#[test]
fn a_machine_is_taken_over_without_an_open_instant() {
    for subject in subjects() {
        let mut setup = setup(Mode::Strict);
        setup.reserved = vec![reserved()];
        let [device, other, ..] = devices();
        let prepared = |machine: &iommud_tests::machine::Machine| {
            let pages = (0..3).map(|page| RESERVED.0 + 0x1000 * page).collect();
            subject.inherit(machine, 0, 0x0080_0000, &[(device.requester, pages)]);
            let base = Watch {
                unit: 0,
                source: device.requester.0,
                iova: RESERVED.0 + 0x1000,
                write: true,
                granted: vec![RESERVED],
                must_pass: true,
            };
            machine.watch(base.clone());
            for source in [device, other] {
                for iova in [0, 0x0080_0000, 0x0390_0000, 0x0100_0000, 0x0200_0000] {
                    machine.watch(Watch {
                        source: source.requester.0,
                        iova,
                        granted: Vec::new(),
                        must_pass: false,
                        ..base.clone()
                    });
                }
            }
        };
        let stack = Bed::start_prepared(std::slice::from_ref(&subject), setup, prepared);
        stack.machine.clear_watches();
        stack.machine.assert_clean();
        assert_eq!(reach(&stack, device), [region()], "{}", subject.name());
        assert_eq!(reach(&stack, other), []);
    }
}

/// Buffer memory taken from the system leaves the domains of policy before it is used, behind every unit, and returns
/// to them.
#[test]
fn memory_that_is_taken_leaves_compat_first() {
    for subject in subjects() {
        for behind_first in [Vec::new(), vec![devices()[1]]] {
            println!("subject: {}, {behind_first:?}", subject.name());
            let setup = Setup { take_memory: true, behind_first, ..setup(Mode::Compat) };
            let mut stack = Bed::start(std::slice::from_ref(&subject), setup);
            // Policy maps returning memory one to one before its owner has freed it.
            stack.machine.set_audit(false);
            let [device, first, second, ..] = devices();
            let all = reach(&stack, first);
            assert_eq!(all, compat(&stack));
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            // Unclaimed devices have all of it cached.
            let (start, length) = stack.setup.layout.buffers;
            for legacy in [first, second] {
                let unit = stack.unit_of(legacy);
                for at in (start..start + length).step_by(4096) {
                    assert!(stack.machine.probe(unit, legacy.requester.0, at, true).is_some());
                }
            }
            let buffer = stack.allocate(session, 0x6000).unwrap();
            let share = stack.share(1, session, buffer.slot).unwrap();
            for segment in &share.segments {
                let at = segment.first().0;
                for legacy in [first, second] {
                    assert!(stack.device_write(legacy, at, &[0xee]).is_err(), "{at:#x}");
                    assert!(stack.device_read(legacy, at + 0xfff, 1).is_err(), "{at:#x}");
                }
            }
            stack.server.close(session);
            assert_eq!(reach(&stack, first), all, "it comes back");
            assert_eq!(reach(&stack, second), all, "it comes back");
            stack.machine.assert_clean();
        }
    }
}

/// Memory that an earlier server left to its devices is unmapped from `compat` before translation is on. It is mapped
/// again when it is returned.
#[test]
fn memory_of_an_earlier_server_is_out_of_reach_until_it_is_given_back() {
    for subject in subjects() {
        let mut setup = setup(Mode::Compat);
        let left = (0x0390_0000, 0x20_0000);
        setup.left = vec![left];
        let mut stack = Bed::start(std::slice::from_ref(&subject), setup);
        let [device, ..] = devices();
        for at in [left.0, left.0 + left.1 - 1] {
            assert!(stack.device_write(device, at, &[1]).is_err(), "{}", subject.name());
        }
        stack.device_write(device, left.0 - 1, &[1]).unwrap();
        stack.device_write(device, left.0 + left.1, &[1]).unwrap();
        stack.server.memory_returned(PhysRange::new(PhysAddr(left.0), left.1).unwrap());
        assert_eq!(reach(&stack, device), compat(&stack), "{}", subject.name());
        stack.machine.assert_clean();
    }
}

/// A server that dies leaves translation on, and the next one takes the units over. At no step does a device reach
/// memory beyond its grants, and the dead server's buffers are granted to no device. The device that was attached is
/// blocked under the new server, whatever policy it has.
#[test]
fn a_server_that_is_restarted_takes_its_units_over() {
    for mode in [Mode::Strict, Mode::Compat] {
        for subject in subjects() {
            println!("subject: {}, {mode:?}", subject.name());
            let mut stack = Bed::start(std::slice::from_ref(&subject), setup(mode));
            let [device, other, ..] = devices();
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            let buffer = stack.allocate(session, 0x4000).unwrap();
            let share = stack.share(1, session, buffer.slot).unwrap();
            let mine: Vec<_> = share.segments.iter().map(|s| (s.first().0, s.length())).collect();
            stack.device_write(device, buffer.iova, b"before").unwrap();
            let everything: Vec<_> =
                compat(&stack).iter().map(|run| (run.physical, run.last - run.iova + 1)).collect();
            let of_policy = if mode == Mode::Strict { Vec::new() } else { everything };
            let addresses =
                [buffer.iova, buffer.iova + 0x3000, mine[0].0, 0x0100_0000, 0x0390_0000];
            for (source, granted) in [(device, mine.clone()), (other, of_policy)] {
                for iova in addresses {
                    let (granted, must_pass) = (granted.clone(), false);
                    let source = source.requester.0;
                    stack.machine.watch(Watch {
                        unit: 0,
                        source,
                        iova,
                        write: true,
                        granted,
                        must_pass,
                    });
                }
            }
            let mut stack = stack.restart(std::slice::from_ref(&subject));
            stack.machine.clear_watches();
            stack.machine.assert_clean();
            let expected = if mode == Mode::Strict { Vec::new() } else { compat(&stack) };
            assert_eq!(reach(&stack, device), []);
            assert_eq!(reach(&stack, other), expected);
            assert_eq!(stack.machine.share_read(&share, 0, 6), b"before");
            // The next client is served normally. The first client's memory is not reused, because the new server
            // does not know of it.
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            assert_eq!(stack.query(session).unwrap().generation, 1);
            stack.server.close(session);
            stack.machine.assert_clean();
        }
    }
}

#[test]
fn stopping_leaves_every_device_under_policy() {
    for mode in [Mode::Compat, Mode::Strict] {
        each(mode, |stack| {
            let [device, other, ..] = devices();
            let before: Vec<_> = devices().map(|device| reach(stack, device)).into();
            for (client, device) in [(1, device), (2, other)] {
                let session = stack.claim(client, device).unwrap();
                stack.attach(session).unwrap();
                stack.allocate(session, 0x4000).unwrap();
            }
            stack.server.shutdown();
            let after: Vec<_> = devices().map(|device| reach(stack, device)).into();
            assert_eq!(after[2..], before[2..], "unclaimed devices stay under policy");
            assert_eq!(after[..2], [[], []], "those that were attached are blocked");
            assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        });
    }
}
