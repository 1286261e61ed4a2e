//! Coverage, and violations.

use std::collections::HashSet;

use super::check::Broken;
use super::scenario::Seen;

/// Coverage.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Complete interleavings, each different from the others.
    pub interleavings: u64,
    /// Events run and checked.
    pub events: u64,
    /// Instants within events at which devices tried their addresses.
    pub instants: u64,
    /// Different states: clients' view, devices' reach, memory in use.
    pub states: HashSet<u64>,
    /// Interleavings that exercised each scenario.
    pub scenarios: [u64; 32],
}

impl Default for Stats {
    fn default() -> Self {
        let (interleavings, events, instants, scenarios) = (0, 0, 0, [0; 32]);
        Self { interleavings, events, instants, states: HashSet::new(), scenarios }
    }
}

impl Stats {
    /// Adds the coverage of another run.
    pub fn add(&mut self, other: &Self) {
        self.interleavings += other.interleavings;
        self.events += other.events;
        self.instants += other.instants;
        self.states.extend(&other.states);
        for (count, more) in self.scenarios.iter_mut().zip(other.scenarios) {
            *count += more;
        }
    }

    pub(super) fn complete(&mut self, seen: Seen) {
        self.interleavings += 1;
        seen.numbers().for_each(|number| self.scenarios[number - 1] += 1);
    }
}

/// A broken invariant, and the events that led to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The invariant.
    pub broken: Broken,
    /// Every event up to it, with its answer.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}: {}", self.broken.invariant, self.broken.how)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
