//! Domains that need a deeper page table than they have.

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use super::*;
use crate::addr::PhysAddr;
use crate::policy::{DomainId, Registry, UnitIndex};
use crate::topology::capabilities::{LevelSet, UnitCapabilities};

/// The first address beyond the reach of three levels, and of four.
const BEYOND_3: u64 = 1 << 39;
const BEYOND_4: u64 = 1 << 48;

/// Capabilities of units that walk all depths.
fn deep() -> UnitCapabilities {
    let levels = LevelSet::all();
    UnitCapabilities { levels, physical_bits: 52, iova_bits: 64, ..capabilities() }
}

/// Devices 3, 4 and 5 behind one unit, under policy `strict`; regions of 3, and of 4 beyond the reach of three
/// levels.
fn machine(unit: UnitCapabilities, region: u64) -> Bench {
    let mut firmware = one_unit();
    reserve(&mut firmware, 3, 32 * MIB, PAGE);
    reserve(&mut firmware, 4, region, 2 * PAGE);
    let mut bench = Bench::cold(strict(), firmware);
    for device in 3..=5 {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    bench.run(&Event::UnitReady(UnitIndex(0), unit)).unwrap();
    bench
}

/// Number of levels of the table that a plan made for a domain.
fn levels(bench: &Bench, of: DomainId) -> u8 {
    let made = bench.world.steps.iter().rev().find_map(|step| match step {
        Step::CreateTable { domain, format, .. } if *domain == of => Some(format.levels),
        Step::Grow { domain, levels, .. } if *domain == of => Some(*levels),
        _ => None,
    });
    made.unwrap()
}

fn domain(bench: &Bench, device: u8) -> DomainId {
    let Binding::Domain(domain) = bench.world.entry(0, address(0, device, 0)) else { panic!() };
    domain
}

/// The page table grows when a second device needs it. The entry of the first keeps pointing to it, and never denies.
#[test]
fn a_region_out_of_reach_makes_the_table_deeper() {
    for (region, wanted) in [(BEYOND_3, 4), (BEYOND_4, 5)] {
        let mut bench = machine(deep(), region);
        let first = bench.claim(1, address(0, 3, 0));
        bench.run(&Event::Attach(first)).unwrap();
        let own = domain(&bench, 3);
        assert_eq!(levels(&bench, own), 3, "as few as reach");
        let (slot, ..) = bench.buffer(first, 1);
        bench.batch(first, &[fixed(slot, 0, 1, 4 << 30)]).unwrap();

        let from = bench.world.steps.len();
        let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
        let steps: Vec<_> = bench.world.steps[from..].to_vec();
        let kinds: Vec<_> = steps.iter().map(kind).collect();
        assert_eq!(kinds, ["Grow", "Deepen", "InvalidateEntry", "Map", "Publish"]);
        assert_eq!(steps[0], Step::Grow { domain: own, from: 3, levels: wanted });
        let (unit, source) = (UnitIndex(0), RequesterId(3 << 3));
        assert_eq!(steps[1], Step::Deepen { unit, source, domain: own, from: 3 });
        let was = Binding::Domain(own);
        assert_eq!(steps[2], Step::InvalidateEntry { unit, source, was });
        let mapped = bench.world.mapped(own);
        assert!(mapped.contains(&(region, region + 2 * PAGE - 1, region)), "{mapped:x?}");

        // A later device uses the new root. One that needs no deeper table changes nothing.
        bench.run(&Event::Attach(second)).unwrap();
        assert_eq!(domain(&bench, 4), own);
        let from = bench.world.steps.len();
        bench.claim_under(1, address(0, 5, 0), Some(first)).unwrap();
        assert_eq!(bench.world.steps.len(), from);
        bench.run(&Event::Close(second)).unwrap();
        bench.run(&Event::Close(first)).unwrap();
    }
}

/// All entries of the domain follow, on every unit that is up.
#[test]
fn every_entry_of_the_domain_follows() {
    let mut firmware = two_units();
    reserve(&mut firmware, 6, BEYOND_3, PAGE);
    let mut bench = Bench::cold(strict(), firmware);
    for device in 3..=6 {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    for unit in 0..2 {
        bench.run(&Event::UnitReady(UnitIndex(unit), deep())).unwrap();
    }
    let first = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(first)).unwrap();
    for device in [4, 5] {
        let next = bench.claim_under(1, address(0, device, 0), Some(first)).unwrap();
        bench.run(&Event::Attach(next)).unwrap();
    }
    let from = bench.world.steps.len();
    bench.claim_under(1, address(0, 6, 0), Some(first)).unwrap();
    let entries: Vec<_> = bench.world.steps[from..]
        .iter()
        .filter_map(|step| match step {
            Step::Deepen { unit, source, .. } => Some((unit.0, source.0)),
            _ => None,
        })
        .collect();
    assert_eq!(entries, [(0, 3 << 3), (1, 4 << 3), (1, 5 << 3)]);
}

/// A unit whose entries cannot follow in one store gets tables that never have to grow.
#[test]
fn tables_that_cannot_become_deeper_are_made_deep() {
    let unit = UnitCapabilities { deepens: false, ..deep() };
    let mut bench = machine(unit, BEYOND_3);
    let first = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(first)).unwrap();
    let own = domain(&bench, 3);
    assert_eq!(levels(&bench, own), 4);
    bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    assert!(bench.world.steps.iter().all(|step| !matches!(step, Step::Grow { .. })));
}

/// A depth that a unit of the domain does not walk is refused, and nothing changes.
#[test]
fn what_no_unit_walks_is_refused() {
    let three = UnitCapabilities { levels: LevelSet::THREE, ..deep() };
    let narrow = UnitCapabilities { iova_bits: 39, ..deep() };
    for unit in [three, narrow] {
        let mut bench = machine(unit, BEYOND_3);
        let first = bench.claim(1, address(0, 3, 0));
        bench.run(&Event::Attach(first)).unwrap();
        let second = claim_event(1, address(0, 4, 0), Some(first));
        assert_eq!(bench.refused(&second), Refusal::Unsupported);
        // Nor alone: its own domain would have to map the region.
        assert_eq!(bench.refused(&claim_event(1, address(0, 4, 0), None)), Refusal::Unsupported);
    }
}

/// Memory that is taken when the unit comes up, and given back later, is within reach of policy `compat`.
#[test]
fn memory_that_comes_back_is_within_reach() {
    let top = BEYOND_3 + 16 * MIB;
    let mut bench = Bench::cold(Config::default(), one_unit());
    let ram = [phys(0, 48 * MIB), phys(BEYOND_3, 16 * MIB)];
    bench.registry = Registry::new(Config::default(), one_unit(), &ram, &[]);
    let high = phys(BEYOND_3, 16 * MIB);
    bench.run(&Event::FunctionAdded(endpoint(0, 3, 0))).unwrap();
    bench.run(&Event::MemoryTaken(high)).unwrap();
    bench.run(&Event::MemoryTaken(phys(48 * MIB, BEYOND_3 - 48 * MIB))).unwrap();
    bench.run(&Event::UnitReady(UnitIndex(0), deep())).unwrap();
    bench.own.clear();
    bench.run(&Event::MemoryReturned(high)).unwrap();
    let mapped = bench.world.mapped(domain(&bench, 3));
    assert_eq!(mapped.last(), Some(&(BEYOND_3, top - 1, BEYOND_3)), "{mapped:x?}");
    assert_eq!(high.last(), PhysAddr(top - 1));
}
