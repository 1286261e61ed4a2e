//! The scenarios of the ordering contract that policy decides, by number.

use std::vec::Vec;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::world::*;
use crate::policy::{
    BatchRequest, Binding, ClientId, Config, Event, Matcher, Mode, Outcome, Rule, SessionId, Step,
    UnitIndex, UnitState,
};
use crate::topology::capabilities::LevelSet;
use crate::topology::firmware::{DeviceScope, Firmware, ReservedRegion, ScopeKind};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::testing::{address, bridge, endpoint, function, multi, with_acs};
use iommu_protocol::ids::{PciAddress, RequesterId, Slot};

const PAGE: u64 = 4096;

/// Two functions of one device: one group.
fn pair() -> [PciFunction; 2] {
    [multi(endpoint(0, 4, 0)), multi(endpoint(0, 4, 1))]
}

fn names(firmware: &mut Firmware, unit: usize, device: u8) {
    firmware.units[unit].scopes.push(DeviceScope {
        kind: ScopeKind::Endpoint,
        start_bus: 0,
        path: vec![(device, 0)],
    });
}

/// Unit 0 in front of device 3, unit 1 in front of all others.
fn two_units() -> Firmware {
    let mut firmware =
        Firmware { units: vec![unit(0, false), unit(1, true)], ..Firmware::default() };
    names(&mut firmware, 0, 3);
    firmware
}

fn reserve(firmware: &mut Firmware, device: u8, first: u64, length: u64) {
    firmware.reserved.push(ReservedRegion {
        segment: 0,
        range: phys(first, length),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![DeviceScope {
            kind: ScopeKind::Endpoint,
            start_bus: 0,
            path: vec![(device, 0)],
        }],
        entries: Vec::new(),
    });
}

fn strict() -> Config {
    Config { default: Mode::Strict, ..Config::default() }
}

fn claim_event(client: u32, address: PciAddress, parent: Option<SessionId>) -> Event {
    Event::Claim { client: ClientId(client), address, parent }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    fn extend(taken: &mut Vec<usize>, count: usize, all: &mut Vec<Vec<usize>>) {
        if taken.len() == count {
            all.push(taken.clone());
        }
        for next in 0..count {
            if !taken.contains(&next) {
                taken.push(next);
                extend(taken, count, all);
                taken.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(&mut Vec::new(), count, &mut all);
    all
}

fn own_domain(bench: &Bench, session: SessionId) -> Binding {
    Binding::Domain(bench.registry.session(session).unwrap().domain.unwrap().id)
}

#[test]
fn a_device_is_claimed_attached_used_and_given_back() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let before = bench.snapshot();
    let d = address(0, 4, 0);
    let compat = bench.world.entry(0, d);
    assert!(matches!(compat, Binding::Domain(_)));
    let session = bench.claim(1, d);
    assert_eq!(bench.world.entry(0, d), compat, "a claim changes no entry");
    bench.run(&Event::Attach(session)).unwrap();
    let Binding::Domain(own) = bench.world.entry(0, d) else { panic!("translated") };
    assert_ne!(Binding::Domain(own), compat);
    let (slot, iova, _) = bench.buffer(session, 4);
    assert_eq!(bench.world.mapped(own), [(iova, iova + 0x3fff, OWN)]);
    let second = bench.batch(session, &[map(slot, 1, 2)]).unwrap()[0];
    assert_eq!(bench.world.mapped(own).len(), 2);
    bench.batch(session, &[unmap(second, 2)]).unwrap();
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(bench.world.released.len(), 1);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.run(&Event::Close(session)), Ok(Outcome::Done));
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.world.domain_count(), 1);
    assert_eq!(strip(&bench.snapshot()), strip(&before), "nothing is left behind");
}

/// A snapshot without what may legitimately differ once an object has come and gone: where the next one goes.
fn strip(snapshot: &str) -> String {
    let machine = snapshot.split("    base: Ranges").next().unwrap();
    let groups = machine.find("    groups: Slab").unwrap();
    machine[..groups].to_string()
}

#[test]
fn s1_probing_twice_makes_one_record() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let steps = bench.world.steps.len();
    bench.run(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
    assert_eq!(bench.world.steps.len(), steps, "no second set of hardware writes");
    assert_eq!((bench.registry.counts().functions, bench.registry.counts().groups), (1, 1));
    let mut other = endpoint(0, 4, 0);
    other.device = 0xbeef;
    assert_eq!(bench.refused(&Event::FunctionAdded(other)), Refusal::Busy);
    let first = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.refused(&claim_event(2, address(0, 4, 0), None)), Refusal::NotOwner);
    assert_eq!(bench.registry.function(address(0, 4, 0)).unwrap().session, Some(first));
}

#[test]
fn s2_members_in_any_order_are_one_group_in_one_domain() {
    let members = [0, 1, 2, 3, 4].map(|number| multi(endpoint(0, 4, number)));
    for order in permutations(members.len()) {
        let functions: Vec<_> = order.iter().map(|at| members[*at]).collect();
        let bench = Bench::compat(&functions);
        let groups: Vec<_> = bench.registry.groups().collect();
        assert_eq!(groups.len(), 1);
        let group = bench.registry.group(groups[0]).unwrap();
        assert_eq!(group.members, members.map(|member| member.address));
        assert_eq!(bench.world.domain_count(), 1, "one default domain");
        let compat = bench.world.entry(0, members[0].address);
        assert!(members.iter().all(|m| bench.world.entry(0, m.address) == compat));
    }
}

