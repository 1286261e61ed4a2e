//! Groups that join and fall apart, and bridges that come and go.

use super::*;
use crate::policy::ids::SessionId;
use crate::policy::state::machine::tests::{description, machine, scope};
use crate::policy::state::objects::{GroupState, Owner, OwnerId};
use crate::topology::firmware::{EntryRange, Firmware, ScopeKind};
use crate::topology::pci::{Buses, FunctionKind};
use crate::topology::testing::{address, bridge, endpoint, function, multi};
use iommu_protocol::ids::{PciAddress, RequesterId};

/// Two units: one in front of what is behind 00:01.0, one in front of everything else.
fn two_units() -> Firmware {
    let mut firmware = Firmware { units: [0, 1].map(description).to_vec(), ..Firmware::default() };
    firmware.units[0].include_all = false;
    firmware.units[0].scopes.push(scope(ScopeKind::Bridge, 1));
    firmware
}

fn one_unit() -> Firmware {
    Firmware { units: Vec::from([description(0)]), ..Firmware::default() }
}

fn with(firmware: Firmware, functions: &[PciFunction]) -> Machine {
    let mut machine = machine(firmware);
    functions.iter().for_each(|function| drop(machine.add(*function)));
    machine
}

fn index(machine: &Machine, address: PciAddress) -> FunctionIndex {
    machine.find(address).unwrap().0
}

fn unit_of(machine: &Machine, address: PciAddress) -> Option<u32> {
    machine.find(address).unwrap().1.unit.map(|unit| unit.0)
}

/// The number that stands for no number is never given.
#[test]
fn generations_end_below_the_number_for_none() {
    let d = endpoint(0, 4, 0);
    let mut machine = with(one_unit(), &[d]);
    assert_eq!(machine.generation(d.address), 1);
    for (before, after) in [(1, 2), (u32::MAX - 2, u32::MAX - 1), (u32::MAX - 1, u32::MAX - 1)] {
        machine.generations.update(d.address, |_| before);
        let there = index(&machine, d.address);
        machine.remove(&[there]);
        machine.add(d);
        assert_eq!(machine.generation(d.address), after);
    }
}

/// Three functions, each a group of its own: 0, 1 and 2.
fn three() -> (Machine, [FunctionIndex; 3]) {
    let functions = [3, 4, 5].map(|device| endpoint(0, device, 0));
    let machine = with(one_unit(), &functions);
    let indices = functions.map(|function| index(&machine, function.address));
    assert_eq!(indices.map(|index| machine.function(index).unwrap().group.0), [0, 1, 2]);
    (machine, indices)
}

#[test]
fn joined_groups_keep_the_number_of_the_owner_or_the_lower_one() {
    let owners = [(None, 0), (Some(0), 0), (Some(1), 1)];
    for (owned, kept) in owners {
        for swapped in [false, true] {
            let (mut machine, [a, b, _]) = three();
            if let Some(group) = owned {
                machine.groups.get_mut(group).unwrap().state.owner = Some(OwnerId(9));
            }
            let mut merged = Vec::new();
            let (first, second) = if swapped { (b, a) } else { (a, b) };
            machine.join(first, second, &mut merged);
            for index in [a, b] {
                assert_eq!(machine.function(index).unwrap().group, GroupId(kept), "{owned:?}");
            }
            assert_eq!(merged, [GroupId(kept), GroupId(1 - kept)], "{owned:?}");
            assert!(machine.group(GroupId(1 - kept)).is_none());
            assert_eq!(machine.group(GroupId(kept)).unwrap().members.len(), 2);
        }
    }
}

#[test]
fn joined_groups_add_up() {
    let (mut machine, [a, b, c]) = three();
    for (group, [attached, unquiesced, sessions]) in [(0, [1, 2, 3]), (1, [40, 50, 60])] {
        let state = &mut machine.groups.get_mut(group).unwrap().state;
        *state = GroupState { attached, unquiesced, sessions, ..GroupState::default() };
    }
    let mut merged = Vec::new();
    machine.join(a, b, &mut merged);
    machine.join(b, a, &mut merged);
    let state = machine.group(GroupId(0)).unwrap().state;
    assert_eq!([state.attached, state.unquiesced, state.sessions], [41, 52, 63]);
    machine.join(c, b, &mut merged);
    assert_eq!(merged, [0, 1, 2].map(GroupId), "each once");
    assert_eq!(machine.group(GroupId(0)).unwrap().members[..], [a, b, c]);
}

/// A bridge gives what is behind it another unit, or other requester ids. What has neither from it stays as it is.
#[test]
fn a_bridge_changes_the_functions_behind_it() {
    let [device, beside] = [endpoint(1, 0, 0), endpoint(9, 0, 0)];
    let mut machine = with(two_units(), &[device, beside]);
    assert_eq!(unit_of(&machine, device.address), Some(1));
    let added = machine.add(bridge(0, 1, 0, 1, 4));
    assert_eq!(added.changed, [index(&machine, device.address)]);
    assert_eq!([device, beside].map(|d| unit_of(&machine, d.address)), [Some(0), Some(1)]);
    let keys = |machine: &Machine, of: PciAddress| -> Vec<_> {
        machine.keys_of(index(machine, of)).map(|(unit, id)| (unit.0, id.0)).collect()
    };
    assert_eq!(keys(&machine, device.address), [(0, 0x0100)]);
    let entries: Vec<_> = machine.sources.iter().map(|((unit, id), _)| (unit.0, id.0)).collect();
    assert_eq!(entries, [(0, 0x0008), (0, 0x0100), (1, 0x0900)]);

    // To conventional PCI: requests carry the id of the secondary bus.
    let device = function(address(2, 5, 1), FunctionKind::Conventional);
    let buses = Buses { secondary: 2, subordinate: 3 };
    let mut machine = with(one_unit(), &[device, endpoint(9, 0, 0)]);
    let to_pci = function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses));
    assert_eq!(machine.add(to_pci).changed, [index(&machine, device.address)]);
    assert_eq!(keys(&machine, device.address), [(0, 0x0229), (0, 0x0200)]);
    // A port in front of both of them changes neither.
    assert_eq!(machine.add(bridge(0, 1, 0, 1, 4)).changed, []);
    assert_eq!(keys(&machine, device.address), [(0, 0x0229), (0, 0x0200)]);
}

