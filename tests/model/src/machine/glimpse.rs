//! Records where devices get at each instant: after every store of the CPU and after every action of a unit.

use super::{Machine, Request, State};

/// An access that a device tries at every instant while its unit translates. It fills the unit's caches and leaves no
/// fault record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// The unit.
    pub unit: usize,
    /// The requester.
    pub source: u16,
    /// The address it reads.
    pub iova: u64,
}

/// Where a glimpse led at some instant: through the unit's caches, or by the tables alone as if nothing were cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The glimpse.
    pub glimpse: Glimpse,
    /// The memory it reached; `None` when it was denied.
    pub physical: Option<u64>,
    /// The first step at which it led there; see `Machine::steps`.
    pub step: u64,
}

/// All glimpses and their results.
#[derive(Clone, Default)]
pub(super) struct Glimpses {
    all: Vec<Glimpse>,
    seen: Vec<Seen>,
    instants: u64,
}

impl State {
    pub(super) fn glimpse(&mut self) {
        if self.glimpses.all.is_empty() {
            return;
        }
        let mut glimpses = std::mem::take(&mut self.glimpses);
        glimpses.instants += 1;
        for glimpse in &glimpses.all {
            let Glimpse { unit, source, iova } = *glimpse;
            let step = self.steps;
            if !self.units[unit].translating() {
                continue;
            }
            let (device, mut bus) = self.unit(unit);
            let request = Request { source, iova, write: false, record: false };
            let cached = device.translate(&mut bus, request).ok();
            let (device, view) = self.view(unit);
            for physical in [cached, device.lookup(view, source, iova)] {
                let known = |seen: &Seen| seen.glimpse == *glimpse && seen.physical == physical;
                if !glimpses.seen.iter().any(known) {
                    glimpses.seen.push(Seen { glimpse: *glimpse, physical, step });
                }
            }
        }
        self.glimpses = glimpses;
    }
}

impl Machine {
    /// Lets devices try these accesses at every instant from now on. Drops earlier results.
    pub fn set_glimpses(&self, all: Vec<Glimpse>) {
        let mut state = self.state();
        state.glimpses.all = all;
        state.glimpses.seen.clear();
    }

    /// Returns the results since the glimpses were set, and removes all glimpses.
    #[must_use]
    pub fn take_glimpses(&self) -> Vec<Seen> {
        let mut state = self.state();
        state.glimpses.all.clear();
        std::mem::take(&mut state.glimpses.seen)
    }

    /// Instants examined so far.
    #[must_use]
    pub fn instants(&self) -> u64 {
        self.state().glimpses.instants
    }
}