#[test]
fn s3_a_claim_before_its_unit_is_up_is_not_ready_and_leaves_nothing() {
    let functions = [endpoint(0, 3, 0), endpoint(0, 4, 0)];
    let mut bench = Bench::cold(Config::default(), two_units());
    for function in functions {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    assert_eq!(bench.refused(&claim_event(1, address(0, 4, 0), None)), Refusal::NotReady);
    bench.claim(2, address(0, 3, 0));
    bench.run(&ready(1)).unwrap();
    bench.claim(1, address(0, 4, 0));
}

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
    assert_eq!(bench.run(&ready(1)), Ok(Outcome::Done), "a second time is nothing");
}

#[test]
fn s5_no_unit_failed_unit_and_unit_not_up_are_three_refusals() {
    let mut firmware = two_units();
    firmware.units[1].include_all = false;
    names(&mut firmware, 1, 4);
    let mut bench = Bench::cold(strict(), firmware);
    for device in [3, 4, 5] {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let refusal =
        |bench: &mut Bench, device| bench.refused(&claim_event(1, address(0, device, 0), None));
    assert_eq!(refusal(&mut bench, 3), Refusal::UnitFailed);
    assert_eq!(refusal(&mut bench, 4), Refusal::NotReady);
    assert_eq!(refusal(&mut bench, 5), Refusal::NoUnit);
    assert_eq!(refusal(&mut bench, 6), Refusal::NotProbed);
    assert_eq!(bench.refused(&ready(0)), Refusal::UnitFailed);
    assert_eq!(bench.refused(&ready(9)), Refusal::NotFound);
}

#[test]
fn s6_requests_of_no_session_are_refused() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let ghost = SessionId(7);
    for event in [
        Event::Attach(ghost),
        Event::Detach(ghost),
        Event::Batch(ghost, vec![unmap(0x1000, 1)]),
        Event::Release(ghost, Slot(0)),
        Event::Hold(ghost, Slot(0)),
        Event::Close(ghost),
        Event::Import(ghost, crate::policy::BufferId(0)),
        Event::Drop(crate::policy::BufferId(0)),
        claim_event(1, address(0, 4, 0), Some(ghost)),
    ] {
        assert_eq!(bench.refused(&event), Refusal::BadHandle, "{event:?}");
    }
    assert_eq!(bench.refused(&claim_event(1, address(0, 9, 0), None)), Refusal::NotProbed);
}

#[test]
fn s9_the_same_request_again_is_done() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.run(&Event::Detach(session)), Ok(Outcome::Done));
    bench.run(&Event::Attach(session)).unwrap();
    let steps = bench.world.steps.len();
    assert_eq!(bench.run(&Event::Attach(session)), Ok(Outcome::Done));
    assert_eq!(bench.world.steps.len(), steps);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.run(&Event::Detach(session)), Ok(Outcome::Done));
}

#[test]
fn s11_a_removed_device_is_blocked_and_flushed_and_its_session_is_dead() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let d = address(0, 4, 0);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 4);
    bench.run(&Event::FunctionRemoved(d)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Blocked);
    for event in [
        Event::Attach(session),
        Event::Detach(session),
        Event::Batch(session, vec![map(slot, 0, 1)]),
        Event::Release(session, slot),
    ] {
        assert_eq!(bench.refused(&event), Refusal::NotProbed, "{event:?}");
    }
    assert_eq!(bench.refused(&Event::FunctionRemoved(d)), Refusal::NotProbed);
    bench.run(&Event::FunctionAdded(endpoint(0, 4, 0))).unwrap();
    assert_eq!(bench.registry.function(d).unwrap().generation, 2);
    let again = bench.claim(2, d);
    assert_ne!(again, session);
    assert_eq!(bench.registry.session(session).unwrap().generation, 1);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released.len(), 1);
    assert!(bench.registry.session(again).is_some(), "the new session is another matter");
    bench.run(&Event::Close(again)).unwrap();
}

#[test]
fn s14_what_is_added_to_a_claimed_group_stays_blocked_until_it_is_attached() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1]);
    let first = bench.claim(1, d1.address);
    bench.run(&Event::FunctionAdded(d2)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked, "claimed, not attached");
    assert_eq!(bench.registry.groups().count(), 1);
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked);
    assert_eq!(bench.refused(&claim_event(2, d2.address, None)), Refusal::NotOwner);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), own_domain(&bench, first));
    for session in [second, first] {
        bench.run(&Event::Detach(session)).unwrap();
        bench.run(&Event::Close(session)).unwrap();
    }
    assert!(matches!(bench.world.entry(0, d2.address), Binding::Domain(_)), "policy again");
    assert_eq!(bench.world.entry(0, d2.address), bench.world.entry(0, d1.address));
}

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

