//! Functions that come and go: the effects of a walk of configuration space.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::policy::Mode;
use iommud::topology::pci::{Buses, FunctionKind, PciFunction};

use super::{Bed, compat, devices, each, reach, start};
use iommud_tests::machine::Watch;
use iommud_tests::stack::endpoint;

fn generation(stack: &mut Bed, device: PciAddress) -> String {
    let text = stack.text(&format!("devices/{device}"));
    text.lines().find_map(|line| line.strip_prefix("generation: ")).unwrap().to_string()
}

#[test]
fn what_is_gone_is_cut_off_and_what_is_new_is_under_policy() {
    each(Mode::Compat, |stack| {
        let functions = stack.discover();
        let [gone, other, changed, ..] = devices();
        let driver = stack.claim(1, gone).unwrap();
        stack.attach(driver).unwrap();
        let mine = stack.allocate(driver, 0x3000).unwrap();
        stack.device_write(gone, mine.iova, b"in the middle").unwrap();
        let bystander = stack.claim(2, other).unwrap();
        stack.attach(bystander).unwrap();
        let theirs = stack.allocate(bystander, 0x3000).unwrap();
        let share = stack.share(2, bystander, theirs.slot).unwrap();
        stack.machine.watch(Watch {
            unit: 0,
            source: other.requester.0,
            iova: theirs.iova,
            write: true,
            granted: share.segments.iter().map(|s| (s.first().0, s.length())).collect(),
            must_pass: true,
        });
        let before = reach(stack, other);
        let new = endpoint(0, 9, 0);
        functions.pull(gone);
        functions.plug(new);
        functions.plug(PciFunction { device: 0x4321, ..endpoint(0, 5, 0) });
        assert_eq!(stack.write("rescan", b"1\n"), Ok(2));
        // It may be in a reset. One walk is no proof that a driven device is gone.
        assert_eq!(
            stack.text("rescan"),
            format!("last walk: 2 new, 1 gone\nnot found: {gone}: looked for again\n")
        );
        stack.device_write(gone, mine.iova, &[1]).unwrap();
        assert_eq!(stack.write("rescan", b"1\n"), Ok(2));
        assert_eq!(reach(stack, gone), []);
        assert!(stack.device_write(gone, mine.iova, &[1]).is_err(), "a late transfer");
        assert_eq!(stack.allocate(driver, 0x1000).err(), Some(Refusal::NotProbed));
        assert_eq!(stack.claim(3, gone), Err(Refusal::NotProbed));
        assert_eq!(reach(stack, new.address), compat(stack));
        assert_eq!(generation(stack, changed), "2", "another one");
        assert!(stack.text(&format!("devices/{changed}")).contains("id: 1234:4321"));
        assert_eq!(reach(stack, other), before);
        assert_eq!(stack.text("rescan"), "last walk: 0 new, 1 gone\n");
        // Another device appears in its place. The old session stays dead.
        functions.plug(PciFunction { device: 0x5555, ..endpoint(0, 3, 0) });
        assert_eq!(stack.write("rescan", b"1"), Ok(1));
        assert_eq!(generation(stack, gone), "2");
        assert_eq!(stack.attach(driver), Err(Refusal::NotProbed));
        assert_eq!(reach(stack, gone), compat(stack));
        stack.server.close(driver);
        assert_eq!(reach(stack, gone), compat(stack), "the end of the old session is not its own");
        let driver = stack.claim(3, gone).unwrap();
        stack.attach(driver).unwrap();
        assert!(stack.device_write(gone, mine.iova, &[1]).is_err());
        stack.give_back(driver);
        assert_eq!(reach(stack, gone), compat(stack));
        stack.machine.clear_watches();
    });
}

/// A port without ACS and the device behind it form one group. The port is never claimed. It does not keep the group
/// for a driver whose device was removed.
#[test]
fn a_session_on_a_device_that_is_gone_holds_no_group() {
    each(Mode::Compat, |stack| {
        let functions = stack.discover();
        let kind = FunctionKind::RootPort(Buses { secondary: 5, subordinate: 5 });
        let port = PciFunction { kind, class: 0x06_0400, ..endpoint(0, 8, 0) };
        let device = endpoint(5, 0, 0);
        functions.plug(port);
        functions.plug(device);
        stack.server.rescan().unwrap();
        let driver = stack.claim(1, device.address).unwrap();
        stack.attach(driver).unwrap();
        let mine = stack.allocate(driver, 0x3000).unwrap();
        assert_eq!(reach(stack, port.address), [], "one group");
        functions.pull(device.address);
        stack.server.rescan().unwrap();
        stack.server.rescan().unwrap();
        assert_eq!(reach(stack, device.address), []);
        assert_eq!(reach(stack, port.address), compat(stack));
        functions.plug(PciFunction { device: 0x5555, ..device });
        stack.server.rescan().unwrap();
        assert_eq!(reach(stack, device.address), compat(stack));
        let next = stack.claim(2, device.address).unwrap();
        stack.attach(next).unwrap();
        let theirs = stack.allocate(next, 0x1000).unwrap();
        stack.device_write(device.address, theirs.iova, &[1]).unwrap();
        assert_eq!(stack.attach(driver), Err(Refusal::NotProbed));
        stack.server.close(driver);
        assert!(stack.device_write(device.address, mine.iova + 0x2000, &[1]).is_err());
        stack.device_write(device.address, theirs.iova, &[1]).unwrap();
        stack.give_back(next);
        assert_eq!(reach(stack, device.address), compat(stack));
        assert_eq!(stack.metric("buffers"), 0);
    });
}

