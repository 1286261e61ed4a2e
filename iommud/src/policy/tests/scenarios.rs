//! The scenarios of the ordering contract that policy alone decides, by number.

use super::world::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::policy::{Binding, Event, Outcome};
use crate::topology::testing::{address, endpoint};

#[test]
fn a_device_is_claimed_attached_used_and_given_back() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
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
    bench.batch(session, &[unmap(second, 2)]).unwrap();
    bench.run(&Event::Release(session, slot)).unwrap();
    assert_eq!(bench.world.released.len(), 1);
    bench.run(&Event::Detach(session)).unwrap();
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.run(&Event::Close(session)), Ok(Outcome::Done));
    assert_eq!(bench.world.entry(0, d), compat);
    assert_eq!(bench.world.domain_count(), 1);
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
fn memory_of_an_earlier_server_is_under_compat_again_when_it_is_given_back() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let Binding::Domain(compat) = bench.world.entry(0, address(0, 4, 0)) else { panic!("compat") };
    let own = PhysRange::new(PhysAddr(OWN), 2 << 20).unwrap();
    let mapped = |bench: &Bench, at: u64| {
        bench.world.mapped(compat).iter().any(|(first, last, _)| *first <= at && at <= *last)
    };
    assert!(!mapped(&bench, own.first().0));
    bench.run(&Event::MemoryReturned(own)).unwrap();
    assert!(mapped(&bench, own.first().0) && mapped(&bench, own.last().0));
}
