//! A rescan meets working devices that for a while read differently or do not respond. Under `compat` their I/O
//! addresses would be physical addresses, so nothing may be opened for them.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::policy::Mode;
use iommud::server::Handle;
use iommud::topology::pci::{Buses, FunctionKind, PciFunction};

use super::{Bed, compat, devices, matrix, reach, setup, start};
use iommud_tests::stack::{Functions, endpoint};

/// More ticks than the server waits before it looks for a missed function again.
const LONG: usize = 50;

fn tick(stack: &mut Bed) {
    for _ in 0..LONG {
        stack.server.tick();
    }
}

fn port(subordinate: u8) -> PciFunction {
    let kind = FunctionKind::RootPort(Buses { secondary: 5, subordinate });
    let (acs, acs_capability) = (Some(0x1d), 0x5f);
    PciFunction { kind, class: 0x06_0400, acs, acs_capability, ..endpoint(0, 8, 0) }
}

fn behind(bus: u8) -> PciFunction {
    PciFunction { kind: FunctionKind::Endpoint, ..endpoint(bus, 0, 0) }
}

/// Starts a server that has attached a device. `functions` are present besides those of the setup.
fn driven(device: PciAddress, functions: &[PciFunction]) -> (Bed, Functions, Handle) {
    let mut stack = start(Mode::Compat);
    let there = stack.discover();
    functions.iter().for_each(|function| there.plug(*function));
    stack.server.rescan().unwrap();
    let driver = stack.claim(1, device).unwrap();
    stack.attach(driver).unwrap();
    stack.allocate(driver, 0x1000).unwrap();
    (stack, there, driver)
}

/// The device is in its owner's domain, and the notes name it for the next server.
fn assert_at_work(stack: &mut Bed, driver: Handle, device: PciAddress) {
    assert_eq!(reach(stack, device).len(), 1, "its buffer");
    assert_ne!(reach(stack, device), compat(stack));
    assert_eq!(stack.notes.noted(), [device]);
    stack.attach(driver).unwrap();
    stack.machine.assert_clean();
}

#[test]
fn a_register_that_changes_does_not_make_another_device_of_one_at_work() {
    let [device, ..] = devices();
    let (mut stack, functions, driver) = driven(device, &[]);
    functions.plug(PciFunction { acs: Some(0x1d), acs_capability: 0x5f, ..endpoint(0, 3, 0) });
    stack.server.rescan().unwrap();
    assert_at_work(&mut stack, driver, device);
    let told = format!("changed: {device}: taken over when it is free\n");
    assert_eq!(stack.text("rescan"), format!("last walk: 0 new, 0 gone\n{told}"));
    // The server is not notified when the device is free; it rescans by itself.
    stack.give_back(driver);
    tick(&mut stack);
    assert_eq!(stack.text("rescan"), "last walk: 1 new, 1 gone\n");
    assert_eq!(reach(&stack, device), compat(&stack));
}

#[test]
fn a_port_whose_buses_grow_keeps_what_is_at_work_behind_it() {
    let (device, new) = (behind(5).address, behind(6));
    let (mut stack, functions, driver) = driven(device, &[port(5), behind(5)]);
    functions.plug(port(6));
    functions.plug(new);
    stack.server.rescan().unwrap();
    assert_at_work(&mut stack, driver, device);
    // Its group would be wrong: the known port has a bus range that does not include it.
    assert_eq!(stack.claim(2, new.address), Err(Refusal::NotProbed));
    assert_eq!(reach(&stack, new.address), []);
    stack.give_back(driver);
    tick(&mut stack);
    assert_eq!(reach(&stack, new.address), compat(&stack));
    stack.claim(2, new.address).unwrap();
}

#[test]
fn a_device_that_one_look_misses_is_at_work_when_the_next_finds_it() {
    let [device, ..] = devices();
    let (mut stack, functions, driver) = driven(device, &[]);
    functions.pull(device);
    stack.server.rescan().unwrap();
    assert_at_work(&mut stack, driver, device);
    functions.plug(endpoint(0, 3, 0));
    tick(&mut stack);
    assert_at_work(&mut stack, driver, device);
    assert_eq!(stack.text("rescan"), "last walk: 0 new, 0 gone\n");
    // Missed walks do not add up.
    functions.pull(device);
    stack.server.rescan().unwrap();
    assert_at_work(&mut stack, driver, device);
}

#[test]
fn a_device_that_two_looks_miss_is_cut_off_and_stays_so_when_it_comes_back() {
    let [device, ..] = devices();
    let (mut stack, functions, driver) = driven(device, &[]);
    functions.pull(device);
    stack.server.rescan().unwrap();
    tick(&mut stack);
    assert_eq!(reach(&stack, device), []);
    assert_eq!(stack.attach(driver), Err(Refusal::NotProbed));
    assert_eq!(stack.notes.noted(), [device], "it may have been in a reset");
    functions.plug(endpoint(0, 3, 0));
    stack.server.rescan().unwrap();
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![device], vec![]));
    let next = stack.claim(2, device).unwrap();
    stack.attach(next).unwrap();
    stack.give_back(next);
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![], compat(&stack)));
    stack.machine.assert_clean();
}

#[test]
fn a_device_that_answers_is_not_gone_whatever_walks_miss() {
    let [device, ..] = devices();
    let (mut stack, functions, driver) = driven(device, &[]);
    functions.hide(device);
    for _ in 0..3 {
        stack.server.rescan().unwrap();
        tick(&mut stack);
        assert_at_work(&mut stack, driver, device);
    }
}

#[test]
fn a_port_that_does_not_answer_takes_nothing_away_that_does() {
    let device = behind(5).address;
    let (mut stack, functions, driver) = driven(device, &[port(5), behind(5)]);
    functions.pull(port(5).address);
    for _ in 0..3 {
        stack.server.rescan().unwrap();
        assert_at_work(&mut stack, driver, device);
    }
    functions.pull(device);
    stack.server.rescan().unwrap();
    stack.server.rescan().unwrap();
    assert_eq!(stack.names("devices").len(), devices().len(), "both are gone");
    assert_eq!(reach(&stack, device), []);
}

#[test]
fn a_device_that_is_cut_off_does_not_get_out_as_another_class() {
    let [device, ..] = devices();
    let (mut stack, functions, driver) = driven(device, &[]);
    stack.server.close(driver);
    assert_eq!(reach(&stack, device), []);
    functions.plug(PciFunction { class: 0x02_0000, ..endpoint(0, 3, 0) });
    stack.server.rescan().unwrap();
    tick(&mut stack);
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![device], vec![]));
}

#[test]
fn a_restart_whose_first_walk_misses_a_driven_device_blocks_it_when_it_is_found() {
    let [device, ..] = devices();
    let (mut stack, _, _) = driven(device, &[]);
    let whole = setup(Mode::Compat).functions;
    stack.setup.functions.retain(|function| function.address != device);
    stack.reboot(&[matrix().remove(0)]);
    assert_eq!(stack.notes.noted(), [device]);
    let functions = stack.discover();
    whole.into_iter().for_each(|function| functions.plug(function));
    stack.server.rescan().unwrap();
    assert_eq!((stack.notes.noted(), reach(&stack, device)), (vec![device], vec![]));
}
