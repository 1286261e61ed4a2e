//! An administrator ends the sessions on a group.

use iommu_protocol::Refusal;
use iommu_protocol::frame::READABLE;
use iommud::policy::{ClientId, Mode};
use iommud::server::Caller;

use iommud_tests::stack::endpoint;

use super::{devices, start};

/// The path of the group of a device.
fn group(stack: &mut super::Bed, device: iommu_protocol::ids::PciAddress) -> String {
    let text = stack.text(&format!("devices/{device}"));
    let group = text.lines().find_map(|line| line.strip_prefix("group: "));
    format!("groups/{}", group.unwrap())
}

#[test]
fn a_released_device_is_cut_off_and_its_next_owner_has_it() {
    let mut stack = start(Mode::Strict);
    let [device, other, ..] = devices();
    let bystander = stack.claim(3, other).unwrap();
    stack.attach(bystander).unwrap();
    let kept = stack.allocate(bystander, 0x1000).unwrap();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    stack.device_write(device, buffer.iova, &[1]).unwrap();
    assert_eq!(stack.claim(2, device), Err(Refusal::NotOwner));
    assert_eq!(stack.server.watch(session, READABLE), Ok(0));
    let group = group(&mut stack, device);
    assert_eq!(stack.write(&group, b"release\n"), Ok(8));
    assert!(stack.device_write(device, buffer.iova, &[2]).is_err(), "cut off");
    // The old owner is told, and its handle does nothing.
    assert_eq!(stack.server.next_ready(), Some(session));
    assert_eq!(stack.server.watch(session, READABLE), Ok(READABLE));
    assert_eq!(stack.attach(session), Err(Refusal::NotProbed));
    assert_eq!(stack.allocate(session, 0x1000), Err(Refusal::NotProbed));
    assert_eq!(stack.server.read(session, 0, &mut [0; 256]), Err(Refusal::NotProbed));
    let below = stack.server.open(
        Caller { client: ClientId(1), uid: 0 },
        Some(session),
        "buffers/0",
        false,
    );
    assert_eq!(below, Err(Refusal::NotProbed));
    // The next owner has the device, whatever the old one does with its handle.
    let next = stack.claim(2, device).unwrap();
    stack.attach(next).unwrap();
    let mine = stack.allocate(next, 0x1000).unwrap();
    stack.server.close(session);
    stack.device_write(device, mine.iova, &[3]).unwrap();
    stack.device_write(other, kept.iova, &[4]).unwrap();
    stack.give_back(next);
    stack.give_back(bystander);
    assert_eq!((stack.metric("sessions"), stack.metric("handles")), (0, 0));
    stack.machine.assert_clean();
}

/// A group goes as a whole: two functions that hardware cannot keep apart have one owner.
#[test]
fn all_sessions_of_a_group_end_together() {
    let mut stack = start(Mode::Strict);
    let [.., first, second] = devices();
    let session = stack.claim(1, first).unwrap();
    let path = format!("devices/{second}");
    let caller = Caller { client: ClientId(1), uid: 0 };
    let member = stack.server.open(caller, Some(session), &path, true).unwrap();
    stack.attach(session).unwrap();
    stack.attach(member).unwrap();
    let buffer = stack.allocate(session, 0x1000).unwrap();
    let group = group(&mut stack, second);
    assert_eq!(stack.write(&group, b"release"), Ok(7));
    for device in [first, second] {
        assert!(stack.device_write(device, buffer.iova, &[1]).is_err(), "{device}");
    }
    assert_eq!(stack.query(member).err(), Some(Refusal::NotProbed));
    stack.claim(2, second).unwrap();
    stack.machine.assert_clean();
}

#[test]
fn only_administrators_release_and_only_what_there_is() {
    let mut stack = start(Mode::Strict);
    let [device, ..] = devices();
    let group = group(&mut stack, device);
    assert_eq!(stack.write(&group, b"release"), Ok(7), "nobody has it");
    let session = stack.claim(1, device).unwrap();
    let user = Caller { client: ClientId(7), uid: 1000 };
    assert_eq!(stack.server.open(user, None, &group, true), Err(Refusal::Permission));
    assert_eq!(stack.write("groups/4000", b"release"), Err(Refusal::NotFound));
    for word in [&b""[..], b"releas", b"reset", b"release now"] {
        assert_eq!(stack.write(&group, word), Err(Refusal::BadOperation), "{word:?}");
    }
    stack.attach(session).unwrap();
    stack.give_back(session);
    stack.machine.assert_clean();
}

/// The session of a device that was pulled out is not the next one's at its address.
#[test]
fn a_session_whose_device_is_gone_is_in_no_group() {
    let mut stack = start(Mode::Strict);
    let [.., first, second] = devices();
    let session = stack.claim(1, first).unwrap();
    let caller = Caller { client: ClientId(1), uid: 0 };
    let path = format!("devices/{second}");
    let member = stack.server.open(caller, Some(session), &path, true).unwrap();
    stack.attach(member).unwrap();
    // The member's device uses memory of the session on the first.
    let buffer = stack.allocate(session, 0x1000).unwrap();
    stack.device_write(second, buffer.iova, &[1]).unwrap();
    stack.server.function_gone(first);
    let mut next = endpoint(0, first.requester.device(), first.requester.function());
    next.device ^= 1;
    next.multifunction = true;
    stack.server.function_arrived(next).unwrap();
    let group = group(&mut stack, first);
    assert_eq!(stack.write(&group, b"release"), Ok(7));
    assert_eq!(stack.query(member).err(), Some(Refusal::NotProbed), "it is in the group");
    assert_eq!(stack.metric("sessions"), 1, "the one whose device is gone");
    stack.server.close(session);
    stack.server.close(member);
    stack.machine.assert_clean();
}