fn kind(step: &Step) -> &'static str {
    match step {
        Step::CreateTable { .. } => "CreateTable",
        Step::DestroyTable { .. } => "DestroyTable",
        Step::Map { .. } => "Map",
        Step::Unmap { .. } => "Unmap",
        Step::Publish { .. } => "Publish",
        Step::Invalidate { .. } => "Invalidate",
        Step::ReleaseTables { .. } => "ReleaseTables",
        Step::Block { .. } => "Block",
        Step::Deny { .. } => "Deny",
        Step::Translate { .. } => "Translate",
        Step::PassThrough { .. } => "PassThrough",
        Step::InvalidateEntry { .. } => "InvalidateEntry",
        Step::Enable { .. } => "Enable",
        Step::ReleaseBuffer { .. } => "ReleaseBuffer",
    }
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
    for event in [
        Event::Attach(session),
        Event::Batch(session, vec![unmap(iova, 4)]),
        Event::Batch(session, vec![map(slot, 0, 1)]),
        Event::Release(session, slot),
        Event::Release(session, unmapped),
        Event::Import(session, crate::policy::BufferId(0)),
    ] {
        assert_eq!(bench.refused(&event), Refusal::UnitFailed, "{event:?}");
    }
    bench.run(&Event::Hold(session, slot)).unwrap();
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
fn s18_members_share_one_domain() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    assert_eq!(own_domain(&bench, first), own_domain(&bench, second));
    bench.run(&Event::Attach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), Binding::Blocked, "never left to policy");
    bench.run(&Event::Attach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d2.address), bench.world.entry(0, d1.address));
    // Another owner's session on another device cannot bring a member into its own domain.
    let mut bench = Bench::compat(&[d1, d2, endpoint(0, 5, 0)]);
    bench.claim(1, d1.address);
    let other = bench.claim(2, address(0, 5, 0));
    assert_eq!(bench.refused(&claim_event(2, d2.address, Some(other))), Refusal::NotOwner);
    assert_eq!(bench.refused(&claim_event(1, d2.address, Some(other))), Refusal::BadHandle);
}

#[test]
fn s19_a_member_of_a_claimed_group_is_not_anybody_elses() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    bench.claim(1, d1.address);
    assert_eq!(bench.refused(&claim_event(2, d2.address, None)), Refusal::NotOwner);
    assert_eq!(bench.refused(&claim_event(1, d2.address, None)), Refusal::NotOwner, "by session");
}

#[test]
fn s20_one_owner_claims_both() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    assert_eq!(bench.refused(&claim_event(1, d2.address, Some(first))), Refusal::Busy);
    // The first session may go; the second keeps the group.
    bench.run(&Event::Close(first)).unwrap();
    assert_eq!(bench.refused(&claim_event(2, d1.address, None)), Refusal::NotOwner);
    bench.claim_under(1, d1.address, Some(second)).unwrap();
}

#[test]
fn s21_what_belongs_to_another_session_is_not_there() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let mine = bench.claim(1, address(0, 3, 0));
    let other = bench.claim(2, address(0, 4, 0));
    let (slot, iova, buffer) = bench.buffer(mine, 1);
    assert_eq!(bench.refused(&Event::Release(other, slot)), Refusal::BadHandle);
    assert_eq!(bench.refused(&Event::Batch(other, vec![map(slot, 0, 1)])), Refusal::BadHandle);
    assert_eq!(bench.refused(&Event::Batch(other, vec![unmap(iova, 1)])), Refusal::NotMapped);
    assert_eq!(bench.refused(&Event::Hold(other, slot)), Refusal::BadHandle);
    assert_eq!(bench.refused(&Event::Import(other, buffer)), Refusal::Permission);
}

#[test]
fn s22_reserved_regions_are_mapped_wherever_the_device_goes() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, 2 * PAGE);
    let region = (32 * MIB, 32 * MIB + 2 * PAGE - 1, 32 * MIB);
    let config = Config {
        rules: vec![Rule { matcher: Matcher::Address(address(0, 4, 0)), mode: Mode::Strict }],
        ..Config::default()
    };
    let mut bench = Bench::new(config, firmware, &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let d = address(0, 4, 0);
    let Binding::Domain(default) = bench.world.entry(0, d) else { panic!("not blocked") };
    assert_eq!(bench.world.mapped(default), [region], "strict: just the region");
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    let Binding::Domain(own) = bench.world.entry(0, d) else { panic!() };
    assert_eq!(bench.world.mapped(own), [region]);
    let (slot, ..) = bench.buffer(session, 4);
    for at in [32 * MIB, 32 * MIB - PAGE, 32 * MIB + PAGE] {
        let refusal = bench.refused(&Event::Batch(session, vec![fixed(slot, 0, 2, at)]));
        assert_eq!(refusal, Refusal::Reserved);
    }
    assert_eq!(bench.refused(&Event::Batch(session, vec![unmap(32 * MIB, 2)])), Refusal::NotMapped);
    let refusal = bench.refused(&Event::Batch(session, vec![fixed(slot, 0, 1, 0xfee0_0000)]));
    assert_eq!(refusal, Refusal::Reserved);
    let regions: Vec<_> =
        bench.registry.regions(session).iter().map(|r| r.range.first().0).collect();
    assert_eq!(regions, [32 * MIB, 0xfee0_0000]);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Domain(default), "the same default domain");
    assert_eq!(bench.world.domain_count(), 2);
    // A device under compat that is cut off keeps its regions, and nothing else.
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, 2 * PAGE);
    let mut bench = Bench::new(Config::default(), firmware, &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    let Binding::Domain(left) = bench.world.entry(0, d) else { panic!("not blocked") };
    assert_eq!(bench.world.mapped(left), [region]);
}

