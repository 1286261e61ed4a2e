//! Ends of life without any memory. The device is blocked at once, and the part that needs memory is finished when
//! memory is available (I9).

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{ClientId, Mode};
use iommud::server::Caller;
use iommud::topology::firmware::ReservedRegion;

use super::{Bed, compat, devices, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Reach;
use iommud_tests::stack::{Setup, scope};

const LARGE: u64 = 2 << 20;

pub(super) fn region_of(devices: &[PciAddress], (start, length): (u64, u64)) -> ReservedRegion {
    ReservedRegion {
        segment: 0,
        range: PhysRange::new(PhysAddr(start), length).unwrap(),
        read: true,
        write: true,
        exclusion: false,
        scopes: devices.iter().map(|device| scope(device.requester)).collect(),
        entries: Vec::new(),
    }
}

pub(super) fn identity((start, length): (u64, u64)) -> Reach {
    Reach { iova: start, last: start + length - 1, physical: start, read: true, write: true }
}

/// Runs a test over the subjects, with these reserved regions.
fn each(mode: Mode, reserved: &[ReservedRegion], test: impl Fn(&mut Bed)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let setup = Setup { reserved: reserved.to_vec(), ..setup(mode) };
        let mut stack = Bed::start(&[subject], setup);
        test(&mut stack);
        stack.machine.assert_clean();
    }
}

/// Makes every allocation of table memory fail while `act` runs.
pub(super) fn without_memory<R>(stack: &mut Bed, act: impl FnOnce(&mut Bed) -> R) -> R {
    stack.machine.fail_table_allocations(0, u64::MAX);
    let result = act(stack);
    stack.machine.fail_table_allocations(0, 0);
    result
}

/// The lines of `status` about unfinished work.
pub(super) fn unfinished(stack: &mut Bed) -> Vec<String> {
    let status = stack.text("status");
    status.lines().filter(|line| line.starts_with("unfinished")).map(Into::into).collect()
}

pub(super) const SMALL: (u64, u64) = (0x0380_0000, 0x3000);

/// The driver of a device with a reserved region dies. In no mode does that need memory.
#[test]
fn death_behind_a_reserved_region_needs_no_memory() {
    for mode in [Mode::Compat, Mode::Strict] {
        each(mode, &[region_of(&devices()[..1], SMALL)], |stack| {
            let [device, ..] = devices();
            let session = stack.claim(1, device).unwrap();
            stack.attach(session).unwrap();
            let buffer = stack.allocate(session, 0x4000).unwrap();
            stack.device_write(device, buffer.iova, b"alive").unwrap();
            without_memory(stack, |stack| {
                stack.server.close(session);
                assert!(stack.device_write(device, buffer.iova, b"dead").is_err());
                assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
            });
            stack.server.tick();
            assert_eq!(reach(stack, device), [identity(SMALL)]);
            let next = stack.claim(2, device).unwrap();
            stack.attach(next).unwrap();
            stack.give_back(next);
            let expected = if mode == Mode::Compat { compat(stack) } else { vec![identity(SMALL)] };
            assert_eq!(reach(stack, device), expected);
        });
    }
}

