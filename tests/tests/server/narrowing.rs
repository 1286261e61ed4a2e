//! Firmware names the same region for two devices of one owner, with different access (IVMD IR and IW, AMD I/O
//! virtualization specification 5.2.2.8). When one device leaves, the other's access must be narrowed, which needs a
//! table. Without memory the leaving device is blocked all the same (I9).

use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{ClientId, Matcher, Mode, Rule};
use iommud::server::{Caller, Handle};
use iommud::topology::firmware::ReservedRegion;
use iommud::topology::pci::PciFunction;
use iommud_tests::conformance::UnderTest;
use iommud_tests::stack::{Setup, endpoint, scope};

use super::{Bed, compat, devices, reach, setup, subjects};

const LARGE: u64 = 2 << 20;

/// First byte and length of the first region.
const FIRST: (u64, u64) = (0x0380_0000, 0x3000);
/// First byte and length of the second region. A page table keeps one empty table, which would suffice to narrow one
/// region alone.
const SECOND: (u64, u64) = (0x03a0_0000, 0x3000);

fn region(device: PciAddress, (start, length): (u64, u64), write: bool) -> ReservedRegion {
    ReservedRegion {
        segment: 0,
        range: PhysRange::new(PhysAddr(start), length).unwrap(),
        read: true,
        write,
        exclusion: false,
        scopes: vec![scope(device.requester)],
        entries: Vec::new(),
    }
}

/// The first device may read and write both regions, the second may only read them.
fn start(subject: super::Subject) -> (Bed, Handle, Handle) {
    start_with(subject, setup(Mode::Strict))
}

fn start_with(subject: super::Subject, setup: Setup) -> (Bed, Handle, Handle) {
    let [first, second, ..] = devices();
    let both = [FIRST, SECOND].map(|at| [region(first, at, true), region(second, at, false)]);
    let mut stack = Bed::start(&[subject], Setup { reserved: both.concat(), ..setup });
    let caller = Caller { client: ClientId(1), uid: 0 };
    let leaves = stack.claim(1, first).unwrap();
    let stays =
        stack.server.open(caller, Some(leaves), &format!("devices/{second}"), true).unwrap();
    stack.attach(stays).unwrap();
    stack.attach(leaves).unwrap();
    (stack, leaves, stays)
}

fn without_memory<R>(stack: &mut Bed, act: impl FnOnce(&mut Bed) -> R) -> R {
    stack.machine.fail_table_allocations(0, u64::MAX);
    let result = act(stack);
    stack.machine.fail_table_allocations(0, 0);
    result
}

fn unfinished(stack: &mut Bed) -> usize {
    stack.text("status").lines().filter(|line| line.starts_with("unfinished")).count()
}

#[test]
fn a_dead_driver_is_cut_off_and_the_region_is_narrowed_later() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let (mut stack, leaves, stays) = start(subject);
        let [first, second, ..] = devices();
        let buffer = stack.allocate(leaves, 0x1000).unwrap();
        stack.device_write(first, buffer.iova, b"alive").unwrap();
        without_memory(&mut stack, |stack| {
            stack.server.close(leaves);
            assert!(stack.device_write(first, buffer.iova, b"dead").is_err(), "not cut off");
            assert_eq!(unfinished(stack), 1, "{}", stack.text("status"));
        });
        stack.device_write(second, FIRST.0, b"wider").unwrap();
        stack.server.tick();
        assert_eq!(unfinished(&mut stack), 0);
        assert!(stack.device_write(second, FIRST.0, b"wide").is_err(), "narrowed");
        assert_eq!(stack.device_read(second, FIRST.0, 5).unwrap(), b"wider");
        stack.server.close(stays);
        stack.machine.assert_clean();
    }
}

/// The memory of a dead driver was taken from policy. To map it again needs tables: a domain of policy was created when
/// whole ranges of 2 MiB were taken, so it has none for them. Until it has, no device gets the memory, nor the system.
#[test]
fn memory_that_policy_cannot_map_yet_is_kept_from_everybody() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = Setup { take_memory: true, ..setup(Mode::Strict) };
        setup.layout.segment = 3 * LARGE;
        let late = setup.functions.remove(2);
        let matcher = Matcher::Address(late.address);
        setup.config.rules.push(Rule { matcher, mode: Mode::Compat });
        let (mut stack, leaves, stays) = start_with(subject, setup);
        stack.machine.set_returns(true);
        // Afterwards the pool hands out these pages one by one, so that each range is taken as a whole.
        let large = stack.allocate(stays, 3 * LARGE).unwrap().slot;
        stack.release(stays, large).unwrap();
        let mut pages = Vec::new();
        for _ in 0..3 {
            pages.push(stack.allocate(leaves, 0x1000).unwrap());
            stack.allocate(stays, LARGE - 0x1000).unwrap();
        }
        let shares = pages.iter().map(|page| stack.share(1, leaves, page.slot).unwrap());
        let memory: Vec<u64> = shares.map(|share| share.segments[0].first().0).collect();
        stack.server.function_arrived(late).unwrap();
        let reached = |stack: &Bed| {
            let write = |at: &&u64| stack.device_write(late.address, **at, b"other").is_ok();
            memory.iter().filter(write).count()
        };
        assert_eq!(reached(&stack), 0);
        let first = devices()[0];
        stack.device_write(first, pages[0].iova, b"alive").unwrap();
        without_memory(&mut stack, |stack| {
            stack.server.close(leaves);
            assert!(stack.device_write(first, pages[0].iova, b"dead").is_err(), "not cut off");
            let status = stack.text("status");
            let line = "unfinished: memory of a buffer that nobody has goes back when there is \
                        memory for tables";
            let kept = status.lines().filter(|known| *known == line).count();
            assert!(kept > 0, "{status}");
            assert_eq!(stack.machine.buffers_in_use().len(), 3 + kept, "not the system's yet");
            assert_eq!(reached(stack), 3 - kept);
        });
        stack.server.tick();
        assert_eq!((unfinished(&mut stack), reached(&stack)), (0, 3));
        assert_eq!(stack.machine.buffers_in_use().len(), 3);
        stack.server.close(stays);
        assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        assert_eq!(reach(&stack, late.address), compat(&stack));
        stack.machine.assert_clean();
    }
}

/// A new device in the place of a removed one reaches nothing of the owner's.
#[test]
fn a_device_that_is_pulled_out_is_cut_off() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let (mut stack, _, stays) = start(subject);
        let first = devices()[0];
        let functions = stack.discover();
        let theirs = stack.allocate(stays, 4 << 20).unwrap();
        functions.plug(PciFunction { device: 0x5555, ..endpoint(0, 3, 0) });
        without_memory(&mut stack, |stack| {
            stack.server.rescan();
            assert!(stack.device_write(first, theirs.iova, b"who?").is_err(), "a stranger is in");
        });
        without_memory(&mut stack, |stack| {
            stack.server.function_gone(first);
            assert_eq!(reach(stack, first), [], "pulled out and not cut off");
        });
        stack.machine.assert_clean();
    }
}
