//! Facts about single units, functions and entries.

use alloc::vec::Vec;
use std::string::ToString;

use super::*;
use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::policy::collections::ranges::Piece;
use crate::policy::config::Mode;
use crate::policy::state::tally::Tally;
use crate::topology::capabilities::{LevelSet, PageSizes};
use crate::topology::firmware::{
    DeviceScope, NamedDevice, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};
use crate::topology::testing::{address, bridge, endpoint, with_acs};
use iommu_protocol::wire::Access;

/// A unit with its registers at a page of its own; it takes every function that no other names.
pub(super) fn description(number: u64) -> UnitDescription {
    UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000 + number * 4096), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    }
}

pub(super) fn scope(kind: ScopeKind, device: u8) -> DeviceScope {
    DeviceScope { kind, start_bus: 0, path: Vec::from([(device, 0)]) }
}

/// A machine under policy `compat`, whose units are not up.
pub(super) fn machine(firmware: Firmware) -> Machine {
    Machine::new(Config::default(), firmware, Ranges::default())
}

/// This many units, of which the first takes everything.
fn units(count: u64) -> Firmware {
    Firmware { units: (0..count).map(description).collect(), ..Firmware::default() }
}

fn capabilities() -> UnitCapabilities {
    UnitCapabilities {
        levels: LevelSet::FOUR,
        page_sizes: PageSizes::SIZE_4K,
        coherent: true,
        forces_snoop: true,
        caches_absent: false,
        publishes: false,
        last_tag: 255,
        pass_through: true,
        physical_bits: 46,
        iova_bits: 48,
        deepens: true,
    }
}

const fn up(capabilities: UnitCapabilities, class: usize) -> Unit {
    Unit::Enabled { capabilities, class }
}

#[test]
fn a_unit_has_a_class_and_needs_nothing_published_once_it_is_up() {
    let mut machine = machine(units(4));
    machine.set_unit(UnitIndex(1), up(capabilities(), 2));
    machine.set_unit(UnitIndex(2), Unit::Failed);
    machine.set_unit(UnitIndex(3), up(UnitCapabilities { publishes: true, ..capabilities() }, 5));
    let of_each = [0, 1, 2, 3, 4].map(UnitIndex);
    assert_eq!(of_each.map(|unit| machine.class_of(unit)), [None, Some(2), None, Some(5), None]);
    let publishing = of_each.map(|unit| machine.needs_publishing(unit));
    assert_eq!(publishing, [true, false, true, true, true]);
    let (missing, failed) = (Err(Refusal::NotReady), Err(Refusal::UnitFailed));
    let checked = of_each.map(|unit| machine.check_unit(unit));
    assert_eq!(checked, [missing, Ok(()), failed, Ok(()), missing]);
    assert_eq!(machine.last_tag(), 255);
}

#[test]
fn a_session_is_checked_for_its_device_and_then_for_its_unit() {
    let mut machine = machine(units(3));
    machine.set_unit(UnitIndex(1), up(capabilities(), 0));
    machine.set_unit(UnitIndex(2), Unit::Failed);
    let check = |function, unit: Option<u32>| {
        machine.check_session(&Session {
            address: address(0, 3, 0),
            generation: 1,
            function,
            group: GroupId(0),
            owner: OwnerId(0),
            client: 0,
            unit: unit.map(UnitIndex),
            domain: None,
            slots: Vec::new(),
            tally: Tally::default(),
            cell: None,
        })
    };
    let there = Some(FunctionIndex(0));
    assert_eq!(check(None, Some(1)), Err(Refusal::NotProbed));
    assert_eq!(check(None, Some(2)), Err(Refusal::NotProbed));
    let units = [None, Some(0), Some(1), Some(2)].map(|unit| check(there, unit));
    let expected = [Ok(()), Err(Refusal::NotReady), Ok(()), Err(Refusal::UnitFailed)];
    assert_eq!(units, expected);
}

/// A function is at rest when nobody owns its group, and no member is driven or was when it was last.
#[test]
fn a_function_is_at_rest_with_all_behind_it() {
    let mut machine = machine(units(1));
    let port = bridge(0, 1, 0, 1, 1);
    // With isolation, the port and the function behind it are groups of their own.
    machine.add(with_acs(port));
    machine.add(endpoint(1, 0, 0));
    let [port, behind] = [port.address, address(1, 0, 0)].map(|at| machine.find(at).unwrap().0);
    assert_ne!(machine.function(port).unwrap().group, machine.function(behind).unwrap().group);
    let rest = |machine: &Machine| [port, behind].map(|index| machine.is_at_rest(index));
    assert_eq!(rest(&machine), [true, true]);
    for activity in [Activity::Attached, Activity::Unquiesced] {
        machine.set_activity(behind, activity);
        assert_eq!(rest(&machine), [false, false], "{activity:?}");
        machine.set_activity(behind, Activity::Quiet);
        machine.set_activity(port, activity);
        assert_eq!(rest(&machine), [false, true], "{activity:?}");
        machine.set_activity(port, Activity::Quiet);
    }
    let group = machine.function(behind).unwrap().group;
    machine.groups.get_mut(group.0).unwrap().state.owner = Some(OwnerId(0));
    assert_eq!(rest(&machine), [false, false], "claimed");
}

