//! Firmware names the same region for two devices of one owner, with different access (IVMD IR and IW, AMD I/O
//! virtualization specification 5.2.2.8). When one device leaves, the other's access must be narrowed, which needs a
//! table. Without memory the leaving device is blocked all the same (I9).

use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{ClientId, Mode};
use iommud::server::{Caller, Handle};
use iommud::topology::firmware::ReservedRegion;
use iommud::topology::pci::PciFunction;
use iommud_tests::conformance::UnderTest;
use iommud_tests::stack::{Setup, endpoint, scope};

use super::{Bed, devices, reach, setup, subjects};

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
    let [first, second, ..] = devices();
    let both = [FIRST, SECOND].map(|at| [region(first, at, true), region(second, at, false)]);
    let mut stack =
        Bed::start(&[subject], Setup { reserved: both.concat(), ..setup(Mode::Strict) });
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