#[test]
fn s22_a_region_leaves_with_its_device() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, PAGE);
    let mut bench = Bench::new(strict(), firmware, &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 4, 0));
    let second = bench.claim_under(1, address(0, 3, 0), Some(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    let Binding::Domain(own) = bench.world.entry(0, address(0, 3, 0)) else { panic!() };
    let region = (32 * MIB, 32 * MIB + PAGE - 1, 32 * MIB);
    let (slot, ..) = bench.buffer(second, 1);
    assert!(bench.world.mapped(own).contains(&region));
    bench.run(&Event::FunctionRemoved(address(0, 4, 0))).unwrap();
    assert!(!bench.world.mapped(own).contains(&region));
    bench.batch(second, &[fixed(slot, 0, 1, 32 * MIB)]).unwrap();
    bench.run(&Event::Close(first)).unwrap();
    bench.run(&Event::Close(second)).unwrap();
}

#[test]
fn s22_what_a_late_member_needs_is_not_entered_before_its_claim() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, PAGE);
    firmware.reserved[0].scopes[0].path = vec![(4, 1)];
    let [first, late] = pair();
    let other = endpoint(0, 3, 0);
    let mut bench = Bench::new(strict(), firmware, &[first, other]);
    let session = bench.claim(1, first.address);
    let second = bench.claim_under(1, other.address, Some(session)).unwrap();
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 1);
    bench.batch(session, &[fixed(slot, 0, 1, 32 * MIB)]).unwrap();
    bench.run(&Event::FunctionAdded(late)).unwrap();
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    let before = bench.world.mapped(own);
    // Each makes the domain do without what it needs no more; neither is refused nor maps over the client's page.
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(bench.world.mapped(own), before);
    bench.run(&Event::FunctionRemoved(late.address)).unwrap();
    bench.run(&Event::FunctionAdded(late)).unwrap();
    bench.run(&Event::FunctionRemoved(first.address)).unwrap();
    assert_eq!(bench.world.mapped(own), before);
    assert_eq!(bench.world.entry(0, first.address), Binding::Blocked);
}

#[test]
fn s22_a_region_is_not_given_over_a_mapping_nor_kept_after_its_device() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, PAGE);
    let mut bench =
        Bench::new(Config::default(), firmware, &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    bench.run(&Event::Attach(first)).unwrap();
    let (slot, ..) = bench.buffer(first, 1);
    let Binding::Domain(own) = own_domain(&bench, first) else { panic!() };
    let at = bench.batch(first, &[fixed(slot, 0, 1, 32 * MIB)]).unwrap()[0];
    let join = claim_event(1, address(0, 4, 0), Some(first));
    assert_eq!(bench.refused(&join), Refusal::Reserved);
    bench.batch(first, &[unmap(at, 1)]).unwrap();
    let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    assert!(bench.world.mapped(own).contains(&(32 * MIB, 32 * MIB + PAGE - 1, 32 * MIB)));
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(bench.world.mapped(own).len(), 1, "the region went with its device");
    bench.batch(first, &[fixed(slot, 0, 1, 32 * MIB)]).unwrap();
}

fn tree() -> Vec<PciFunction> {
    let buses = |secondary, subordinate| Buses { secondary, subordinate };
    vec![
        with_acs(bridge(0, 1, 0, 1, 3)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses(2, 3))),
        function(address(2, 1, 0), FunctionKind::ConventionalBridge(buses(3, 3))),
        function(address(3, 1, 0), FunctionKind::Conventional),
        multi(endpoint(0, 4, 0)),
        multi(endpoint(0, 4, 1)),
    ]
}

fn partition(bench: &Bench) -> Vec<Vec<PciAddress>> {
    let mut groups: Vec<_> =
        bench.registry.groups().map(|group| bench.registry.group(group).unwrap().members).collect();
    groups.sort();
    groups
}

#[test]
fn s23_the_partition_does_not_depend_on_the_order_with_units_down_or_up() {
    let functions = tree();
    let expected = partition(&Bench::compat(&functions));
    assert_eq!(expected.len(), 3);
    for (count, order) in permutations(functions.len()).into_iter().enumerate() {
        let ordered: Vec<_> = order.iter().map(|at| functions[*at]).collect();
        let mut cold = Bench::cold(Config::default(), one_unit());
        cold.thorough = false;
        for function in &ordered {
            cold.run(&Event::FunctionAdded(*function)).unwrap();
        }
        cold.run(&ready(0)).unwrap();
        assert_eq!(partition(&cold), expected, "{order:?}");
        // The first part before the unit is up, the rest by hot-plug.
        let (before, after) = ordered.split_at(count % 6);
        let mut hot = Bench::cold(Config::default(), one_unit());
        hot.thorough = count % 16 == 0;
        for function in before {
            hot.run(&Event::FunctionAdded(*function)).unwrap();
        }
        hot.run(&ready(0)).unwrap();
        for function in after {
            hot.run(&Event::FunctionAdded(*function)).unwrap();
        }
        assert_eq!(partition(&hot), expected, "{order:?}");
        assert_eq!(hot.world.units, cold.world.units, "the same entries: {order:?}");
    }
}