/// The scope of the first unit names a bridge that is gone: nothing is behind that unit any more.
#[test]
fn with_a_bridge_goes_the_unit_that_firmware_names_by_it() {
    let (port, device) = (bridge(0, 1, 0, 1, 4), endpoint(1, 0, 0));
    for bridge_first in [true, false] {
        let mut machine = with(two_units(), &[port, device]);
        assert_eq!(unit_of(&machine, device.address), Some(0));
        let mut gone = [port, device].map(|function| index(&machine, function.address));
        if !bridge_first {
            gone.reverse();
        }
        machine.remove(&gone);
        machine.add(device);
        assert_eq!(unit_of(&machine, device.address), Some(1));
        assert_eq!(machine.groups.len(), 1);
    }
}

#[test]
fn an_owner_loses_the_group_whose_last_function_is_gone() {
    let (mut machine, [a, b, _]) = three();
    let groups = Vec::from([GroupId(0), GroupId(1)]);
    let owner = Owner { client: 0, domain: None, sessions: 2, groups };
    let owner = OwnerId(machine.owners.insert(owner).unwrap());
    for group in 0..2 {
        machine.groups.get_mut(group).unwrap().state.owner = Some(owner);
    }
    for (gone, left) in [(a, vec![GroupId(1)]), (b, vec![])] {
        machine.remove(&[gone]);
        assert_eq!(machine.owner(owner).unwrap().groups, left);
    }
    assert_eq!(machine.groups.len(), 1);
}

/// Requests of 03:00.0 and 03:01.0 arrive under one requester id, at the unit whose firmware says so.
fn with_aliases(firmware: &mut Firmware) {
    let id = |bus, device| RequesterId::new(bus, device, 0).unwrap();
    for unit in &mut firmware.units {
        let alias = Some(id(0, 0x14));
        let range = EntryRange { first: id(3, 0), last: id(3, 1), alias, settings: 0 };
        unit.entries.push(range);
    }
}

/// Edges lead to the other functions of a device, and to the bridge above; shared requester ids connect where they
/// arrive at one unit.
#[test]
fn members_are_connected_by_topology_or_a_shared_id() {
    let device = [0, 1].map(|number| multi(endpoint(0, 4, number)));
    let (port, behind) = (bridge(0, 1, 0, 1, 1), endpoint(1, 0, 0));
    let [shared, too] = [endpoint(3, 0, 0), endpoint(3, 1, 0)];
    let mut firmware = one_unit();
    with_aliases(&mut firmware);
    let functions = [device[0], device[1], port, behind, shared, too];
    let mut machine = with(firmware, &functions);
    let at = functions.map(|function| index(&machine, function.address));
    let parts = |machine: &Machine| {
        let place = |index| at.iter().position(|other| *other == index).unwrap();
        let parts = machine.parts(&at).into_iter();
        parts.map(|part| part.into_iter().map(place).collect()).collect::<Vec<Vec<_>>>()
    };
    assert_eq!(parts(&machine), [[0, 1], [2, 3], [4, 5]]);
    assert_eq!(machine.parts(&[at[3], at[5], at[0]]).len(), 3, "only members connect");
    // The same id at another unit is not shared.
    machine.function_mut(at[5]).unwrap().unit = Some(UnitIndex(1));
    assert_eq!(parts(&machine), [vec![0, 1], vec![2, 3], vec![4], vec![5]]);
}

/// A free group becomes as many as its members form without the one that is gone. Each counts its own members.
#[test]
fn a_free_group_falls_apart_without_the_member_that_held_it() {
    let (mut machine, [a, b, c]) = three();
    let mut merged = Vec::new();
    machine.join(a, b, &mut merged);
    machine.join(a, c, &mut merged);
    machine.set_activity(c, Activity::Unquiesced);
    machine.set_activity(b, Activity::Attached);
    assert_eq!(machine.groups.len(), 1);
    let touched = machine.remove(&[a]);
    assert_eq!(touched.len(), 2);
    let states = [b, c].map(|index| {
        let group = machine.group(machine.function(index).unwrap().group).unwrap();
        (group.members[..].to_vec(), group.state.attached, group.state.unquiesced)
    });
    assert_eq!(states, [(vec![b], 1, 0), (vec![c], 0, 1)]);
}

#[test]
fn a_removed_member_takes_its_session_out_of_the_group() {
    let device = [0, 1].map(|number| multi(endpoint(0, 4, number)));
    let mut machine = with(one_unit(), &device);
    let [first, second] = device.map(|function| index(&machine, function.address));
    for (number, member) in [(1, first), (2, second)] {
        machine.function_mut(member).unwrap().session = Some(SessionId(number));
    }
    let state = &mut machine.groups.get_mut(0).unwrap().state;
    *state = GroupState { owner: Some(OwnerId(0)), sessions: 2, ..GroupState::default() };
    assert_eq!(machine.remove(&[second]), [GroupId(0)]);
    let left = machine.group(GroupId(0)).unwrap();
    assert_eq!((&left.members[..], left.state.sessions), (&[first][..], 1));
}
