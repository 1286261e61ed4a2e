//! Plans that were not proved undone, and memory that commit gives back.

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use crate::policy::tests::scenarios::PAGE;
use crate::policy::tests::world::*;
use crate::policy::{Batch, BatchRequest, Event, Import, Step};
use crate::topology::testing::{address, endpoint};

/// A mapping that was not proved removed: its buffer stays in quarantine when its session ends.
#[test]
fn journal_quarantines_the_buffer_of_a_mapping_that_may_be_there() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let other = bench.claim(1, address(0, 4, 0));
    let (slot, _, buffer) = bench.buffer(session, 2);
    assert!(!bench.registry.has_quarantine());
    let plan = bench.registry.decide(&Batch(session, &[map(slot, 0, 1)])).unwrap();
    bench.registry.quarantine(plan);
    assert!(bench.registry.has_quarantine());
    assert!(!bench.registry.session(session).unwrap().unit_failed, "no entry was moved");
    assert_eq!(bench.refused(&Import(other, buffer)), Refusal::Busy);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released, []);
    let counts = bench.registry.counts();
    assert_eq!((counts.quarantined, counts.quarantined_bytes), (1, 2 * PAGE));
    bench.run(&Event::Proved).unwrap();
    assert_eq!(bench.world.released, [buffer]);
}

/// An entry that was not proved moved back may lead to its owner's domain. One that leads to policy leads to nobody's
/// memory.
#[test]
fn journal_suspects_the_domain_that_an_entry_may_lead_to() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let plan = bench.registry.decide(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
    bench.registry.quarantine(plan);
    assert!(!bench.registry.has_quarantine());
    let session = bench.claim(1, address(0, 3, 0));
    let plan = bench.registry.decide(&Event::Attach(session)).unwrap();
    bench.registry.quarantine(plan);
    let view = bench.registry.session(session).unwrap();
    assert!(view.unit_failed && !view.attached);
    assert_eq!(bench.refused(&Event::Attach(session)), Refusal::UnitFailed);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!((bench.registry.domains_kept(), bench.world.domain_count()), (1, 2));
    bench.run(&Event::Proved).unwrap();
    assert_eq!((bench.registry.domains_kept(), bench.world.domain_count()), (0, 1));
}

/// The allocation of memory of the system was undone, as far as policy goes. The memory is kept from everybody and
/// charged to the client until the unit is proved to reach it no more: else others were promised what is not there.
#[test]
fn journal_keeps_the_memory_of_an_allocation_and_charges_its_client() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    bench.registry.set_buffer_pool(64 * MIB, PAGE);
    let left = |bench: &Bench| bench.registry.memory_left(session).unwrap();
    let before = left(&bench);
    let event = bench.allocation(session, &[phys(MIB, 2 * PAGE)], AllocateFlags::empty());
    let buffer = event.1.buffer;
    let plan = bench.registry.decide(&event).unwrap();
    bench.registry.quarantine(plan);
    assert_eq!(left(&bench), before - 2 * PAGE);
    assert_ne!(bench.registry.next_buffer(), buffer);
    let again = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
    assert_eq!(bench.refused(&again), Refusal::Busy);
    assert_eq!(bench.refused(&Event::MemoryReturned(phys(MIB, PAGE))), Refusal::Busy);
    let plan = bench.registry.decide(&Event::Proved).unwrap();
    let expected = [Step::ReleaseBuffer { buffer }, Step::ReleaseAbandoned];
    assert_eq!(plan.orders().steps(), expected);
    bench.registry.commit(plan);
    assert_eq!(left(&bench), before);
    bench.allocated(&again).unwrap_err();
    let counts = bench.registry.counts();
    assert_eq!((counts.quarantined, counts.buffers), (0, 0));
}

/// Mappings in 80 regions of 2 MiB end with one commit: their records are given back.
#[test]
fn journal_gives_back_the_records_of_mappings_that_ended() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, ..) = bench.allocate(session, PAGE, AllocateFlags::UNMAPPED).unwrap();
    let at = |number: u64| (4 << 30) + number * 2 * MIB;
    let capacity = |bench: &Bench| {
        let domains = bench.registry.state.domains.iter();
        domains.map(|(_, domain)| domain.mappings.capacity()).max()
    };
    let maps: [BatchRequest; 80] =
        core::array::from_fn(|number| fixed(slot, 0, 1, at(number as u64)));
    bench.batch(session, &maps).unwrap();
    assert_eq!(capacity(&bench), Some(80));
    let unmaps: [BatchRequest; 80] = core::array::from_fn(|number| unmap(at(number as u64), 1));
    bench.batch(session, &unmaps[1..]).unwrap();
    assert_eq!(capacity(&bench), Some(80), "one is left");
    bench.batch(session, &unmaps[..1]).unwrap();
    assert_eq!(capacity(&bench), Some(0));
}
