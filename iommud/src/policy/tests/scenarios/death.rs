//! Ends: of clients (S15, S16), of buffers, of plans that could not be undone, of the server.

use std::vec::Vec;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::{PAGE, kind, pair};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Event, Hold, Import, ImportShared, UnitIndex};
use crate::topology::testing::{address, endpoint};

#[test]
fn s15_a_client_that_dies_before_attach_leaves_the_device_to_others() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.registry.counts().clients, 0);
    bench.claim(2, address(0, 4, 0));
}

#[test]
fn s16_death_blocks_forgets_then_releases() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 4);
    bench.batch(session, &[map(slot, 0, 1), map(slot, 1, 1)]).unwrap();
    let from = bench.world.steps.len();
    bench.run(&Event::Close(session)).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Block", "InvalidateEntry", "DestroyTable", "ReleaseBuffer"]);
}

#[test]
fn s16_without_proof_memory_stays_in_quarantine() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, iova, _) = bench.buffer(session, 4);
    let (unmapped, ..) = bench.allocate(session, PAGE, AllocateFlags::UNMAPPED).unwrap();
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    assert_eq!(bench.world.entry(0, address(0, 4, 0)), Binding::Blocked);
    assert!(bench.registry.session(session).unwrap().unit_failed);
    for event in
        [Event::Attach(session), Event::Release(session, slot), Event::Release(session, unmapped)]
    {
        assert_eq!(bench.refused(&event), Refusal::UnitFailed, "{event:?}");
    }
    for item in [unmap(iova, 4), map(slot, 0, 1)] {
        assert_eq!(bench.refused(&Batch(session, &[item])), Refusal::UnitFailed, "{item:?}");
    }
    let import = Import(session, crate::policy::BufferId(0));
    assert_eq!(bench.refused(&import), Refusal::UnitFailed);
    bench.run(&Hold(session, slot)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released.len(), 1, "only what was never mapped");
    bench.run(&Event::Drop(crate::policy::BufferId(0))).unwrap();
    let counts = bench.registry.counts();
    assert_eq!((counts.quarantined, counts.quarantined_bytes), (1, 4 * PAGE));
    assert_eq!((counts.buffers, counts.sessions), (0, 0));
    assert_eq!(bench.registry.domains_kept(), 1);
    assert_eq!(bench.world.domain_count(), 2, "the page table is kept too");
}

#[test]
fn a_buffer_lives_until_nobody_knows_or_holds_it() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim(1, address(0, 4, 0));
    let (slot, _, buffer) = bench.buffer(first, 2);
    let imported = bench.run(&Import(second, buffer)).unwrap();
    let again = bench.run(&Import(second, buffer));
    assert_eq!(again, Ok(imported), "the same slot");
    bench.batch(second, &[map(imported, 0, 2)]).unwrap();
    assert_eq!(bench.run(&Hold(first, slot)), Ok(buffer));
    bench.run(&Event::Release(first, slot)).unwrap();
    bench.run(&Event::Close(first)).unwrap();
    assert_eq!(bench.registry.counts().buffers, 1);
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(bench.world.released, [], "held");
    assert_eq!(bench.registry.counts().clients, 1, "still charged to its client");
    bench.run(&Event::Drop(buffer)).unwrap();
    assert_eq!(bench.world.released, [buffer]);
    assert_eq!(bench.refused(&Event::Drop(buffer)), Refusal::BadHandle);
    assert_eq!(bench.registry.counts().clients, 0);
}

#[test]
fn a_buffer_that_was_brought_outlives_the_client_that_made_it() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let maker = bench.claim(1, address(0, 3, 0));
    let user = bench.claim(2, address(0, 4, 0));
    let (_, _, buffer) = bench.buffer(maker, 2);
    assert_eq!(bench.refused(&Import(user, buffer)), Refusal::Permission);
    let brought = bench.run(&ImportShared(user, buffer)).unwrap();
    bench.batch(user, &[map(brought, 0, 2)]).unwrap();
    bench.run(&Event::Close(maker)).unwrap();
    let counts = bench.registry.counts();
    assert_eq!((counts.clients, counts.buffers, counts.mappings), (2, 1, 1));
    assert_eq!(bench.world.released, [], "another client's device reaches it");
    bench.run(&Event::Release(user, brought)).unwrap();
    assert_eq!(bench.world.released, [buffer]);
    assert_eq!(bench.registry.counts().clients, 1, "nothing is charged to its maker any more");
}

#[test]
fn shutdown_leaves_every_group_to_policy_and_translation_on() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2, endpoint(0, 5, 0)]);
    let compat = bench.world.entry(0, d1.address);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    let third = bench.claim(2, address(0, 5, 0));
    for session in [first, second, third] {
        bench.run(&Event::Attach(session)).unwrap();
        bench.buffer(session, 2);
    }
    bench.run(&Event::Detach(third)).unwrap();
    bench.run(&Event::Shutdown).unwrap();
    for device in [d1.address, d2.address] {
        assert_eq!(bench.world.entry(0, device), Binding::Blocked, "nobody said it is quiet");
    }
    assert_eq!(bench.world.entry(0, address(0, 5, 0)), compat);
    assert!(bench.world.units[0].enabled);
    assert_eq!((bench.world.domain_count(), bench.world.released.len()), (1, 3));
    assert_eq!(bench.registry.counts().sessions, 0);
    assert_eq!(bench.run(&Event::Shutdown), Ok(()));
}

#[test]
fn quarantine_of_a_plan_keeps_what_it_would_have_mapped() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 2);
    // A map that was not proved undone.
    let plan = bench.registry.decide(&Batch(session, &[map(slot, 0, 1)])).unwrap();
    bench.registry.quarantine(plan);
    // The same for an allocation: its memory is never given back.
    let event = bench.allocation(session, &[phys(OWN + MIB, PAGE)], AllocateFlags::empty());
    let number = bench.registry.next_buffer();
    let plan = bench.registry.decide(&event).unwrap();
    bench.registry.quarantine(plan);
    assert_ne!(bench.registry.next_buffer(), number, "its number stays in use");
    assert_eq!(bench.registry.counts().quarantined, 1);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.registry.counts().quarantined, 2);
    assert_eq!(bench.world.released, []);
}

#[test]
fn s16_a_device_whose_owner_dies_is_cut_off_until_somebody_says_it_is_quiet() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let d = address(0, 4, 0);
    let compat = bench.world.entry(0, d);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Blocked, "what is under way lands nowhere");
    let next = bench.claim(2, d);
    bench.run(&Event::Close(next)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Blocked, "a claim says nothing of the device");
    let next = bench.claim(2, d);
    bench.run(&Event::Attach(next)).unwrap();
    bench.run(&Event::Detach(next)).unwrap();
    assert_eq!(bench.world.entry(0, d), compat);
    bench.run(&Event::Close(next)).unwrap();
    assert_eq!(bench.world.entry(0, d), compat);
}
