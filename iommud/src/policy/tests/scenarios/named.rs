//! Devices that firmware names and that are no PCI functions.

use std::string::ToString;

use super::*;
use crate::policy::{Matcher, Rule, UnitIndex};
use crate::topology::firmware::{EntryRange, NamedDevice};
use iommu_protocol::ids::RequesterId;

/// An I2C controller at 00:15.1, as DMARs of real laptops name it.
fn named() -> Firmware {
    let mut firmware = one_unit();
    firmware.named.push(NamedDevice {
        unit: 0,
        start_bus: 0,
        path: vec![(0x15, 1)],
        name: "\\_SB.PCI0.I2C1".to_string(),
    });
    firmware
}

fn of(bench: &Bench) -> Binding {
    let all: Vec<_> = bench.registry.named(UnitIndex(0)).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].address, Some(address(0, 0x15, 1)));
    let known = bench.registry.function(address(0, 0x15, 1)).is_some();
    assert!(!known || all[0].is_function);
    all[0].binding
}

fn binding(bench: &Bench, at: PciAddress) -> Binding {
    bench.registry.function(at).unwrap().binding
}

#[test]
fn under_compat_a_named_device_reaches_what_any_other_does() {
    let bench = Bench::new(Config::default(), named(), &[endpoint(0, 3, 0)]);
    let shared = binding(&bench, address(0, 3, 0));
    assert!(matches!(shared, Binding::Domain(_)));
    assert_eq!(of(&bench), shared);
    assert_eq!(bench.registry.unit(UnitIndex(0)).unwrap().functions, 1, "it is no function");
    assert!(!bench.registry.named(UnitIndex(0)).next().unwrap().is_function);
    assert_eq!(bench.registry.groups().count(), 1);
}

#[test]
fn under_strict_a_named_device_reaches_what_firmware_reserves_for_it() {
    let bench = Bench::new(strict(), named(), &[endpoint(0, 3, 0)]);
    assert_eq!(of(&bench), Binding::Blocked);

    let by_scope = |firmware: &mut Firmware| {
        reserve(firmware, 0, 0x10_0000, PAGE);
        firmware.reserved[0].scopes[0].kind = ScopeKind::Namespace(7);
        firmware.reserved[0].scopes[0].path = vec![(0x15, 1)];
    };
    let by_range = |firmware: &mut Firmware| {
        reserve(firmware, 0, 0x10_0000, PAGE);
        firmware.reserved[0].scopes.clear();
        let id = RequesterId(0x00a9);
        let range = EntryRange { first: id, last: id, alias: None, settings: 0 };
        firmware.reserved[0].entries.push(range);
    };
    for reserve in [&by_scope as &dyn Fn(&mut Firmware), &by_range] {
        let mut firmware = named();
        reserve(&mut firmware);
        let bench = Bench::new(strict(), firmware, &[endpoint(0, 3, 0)]);
        assert!(matches!(of(&bench), Binding::Domain(_)));
    }
}

#[test]
fn a_rule_for_its_address_is_about_a_named_device() {
    let matcher = Matcher::Address(address(0, 0x15, 1));
    let rules = vec![Rule { matcher, mode: Mode::Strict }];
    let bench = Bench::new(Config { rules, ..Config::default() }, named(), &[endpoint(0, 3, 0)]);
    assert_eq!(of(&bench), Binding::Blocked);
    assert!(matches!(binding(&bench, address(0, 3, 0)), Binding::Domain(_)));
}

#[test]
fn a_function_of_that_id_decides_and_its_end_closes_the_id() {
    let function = endpoint(0, 0x15, 1);
    let mut bench = Bench::new(Config::default(), named(), &[]);
    assert!(matches!(of(&bench), Binding::Domain(_)));
    bench.run(&Event::FunctionAdded(function)).unwrap();
    let session = bench.claim(1, function.address);
    bench.run(&Event::Attach(session)).unwrap();
    assert_eq!(of(&bench), own_domain(&bench, session));
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(of(&bench), Binding::Blocked, "nobody said that the device is quiet");
    bench.run(&Event::FunctionRemoved(function.address)).unwrap();
    assert_eq!(of(&bench), Binding::Blocked, "what sends now is not what firmware named");
}

#[test]
fn a_named_device_behind_a_bridge_is_entered_when_the_bridge_is_known() {
    let mut firmware = named();
    firmware.named[0].path = vec![(1, 0), (0x15, 1)];
    let bench = Bench::new(Config::default(), firmware.clone(), &[endpoint(0, 3, 0)]);
    let view = bench.registry.named(UnitIndex(0)).next().unwrap();
    assert_eq!((view.address, view.binding), (None, Binding::Blocked));
    let bench = Bench::new(Config::default(), firmware, &[bridge(0, 1, 0, 5, 5)]);
    let view = bench.registry.named(UnitIndex(0)).next().unwrap();
    assert_eq!(view.address, Some(address(5, 0x15, 1)));
    assert!(matches!(view.binding, Binding::Domain(_)));
}

#[test]
fn empty_buses_of_ports_where_devices_come_are_listed() {
    let mut slot = bridge(0, 0x1c, 0, 5, 10);
    slot.hot_plug = true;
    let fixed = bridge(0, 0x1d, 0, 11, 12);
    let list = |bench: &Bench| -> Vec<_> {
        let vacant = bench.registry.vacant_buses();
        vacant.iter().map(|v| (v.port, v.first, v.last)).collect()
    };
    let mut bench = Bench::compat(&[slot, fixed]);
    assert_eq!(list(&bench), [(slot.address, 5, 10)]);
    bench.run(&Event::FunctionAdded(endpoint(7, 0, 0))).unwrap();
    assert_eq!(list(&bench), [(slot.address, 5, 6), (slot.address, 8, 10)]);
    let mut inner = bridge(5, 0, 0, 8, 9);
    inner.hot_plug = true;
    bench.run(&Event::FunctionAdded(inner)).unwrap();
    let expected = [(slot.address, 6, 6), (slot.address, 10, 10), (inner.address, 8, 9)];
    assert_eq!(list(&bench), expected);
    bench.run(&Event::FunctionRemoved(inner.address)).unwrap();
    assert_eq!(list(&bench), [(slot.address, 5, 6), (slot.address, 8, 10)]);
}
