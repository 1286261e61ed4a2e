//! Units that come up and fail.

use std::string::ToString;

use iommu_protocol::status::Refusal;

use crate::policy::tests::scenarios::{PAGE, names, pair, reserve, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Binding, Config, Event, UnitIndex};
use crate::topology::firmware::{Firmware, NamedDevice};
use crate::topology::testing::{address, endpoint};

/// A unit that comes up has the entries of devices that only firmware knows.
#[test]
fn a_unit_enters_devices_that_firmware_names() {
    let mut firmware = one_unit();
    let name = "\\_SB.PCI0.I2C1".to_string();
    firmware.named.push(NamedDevice { unit: 0, start_bus: 0, path: vec![(0x15, 1)], name });
    let bench = Bench::new(Config::default(), firmware, &[]);
    let named = bench.registry.named(UnitIndex(0)).next().unwrap();
    assert!(matches!(named.binding, Binding::Domain(_)));
    assert_eq!(bench.world.entry(0, address(0, 0x15, 1)), named.binding);
}

/// The members of a group are behind two units, and the attached one is cut off with its unit. The other is blocked no
/// longer for its owner's sake: it has its regions, and nothing else.
#[test]
fn a_unit_that_fails_leaves_other_units_members_of_its_groups_with_their_regions() {
    let mut firmware =
        Firmware { units: vec![unit(0, false), unit(1, true)], ..Firmware::default() };
    names(&mut firmware, 0, 4);
    reserve(&mut firmware, 4, 32 * MIB, PAGE);
    firmware.reserved[0].scopes[0].path = vec![(4, 1)];
    let [first, second] = pair();
    let mut bench = Bench::new(Config::default(), firmware, &[first, second]);
    assert_eq!(bench.registry.groups().count(), 1);
    let session = bench.claim(1, first.address);
    bench.run(&Event::Attach(session)).unwrap();
    assert_eq!(bench.world.entry(1, second.address), Binding::Blocked);
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    let Binding::Domain(left) = bench.world.entry(1, second.address) else { panic!("blocked") };
    assert_eq!(bench.world.mapped(left), [(32 * MIB, 32 * MIB + PAGE - 1, 32 * MIB)]);
}

/// An entry of `compat` that was taken back without the unit's answer is not counted, and the unit may still hold what
/// it led to. No memory is taken from `compat` until the unit was flushed.
#[test]
fn no_memory_is_taken_from_compat_that_a_unit_may_hold_without_an_entry() {
    let mut bench = Bench::cold(Config::default(), two_units());
    for function in [endpoint(0, 3, 0), endpoint(0, 4, 0)] {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    bench.run(&ready(1)).unwrap();
    let (taken, other) = [64, 80].map(|at| Event::MemoryTaken(phys(at * MIB, PAGE))).into();
    bench.run(&other).unwrap();
    let plan = bench.registry.decide(&ready(0)).unwrap();
    bench.registry.quarantine(plan);
    bench.registry.lose(UnitIndex(0));
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    assert_eq!(bench.refused(&taken), Refusal::UnitFailed);
    bench.run(&ready(0)).unwrap();
    assert_eq!(bench.run(&taken), Ok(()));
}
