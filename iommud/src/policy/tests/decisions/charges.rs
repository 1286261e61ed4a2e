//! The frames that plans may take.

use crate::policy::tests::world::*;
use crate::policy::{Charge, Event, UnitIndex};
use crate::topology::testing::{address, endpoint};

fn charge(bench: &mut Bench, event: &Event) -> Charge {
    let plan = bench.registry.decide(event).unwrap();
    let charge = plan.orders().charge();
    bench.registry.abort(plan);
    charge
}

/// A request is paid by its client, an end of life by whatever is there, and other events by what nobody was promised.
#[test]
fn each_transition_has_its_payer() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    let added = Event::FunctionAdded(endpoint(0, 5, 0));
    assert_eq!(charge(&mut bench, &added), Charge::Unlimited, "nobody was promised anything");
    let first = bench.claim(7, address(0, 3, 0));
    let second = bench.claim(8, address(0, 4, 0));
    bench.run(&Event::Attach(second)).unwrap();
    let taken = phys(MIB, MIB);
    for (event, expected) in [
        (Event::Attach(first), Charge::Account(0)),
        (Event::Detach(second), Charge::Account(1)),
        (Event::Storm(UnitIndex(0), address(0, 3, 0).requester), Charge::Server),
        (Event::MemoryTaken(taken), Charge::Server),
        (added, Charge::Server),
        (Event::FunctionRemoved(address(0, 3, 0)), Charge::Unlimited),
        (Event::MemoryReturned(taken), Charge::Unlimited),
        (Event::UnitFailed(UnitIndex(0)), Charge::Unlimited),
        (Event::Close(second), Charge::Unlimited),
        (Event::Shutdown, Charge::Unlimited),
    ] {
        assert_eq!(charge(&mut bench, &event), expected, "{event:?}");
    }
}
