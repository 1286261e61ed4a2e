//! Entries that stay what they are: written once, and not disturbed.

use super::kinds;
use crate::policy::tests::scenarios::{pair, strict};
use crate::policy::tests::world::*;
use crate::policy::{Binding, Config, Event, UnitIndex};
use crate::topology::testing::{address, endpoint};

/// An absent entry does not deny on every unit. So one that denies is written when its device appears, and needs
/// nothing when the device goes, unless its faults were suppressed.
#[test]
fn entries_that_deny_are_written_once() {
    let mut bench = Bench::new(strict(), one_unit(), &[endpoint(0, 3, 0)]);
    let (added, gone) =
        (Event::FunctionAdded(endpoint(0, 4, 0)), Event::FunctionRemoved(address(0, 4, 0)));
    let storm = Event::Storm(UnitIndex(0), address(0, 4, 0).requester);
    assert_eq!(kinds(&mut bench, &added), ["Block", "InvalidateEntry"]);
    assert_eq!(kinds(&mut bench, &gone), [""; 0]);
    bench.run(&added).unwrap();
    assert_eq!(kinds(&mut bench, &storm), ["Silence", "InvalidateEntry"]);
    assert_eq!(kinds(&mut bench, &gone), ["Silence", "Block", "InvalidateEntry"]);
    assert_eq!(bench.registry.silenced().count(), 0);
}

/// Another member of its group appears.
#[test]
fn entries_whose_faults_are_suppressed_stay_so_while_they_are_not_moved() {
    let [d1, d2] = pair();
    let mut bench = Bench::new(Config::default(), one_unit(), &[d1]);
    bench.run(&Event::Storm(UnitIndex(0), d1.address.requester)).unwrap();
    let was = bench.world.entry(0, d1.address);
    let steps = kinds(&mut bench, &Event::FunctionAdded(d2));
    assert_eq!(steps, ["Translate", "InvalidateEntry"], "of the new one");
    assert_eq!(bench.world.entry(0, d2.address), was);
    assert_eq!(bench.world.entry(0, d1.address), was);
    assert!(bench.registry.function(d1.address).unwrap().silenced);
}

/// The entry of a device that is gone counts in no domain.
#[test]
fn entries_of_devices_that_are_gone_count_in_no_domain() {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0)]);
    let domains = |bench: &Bench| bench.registry.unit(UnitIndex(0)).unwrap().domains;
    assert_eq!(domains(&bench), 1);
    let steps = kinds(&mut bench, &Event::FunctionRemoved(address(0, 3, 0)));
    assert_eq!(steps, ["Block", "InvalidateEntry"]);
    assert_eq!(bench.world.entry(0, address(0, 3, 0)), Binding::Blocked);
    assert_eq!(domains(&bench), 0);
}
