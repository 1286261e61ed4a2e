//! Regions that firmware reserves: S22.

use std::vec::Vec;

use iommu_protocol::status::Refusal;

use super::{PAGE, claim_event, own_domain, pair, reserve, strict};
use crate::policy::tests::world::*;
use crate::policy::{Batch, Binding, Config, Event, Matcher, Mode, Rule};
use crate::topology::testing::{address, endpoint};

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
        let refusal = bench.refused(&Batch(session, &[fixed(slot, 0, 2, at)]));
        assert_eq!(refusal, Refusal::Reserved);
    }
    assert_eq!(bench.refused(&Batch(session, &[unmap(32 * MIB, 2)])), Refusal::NotMapped);
    let refusal = bench.refused(&Batch(session, &[fixed(slot, 0, 1, 0xfee0_0000)]));
    assert_eq!(refusal, Refusal::Reserved);
    let regions: Vec<_> =
        bench.registry.regions(session).iter().map(|r| r.range.first().0).collect();
    assert_eq!(regions, [32 * MIB, RAM, 0xfee0_0000, 0xfef0_0000]);
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), Binding::Domain(default), "the same default domain");
    assert_eq!(bench.world.domain_count(), 2);
    // An unquiesced device under `compat` keeps its regions, and nothing else.
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, 2 * PAGE);
    let mut bench = Bench::new(Config::default(), firmware, &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, d);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    let Binding::Domain(left) = bench.world.entry(0, d) else { panic!("not blocked") };
    assert_eq!(bench.world.mapped(left), [region]);
}

/// Regions of firmware never give access to the server's memory, registers of units, or the interrupt window: neither
/// under policy nor in the domain of an owner.
#[test]
fn s22_a_region_is_honoured_without_what_nobody_may_have() {
    let device = address(0, 4, 0);
    for (first, pages, parts) in [
        (OWN - PAGE, 3, &[(OWN - PAGE, OWN - 1)][..]),
        // The registers of unit 0 are the page at 0xfed9_0000.
        (0xfed8_f000, 3, &[(0xfed8_f000, 0xfed8_ffff), (0xfed9_1000, 0xfed9_1fff)]),
        (0xfedf_f000, 0x102, &[(0xfedf_f000, 0xfedf_ffff), (0xfef0_0000, 0xfef0_0fff)]),
        (OWN + PAGE, 2, &[]),
        (0xfed9_0000, 1, &[]),
        (0xfee0_0000, 0x100, &[]),
    ] {
        let mut firmware = one_unit();
        reserve(&mut firmware, 4, first, pages * PAGE);
        let mut bench = Bench::new(strict(), firmware, &[endpoint(0, 4, 0)]);
        let expected: Vec<_> = parts.iter().map(|(first, last)| (*first, *last, *first)).collect();
        match bench.world.entry(0, device) {
            Binding::Domain(domain) => assert_eq!(bench.world.mapped(domain), expected),
            other => assert_eq!((other, parts.len()), (Binding::Blocked, 0), "{first:#x}"),
        }
        let session = bench.claim(1, device);
        bench.run(&Event::Attach(session)).unwrap();
        let Binding::Domain(own) = own_domain(&bench, session) else { panic!("no domain") };
        assert_eq!(bench.world.mapped(own), expected, "{first:#x}");
    }
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
    // Each event removes the regions that are no longer needed. Neither is refused, nor maps over the client's page.
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

/// Below 4 GiB a client's addresses are those of memory, so none is a register's. Above, any address is possible.
#[test]
fn addresses_of_registers_are_nobodys() {
    let mut firmware = one_unit();
    // Regions of firmware are rarely in memory that firmware reports.
    let at = 2 * RAM;
    reserve(&mut firmware, 3, at, PAGE);
    let mut bench = Bench::new(strict(), firmware, &[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let first = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(first)).unwrap();
    let (slot, iova, _) = bench.buffer(first, 4);
    let low = |iova: u64| (PAGE..RAM).contains(&iova);
    assert!(low(iova), "{iova:#x}");
    let refused =
        |bench: &mut Bench, iova| bench.refused(&Batch(first, &[fixed(slot, 0, 4, iova)]));
    for iova in [RAM, RAM - PAGE, at, 0xa000_0000, 0xfec0_0000, 0xfef0_0000, (4 << 30) - PAGE] {
        assert_eq!(refused(&mut bench, iova), Refusal::Reserved, "{iova:#x}");
    }
    for iova in [RAM - 4 * PAGE, 4 << 30] {
        bench.run(&Batch(first, &[fixed(slot, 0, 4, iova)])).unwrap();
    }
    // All addresses of memory below 4 GiB, and no page more.
    let (large, ..) = bench.buffer(first, 1024);
    let mut taken = 0;
    let ended = loop {
        match bench.run(&Batch(first, &[map(large, 0, 1024)])) {
            Ok(()) => assert!(low(bench.addresses[0].0), "{:?}", bench.addresses),
            other => break other,
        }
        taken += 1;
    };
    assert_eq!(ended.map_err(|refused| refused.refusal), Err(Refusal::NoSpace));
    assert!((10..RAM >> 22).contains(&taken), "{taken}");
    // The region of a device that comes later is mapped there all the same. When the device leaves, clients cannot
    // get its addresses, as before.
    let second = bench.claim_under(1, address(0, 3, 0), Some(first)).unwrap();
    bench.run(&Event::Attach(second)).unwrap();
    let Binding::Domain(own) = bench.world.entry(0, address(0, 3, 0)) else { panic!() };
    assert!(bench.world.mapped(own).contains(&(at, at + PAGE - 1, at)));
    assert_eq!(refused(&mut bench, at), Refusal::Reserved);
    bench.run(&Event::Detach(second)).unwrap();
    bench.run(&Event::Close(second)).unwrap();
    assert_eq!(refused(&mut bench, at), Refusal::Reserved);
}