#[test]
fn nothing_has_changed_and_nothing_is_done() {
    let mut stack = start(Mode::Compat);
    let functions = stack.discover();
    let session = stack.claim(1, devices()[0]).unwrap();
    stack.attach(session).unwrap();
    let before = (stack.metric("plans"), stack.machine.executed(0));
    stack.server.rescan().unwrap();
    assert_eq!((stack.metric("plans"), stack.machine.executed(0)), before);
    assert_eq!(functions.walks(), 1);
    assert_eq!(stack.text("rescan"), "last walk: 0 new, 0 gone\n");
}

#[test]
fn a_walk_that_cannot_be_made_removes_nothing() {
    let mut stack = start(Mode::Strict);
    assert_eq!(stack.write("rescan", b"1"), Err(Refusal::Unsupported), "there is no way");
    let functions = stack.discover();
    functions.fail(true);
    assert_eq!(stack.write("rescan", b"1"), Err(Refusal::Unsupported));
    functions.fail(false);
    for device in devices() {
        functions.pull(device);
    }
    assert_eq!(stack.write("rescan", b"1"), Err(Refusal::Unsupported), "no function answers");
    assert_eq!(stack.names("devices").len(), devices().len());
}

#[test]
fn a_claim_of_a_function_that_is_not_known_looks_for_it() {
    let mut stack = start(Mode::Strict);
    let functions = stack.discover();
    let new = endpoint(0, 9, 0);
    assert_eq!(stack.claim(1, new.address), Err(Refusal::NotProbed));
    assert_eq!(functions.walks(), 0, "one look is enough for what is not there");
    functions.plug(new);
    let session = stack.claim(1, new.address).unwrap();
    assert_eq!(functions.walks(), 1);
    stack.attach(session).unwrap();
    let member = format!("devices/{}", endpoint(0, 10, 0).address);
    let caller = iommud::server::Caller { client: iommud::policy::ClientId(1), uid: 0 };
    functions.plug(endpoint(0, 10, 0));
    stack.server.open(caller, Some(session), &member, true).unwrap();
    assert_eq!(stack.claim(2, new.address), Err(Refusal::NotOwner));
    assert_eq!(functions.walks(), 2, "known ones are not looked for");
    stack.machine.assert_clean();
}

#[test]
fn what_cannot_be_taken_in_stays_blocked_and_is_told() {
    let mut stack = start(Mode::Compat);
    let functions = stack.discover();
    let behind =
        |device| PciFunction { kind: FunctionKind::Conventional, ..endpoint(5, device, 0) };
    functions.plug(behind(1));
    functions.plug(behind(2));
    stack.server.rescan().unwrap();
    let sessions: Vec<_> = [(1, behind(1)), (2, behind(2))]
        .map(|(client, at)| stack.claim(client, at.address).unwrap())
        .into();
    // A bridge in front of both would merge their groups, which have two owners.
    let kind = FunctionKind::ExpressToConventional(Buses { secondary: 5, subordinate: 5 });
    let bridge = PciFunction { kind, class: 0x06_0400, ..endpoint(0, 8, 0) };
    functions.plug(bridge);
    stack.server.rescan().unwrap();
    let told = format!("not taken in: {}: the object is in use\n", bridge.address);
    assert!(stack.text("status").contains(&told), "{}", stack.text("status"));
    assert_eq!(stack.text("rescan"), format!("last walk: 0 new, 0 gone\n{told}"));
    // A client that claims it repeatedly causes no second walk before something changes.
    let walks = functions.walks();
    for _ in 0..5 {
        assert_eq!(stack.claim(3, bridge.address), Err(Refusal::NotProbed));
    }
    assert_eq!(functions.walks(), walks + 1);
    for session in sessions {
        stack.server.close(session);
    }
    let claimed = stack.claim(3, bridge.address).unwrap();
    assert_eq!(functions.walks(), walks + 2);
    stack.server.close(claimed);
    assert!(!stack.text("status").contains("not taken in"));
    assert_eq!(generation(&mut stack, bridge.address), "1");
    stack.machine.assert_clean();
}