#[test]
fn a_machine_is_touched_by_a_unit_or_an_owner() {
    let mut first = machine(units(2));
    first.add(endpoint(0, 3, 0));
    assert!(first.is_untouched());
    for unit in [up(capabilities(), 0), Unit::Failed] {
        let mut machine = first.clone();
        machine.set_unit(UnitIndex(1), unit);
        assert!(!machine.is_untouched(), "{unit:?}");
    }
    let groups = Vec::from([GroupId(0)]);
    first.owners.insert(Owner { client: 0, domain: None, sessions: 1, groups });
    assert!(!first.is_untouched());
}

/// Behind the second of two units firmware names 00:15.1.
fn named() -> Firmware {
    let mut firmware = units(2);
    firmware.named.push(NamedDevice {
        unit: 1,
        start_bus: 0,
        path: Vec::from([(0x15, 1)]),
        name: "I2C1".to_string(),
    });
    firmware
}

const NAMED: Key = (UnitIndex(1), RequesterId(0x00a9));

/// Any use of the id by a function, also one of the past, takes it from the device that firmware names.
#[test]
fn a_named_device_has_an_entry_unless_a_function_used_its_id() {
    let entries = |machine: &Machine| [0, 1].map(|unit| machine.named_entries(UnitIndex(unit)));
    let new = machine(named());
    assert_eq!(entries(&new), [vec![], vec![NAMED]]);
    let mut taken = new.clone();
    taken.take_named((UnitIndex(0), NAMED.1));
    taken.take_named((UnitIndex(1), RequesterId(0x00a8)));
    assert_eq!(entries(&taken), [vec![], vec![NAMED]], "other entries");
    assert_eq!(taken.taken.len(), 1, "nothing is named behind the first unit");
    taken.take_named(NAMED);
    assert_eq!(entries(&taken), [vec![], vec![]]);
    let mut entered = new.clone();
    entered.sources.enter(NAMED);
    assert_eq!(entries(&entered), [vec![], vec![]]);
    let mut known = new;
    known.generations.update(address(0, 0x15, 1), |_| 1);
    assert_eq!(entries(&known), [vec![], vec![]], "behind another unit, perhaps");
}

#[test]
fn a_named_device_is_let_through_where_policy_is_off_and_the_unit_can() {
    let target = |default, pass_through| {
        let mut machine = machine(named());
        machine.config.default = default;
        let capabilities = UnitCapabilities { pass_through, ..capabilities() };
        machine.set_unit(NAMED.0, up(capabilities, 4));
        machine.target_of_named(NAMED)
    };
    let shared = TargetBinding::Shared(Shared::Compat(4));
    assert_eq!(target(Mode::Off, true), TargetBinding::PassThrough);
    for (mode, pass_through) in [(Mode::Off, false), (Mode::Compat, true), (Mode::Compat, false)] {
        assert_eq!(target(mode, pass_through), shared, "{mode:?}");
    }
    assert_eq!(target(Mode::Strict, true), TargetBinding::Blocked);
    assert_eq!(machine(named()).target_of_named(NAMED), TargetBinding::Blocked, "not up");
}

/// The end of a session may leave its device unquiesced. What firmware reserves for it stays mapped then, whatever
/// policy is configured.
#[test]
fn an_unquiesced_function_keeps_the_regions_that_firmware_reserves() {
    let mut firmware = units(1);
    firmware.reserved.push(ReservedRegion {
        segment: 0,
        range: PhysRange::new(PhysAddr(0x10_0000), 0x2000).unwrap(),
        read: true,
        write: false,
        exclusion: false,
        scopes: Vec::from([scope(ScopeKind::Endpoint, 3)]),
        entries: Vec::new(),
    });
    let mut machine = machine(firmware);
    machine.add(endpoint(0, 3, 0));
    machine.add(endpoint(0, 4, 0));
    let [with, without, nobody] =
        [3, 4, 5].map(|device| (UnitIndex(0), address(0, device, 0).requester));
    assert_eq!(machine.target_when_unquiesced(with), None, "the unit is not up");
    machine.set_unit(UnitIndex(0), up(capabilities(), 7));
    let range = IovaRange::new(Iova(0x10_0000), 0x2000).unwrap();
    let reserved = Shared::Reserved(7, Vec::from([Piece::new(range, Access::READ)]));
    assert_eq!(machine.target_when_unquiesced(with), Some(reserved));
    assert_eq!(machine.target_when_unquiesced(without), None);
    assert_eq!(machine.target_when_unquiesced(nobody), None);
}