/// The same, when another client has used up all table memory instead of an injected failure.
#[test]
fn death_needs_no_memory_when_another_client_has_taken_all() {
    each(Mode::Compat, &[region_of(&devices()[..1], SMALL)], |stack| {
        let [device, other, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let greedy = stack.claim(2, other).unwrap();
        stack.attach(greedy).unwrap();
        super::budgets::scatter(stack, greedy, u64::MAX);
        without_memory(stack, |stack| stack.server.close(session));
        assert!(stack.device_write(device, buffer.iova, b"dead").is_err());
        let status = stack.text("status");
        assert!(!status.contains("unfinished"), "{status}");
    });
}

/// All sessions of a client with two devices in one domain end at once.
#[test]
fn the_end_of_a_whole_owner_needs_no_memory() {
    let reserved = [
        region_of(&devices()[..1], SMALL),
        region_of(&devices()[1..2], (0x0390_0000, 0x5000)),
        region_of(&devices()[3..4], (0x03a0_0000, 0x1000)),
    ];
    each(Mode::Compat, &reserved, |stack| {
        let [first, second, _, third, fourth] = devices();
        let caller = Caller { client: ClientId(1), uid: 0 };
        let session = stack.claim(1, first).unwrap();
        let mut sessions = vec![session];
        for device in [second, third, fourth] {
            let path = format!("devices/{device}");
            sessions.push(stack.server.open(caller, Some(session), &path, true).unwrap());
        }
        let mut buffers = Vec::new();
        for session in &sessions {
            stack.attach(*session).unwrap();
            buffers.push(stack.allocate(*session, 0x3000).unwrap());
        }
        without_memory(stack, |stack| {
            for session in &sessions {
                stack.server.close(*session);
            }
            for device in [first, second, third, fourth] {
                for buffer in &buffers {
                    assert!(stack.device_write(device, buffer.iova, &[1]).is_err(), "{device}");
                }
            }
            assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        });
        stack.server.tick();
        assert_eq!(reach(stack, first), [identity(SMALL)]);
        assert_eq!(stack.metric("groups_claimed"), 0);
    });
}

/// When a device leaves a domain, its own regions are unmapped from the devices that stay. That needs no table even
/// if a region ends inside another one's large page.
#[test]
fn a_session_that_leaves_its_owner_needs_no_memory() {
    let (wide, inside) = ((0x0340_0000, 2 * LARGE), (0x0340_0000 + 0x3000, 0x2000));
    let reserved = [region_of(&devices()[..1], wide), region_of(&devices()[1..2], inside)];
    each(Mode::Strict, &reserved, |stack| {
        let [first, second, ..] = devices();
        let caller = Caller { client: ClientId(1), uid: 0 };
        // The wide region is mapped before a part of it is needed.
        let leaves = stack.claim(1, first).unwrap();
        let path = format!("devices/{second}");
        let stays = stack.server.open(caller, Some(leaves), &path, true).unwrap();
        stack.attach(stays).unwrap();
        stack.attach(leaves).unwrap();
        assert_eq!(reach(stack, second), [identity(wide)]);
        without_memory(stack, |stack| {
            stack.server.close(leaves);
            assert!([vec![identity(wide)], vec![]].contains(&reach(stack, first)));
            assert_eq!(reach(stack, second), [identity(inside)], "at once");
        });
        stack.server.tick();
        assert_eq!(reach(stack, first), [identity(wide)]);
    });
}

/// A function is removed while its group is claimed. The remaining function returns to policy, at the latest when
/// there is memory.
#[test]
fn removal_needs_no_memory() {
    let reserved =
        [region_of(&devices()[3..4], SMALL), region_of(&devices()[4..5], (0x03a0_0000, 0x1000))];
    each(Mode::Strict, &reserved, |stack| {
        let [.., gone, stays] = devices();
        let session = stack.claim(1, gone).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x3000).unwrap();
        without_memory(stack, |stack| {
            stack.server.function_gone(gone);
            assert!(stack.device_write(gone, buffer.iova, &[1]).is_err());
            assert_eq!(stack.attach(session), Err(Refusal::NotProbed));
            stack.server.close(session);
            assert!(stack.device_write(stays, buffer.iova, &[1]).is_err());
            assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
            assert_eq!(reach(stack, stays), []);
            assert_eq!(
                unfinished(stack),
                [format!("unfinished: {stays} is blocked until there is memory for its policy")]
            );
        });
        stack.server.tick();
        assert_eq!(unfinished(stack), Vec::<String>::new());
        assert_eq!(reach(stack, gone), []);
        assert_eq!(reach(stack, stays), [identity((0x03a0_0000, 0x1000))]);
    });
}

