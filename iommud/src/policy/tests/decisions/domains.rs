//! Domains: their format, their tags, their regions, and their growth.

use std::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::tests::scenarios::{PAGE, claim_event, own_domain, reserve, strict, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Config, Event, Holds, Step, UnitIndex};
use crate::topology::capabilities::{LevelSet, UnitCapabilities};
use crate::topology::tags::{HeldTags, TagSpan};
use crate::topology::testing::{address, endpoint};

/// The first address beyond the reach of three levels.
const BEYOND: u64 = 1 << 39;

fn deep() -> UnitCapabilities {
    let levels = LevelSet::all();
    UnitCapabilities { levels, physical_bits: 52, iova_bits: 64, ..capabilities() }
}

fn shallow() -> UnitCapabilities {
    UnitCapabilities { levels: LevelSet::THREE, ..deep() }
}

/// Device 3 behind unit 0, others behind unit 1; device 4 has a region beyond three levels. Units of `None` are not up.
fn machine(units: [Option<UnitCapabilities>; 2]) -> Bench {
    let mut firmware = two_units();
    reserve(&mut firmware, 4, BEYOND, PAGE);
    let mut bench = Bench::cold(strict(), firmware);
    for device in 3..=5 {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    for (unit, capabilities) in (0..).zip(units) {
        let up = capabilities.map(|capabilities| Event::UnitReady(UnitIndex(unit), capabilities));
        up.into_iter().for_each(|event| bench.run(&event).unwrap());
    }
    bench
}

fn grown(bench: &Bench) -> Vec<(u8, u8)> {
    let steps = bench.world.steps.iter();
    let grown = steps.filter_map(|step| match step {
        Step::Grow { from, levels, .. } => Some((*from, *levels)),
        _ => None,
    });
    grown.collect()
}

/// A client may not map where its domain has a region of firmware, and is told so.
#[test]
fn a_domain_of_a_client_reserves_its_regions() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, PAGE);
    let mut bench = Bench::new(Config::default(), firmware, &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    let (slot, ..) = bench.buffer(session, 1);
    let over = |iova| [fixed(slot, 0, 1, iova)];
    assert_eq!(bench.refused(&Batch(session, &over(32 * MIB))), Refusal::Reserved);
    bench.run(&Batch(session, &over(4 << 30))).unwrap();
    assert_eq!(bench.refused(&Batch(session, &over(4 << 30))), Refusal::Mapped);
}

/// The domain of policy has tag 21, and a unit that comes up knows tags up to 15: it gets a domain of its own.
#[test]
fn a_unit_does_not_share_a_domain_whose_tag_it_cannot_hold() {
    let mut bench = Bench::cold(Config::default(), two_units());
    let held = HeldTags::Span(TagSpan { first: 2, last: 20 });
    bench.registry.begin_tags(held, vec![Holds::Earlier, Holds::Nothing], 255);
    for device in [3, 4] {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    let few = UnitCapabilities { last_tag: 15, ..capabilities() };
    bench.run(&Event::UnitReady(UnitIndex(1), few)).unwrap();
    let entries = (bench.world.entry(0, address(0, 3, 0)), bench.world.entry(1, address(0, 4, 0)));
    assert_ne!(entries.0, entries.1);
    let tags = bench.world.steps.iter().filter_map(|step| match step {
        Step::CreateTable { tag, .. } => Some(tag.0),
        _ => None,
    });
    assert_eq!(tags.collect::<Vec<_>>(), [21, 2]);
}

/// A region may end with the last byte within reach of the only table format.
#[test]
fn a_domain_reaches_its_regions_to_the_last_byte() {
    for (first, fits) in [(BEYOND - 2 * PAGE, true), (BEYOND - PAGE, false)] {
        let mut firmware = one_unit();
        reserve(&mut firmware, 4, first, 2 * PAGE);
        let mut bench = Bench::cold(strict(), firmware);
        bench.run(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
        bench.run(&Event::UnitReady(UnitIndex(0), shallow())).unwrap();
        let claim = claim_event(1, address(0, 4, 0), None);
        if !fits {
            assert_eq!(bench.refused(&claim), Refusal::Unsupported);
            continue;
        }
        let session = bench.run(&claim).unwrap();
        let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
        assert_eq!(bench.world.mapped(own), [(first, first + 2 * PAGE - 1, first)]);
    }
}

/// The units of all sessions in a domain must walk its deeper table, attached or not; units of others need not.
#[test]
fn a_domain_grows_as_far_as_the_units_of_its_sessions_walk() {
    let mut bench = machine([Some(shallow()), Some(deep())]);
    let first = bench.claim(1, address(0, 3, 0));
    let next = claim_event(1, address(0, 4, 0), Some(first));
    assert_eq!(bench.refused(&next), Refusal::Unsupported);

    let mut bench = machine([Some(shallow()), Some(deep())]);
    bench.claim(2, address(0, 3, 0));
    let first = bench.claim(1, address(0, 5, 0));
    bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    assert_eq!(grown(&bench), [(3, 4)]);
}

/// A unit that came up later cannot make its entries follow in one store.
#[test]
fn a_domain_does_not_grow_behind_a_unit_whose_entries_cannot_follow() {
    let stiff = UnitCapabilities { deepens: false, ..deep() };
    let mut bench = machine([Some(deep()), None]);
    let first = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::UnitReady(UnitIndex(1), stiff)).unwrap();
    let next = claim_event(1, address(0, 4, 0), Some(first));
    assert_eq!(bench.refused(&next), Refusal::Unsupported);
    assert_eq!(grown(&bench), []);
}

/// The unit of a session that was never attached has failed: no entry of it points to the domain.
#[test]
fn a_domain_grows_whatever_a_failed_unit_walks() {
    let mut bench = machine([Some(shallow()), Some(deep())]);
    let first = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    assert_eq!(grown(&bench), [(3, 4)]);
}
