//! What a failed unit costs clients elsewhere: nothing.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, Map, MapFlags, MapResult, Operation};
use iommud::policy::Mode;

use super::endings::region_of;
use super::recovery::{drive, heal, pass, stall};
use super::units::two;
use super::{Bed, FAMILY, devices, pair, setup};
use iommud_tests::machine::Trouble;
use iommud_tests::stack::endpoint;

/// A refused request of a client that never used the failed unit is undone for good: nothing is kept for that unit.
#[test]
fn what_is_refused_elsewhere_keeps_nothing_for_a_failed_unit() {
    let mut stack = two(Mode::Strict);
    let (session, ..) = drive(&mut stack, 1);
    let elsewhere = stack.claim(2, devices()[1]).unwrap();
    stack.attach(elsewhere).unwrap();
    stall(&mut stack, session);
    let buffer = stack.allocate(elsewhere, 0x1000).unwrap();
    let map = |stack: &mut Bed, at: u64| {
        let (access, flags) = (Access::all().bits(), MapFlags::FIXED.bits());
        let (iova, length) = ((8 << 30) + (at << 21), 0x1000);
        let map = Map { slot: buffer.slot, access, flags, iova, length, ..Map::default() };
        stack.call::<MapResult>(elsewhere, Operation::Map, &map)
    };
    let mapped = (0..100_000).find(|at| map(&mut stack, *at).is_err()).unwrap();
    let metrics = ["table_frames", "quarantined_bytes", "buffer_bytes", "mappings"];
    let before = metrics.map(|name| stack.metric(name));
    for at in mapped + 1..mapped + 20 {
        assert_eq!(map(&mut stack, at), Err(Refusal::Quota));
    }
    assert_eq!(metrics.map(|name| stack.metric(name)), before, "{metrics:?}");
    let third = stack.claim(3, devices()[2]).unwrap();
    stack.attach(third).unwrap();
    stack.allocate(third, 0x1_0000).unwrap();
    stack.give_back(third);
    stack.give_back(elsewhere);
    heal(&stack);
    pass(&mut stack, 0, 3);
    stack.machine.assert_clean();
}

/// Two units die together, and each has the other member of a group of the other's. The plan for the failure of one
/// then finds the other dead.
#[test]
fn two_units_that_die_together_are_both_failed() {
    let mut setup = setup(Mode::Strict);
    let of = |device, function| PciAddress::new(0, 0, device, function).unwrap();
    for function in [0, 1] {
        let mut pair = endpoint(0, 7, function);
        pair.multifunction = true;
        setup.functions.push(pair);
    }
    setup.behind_first = vec![of(6, 0), of(7, 1)];
    let regions = [(of(6, 1), 2 << 20), (of(7, 1), 3 << 20)];
    setup.reserved = regions.map(|(quiet, at)| region_of(&[quiet], (at, 0x1000))).into();
    let mut stack = Bed::start(&pair(), setup);
    for (client, device) in [(1, of(6, 0)), (2, of(7, 0))] {
        let session = stack.claim(client, device).unwrap();
        stack.attach(session).unwrap();
    }
    for unit in 0..2 {
        stack.machine.trouble(unit, Trouble::Dead);
    }
    stack.server.tick();
    let status = stack.text("status");
    for unit in 0..2 {
        assert!(status.contains(&format!("unit {unit}: {FAMILY} failed")), "{status}");
    }
    assert!(!status.contains("unfinished"), "{status}");
    stack.machine.assert_clean();
}
