//! Claims: who may have a device, and what is made for the end already.

use std::boxed::Box;
use std::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::kinds;
use crate::policy::tests::scenarios::{PAGE, claim_event, kind, reserve};
use crate::policy::tests::world::*;
use crate::policy::{Binding, Config, Event, Import, Owed};
use crate::topology::firmware::UnitKind;
use crate::topology::testing::{address, endpoint};

fn with_quotas(sessions: u32, domains: u32) -> Bench {
    let mut config = Config::default();
    (config.quotas.sessions, config.quotas.domains) = (sessions, domains);
    let devices = [3, 4, 5, 6].map(|device| endpoint(0, device, 0));
    Bench::new(config, one_unit(), &devices)
}

/// Sessions are limited, and independent claims; the close of a session gives both back.
#[test]
fn claims_are_within_quotas_and_close_gives_them_back() {
    let mut bench = with_quotas(2, 4);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim(1, address(0, 4, 0));
    for parent in [None, Some(first)] {
        let third = claim_event(1, address(0, 5, 0), parent);
        assert_eq!(bench.refused(&third), Refusal::Quota, "{parent:?}");
    }
    bench.claim(2, address(0, 5, 0));
    bench.run(&Event::Close(second)).unwrap();
    bench.claim_under(1, address(0, 4, 0), Some(first)).unwrap();

    let mut bench = with_quotas(4, 2);
    let first = bench.claim(1, address(0, 3, 0));
    let second = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.refused(&claim_event(1, address(0, 5, 0), None)), Refusal::Quota);
    let under = bench.claim_under(1, address(0, 5, 0), Some(first)).unwrap();
    bench.run(&Event::Close(under)).unwrap();
    assert_eq!(bench.refused(&claim_event(1, address(0, 5, 0), None)), Refusal::Quota);
    bench.run(&Event::Close(second)).unwrap();
    for _ in 0..2 {
        let again = bench.claim(1, address(0, 5, 0));
        assert_eq!(bench.refused(&claim_event(1, address(0, 6, 0), None)), Refusal::Quota);
        bench.run(&Event::Close(again)).unwrap();
    }
}

/// The function that is an AMD-Vi unit has no unit in front of it, and is nobody's. A function with its number in
/// another segment is another one.
#[test]
fn claims_of_a_unit_itself_are_refused() {
    let mut firmware = one_unit();
    let own = address(0, 0, 2);
    firmware.units[0].kind =
        UnitKind::AmdVi { function: own.requester, capability: 0x40, flags: 0, features: None };
    let elsewhere = PciAddress { segment: 1, ..own };
    let mut other = endpoint(0, 0, 2);
    other.address = elsewhere;
    let functions = [endpoint(0, 0, 2), endpoint(0, 3, 0), other];
    let mut bench = Bench::new(Config::default(), firmware, &functions);
    assert_eq!(bench.registry.function(own).unwrap().unit, None);
    assert_eq!(bench.refused(&claim_event(1, own, None)), Refusal::Permission);
    bench.claim(1, address(0, 3, 0));
    bench.claim(2, elsewhere);
}

/// A device of policy `compat` is under its regions only when its owner died. The domain for that is made with the
/// claim: then there is memory for it.
#[test]
fn claims_make_the_domains_that_an_end_needs_so_that_nothing_is_owed() {
    let mut firmware = one_unit();
    reserve(&mut firmware, 4, 32 * MIB, 2 * PAGE);
    let device = address(0, 4, 0);
    let mut bench = Bench::new(Config::default(), firmware, &[endpoint(0, 4, 0)]);
    let from = bench.world.steps.len();
    let session = bench.claim(1, device);
    let made: Vec<_> = bench.world.steps[from..].iter().map(kind).collect();
    assert_eq!(made, ["CreateTable", "Map", "CreateTable", "Map"]);
    bench.run(&Event::Attach(session)).unwrap();
    bench.run(&Event::Frugally(Box::new(Event::Close(session)))).unwrap();
    assert!(!bench.registry.owes());
    let Binding::Domain(left) = bench.world.entry(0, device) else { panic!("blocked") };
    assert_eq!(bench.world.mapped(left), [(32 * MIB, 32 * MIB + 2 * PAGE - 1, 32 * MIB)]);
}

/// Memory of the system could not go back to policy. Before there was memory for that, another session of the client
/// got the buffer.
#[test]
fn an_owed_buffer_that_is_in_use_again_is_not_freed() {
    for settled_first in [true, false] {
        let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
        let session = bench.claim(1, address(0, 3, 0));
        let other = bench.claim(1, address(0, 4, 0));
        let event = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
        let (slot, _, buffer) = bench.allocated(&event).unwrap();
        let release = Event::Release(session, slot);
        assert_eq!(
            kinds(&mut bench, &Event::Frugally(Box::new(release))),
            ["Unmap", "ReleaseTables"]
        );
        assert_eq!(bench.registry.owed().collect::<Vec<_>>(), [Owed::Buffer(buffer)]);
        let slot = bench.run(&Import(other, buffer)).unwrap();
        let settle = Event::Settle(Owed::Buffer(buffer));
        if settled_first {
            assert_eq!(kinds(&mut bench, &settle), [""; 0]);
            assert_eq!(bench.world.released, [], "a session has it");
        }
        bench.run(&Event::Release(other, slot)).unwrap();
        assert_eq!(bench.world.released, [buffer]);
        assert_eq!(kinds(&mut bench, &settle), [""; 0]);
        assert!(!bench.registry.owes());
    }
}

#[test]
fn an_owed_buffer_goes_back_when_there_is_memory() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let session = bench.claim(1, address(0, 3, 0));
    let event = bench.allocation(session, &[phys(MIB, PAGE)], AllocateFlags::empty());
    let (_, _, buffer) = bench.allocated(&event).unwrap();
    bench.run(&Event::Frugally(Box::new(Event::Close(session)))).unwrap();
    assert_eq!((bench.world.released.len(), bench.registry.counts().buffers), (0, 1));
    let settle = Event::Settle(Owed::Buffer(buffer));
    assert_eq!(kinds(&mut bench, &settle), ["Map", "Publish", "ReleaseBuffer"]);
    assert!(!bench.registry.owes());
    assert_eq!(kinds(&mut bench, &settle), [""; 0], "nothing is owed");
    assert_eq!(bench.registry.counts().clients, 0);
}
