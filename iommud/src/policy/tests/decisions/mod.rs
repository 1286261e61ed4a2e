//! Decisions one by one, named for the files that make them: limits to the last byte, refusals, charges, views.

mod buffers;
mod charges;
mod claims;
mod domains;
mod entries;
mod journal;
mod maps;
mod switches;
mod units;
mod views;

use std::vec::Vec;

use crate::policy::Event;
use crate::policy::tests::scenarios::kind;
use crate::policy::tests::world::*;

/// Runs an event and returns the kinds of its steps.
fn kinds(bench: &mut Bench, event: &Event) -> Vec<&'static str> {
    let from = bench.world.steps.len();
    bench.run(event).unwrap();
    bench.world.steps[from..].iter().map(kind).collect()
}
