//! Tags of earlier servers that units may hold: S28, I10.

use std::vec::Vec;

use iommu_protocol::status::Refusal;

use super::{kind, strict, two_units};
use crate::policy::tests::world::*;
use crate::policy::{Config, Event, Holds, Mode, UnitIndex};
use crate::topology::capabilities::DomainTag;
use crate::topology::tags::{HeldTags, TagSpan};
use crate::topology::testing::{address, endpoint};

fn span(first: u16, last: u16) -> HeldTags {
    HeldTags::Span(TagSpan { first, last })
}

/// The steps of bringing a unit up, except those that build tables.
fn steps(held: HeldTags, holds: Holds, config: Config) -> Vec<&'static str> {
    steps_found(held, holds, config, true)
}

/// The same for a unit that came late, and was found translating or not.
fn steps_found(held: HeldTags, holds: Holds, config: Config, on: bool) -> Vec<&'static str> {
    let mut bench = Bench::cold(config, one_unit());
    bench.registry.begin_tags(held, vec![holds], 255);
    if !on {
        bench.registry.found_off(UnitIndex(0));
    }
    bench.passes.insert(address(0, 3, 0).requester.0);
    bench.run(&Event::FunctionAdded(endpoint(0, 3, 0))).unwrap();
    bench.run(&ready(0)).unwrap();
    let names = bench.world.steps.iter().map(kind);
    names.filter(|kind| !matches!(*kind, "CreateTable" | "Map")).collect()
}

/// An entry with a tag that the unit may hold is written after the flush; until then its requester is denied. A
/// requester with another tag keeps its access without a gap.
#[test]
fn s28_a_tag_that_a_unit_may_hold_is_used_behind_its_flush() {
    let (at_once, late) =
        (&["Translate", "Enable"][..], &["Block", "Enable", "Translate", "InvalidateEntry"][..]);
    let compat = Config::default;
    assert_eq!(steps(HeldTags::Nothing, Holds::Nothing, compat()), at_once);
    assert_eq!(steps(span(2, 9), Holds::Earlier, compat()), at_once);
    assert_eq!(steps(HeldTags::Everything, Holds::Nothing, compat()), at_once);
    assert_eq!(steps(HeldTags::Everything, Holds::Earlier, compat()), late);
    assert_eq!(steps(span(2, 255), Holds::Earlier, compat()), late);
    assert_eq!(steps(HeldTags::Nothing, Holds::Anything, compat()), late);
    assert_eq!(steps(HeldTags::Nothing, Holds::Failed, compat()), late);
    // Nothing is allowed at all.
    assert_eq!(steps(HeldTags::Everything, Holds::Anything, strict()), ["Block", "Enable"]);
    let off = Config { default: Mode::Off, ..Config::default() };
    assert_eq!(steps(span(2, 9), Holds::Earlier, off.clone()), ["PassThrough", "Enable"]);
    let late = ["Block", "Enable", "PassThrough", "InvalidateEntry"];
    assert_eq!(steps(span(1, 9), Holds::Earlier, off), late, "tag 1 was a domain's");
}

/// A unit whose translation was off holds nothing of an owner that left no record. What is recorded, it may hold, and
/// after a failure anything.
#[test]
fn a_unit_that_was_off_holds_what_is_recorded() {
    let off = |held, holds| steps_found(held, holds, Config::default(), false);
    let late = ["Block", "Enable", "Translate", "InvalidateEntry"];
    assert_eq!(off(HeldTags::Nothing, Holds::Anything), ["Translate", "Enable"]);
    assert_eq!(off(HeldTags::Everything, Holds::Earlier), late);
    assert_eq!(off(HeldTags::Nothing, Holds::Failed), late);
}

/// Tags that an earlier server recorded are held until the last unit that it used was flushed. New tags lie behind
/// them.
#[test]
fn s28_old_tags_are_free_when_every_unit_was_flushed() {
    let mut bench = Bench::cold(Config::default(), two_units());
    bench.registry.begin_tags(span(2, 4), vec![Holds::Earlier; 2], 255);
    for function in [endpoint(0, 3, 0), endpoint(0, 4, 0)] {
        bench.run(&Event::FunctionAdded(function)).unwrap();
    }
    let held = |bench: &Bench| bench.registry.tag_record().held;
    assert_eq!(held(&bench), span(2, 4));
    let plan = bench.registry.decide(&ready(0)).unwrap();
    assert!(bench.registry.take_tags_of(plan.orders()), "a tag more");
    assert!(!bench.registry.take_tags_of(plan.orders()), "which is known now");
    assert_eq!(held(&bench), span(2, 5));
    bench.registry.abort(plan);
    bench.run(&ready(0)).unwrap();
    assert_eq!(held(&bench), span(2, 5), "the other unit holds them");
    bench.run(&ready(1)).unwrap();
    assert_eq!(held(&bench), span(5, 5));
    let session = bench.claim(1, address(0, 3, 0));
    assert_eq!(bench.registry.session(session).unwrap().domain.unwrap().tag, DomainTag(6));
}

/// A unit that fails is not flushed: recorded tags stay, and the unit may hold anything.
#[test]
fn a_unit_that_fails_keeps_what_was_noted() {
    let mut bench = Bench::cold(Config::default(), two_units());
    bench.registry.begin_tags(span(2, 4), vec![Holds::Earlier, Holds::Anything], 255);
    let record = bench.registry.tag_record();
    assert!(!record.strangers.contains(0) && record.strangers.contains(1));
    for unit in [0, 1] {
        bench.run(&Event::UnitFailed(UnitIndex(unit))).unwrap();
    }
    assert_eq!(bench.registry.tag_record(), record);
}

/// Half of all tags are left for the next servers.
#[test]
fn the_last_tag_of_a_server_is_half_way_round() {
    let functions: Vec<_> = (3..12).map(|device| endpoint(0, device, 0)).collect();
    let mut bench = Bench::new(strict(), one_unit(), &functions);
    bench.registry.begin_tags(HeldTags::Nothing, Vec::new(), 15);
    for device in 3..10 {
        let _ = bench.claim(u32::from(device), address(0, device, 0));
    }
    let event = super::claim_event(10, address(0, 10, 0), None);
    assert_eq!(bench.refused(&event), Refusal::NoMemory);
}
