//! Views: what the registry says of itself.

use std::string::ToString;
use std::vec::Vec;

use iommu_protocol::ids::{RequesterId, Slot};
use iommu_protocol::wire::AllocateFlags;

use crate::policy::tests::scenarios::{PAGE, pair, strict, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Config, Counts, Event, Import, UnitIndex};
use crate::topology::capabilities::{LevelSet, UnitCapabilities};
use crate::topology::firmware::NamedDevice;
use crate::topology::pci::{Buses, FunctionKind};
use crate::topology::testing::{address, bridge, endpoint, function, with_acs};

#[test]
fn views_of_the_machine_are_of_this_one() {
    let mut config = Config::default();
    config.quotas.sessions = 7;
    let devices = [3, 4, 5].map(|device| endpoint(0, device, 0));
    let mut bench = Bench::new(config.clone(), two_units(), &devices);
    assert_eq!(bench.registry.config(), &config);
    assert_eq!(bench.registry.firmware(), &two_units());
    let units = |bench: &Bench| -> Vec<_> {
        let units = bench.registry.units();
        units.map(|unit| (unit.index.0, unit.functions, unit.domains)).collect()
    };
    assert_eq!(units(&bench), [(0, 1, 1), (1, 2, 1)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    assert_eq!(units(&bench), [(0, 1, 1), (1, 2, 2)], "its own beside that of policy");
}

#[test]
fn views_count_what_there_is() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 5, 0), d1, d2]);
    let sessions = [(1, 3), (2, 5)].map(|(client, device)| {
        let session = bench.claim(client, address(0, device, 0));
        bench.run(&Event::Attach(session)).unwrap();
        session
    });
    for (session, pages) in [(sessions[0], 2), (sessions[0], 3), (sessions[1], 1)] {
        bench.buffer(session, pages);
    }
    for (at, pages) in [(MIB, 5), (2 * MIB, 6)] {
        let memory = [phys(OWN + at, pages * PAGE)];
        let event = bench.allocation(sessions[0], &memory, AllocateFlags::empty());
        let plan = bench.registry.decide(&event).unwrap();
        bench.registry.quarantine(plan);
    }
    let expected = Counts {
        functions: 4,
        groups: 3,
        groups_claimed: 2,
        sessions: 2,
        attached: 2,
        domains: 3,
        buffers: 3,
        buffer_bytes: 6 * PAGE,
        mappings: 3,
        quarantined: 2,
        quarantined_bytes: 11 * PAGE,
        clients: 2,
    };
    assert_eq!(bench.registry.counts(), expected);
}

