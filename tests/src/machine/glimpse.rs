//! Where devices get at each single instant: after every store of the CPU and everything a unit does.

use super::{Machine, Request, State};

/// An access of a device that never stops trying, once its unit translates. It fills the unit's caches and
/// leaves no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// The unit.
    pub unit: usize,
    /// The requester.
    pub source: u16,
    /// The address it reads.
    pub iova: u64,
}

/// Where a glimpse led at some instant: through what the unit has cached, or by the tables alone, as if nothing
/// were cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which one.
    pub glimpse: Glimpse,
    /// The memory it reached; `None` when it was denied.
    pub physical: Option<u64>,
    /// The step at which it did first; see `Machine::steps`.
    pub step: u64,
}

/// All glimpses and what they saw.
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
    /// Lets devices try these accesses at every instant from now on, and forgets what was seen.
    pub fn set_glimpses(&self, all: Vec<Glimpse>) {
        let mut state = self.state();
        state.glimpses.all = all;
        state.glimpses.seen.clear();
    }

    /// What was seen since the glimpses were set; sets none.
    #[must_use]
    pub fn take_glimpses(&self) -> Vec<Seen> {
        let mut state = self.state();
        state.glimpses.all.clear();
        std::mem::take(&mut state.glimpses.seen)
    }

    /// Instants looked at so far.
    #[must_use]
    pub fn instants(&self) -> u64 {
        self.state().glimpses.instants
    }
}
