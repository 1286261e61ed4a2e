//! Memory of an earlier server, part of which firmware reserves for a device. An honest firmware reserves none of what
//! an operating system hands out.

use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::Mode;
use iommud::topology::firmware::ReservedRegion;

use super::endings::{identity, region_of, unfinished};
use super::{Bed, compat, devices, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::stack::Setup;

/// What the earlier server had: two runs with a gap of one page.
const LEFT: [(u64, u64); 2] = [(0x0380_0000, 0x10_0000), (0x0390_1000, 0xf_f000)];

fn start(mode: Mode, reserved: Vec<ReservedRegion>, test: impl Fn(&mut Bed)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let setup = Setup { left: LEFT.to_vec(), reserved: reserved.clone(), ..setup(mode) };
        let mut stack = Bed::start(&[subject], setup);
        assert_eq!(unfinished(&mut stack), [""; 0], "nothing waits for ever");
        test(&mut stack);
        stack.machine.assert_clean();
    }
}

/// The bytes that `status` says are withheld.
fn withheld(stack: &mut Bed) -> Option<u64> {
    let status = stack.text("status");
    let line = status.lines().find_map(|line| line.strip_prefix("withheld: "))?;
    line.split(' ').next()?.parse().ok()
}

fn give_back(stack: &mut Bed) {
    for (first, length) in LEFT {
        let range = PhysRange::new(PhysAddr(first), length).unwrap();
        assert!(stack.server.memory_returned(range));
    }
}

/// The region begins in one run, has the gap, and ends in the other. Until the memory is given back no device reaches
/// any of it but for the gap; then all that firmware does not reserve.
#[test]
fn what_firmware_reserves_of_it_is_withheld_and_the_rest_given_back() {
    let region = region_of(&devices()[..1], (0x038f_e000, 0x4000));
    start(Mode::Compat, vec![region], |stack| {
        let [device, other, ..] = devices();
        assert_eq!(withheld(stack), Some(0x3000));
        for device in [device, other] {
            for at in [0x0380_0000, 0x038f_dfff, 0x038f_e000, 0x038f_ffff, 0x0390_1000, 0x039f_ffff]
            {
                assert!(stack.device_write(device, at, &[1]).is_err(), "{device} {at:#x}");
            }
            for at in [0x037f_ffff, 0x0390_0000, 0x0390_0fff, 0x03a0_0000] {
                stack.device_write(device, at, &[1]).unwrap();
            }
        }
        give_back(stack);
        for device in [device, other] {
            for at in [0x0380_0000, 0x038f_dfff, 0x0390_0000, 0x0390_2000, 0x039f_ffff] {
                stack.device_write(device, at, &[1]).unwrap();
            }
            for at in [0x038f_e000, 0x038f_ffff, 0x0390_1000, 0x0390_1fff] {
                assert!(stack.device_write(device, at, &[1]).is_err(), "{device} {at:#x}");
            }
        }
        assert_eq!(withheld(stack), Some(0x3000), "for as long as this server runs");
    });
}

/// Under a strict policy the device has the part of its region that no server had.
#[test]
fn its_device_has_the_rest_of_the_region() {
    let region = region_of(&devices()[..1], (0x038f_e000, 0x4000));
    start(Mode::Strict, vec![region], |stack| {
        let [device, other, ..] = devices();
        for _ in 0..2 {
            assert_eq!(reach(stack, device), [identity((0x0390_0000, 0x1000))]);
            assert_eq!(reach(stack, other), []);
            give_back(stack);
        }
    });
}

/// A device that is plugged in later, for which firmware reserves some of it.
#[test]
fn a_device_that_comes_later_does_not_reach_it() {
    let region = region_of(&devices()[..1], (0x0380_0000, 0x2000));
    start(Mode::Strict, vec![region], |stack| {
        let [device, ..] = devices();
        let function = stack.setup.functions[0];
        assert_eq!(function.address, device);
        stack.server.function_gone(device);
        stack.server.function_arrived(function).unwrap();
        assert_eq!(reach(stack, device), []);
        give_back(stack);
        assert_eq!(reach(stack, device), []);
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        assert_eq!(reach(stack, device), []);
        stack.detach(session).unwrap();
        stack.give_back(session);
        assert_eq!(reach(stack, device), []);
    });
}

/// Regions that adjoin it, on both sides and in the gap.
#[test]
fn regions_that_only_adjoin_are_their_devices() {
    let beside = [(0x037f_f000, 0x1000), (0x0390_0000, 0x1000), (0x03a0_0000, 0x1000)];
    let regions = beside.map(|region| region_of(&devices()[..1], region)).to_vec();
    start(Mode::Strict, regions.clone(), |stack| {
        assert_eq!(withheld(stack), None);
        assert_eq!(reach(stack, devices()[0]), beside.map(identity));
    });
    start(Mode::Compat, regions, |stack| {
        let whole = compat(stack);
        give_back(stack);
        assert_eq!(reach(stack, devices()[0]), whole);
        assert_eq!(withheld(stack), None);
    });
}