#[test]
fn s23_a_bridge_does_not_merge_a_claimed_group() {
    let functions = tree();
    let conventional = functions[3];
    let mut bench = Bench::compat(&[functions[0], functions[2], conventional]);
    let session = bench.claim(1, conventional.address);
    bench.run(&Event::Attach(session)).unwrap();
    assert_eq!(bench.refused(&Event::FunctionAdded(functions[1])), Refusal::Busy);
    bench.run(&Event::Close(session)).unwrap();
    bench.run(&Event::FunctionAdded(functions[1])).unwrap();
    assert_eq!(bench.registry.groups().count(), 2);
}

#[test]
fn s24_a_domain_over_two_units_is_flushed_in_both() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    let (_, iova, _) = bench.buffer(first, 1);
    let from = bench.world.steps.len();
    bench.run(&Event::Attach(second)).unwrap();
    let (_, other, _) = bench.buffer(first, 1);
    bench.batch(first, &[unmap(iova, 1), unmap(other, 1)]).unwrap();
    let units: Vec<_> = bench.world.steps[from..]
        .iter()
        .filter_map(|step| match step {
            Step::Invalidate { unit, .. } => Some(unit.0),
            _ => None,
        })
        .collect();
    assert_eq!(units, [0, 1], "one invalidation for each unit, for the whole call");
    let Binding::Domain(own) = own_domain(&bench, first) else { panic!() };
    assert_eq!(bench.world.mapped(own), []);
}

#[test]
fn s25_the_domain_stays_until_the_last_member_is_detached() {
    let [d1, d2] = pair();
    let mut bench = Bench::compat(&[d1, d2]);
    let compat = bench.world.entry(0, d1.address);
    let first = bench.claim(1, d1.address);
    let second = bench.claim_under(1, d2.address, Some(first)).unwrap();
    bench.run(&Event::Attach(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    bench.run(&Event::Detach(first)).unwrap();
    assert_eq!(bench.world.entry(0, d1.address), Binding::Blocked);
    assert_eq!(bench.world.entry(0, d2.address), own_domain(&bench, second));
    bench.run(&Event::Detach(second)).unwrap();
    assert_eq!(bench.world.entry(0, d1.address), compat);
    assert_eq!(bench.world.entry(0, d2.address), compat);
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
    assert_eq!(bench.run(&Event::UnitFailed(UnitIndex(0))), Ok(Outcome::Done));
    assert_eq!(bench.registry.unit(UnitIndex(0)).unwrap().state, UnitState::Failed);
    let (slot, ..) = bench.buffer(fine, 2);
    bench.run(&Event::Release(fine, slot)).unwrap();
    bench.run(&Event::Close(fine)).unwrap();
    bench.run(&Event::Close(broken)).unwrap();
    assert_eq!(bench.registry.counts().quarantined, 1);
    // Nothing of the steps since went to the failed unit, but denying entries.
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
fn s30_every_quota_is_a_refusal() {
    let mut config = Config::default();
    config.quotas.memory = 4 * PAGE;
    config.quotas.mappings = 3;
    config.quotas.sessions = 2;
    config.quotas.buffers = 2;
    config.quotas.domains = 1;
    config.quotas.regions = 4;
    let devices = [endpoint(0, 3, 0), endpoint(0, 4, 0), endpoint(0, 5, 0)];
    let mut bench = Bench::new(config, one_unit(), &devices);
    let session = bench.claim(1, address(0, 3, 0));
    assert_eq!(bench.refused(&claim_event(1, address(0, 4, 0), None)), Refusal::Quota);
    bench.claim_under(1, address(0, 4, 0), Some(session)).unwrap();
    let third = claim_event(1, address(0, 5, 0), Some(session));
    assert_eq!(bench.refused(&third), Refusal::Quota);
    assert_eq!(bench.registry.admit_buffer(session, 5 * PAGE), Err(Refusal::Quota));
    let (slot, ..) = bench.buffer(session, 2);
    bench.buffer(session, 1);
    assert_eq!(bench.registry.admit_buffer(session, PAGE), Err(Refusal::Quota), "two buffers");
    let refused =
        bench.run(&Event::Batch(session, vec![map(slot, 0, 1), map(slot, 1, 1)])).unwrap_err();
    assert_eq!((refused.refusal, refused.item), (Refusal::Quota, 1));
    let view = bench.registry.session(session).unwrap();
    assert_eq!((view.memory_left, view.mappings_left), (PAGE, 1));
    bench.batch(session, &[map(slot, 0, 1)]).unwrap();
    assert_eq!(bench.refused(&Event::Batch(session, vec![map(slot, 0, 1)])), Refusal::Quota);
    // Others have their own.
    bench.claim(2, address(0, 5, 0));
}

#[test]
fn s30_page_tables_are_limited_too() {
    let mut config = Config::default();
    config.quotas.regions = 8;
    let mut bench = Bench::new(config, one_unit(), &[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, ..) = bench.buffer(session, 1);
    let mut made = 0;
    while bench.batch(session, &[fixed(slot, 0, 1, (made + 5) << 30)]).is_ok() {
        made += 1;
        assert!(made < 8);
    }
    let next = fixed(slot, 0, 1, (made + 5) << 30);
    assert_eq!(bench.refused(&Event::Batch(session, vec![next])), Refusal::Quota);
    assert!(made > 1);
}

#[test]
fn a_batch_is_all_or_nothing_and_names_the_item() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, iova, _) = bench.buffer(session, 8);
    let bad = |bench: &mut Bench, items: Vec<BatchRequest>| {
        let refused = bench.run(&Event::Batch(session, items)).unwrap_err();
        (refused.refusal, refused.item)
    };
    let ok = map(slot, 0, 1);
    assert_eq!(bad(&mut bench, vec![ok, ok, map(slot, 0, 9)]), (Refusal::Range, 2));
    assert_eq!(bad(&mut bench, vec![ok, map(Slot(3), 0, 1)]), (Refusal::BadHandle, 1));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 8), unmap(iova, 8)]), (Refusal::NotMapped, 1));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 4)]), (Refusal::NotMapped, 0));
    assert_eq!(bad(&mut bench, vec![unmap(iova, 0)]), (Refusal::Range, 0));
    let over = vec![unmap(iova, 8), fixed(slot, 0, 1, iova)];
    assert_eq!(bad(&mut bench, over), (Refusal::Mapped, 1), "free only when the batch is done");
    let at = 64 * MIB;
    let twice = vec![fixed(slot, 0, 2, at), fixed(slot, 0, 1, at + PAGE)];
    assert_eq!(bad(&mut bench, twice), (Refusal::Mapped, 1));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, at + 1)]), (Refusal::Alignment, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, 0)]), (Refusal::Range, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, 1 << 39)]), (Refusal::Range, 0));
    assert_eq!(bad(&mut bench, vec![fixed(slot, 0, 1, u64::MAX - 4095)]), (Refusal::Range, 0));
    let mut request = request(slot, 0, 1);
    request.access = iommu_protocol::wire::Access::empty();
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(request)]), (Refusal::BadAccess, 0));
    request = super::world::request(slot, 0, 1);
    request.offset = 1;
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(request)]), (Refusal::Alignment, 0));
    request.offset = !(PAGE - 1);
    assert_eq!(bad(&mut bench, vec![BatchRequest::Map(request)]), (Refusal::Range, 0));
    let from = bench.world.steps.len();
    let made = bench.batch(session, &[ok, unmap(iova, 8), map(slot, 4, 4)]).unwrap();
    assert_eq!(made[1], 0);
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Map", "Unmap", "Map", "Invalidate", "Publish", "ReleaseTables"]);
}

