//! Several units, units that come and fail, and none: S4, S24, S27, S29.

use std::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::{PAGE, claim_event, kind, own_domain, strict, two_units};
use crate::policy::tests::world::*;
use crate::policy::{
    Batch, BatchRequest, Binding, Config, Event, Matcher, Mode, Rule, Step, UnitIndex, UnitState,
};
use crate::topology::capabilities::{LevelSet, UnitCapabilities};
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;
use crate::topology::testing::{address, endpoint};

#[test]
fn s4_a_unit_that_comes_up_leaves_active_domains_alone() {
    let mut bench = Bench::cold(Config::default(), two_units());
    for function in [endpoint(0, 3, 0), endpoint(0, 4, 0)] {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    let session = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    bench.buffer(session, 8);
    let before = bench.world.units[0].clone();
    let steps = bench.world.steps.len();
    bench.run(&ready(1)).unwrap();
    assert_eq!(bench.world.units[0], before);
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    for step in &bench.world.steps[steps..] {
        assert!(!format!("{step:?}").contains(&format!("{own:?}")), "{step:?}");
        assert!(!format!("{step:?}").contains("UnitIndex(0)"), "{step:?}");
    }
    assert_eq!(bench.run(&ready(1)), Ok(()), "a second time is nothing");
}

#[test]
fn s24_a_domain_over_two_units_is_flushed_in_both() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    let (_, iova, _) = bench.buffer(first, 1);
    bench.run(&Event::Attach(second)).unwrap();
    let (slot, other, _) = bench.buffer(first, 1);
    let mut told = |items: &[BatchRequest]| {
        let from = bench.world.steps.len();
        bench.batch(first, items).unwrap();
        let steps = bench.world.steps[from..].iter();
        let told = steps.filter_map(|step| match step {
            Step::Publish { unit, .. } => Some(('p', unit.0)),
            Step::Invalidate { unit, .. } => Some(('i', unit.0)),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let both = |what| [(what, 0), (what, 1)];
    // Once for each unit and request, even when the request is for one mapping.
    assert_eq!(told(&[unmap(iova, 1), unmap(other, 1)]), both('i'));
    assert_eq!(told(&[fixed(slot, 0, 1, iova)]), both('p'));
    assert_eq!(told(&[unmap(iova, 1)]), both('i'));
    let Binding::Domain(own) = own_domain(&bench, first) else { panic!() };
    assert_eq!(bench.world.mapped(own), []);
}

#[test]
fn s27_a_failing_unit_leaves_clients_of_others_alone() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let broken = bench.claim(1, address(0, 3, 0));
    let fine = bench.claim(2, address(0, 4, 0));
    for session in [broken, fine] {
        bench.run(&Event::Attach(session)).unwrap();
        bench.buffer(session, 1);
    }
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    assert_eq!(bench.run(&Event::UnitFailed(UnitIndex(0))), Ok(()));
    assert_eq!(bench.registry.unit(UnitIndex(0)).unwrap().state, UnitState::Failed);
    let (slot, ..) = bench.buffer(fine, 2);
    bench.run(&Event::Release(fine, slot)).unwrap();
    bench.run(&Event::Close(fine)).unwrap();
    bench.run(&Event::Close(broken)).unwrap();
    assert_eq!(bench.registry.counts().quarantined, 1);
    // Since then the failed unit got no step, except those that deny entries.
    let failed = bench.world.steps.iter().rposition(|s| kind(s) == "Deny").unwrap();
    for step in &bench.world.steps[failed + 1..] {
        assert!(!format!("{step:?}").contains("UnitIndex(0)"), "{step:?}");
    }
}

#[test]
fn s29_every_function_has_its_entry_before_translation_is_on() {
    for (config, blocked) in [(Config::default(), false), (strict(), true)] {
        let bench = Bench::new(config, one_unit(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
        let enable = bench.world.steps.iter().position(|s| kind(s) == "Enable").unwrap();
        let written: Vec<_> = bench.world.steps[..enable]
            .iter()
            .filter(|s| matches!(kind(s), "Translate" | "Block"))
            .map(kind)
            .collect();
        assert_eq!(written, [if blocked { "Block" } else { "Translate" }; 2]);
        assert_eq!(enable + 1, bench.world.steps.len());
    }
}

#[test]
fn without_a_unit_a_session_works_with_bus_addresses() {
    let mut bench = Bench::new(Config::default(), Firmware::default(), &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.registry.session(session).unwrap().domain, None);
    bench.run(&Event::Attach(session)).unwrap();
    assert!(bench.registry.session(session).unwrap().attached);
    assert!(!bench.registry.admit_buffer(session, PAGE).unwrap().confined);
    let (slot, iova, _) = bench.buffer(session, 4);
    assert_eq!(iova, OWN, "the address of the memory");
    assert_eq!(bench.batch(session, &[map(slot, 1, 2)]).unwrap(), [OWN + PAGE]);
    assert_eq!(bench.batch(session, &[map(slot, 1, 2)]).unwrap(), [OWN + PAGE], "twice the same");
    assert_eq!(bench.registry.counts().mappings, 3);
    bench.batch(session, &[unmap(OWN + PAGE, 2), unmap(OWN + PAGE, 2)]).unwrap();
    assert_eq!(bench.refused(&Batch(session, &[unmap(OWN + PAGE, 2)])), Refusal::NotMapped);
    let wrong = fixed(slot, 0, 1, MIB);
    assert_eq!(bench.refused(&Batch(session, &[wrong])), Refusal::Unsupported);
    let scattered = [phys(OWN + 8 * PAGE, PAGE), phys(OWN + 16 * PAGE, PAGE)];
    let event = bench.allocation(session, &scattered, AllocateFlags::empty());
    assert_eq!(bench.refused(&event), Refusal::NoMemory, "no unit makes it contiguous");
    let high = bench.allocation(session, &[phys(1 << 33, PAGE)], AllocateFlags::empty());
    assert_eq!(bench.refused(&high), Refusal::NoMemory);
    let (reserved, at, _) = bench.allocate(session, 2 * PAGE, AllocateFlags::UNMAPPED).unwrap();
    let grant = BatchRequest::Grant(request(reserved, 1, 1));
    assert_eq!(bench.batch(session, &[grant]).unwrap(), [at + PAGE]);
    let revoke = BatchRequest::Revoke { slot: reserved, offset: PAGE, length: PAGE };
    bench.batch(session, &[revoke]).unwrap();
    assert_eq!(bench.world.steps, [], "there is no hardware");
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released.len(), 2);
    assert_eq!(bench.registry.counts().mappings, 0);
}

#[test]
fn modes_are_chosen_by_the_first_rule_that_matches() {
    let mut nic = endpoint(0, 6, 0);
    nic.class = 0x02_0000;
    let config = Config {
        rules: vec![
            Rule { matcher: Matcher::Address(address(0, 3, 0)), mode: Mode::Off },
            Rule {
                matcher: Matcher::Device { vendor: 0x1234, device: 0x11e8 },
                mode: Mode::Compat,
            },
            Rule { matcher: Matcher::Class { class: 0x02_0000, mask: 0xff_0000 }, mode: Mode::Off },
        ],
        ..strict()
    };
    let mut other = endpoint(0, 5, 0);
    other.device = 1;
    let mut bench = Bench::cold(config, one_unit());
    bench.passes.insert(RequesterId::new(0, 3, 0).unwrap().0);
    for function in [endpoint(0, 3, 0), endpoint(0, 4, 0), other, nic] {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    let entry = |device| bench.world.entry(0, address(0, device, 0));
    assert_eq!(entry(3), Binding::PassThrough);
    assert!(matches!(entry(4), Binding::Domain(_)));
    assert_eq!(entry(5), Binding::Blocked);
    assert!(matches!(entry(6), Binding::Domain(_)), "an earlier rule is about its ids");
    let session = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    bench.buffer(session, 1);
    bench.run(&Event::Detach(session)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.entry(0, address(0, 3, 0)), Binding::PassThrough);
}

/// A class covers its subclasses, and no other class.
#[test]
fn a_rule_for_a_class_compares_the_bits_of_its_mask() {
    let network = |class| {
        let matcher = Matcher::Class { class: 0x02_0030, mask: 0xff_0000 };
        matcher.matches(&PciFunction { class, ..endpoint(0, 3, 0) })
    };
    assert!(network(0x02_0000) && network(0x02_8001));
    assert!(!network(0x01_0030) && !network(0x03_0030) && !network(0x06_0030));
    let rules = vec![Rule {
        matcher: Matcher::Class { class: 0x02_0000, mask: 0xff_0000 },
        mode: Mode::Strict,
    }];
    let of = |class| PciFunction { class, ..endpoint(0, 3, 0) };
    for (class, blocked) in [(0x02_8000, true), (0x01_8000, false)] {
        let config = Config { rules: rules.clone(), ..Config::default() };
        let bench = Bench::new(config, one_unit(), &[of(class)]);
        assert_eq!(bench.world.entry(0, address(0, 3, 0)) == Binding::Blocked, blocked);
    }
}

#[test]
fn a_unit_that_cannot_pass_through_gives_off_what_compat_has() {
    let config = Config { default: Mode::Off, ..Config::default() };
    let mut bench = Bench::cold(config, one_unit());
    bench.run(&Event::FunctionAdded(endpoint(0, 3, 0))).unwrap();
    let mut weak = capabilities();
    weak.pass_through = false;
    bench.run(&Event::UnitReady(UnitIndex(0), weak)).unwrap();
    assert!(matches!(bench.world.entry(0, address(0, 3, 0)), Binding::Domain(_)));
}

#[test]
fn units_without_a_common_table_each_have_their_own() {
    let mut bench = Bench::cold(Config::default(), two_units());
    for function in [endpoint(0, 3, 0), endpoint(0, 4, 0)] {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    let mut three = capabilities();
    three.levels = LevelSet::THREE;
    let mut four = capabilities();
    four.levels = LevelSet::FOUR;
    four.coherent = false;
    four.forces_snoop = false;
    bench.run(&Event::UnitReady(UnitIndex(0), three)).unwrap();
    bench.run(&Event::UnitReady(UnitIndex(1), four)).unwrap();
    let (a, b) = (bench.world.entry(0, address(0, 3, 0)), bench.world.entry(1, address(0, 4, 0)));
    assert_ne!(a, b);
    let formats: Vec<_> = bench
        .world
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::CreateTable { format, .. } => Some((format.levels, format.coherent)),
            _ => None,
        })
        .collect();
    assert_eq!(formats, [(3, true), (4, false)]);
    // Memory leaves both domains.
    bench.run(&Event::MemoryTaken(phys(MIB, MIB))).unwrap();
    assert!(!bench.world.reachable(MIB, 2 * MIB - 1));
    let first = bench.claim(1, address(0, 3, 0));
    let second = claim_event(1, address(0, 4, 0), Some(first));
    assert_eq!(bench.refused(&second), Refusal::Unsupported);
}

/// Units that differ only in snoop control share the domains of policy, whose leaves leave snooping to the devices.
/// An owner's domain makes devices snoop where every unit can.
#[test]
fn an_owners_domain_makes_devices_snoop_where_every_unit_can() {
    for (second, expected) in [(true, [false, true]), (false, [false, false])] {
        let mut bench = Bench::cold(Config::default(), two_units());
        for function in [endpoint(0, 3, 0), endpoint(0, 4, 0)] {
            bench.run(&Event::FunctionAdded(function)).unwrap();
        }
        assert!(!bench.registry.forces_snoop(), "no unit is up");
        bench.run(&Event::UnitReady(UnitIndex(0), capabilities())).unwrap();
        assert!(!bench.registry.forces_snoop(), "one unit may yet be without");
        let other = UnitCapabilities { forces_snoop: second, ..capabilities() };
        bench.run(&Event::UnitReady(UnitIndex(1), other)).unwrap();
        assert_eq!(bench.registry.forces_snoop(), second);
        let owner = bench.claim(1, address(0, 3, 0));
        bench.claim_under(1, address(0, 4, 0), Some(owner)).unwrap();
        let forces = |step: &Step| match step {
            Step::CreateTable { format, .. } => Some(format.forces_snoop),
            _ => None,
        };
        let made: Vec<_> = bench.world.steps.iter().filter_map(forces).collect();
        assert_eq!(made, expected, "compat, then the owner's");
        bench.run(&Event::UnitFailed(UnitIndex(1))).unwrap();
        assert!(!bench.registry.forces_snoop());
    }
    let bench = Bench::new(Config::default(), Firmware::default(), &[endpoint(0, 4, 0)]);
    assert!(!bench.registry.forces_snoop(), "nothing makes devices snoop without a unit");
}

#[test]
fn addresses_stay_within_what_the_unit_lets_through() {
    let mut bench = Bench::cold(Config::default(), one_unit());
    bench.run(&Event::FunctionAdded(endpoint(0, 3, 0))).unwrap();
    let mut narrow = capabilities();
    narrow.iova_bits = 34;
    bench.run(&Event::UnitReady(UnitIndex(0), narrow)).unwrap();
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, ..) = bench.buffer(session, 1);
    let space = bench.registry.session(session).unwrap().domain.unwrap().space;
    assert_eq!((space.first().0, space.last().0), (PAGE, (1 << 34) - 1));
    bench.batch(session, &[fixed(slot, 0, 1, (1 << 34) - PAGE)]).unwrap();
    let beyond = Batch(session, &[fixed(slot, 0, 1, 1 << 34)]);
    assert_eq!(bench.refused(&beyond), Refusal::Range);
}

#[test]
fn a_domain_of_policy_is_made_when_the_first_device_needs_it() {
    let mut bench = Bench::new(strict(), one_unit(), &[endpoint(0, 4, 0)]);
    assert_eq!(bench.world.domain_count(), 0, "nothing under compat");
    let session = bench.claim(1, address(0, 4, 0));
    let event = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
    bench.allocated(&event).unwrap();
    let config = Config {
        rules: vec![Rule { matcher: Matcher::Address(address(0, 5, 0)), mode: Mode::Compat }],
        ..strict()
    };
    let mut bench = Bench::new(config, one_unit(), &[endpoint(0, 4, 0)]);
    bench.run(&Event::MemoryTaken(phys(MIB, MIB))).unwrap();
    bench.run(&Event::FunctionAdded(endpoint(0, 5, 0))).unwrap();
    let Binding::Domain(compat) = bench.world.entry(0, address(0, 5, 0)) else { panic!() };
    let holes = bench.world.mapped(compat);
    assert!(holes.iter().all(|(first, last, _)| *last < MIB || *first >= 2 * MIB), "{holes:?}");
}

/// Two functions behind one unit, one attached with a buffer of one page, whose unit then fails.
fn failed(config: Config) -> (Bench, crate::policy::SessionId, crate::policy::BufferId) {
    let mut bench = Bench::new(config, one_unit(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (_, _, buffer) = bench.buffer(session, 1);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    (bench, session, buffer)
}

#[test]
fn a_unit_that_failed_comes_back_with_what_policy_says_now() {
    let (mut bench, session, _) = failed(Config::default());
    let compat = bench.world.entry(0, address(0, 4, 0));
    let from = bench.world.steps.len();
    bench.run(&ready(0)).unwrap();
    let steps: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(
        steps,
        ["Revive", "Block", "InvalidateEntry", "Renew", "InvalidateEntry", "Enable"],
        "the client's device stays blocked; nothing under policy is blocked on the way"
    );
    assert_eq!(bench.world.entry(0, address(0, 4, 0)), compat);
    assert_eq!(
        bench.world.entry(0, address(0, 3, 0)),
        Binding::Blocked,
        "nobody has said that it is quiet: compat would let it through"
    );
    assert!(bench.registry.function(address(0, 3, 0)).unwrap().cut);
    assert_eq!(bench.refused(&Event::Attach(session)), Refusal::UnitFailed, "its domain is lost");
    bench.run(&Event::Close(session)).unwrap();
    let session = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    bench.buffer(session, 1);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.world.entry(0, address(0, 3, 0)), compat);
}

#[test]
fn quarantine_is_given_back_when_nothing_can_reach_it() {
    let (mut bench, session, buffer) = failed(strict());
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!((bench.registry.counts().quarantined, bench.registry.domains_kept()), (1, 1));
    assert!(bench.registry.has_quarantine());
    bench.run(&ready(0)).unwrap();
    assert_eq!(bench.registry.counts().quarantined, 1, "until it is asked about");
    bench.run(&Event::Proved).unwrap();
    assert_eq!((bench.registry.counts().quarantined, bench.registry.domains_kept()), (0, 0));
    assert_eq!(bench.world.released, [buffer]);
    assert_eq!(bench.world.domain_count(), 0);
    assert_eq!(bench.registry.counts().clients, 0, "nothing is charged to anybody");
    assert!(!bench.registry.has_quarantine());
}

#[test]
fn what_a_session_still_holds_of_the_quarantine_goes_with_it() {
    // One owner, devices behind both units, one buffer mapped through each session.
    let mut bench = Bench::new(strict(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let broken = bench.claim(1, address(0, 3, 0));
    let fine = bench.claim_under(1, address(0, 4, 0), Some(broken)).unwrap();
    for session in [broken, fine] {
        bench.run(&Event::Attach(session)).unwrap();
    }
    let (_, _, first) = bench.buffer(broken, 1);
    let (_, _, second) = bench.buffer(fine, 1);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    bench.run(&Event::Close(broken)).unwrap();
    bench.run(&ready(0)).unwrap();
    bench.run(&Event::Proved).unwrap();
    // The device behind the other unit still reaches both, through their one table.
    assert_eq!(bench.world.released, []);
    assert!(bench.registry.has_quarantine());
    assert_eq!(bench.refused(&claim_event(1, address(0, 3, 0), Some(fine))), Refusal::UnitFailed);
    bench.run(&Event::Close(fine)).unwrap();
    assert_eq!(bench.world.released, [second], "nothing suspect has it");
    bench.run(&Event::Proved).unwrap();
    assert_eq!(bench.world.released, [second, first]);
    assert_eq!((bench.world.domain_count(), bench.registry.has_quarantine()), (0, false));
}

#[test]
fn functions_that_came_and_went_while_a_unit_was_failed_are_as_if_it_had_not() {
    let (mut bench, session, _) = failed(Config::default());
    bench.run(&Event::FunctionRemoved(address(0, 4, 0))).unwrap();
    bench.run(&Event::FunctionAdded(endpoint(0, 5, 0))).unwrap();
    bench.run(&Event::FunctionRemoved(address(0, 3, 0))).unwrap();
    bench.run(&ready(0)).unwrap();
    let entry = |device| bench.world.entry(0, address(0, device, 0));
    assert_eq!((entry(3), entry(4)), (Binding::Blocked, Binding::Blocked));
    assert!(matches!(entry(5), Binding::Domain(_)));
    bench.run(&Event::Close(session)).unwrap();
    bench.run(&Event::Proved).unwrap();
    assert!(!bench.registry.has_quarantine());
}