/// Buffer memory returns to policy, whatever has become of the tables that mapped it.
#[test]
fn memory_goes_back_to_policy_without_memory() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = Setup { take_memory: true, ..setup(Mode::Compat) };
        setup.layout.segment = 2 * LARGE;
        let mut stack = Bed::start(&[subject], setup);
        stack.machine.set_returns(true);
        let [device, ..] = devices();
        let before = compat(&stack);
        let session = stack.claim(1, device).unwrap();
        // Afterwards the pool hands out these pages one by one and without a gap, so no table for them is left.
        let whole = stack.allocate(session, 2 * LARGE).unwrap();
        stack.release(session, whole.slot).unwrap();
        let slots: Vec<_> =
            (0..1024).map(|_| stack.allocate(session, 0x1000).unwrap().slot).collect();
        without_memory(&mut stack, |stack| {
            stack.release(session, slots[7]).unwrap();
            stack.server.close(session);
            assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        });
        stack.server.tick();
        assert_eq!(reach(&stack, device), before);
        stack.machine.assert_clean();
    }
}

/// Closes the last handle of a buffer after its session has ended.
#[test]
fn the_last_handle_of_a_buffer_is_closed_without_memory() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let setup = Setup { take_memory: true, ..setup(Mode::Compat) };
        let mut stack = Bed::start(&[subject], setup);
        stack.machine.set_returns(true);
        let [device, ..] = devices();
        let before = compat(&stack);
        let session = stack.claim(1, device).unwrap();
        let caller = Caller { client: ClientId(1), uid: 0 };
        let mut held = Vec::new();
        for _ in 0..1024 {
            let slot = stack.allocate(session, 0x1000).unwrap().slot;
            let path = format!("buffers/{slot}");
            if held.len() < 200 {
                held.push(stack.server.open(caller, Some(session), &path, true).unwrap());
            }
        }
        stack.server.close(session);
        without_memory(&mut stack, |stack| {
            for handle in held {
                stack.server.close(handle);
            }
        });
        stack.server.tick();
        assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        assert_eq!(reach(&stack, device), before);
        stack.machine.assert_clean();
    }
}

/// The same, when no table is left for the pages: their return needs one.
#[test]
fn the_last_handles_are_closed_without_the_tables_that_it_takes() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = Setup { take_memory: true, ..setup(Mode::Compat) };
        setup.layout.segment = 2 * LARGE;
        let mut stack = Bed::start(&[subject], setup);
        stack.machine.set_returns(true);
        let [device, ..] = devices();
        let before = compat(&stack);
        let session = stack.claim(1, device).unwrap();
        let caller = Caller { client: ClientId(1), uid: 0 };
        // Afterwards the pool hands out these pages without a gap.
        let whole = stack.allocate(session, 2 * LARGE).unwrap();
        stack.release(session, whole.slot).unwrap();
        let mut held = Vec::new();
        for _ in 0..2 * LARGE / 0x1_0000 {
            let slot = stack.allocate(session, 0x1_0000).unwrap().slot;
            let path = format!("buffers/{slot}");
            held.push(stack.server.open(caller, Some(session), &path, true).unwrap());
        }
        stack.server.close(session);
        without_memory(&mut stack, |stack| {
            for handle in held {
                stack.server.close(handle);
            }
            assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        });
        stack.server.tick();
        assert_eq!(reach(&stack, device), before);
        stack.machine.assert_clean();
    }
}