#[test]
fn grants_are_within_the_buffers_own_addresses() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, iova, _) = bench.allocate(session, 16 * PAGE, AllocateFlags::UNMAPPED).unwrap();
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    assert_eq!(bench.world.mapped(own), []);
    let grant = |page, pages| BatchRequest::Grant(request(slot, page, pages));
    let revoke = |page: u64, pages: u64| BatchRequest::Revoke {
        slot,
        offset: page * PAGE,
        length: pages * PAGE,
    };
    assert_eq!(bench.batch(session, &[grant(4, 2)]).unwrap(), [iova + 4 * PAGE]);
    for overlapping in [grant(4, 2), grant(5, 1), grant(0, 16)] {
        let refused = bench.refused(&Event::Batch(session, vec![overlapping]));
        assert_eq!(refused, Refusal::Mapped);
    }
    let twice = vec![grant(0, 1), grant(0, 1)];
    assert_eq!(bench.refused(&Event::Batch(session, twice)), Refusal::Mapped);
    let as_mapping = Event::Batch(session, vec![unmap(iova + 4 * PAGE, 2)]);
    assert_eq!(bench.refused(&as_mapping), Refusal::NotMapped, "a grant is revoked");
    assert_eq!(bench.refused(&Event::Batch(session, vec![revoke(4, 1)])), Refusal::NotMapped);
    let elsewhere = fixed(slot, 0, 1, iova);
    assert_eq!(bench.refused(&Event::Batch(session, vec![elsewhere])), Refusal::Mapped);
    bench.batch(session, &[revoke(4, 2)]).unwrap();
    bench.batch(session, &[grant(0, 16)]).unwrap();
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(bench.world.mapped(own), []);
    let (mapped, ..) = bench.buffer(session, 1);
    let no_grants = BatchRequest::Grant(request(mapped, 0, 1));
    assert_eq!(bench.refused(&Event::Batch(session, vec![no_grants])), Refusal::BadOperation);
}

#[test]
fn scattered_memory_is_mapped_piece_by_piece_at_consecutive_addresses() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let segments = [phys(OWN + 8 * PAGE, 2 * PAGE), phys(OWN, PAGE), phys(OWN + 4 * PAGE, PAGE)];
    let event = bench.allocation(session, &segments, AllocateFlags::empty());
    let (slot, iova, _) = bench.allocated(&event).unwrap();
    let Binding::Domain(own) = own_domain(&bench, session) else { panic!() };
    let ends = |at: u64, pages: u64| (iova + at * PAGE, iova + (at + pages) * PAGE - 1);
    let expected: Vec<_> = [(0, 2, 8), (2, 1, 0), (3, 1, 4)]
        .map(|(at, pages, memory)| (ends(at, pages).0, ends(at, pages).1, OWN + memory * PAGE))
        .into();
    assert_eq!(bench.world.mapped(own), expected);
    let part = bench.batch(session, &[map(slot, 1, 2)]).unwrap()[0];
    bench.batch(session, &[unmap(part, 2), unmap(iova, 4)]).unwrap();
    assert_eq!(bench.world.mapped(own), []);
}

