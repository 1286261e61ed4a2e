//! Several units, and units that fail in operation.

use iommu_protocol::Refusal;
use iommud::policy::Mode;

use super::{Bed, FAMILY, compat, devices, matrix, pair, reach, setup};
use iommud_tests::machine::{Trouble, Watch};

/// Two units of different kinds. The first device is behind the first unit.
pub(crate) fn two(mode: Mode) -> Bed {
    let mut setup = setup(mode);
    setup.behind_first = vec![devices()[0]];
    let stack = Bed::start(&pair(), setup);
    stack.machine.assert_clean();
    stack
}

#[test]
fn each_unit_confines_its_own_devices() {
    let mut stack = two(Mode::Compat);
    let [device, other, third, ..] = devices();
    assert_eq!(stack.names("units").len(), 2);
    assert!(
        stack.text("status").contains(&format!("unit 1: {FAMILY} enabled")),
        "{}",
        stack.text("status")
    );
    for device in [device, other, third] {
        assert_eq!(reach(&stack, device), compat(&stack));
    }
    let first = stack.claim(1, device).unwrap();
    let second = stack.claim(2, other).unwrap();
    stack.attach(first).unwrap();
    stack.attach(second).unwrap();
    let mine = stack.allocate(first, 0x3000).unwrap();
    let theirs = stack.allocate(second, 0x3000).unwrap();
    stack.device_write(device, mine.iova, b"first").unwrap();
    stack.device_write(other, theirs.iova, b"second").unwrap();
    let share = stack.share(1, first, mine.slot).unwrap();
    assert_eq!(stack.machine.share_read(&share, 0, 5), b"first");
    let share = stack.share(2, second, theirs.slot).unwrap();
    assert_eq!(stack.machine.share_read(&share, 0, 6), b"second");
    // A fault behind the second unit is reported to the session behind it.
    assert!(stack.device_write(other, 0x6666_0000, &[1]).is_err());
    assert_eq!(stack.faults(first), []);
    assert_eq!(stack.faults(second).len(), 1);
    stack.give_back(first);
    stack.give_back(second);
    for device in [device, other, third] {
        assert_eq!(reach(&stack, device), compat(&stack));
    }
    stack.machine.assert_clean();
}

/// The queue of one unit stalls in the middle of a request. Its client gets the error. Memory that a device may still
/// reach is not reused. Clients behind the other unit are not disturbed.
#[test]
fn a_unit_that_fails_takes_only_its_own_devices_along() {
    for after in 0..3 {
        let mut stack = two(Mode::Strict);
        let [device, other, ..] = devices();
        let first = stack.claim(1, device).unwrap();
        let second = stack.claim(2, other).unwrap();
        stack.attach(first).unwrap();
        stack.attach(second).unwrap();
        let mine = stack.allocate(first, 0x4000).unwrap();
        let theirs = stack.allocate(second, 0x4000).unwrap();
        let share = stack.share(2, second, theirs.slot).unwrap();
        stack.device_write(device, mine.iova, &[1]).unwrap();
        stack.machine.watch(Watch {
            unit: 1,
            source: other.requester.0,
            iova: theirs.iova,
            write: true,
            granted: share.segments.iter().map(|s| (s.first().0, s.length())).collect(),
            must_pass: true,
        });
        stack.machine.set_relax(1_000_000);
        stack.machine.trouble(0, Trouble::StallQueueAfter(after));
        let start = stack.machine.now();
        let result = stack.unmap(first, mine.iova, 0x4000);
        assert!(stack.machine.now() - start < 10_000_000_000, "bounded");
        if after < 2 {
            assert_eq!(result, Err(Refusal::UnitFailed), "stalled after {after}");
            let status = stack.text("status");
            assert!(status.contains(&format!("unit 0: {FAMILY} failed(")), "{status}");
            assert_eq!(stack.map(first, mine.slot, 0, 0x1000).err(), Some(Refusal::UnitFailed));
        }
        // The client closes. Its memory is not reused while the device may reach it.
        stack.server.close(first);
        let buffer = stack.allocate(second, 0x40_0000).unwrap();
        stack.device_write(other, buffer.iova, &[1]).unwrap();
        stack.release(second, buffer.slot).unwrap();
        stack.machine.clear_watches();
        stack.server.close(second);
        let refused = stack.claim(3, device);
        if after < 2 {
            assert_eq!(refused, Err(Refusal::UnitFailed), "stalled after {after}");
            assert!(stack.metric("quarantined_bytes") >= 0x4000);
        }
        stack.machine.assert_clean();
    }
}

#[test]
fn a_unit_that_does_not_come_up_is_told_apart_from_none() {
    let mut setup = setup(Mode::Compat);
    setup.behind_first = vec![devices()[0]];
    let mut stack = Bed::start_prepared(&matrix()[..1], setup, |machine| {
        machine.set_relax(1_000_000);
        machine.trouble(0, Trouble::Dead);
    });
    stack.machine.set_relax(1_000);
    let status = stack.text("status");
    assert!(
        status.contains(&format!("unit 0: {FAMILY} failed("))
            && status.contains(&format!("unit 1: {FAMILY} enabled"))
    );
    let [device, other, ..] = devices();
    assert_eq!(stack.claim(1, device), Err(Refusal::UnitFailed));
    let session = stack.claim(1, other).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    stack.device_write(other, buffer.iova, &[1]).unwrap();
    stack.server.close(session);
    stack.machine.assert_clean();
}

#[test]
fn a_unit_that_dies_is_noticed_when_idle() {
    let mut stack = two(Mode::Strict);
    let [device, other, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let survivor = stack.claim(2, other).unwrap();
    stack.attach(survivor).unwrap();
    stack.machine.set_relax(1_000_000);
    stack.machine.trouble(0, Trouble::Dead);
    stack.server.tick();
    let status = stack.text("status");
    assert!(status.contains(&format!("unit 0: {FAMILY} failed(")), "{status}");
    assert_eq!(stack.text("metrics").lines().filter(|l| l.starts_with("faults ")).count(), 1);
    assert_eq!(stack.metric("faults"), 0, "all ones are no faults");
    assert_eq!(stack.allocate(session, 0x1000).err(), Some(Refusal::UnitFailed));
    let buffer = stack.allocate(survivor, 0x1000).unwrap();
    stack.device_write(other, buffer.iova, &[1]).unwrap();
    stack.server.close(session);
    stack.server.close(survivor);
    stack.machine.assert_clean();
}
