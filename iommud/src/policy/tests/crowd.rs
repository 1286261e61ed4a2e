//! Many functions that appear and vanish at once, as the virtual functions of one device do. Each costs a fixed amount
//! of work, so that no device keeps all clients waiting.

use std::vec::Vec;

use iommu_protocol::ids::PciAddress;

use super::scenarios::partition;
use super::world::*;
use crate::policy::{Config, Event, Registry};
use crate::topology::pci::PciFunction;
use crate::topology::testing::{bridge, endpoint, looked_at, multi, with_acs};

/// A port, a physical function behind it, and a device beside it.
fn machine(apart: bool) -> [PciFunction; 3] {
    let port = with(apart, bridge(0, 1, 0, 1, 255));
    [port, with(apart, multi(endpoint(1, 0, 0))), endpoint(0, 4, 0)]
}

/// Virtual functions at consecutive requester ids behind the physical one. With ACS each is a group of its own, else
/// all are one.
fn virtuals(count: u16, apart: bool) -> Vec<PciFunction> {
    let at = |id: u16| {
        let [bus, place] = id.to_be_bytes();
        with(apart, multi(endpoint(bus, place >> 3, place & 7)))
    };
    (0x0101..=0x0100 + count).map(at).collect()
}

fn with(acs: bool, function: PciFunction) -> PciFunction {
    if acs { with_acs(function) } else { function }
}

fn addresses(functions: &[PciFunction]) -> Vec<PciAddress> {
    functions.iter().map(|function| function.address).collect()
}

fn run(registry: &mut Registry, event: &Event) {
    let plan = registry.decide(event).unwrap();
    registry.commit(plan);
}

fn up(known: &[PciFunction]) -> Registry {
    let own = [phys(OWN, RAM - OWN)];
    let mut registry = Registry::new(Config::default(), one_unit(), &[phys(0, RAM)], &own);
    known.iter().for_each(|function| run(&mut registry, &Event::FunctionAdded(*function)));
    run(&mut registry, &ready(0));
    registry
}

/// The edges of each function are looked at once when it appears, and once when others of its group vanish.
#[test]
fn a_crowd_costs_one_look_at_each_function() {
    for (count, apart) in [(256_u16, false), (1024, false), (256, true), (1024, true)] {
        let all = virtuals(count, apart);
        let many = usize::from(count);
        let mut registry = up(&machine(apart));
        looked_at();
        run(&mut registry, &Event::FunctionsAdded(all.clone()));
        assert_eq!(looked_at(), many);
        assert_eq!(registry.groups().count(), if apart { 3 + many } else { 2 });
        let (gone, left): (Vec<_>, Vec<_>) =
            all.iter().partition(|function| function.address.requester.0 % 2 == 0);
        run(&mut registry, &Event::FunctionsRemoved(addresses(&gone)));
        assert_eq!(looked_at(), if apart { 0 } else { 2 + many / 2 });
        assert_eq!(registry.groups().count(), if apart { 3 + many / 2 } else { 2 });
        run(&mut registry, &Event::FunctionsRemoved(addresses(&left)));
        assert_eq!(looked_at(), if apart { 0 } else { 2 });
        assert_eq!(registry.groups().count(), if apart { 3 } else { 2 });
    }
}

/// Functions that come and go together leave the groups and entries that they leave one by one.
#[test]
fn a_crowd_is_as_its_members_one_by_one() {
    for apart in [false, true] {
        let all = virtuals(6, apart);
        let [mut together, mut each] = [(); 2].map(|()| Bench::compat(&machine(apart)));
        together.run(&Event::FunctionsAdded(all.clone())).unwrap();
        all.iter().for_each(|function| each.run(&Event::FunctionAdded(*function)).unwrap());
        for gone in [&all[1..4], &all[4..]] {
            assert_eq!(partition(&together), partition(&each));
            assert_eq!(together.world.units, each.world.units);
            together.run(&Event::FunctionsRemoved(addresses(gone))).unwrap();
            let one = |function: &PciFunction| Event::FunctionRemoved(function.address);
            gone.iter().for_each(|function| each.run(&one(function)).unwrap());
        }
        assert_eq!(partition(&together), partition(&each));
        assert_eq!(together.world.units, each.world.units);
    }
}

/// A list may name a function twice, one that is known, or one that is behind another one of the list.
#[test]
fn each_function_of_a_list_is_added_and_removed_once() {
    let [port, physical, beside] = machine(false);
    let all = virtuals(2, false);
    let mut bench = Bench::compat(&[beside]);
    let twice = [port, physical, all[0], all[0], all[1], beside];
    bench.run(&Event::FunctionsAdded(twice.to_vec())).unwrap();
    assert_eq!(bench.registry.functions().count(), 5);
    let other = PciFunction { device: 1, ..all[0] };
    let refused = bench.refused(&Event::FunctionsAdded([endpoint(9, 0, 0), other].to_vec()));
    assert_eq!(refused, iommu_protocol::Refusal::Busy);
    assert_eq!(bench.registry.functions().count(), 5, "all or none");
    let twice = [all[1], all[1], port, all[0], other];
    bench.run(&Event::FunctionsRemoved(addresses(&twice))).unwrap();
    assert_eq!(bench.registry.functions().collect::<Vec<_>>(), [beside.address]);
    let none = bench.refused(&Event::FunctionsRemoved(addresses(&all)));
    assert_eq!(none, iommu_protocol::Refusal::NotProbed);
}