#[test]
fn a_buffer_lives_until_nobody_knows_or_holds_it() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim(1, address(0, 4, 0));
    let (slot, _, buffer) = bench.buffer(first, 2);
    let Ok(Outcome::Held(_, imported)) = bench.run(&Event::Import(second, buffer)) else {
        panic!()
    };
    let again = bench.run(&Event::Import(second, buffer));
    assert_eq!(again, Ok(Outcome::Held(buffer, imported)), "the same slot");
    bench.batch(second, &[map(imported, 0, 2)]).unwrap();
    assert_eq!(bench.run(&Event::Hold(first, slot)), Ok(Outcome::Held(buffer, slot)));
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
fn memory_of_the_system_leaves_policy_before_it_is_used_and_returns_after() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let Binding::Domain(compat) = bench.world.entry(0, address(0, 3, 0)) else { panic!() };
    let all = bench.world.mapped(compat);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let from = bench.world.steps.len();
    let event = bench.allocation(session, &[phys(MIB, 4 * PAGE)], AllocateFlags::empty());
    let (slot, ..) = bench.allocated(&event).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Unmap", "Invalidate", "Map", "Publish", "ReleaseTables"]);
    let covers = |bench: &Bench| {
        bench.world.mapped(compat).iter().any(|(first, last, _)| *first <= MIB && MIB <= *last)
    };
    assert!(!covers(&bench));
    assert_eq!(
        bench.refused(&Event::MemoryReturned(phys(MIB, PAGE))),
        Refusal::Busy,
        "a buffer's memory is not given to policy"
    );
    let from = bench.world.steps.len();
    bench.run(&Event::Release(session, slot)).unwrap();
    let kinds: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(kinds, ["Unmap", "Invalidate", "Map", "Publish", "ReleaseTables", "ReleaseBuffer"]);
    assert!(covers(&bench));
    bench.run(&Event::MemoryTaken(phys(2 * MIB, MIB))).unwrap();
    bench.run(&Event::MemoryTaken(phys(2 * MIB, MIB))).unwrap();
    assert!(!bench.world.reachable(2 * MIB, 3 * MIB - 1));
    bench.run(&Event::MemoryReturned(phys(2 * MIB, MIB))).unwrap();
    assert!(bench.world.reachable(2 * MIB, 2 * MIB));
    bench.run(&Event::MemoryReturned(phys(OWN, MIB))).unwrap();
    let total = |ranges: &[(u64, u64, u64)]| -> u64 { ranges.iter().map(|r| r.1 - r.0 + 1).sum() };
    assert_eq!(total(&bench.world.mapped(compat)), total(&all), "never the server's own");
}

#[test]
fn memory_that_a_failed_unit_may_reach_is_not_taken() {
    let mut bench =
        Bench::new(Config::default(), two_units(), &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let event = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
    assert_eq!(bench.refused(&event), Refusal::UnitFailed);
    bench.buffer(session, 1);
}

#[test]
fn allocations_are_checked() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.registry.admit_buffer(session, 0), Err(Refusal::Range));
    assert_eq!(bench.registry.admit_buffer(session, 100), Err(Refusal::Alignment));
    assert_eq!(bench.registry.admit_buffer(session, !4095), Err(Refusal::Quota));
    assert_eq!(bench.registry.admit_buffer(session, PAGE), Ok(true));
    let change = |bench: &mut Bench, edit: &dyn Fn(&mut crate::policy::AllocateRequest)| {
        let Event::Allocate(session, mut request) =
            bench.allocation(session, &[phys(OWN, 2 * PAGE)], AllocateFlags::empty())
        else {
            panic!()
        };
        edit(&mut request);
        bench.refused(&Event::Allocate(session, request))
    };
    assert_eq!(change(&mut bench, &|r| r.alignment = 3 * PAGE), Refusal::Alignment);
    assert_eq!(change(&mut bench, &|r| r.alignment = 512), Refusal::Alignment);
    assert_eq!(change(&mut bench, &|r| r.boundary = PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.boundary = 3 * PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.length = PAGE), Refusal::Range);
    assert_eq!(change(&mut bench, &|r| r.buffer.0 += 1), Refusal::BadHandle);
    assert_eq!(change(&mut bench, &|r| r.segments.push(phys(OWN, PAGE))), Refusal::Busy);
    assert_eq!(change(&mut bench, &|r| r.alignment = 1 << 40), Refusal::NoSpace);
    let high = phys(1 << 46, 2 * PAGE);
    assert_eq!(change(&mut bench, &|r| r.segments = vec![high]), Refusal::NoMemory);
    let empty = iommu_protocol::wire::Access::empty();
    assert_eq!(change(&mut bench, &|r| r.access = empty), Refusal::BadAccess);
    bench.buffer(session, 2);
    assert_eq!(change(&mut bench, &|_| ()), Refusal::Busy, "another buffer's memory");
}