/// An earlier server's memory returns in parts, which needs a table. So the return waits until there is memory.
#[test]
fn the_return_of_memory_is_queued_until_there_is_some() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let left = (24 << 20, LARGE);
        let setup = Setup { left: vec![left], ..setup(Mode::Compat) };
        let mut stack = Bed::start(&[subject], setup);
        let [device, ..] = devices();
        let whole = compat(&stack);
        let part = PhysRange::new(PhysAddr(left.0), LARGE / 2).unwrap();
        let rest = PhysRange::new(PhysAddr(left.0 + LARGE / 2), LARGE / 2).unwrap();
        let reaches = |stack: &Bed, range: PhysRange| {
            let first = range.first().0;
            reach(stack, device).iter().any(|run| (run.iova..run.last).contains(&first))
        };
        assert!(!reaches(&stack, part) && !reaches(&stack, rest));
        without_memory(&mut stack, |stack| {
            assert!(!stack.server.memory_returned(part));
            assert!(!stack.server.memory_returned(part), "asked again, and queued once");
            let status = stack.text("status");
            let lines = status.lines().filter(|line| line.starts_with("unfinished: "));
            assert_eq!(lines.count(), 1, "{status}");
            stack.server.tick();
            assert!(stack.server.has_unfinished() && !reaches(stack, part));
        });
        stack.server.tick();
        assert!(!stack.server.has_unfinished() && reaches(&stack, part) && !reaches(&stack, rest));
        assert!(stack.server.memory_returned(rest) && stack.server.memory_returned(part));
        assert_eq!(reach(&stack, device), whole);
        stack.machine.assert_clean();
    }
}

/// The server shuts down while there is no memory. Three clients are attached, one holds a buffer beyond its session,
/// and a function with a region of its own has appeared beside a driven one.
#[test]
fn shutdown_needs_no_memory() {
    const LARGER: (u64, u64) = (0x0390_0000, 0x5000);
    const BESIDE: (u64, u64) = (0x03a0_0000, 0x1000);
    let [first, second, untouched, third, late] = devices();
    let reserved =
        [region_of(&[first], SMALL), region_of(&[third], LARGER), region_of(&[late], BESIDE)];
    for mode in [Mode::Compat, Mode::Strict] {
        for subject in subjects() {
            println!("subject: {}, {mode:?}", subject.name());
            let mut setup = Setup { reserved: reserved.to_vec(), ..setup(mode) };
            let beside = setup.functions.pop().unwrap();
            let stack = &mut Bed::start(&[subject], setup);
            let mut reached = Vec::new();
            for (client, device) in [(1, first), (2, second), (3, third)] {
                let session = stack.claim(client, device).unwrap();
                stack.attach(session).unwrap();
                let buffer = stack.allocate(session, 0x3000).unwrap();
                stack.device_write(device, buffer.iova, b"alive").unwrap();
                let caller = Caller { client: ClientId(client), uid: 0 };
                if client == 2 {
                    let path = format!("buffers/{}", buffer.slot);
                    stack.server.open(caller, Some(session), &path, true).unwrap();
                }
                reached.push((device, buffer.iova));
            }
            stack.server.function_arrived(beside).unwrap();
            without_memory(stack, |stack| {
                stack.server.shutdown();
                for (device, iova) in &reached {
                    assert!(stack.device_write(*device, *iova, b"dead").is_err(), "{device}");
                }
                assert_eq!((stack.metric("sessions"), stack.metric("groups_claimed")), (0, 0));
                assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new(), "a handle held one");
                assert!(
                    stack.server.has_unfinished(),
                    "the late function needs a domain of policy"
                );
                assert_eq!(reach(stack, late), []);
            });
            stack.server.tick();
            assert!(!stack.server.has_unfinished(), "{}", stack.text("status"));
            // These were attached when their sessions ended. So their groups keep their regions, and get nothing else.
            assert_eq!(reach(stack, first), [identity(SMALL)]);
            assert_eq!(reach(stack, second), []);
            for member in [third, late] {
                assert_eq!(reach(stack, member), [identity(LARGER), identity(BESIDE)], "{member}");
            }
            let policy = if mode == Mode::Compat { compat(stack) } else { Vec::new() };
            assert_eq!(reach(stack, untouched), policy);
            stack.machine.assert_clean();
        }
    }
}