/// A session is as good as its unit, even when nothing of it was in use; and as its domain, whatever unit that is.
#[test]
fn views_of_sessions_say_whether_their_unit_or_domain_is_lost() {
    let devices = [3, 4, 5].map(|device| endpoint(0, device, 0));
    let mut bench = Bench::new(strict(), two_units(), &devices);
    let idle = bench.claim(1, address(0, 3, 0));
    let fine = bench.claim(2, address(0, 4, 0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let lost = |bench: &Bench, session| bench.registry.session(session).unwrap().unit_failed;
    assert!(lost(&bench, idle) && !lost(&bench, fine));

    let mut bench = Bench::new(strict(), two_units(), &devices);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    assert!(!lost(&bench, first) && !lost(&bench, second));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    assert!(lost(&bench, first) && lost(&bench, second));
}

#[test]
fn views_of_kept_domains_are_of_those_that_no_session_has() {
    let mut bench = Bench::new(strict(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let broken = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(broken)).unwrap();
    bench.claim(2, address(0, 4, 0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    assert_eq!(bench.registry.domains_kept(), 0, "its session has it");
    bench.run(&Event::Close(broken)).unwrap();
    assert_eq!(bench.registry.domains_kept(), 1);
}

/// Four levels reach further than the addresses that are handed out.
#[test]
fn views_of_domains_have_the_addresses_that_are_handed_out() {
    for (levels, bits) in [(LevelSet::FOUR, 39), (LevelSet::THREE, 36)] {
        let mut bench = Bench::cold(Config::default(), one_unit());
        bench.run(&Event::FunctionAdded(endpoint(0, 3, 0))).unwrap();
        let iova_bits = if bits == 36 { 36 } else { 48 };
        let unit = UnitCapabilities { levels, iova_bits, ..capabilities() };
        bench.run(&Event::UnitReady(UnitIndex(0), unit)).unwrap();
        let session = bench.claim(1, address(0, 3, 0));
        let space = bench.registry.session(session).unwrap().domain.unwrap().space;
        assert_eq!((space.first().0, space.last().0), (PAGE, (1 << bits) - 1));
    }
}

#[test]
fn views_of_slots_find_a_buffer_in_each_session() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim(1, address(0, 4, 0));
    let (_, _, a) = bench.buffer(first, 1);
    let (_, _, b) = bench.buffer(first, 1);
    bench.run(&Import(second, b)).unwrap();
    let of = |session| [a, b].map(|buffer| bench.registry.slot_of(session, buffer));
    assert_eq!(of(first), [Some(Slot(0)), Some(Slot(1))]);
    assert_eq!(of(second), [None, Some(Slot(0))]);
}

/// Faults under an id that two functions share are of the one that is attached.
#[test]
fn views_of_faults_prefer_an_attached_function() {
    let buses = Buses { secondary: 2, subordinate: 2 };
    let functions = [
        with_acs(bridge(0, 1, 0, 1, 2)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses)),
        function(address(2, 3, 0), FunctionKind::Conventional),
        function(address(2, 4, 0), FunctionKind::Conventional),
    ];
    let mut bench = Bench::compat(&functions);
    let (unit, alias) = (UnitIndex(0), RequesterId::new(2, 0, 0).unwrap());
    assert_eq!(bench.registry.session_of(unit, alias), None);
    let first = bench.claim(1, address(2, 3, 0));
    let second = bench.claim_under(1, address(2, 4, 0), Some(first)).unwrap();
    assert_eq!(bench.registry.session_of(unit, alias), Some(first));
    bench.run(&Event::Attach(second)).unwrap();
    assert_eq!(bench.registry.session_of(unit, alias), Some(second));
    bench.run(&Event::Detach(second)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.registry.session_of(unit, alias), Some(first));
}

/// Requests of 02:03.0 may carry the id 02:00.0. They are taken for those of a function with that id, where there is one.
#[test]
fn views_of_ids_name_the_function_that_has_the_id() {
    let buses = Buses { secondary: 2, subordinate: 2 };
    let [own, other] = [0, 3].map(|device| address(2, device, 0));
    for (devices, expected) in [(vec![other], other), (vec![other, own], own)] {
        let mut functions = vec![
            bridge(0, 1, 0, 1, 2),
            function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses)),
        ];
        functions.extend(devices.iter().map(|at| function(*at, FunctionKind::Conventional)));
        let bench = Bench::compat(&functions);
        let device_of = |id| bench.registry.device_of(UnitIndex(0), RequesterId(id));
        assert_eq!([0x0200, 0x0218, 0x0900].map(device_of), [Some(expected), Some(other), None]);
        assert_eq!(bench.registry.device_of(UnitIndex(1), RequesterId(0x0200)), None);
    }
}

#[test]
fn views_say_whose_faults_are_suppressed() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let unit = UnitIndex(0);
    let [known, other] = [3, 4].map(|device| address(0, device, 0).requester);
    let stranger = RequesterId(0x0900);
    for source in [known, stranger] {
        bench.run(&Event::Storm(unit, source)).unwrap();
    }
    let silenced = [known, other, stranger].map(|source| bench.registry.is_silenced(unit, source));
    assert_eq!(silenced, [true, false, true]);
    let all: Vec<_> = bench.registry.silenced().collect();
    assert_eq!(all, [(unit, known, true), (unit, stranger, false)]);
}

/// A function that has or had the id decides on it, not what firmware names there.
#[test]
fn named_views_say_whether_a_function_has_or_had_the_id() {
    let mut firmware = one_unit();
    let name = "\\_SB.PCI0.I2C1".to_string();
    firmware.named.push(NamedDevice { unit: 0, start_bus: 0, path: vec![(0x15, 1)], name });
    let mut bench = Bench::new(Config::default(), firmware, &[]);
    let is_function =
        |bench: &Bench| bench.registry.named(UnitIndex(0)).next().unwrap().is_function;
    assert!(!is_function(&bench));
    bench.run(&Event::FunctionAdded(endpoint(0, 0x15, 1))).unwrap();
    assert!(is_function(&bench));
    bench.run(&Event::FunctionRemoved(address(0, 0x15, 1))).unwrap();
    assert!(is_function(&bench));
}