#[test]
fn without_a_unit_a_session_works_with_bus_addresses() {
    let mut bench = Bench::new(Config::default(), Firmware::default(), &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.registry.session(session).unwrap().domain, None);
    bench.run(&Event::Attach(session)).unwrap();
    assert!(bench.registry.session(session).unwrap().attached);
    assert_eq!(bench.registry.admit_buffer(session, PAGE), Ok(false));
    let (slot, iova, _) = bench.buffer(session, 4);
    assert_eq!(iova, OWN, "the address of the memory");
    assert_eq!(bench.batch(session, &[map(slot, 1, 2)]).unwrap(), [OWN + PAGE]);
    assert_eq!(bench.batch(session, &[map(slot, 1, 2)]).unwrap(), [OWN + PAGE], "twice the same");
    assert_eq!(bench.registry.counts().mappings, 3);
    bench.batch(session, &[unmap(OWN + PAGE, 2), unmap(OWN + PAGE, 2)]).unwrap();
    assert_eq!(
        bench.refused(&Event::Batch(session, vec![unmap(OWN + PAGE, 2)])),
        Refusal::NotMapped
    );
    let wrong = fixed(slot, 0, 1, MIB);
    assert_eq!(bench.refused(&Event::Batch(session, vec![wrong])), Refusal::Unsupported);
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
fn behind_a_bridge_the_shared_requester_id_goes_with_the_attached_device() {
    let buses = Buses { secondary: 2, subordinate: 2 };
    let functions = [
        with_acs(bridge(0, 1, 0, 1, 2)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses)),
        function(address(2, 3, 0), FunctionKind::Conventional),
        function(address(2, 4, 0), FunctionKind::Conventional),
    ];
    let mut bench = Bench::compat(&functions);
    let session = bench.claim(1, address(2, 3, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let own = own_domain(&bench, session);
    assert_eq!(bench.world.entry(0, address(2, 3, 0)), own);
    assert_eq!(bench.world.entry(0, address(2, 0, 0)), own, "the alias");
    assert_eq!(bench.world.entry(0, address(2, 4, 0)), Binding::Blocked);
    assert_eq!(bench.world.entry(0, address(1, 0, 0)), Binding::Blocked);
    assert!(matches!(bench.world.entry(0, address(0, 1, 0)), Binding::Domain(_)), "another group");
    let alias = RequesterId::new(2, 0, 0).unwrap();
    assert_eq!(bench.registry.session_of(UnitIndex(0), alias), Some(session));
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
    // Memory leaves both.
    bench.run(&Event::MemoryTaken(phys(MIB, MIB))).unwrap();
    assert!(!bench.world.reachable(MIB, 2 * MIB - 1));
    let first = bench.claim(1, address(0, 3, 0));
    let second = claim_event(1, address(0, 4, 0), Some(first));
    assert_eq!(bench.refused(&second), Refusal::Unsupported);
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
    let beyond = Event::Batch(session, vec![fixed(slot, 0, 1, 1 << 34)]);
    assert_eq!(bench.refused(&beyond), Refusal::Range);
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
    assert_eq!(bench.run(&Event::Shutdown), Ok(Outcome::Done));
}

#[test]
fn a_removed_bridge_takes_what_is_behind_with_it() {
    let functions = tree();
    let mut bench = Bench::compat(&functions);
    let below = functions[3].address;
    let session = bench.claim(1, below);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::FunctionRemoved(functions[1].address)).unwrap();
    assert_eq!(bench.registry.functions().count(), 3);
    for function in &functions[1..4] {
        assert_eq!(bench.world.entry(0, function.address), Binding::Blocked);
    }
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.registry.groups().count(), 2);
    for function in &functions[1..4] {
        bench.run(&Event::FunctionAdded(*function)).unwrap();
    }
    assert_eq!(partition(&bench), partition(&Bench::compat(&functions)));
}

#[test]
fn quarantine_of_a_plan_keeps_what_it_would_have_mapped() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    let (slot, ..) = bench.buffer(session, 2);
    // A map whose undoing could not be proved.
    let plan = bench.registry.decide(&Event::Batch(session, vec![map(slot, 0, 1)])).unwrap();
    bench.registry.quarantine(plan);
    // An allocation likewise: its memory is never given back.
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

#[test]
fn hot_plug_behind_a_failed_unit_leaves_its_entries_as_known() {
    let functions = tree();
    let mut bench = Bench::compat(&functions[..1]);
    let below = functions[3];
    bench.run(&Event::FunctionAdded(below)).unwrap();
    let compat = bench.world.entry(0, below.address);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    // A bridge that gives the device another requester id.
    bench.run(&Event::FunctionAdded(functions[1])).unwrap();
    assert_eq!(bench.world.entry(0, below.address), compat);
    bench.run(&Event::FunctionRemoved(below.address)).unwrap();
    assert_eq!(bench.world.entry(0, below.address), Binding::Blocked);
    bench.run(&Event::FunctionAdded(below)).unwrap();
    assert_eq!(bench.registry.function(below.address).unwrap().binding, Binding::Blocked);
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
