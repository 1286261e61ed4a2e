//! Domain tags over the lives of servers: what units may hold of the ones before, and what the next one is to know.
//!
//! ```text
//! start           what was noted, and how the units were found, goes to policy; noted anew before any unit is told
//! a domain made   its tag is noted -> its table is made -> entries are written
//! unit enabled    it was flushed; when all were, only this server's own tags stay noted
//! death           at any instant the note names every tag that a unit may hold
//! ```
//!
//! A unit that was found translating for an owner without a note (firmware, another system before `kexec`) is taken
//! to hold the lower half of all tags ([`HeldTags::of_strangers`]). A unit that may hold any (it could not be looked at
//! when the first server started, it has failed, no tag is left) has its requesters denied from the instant of the
//! take-over until it was flushed, and only then let into their domains.

use alloc::vec::Vec;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Holds, Orders, UnitIndex};
use crate::server::Server;
use crate::server::unit_status::UnitStart;
use crate::topology::tags::{HeldTags, TagRecord};

/// What is known of the units before the first event.
pub(super) struct Found {
    units: Vec<Holds>,
    held: HeldTags,
    /// The highest tag that every unit that came up can hold.
    last: u16,
}

impl Found {
    /// From the units as they came up, and the note of the server before, if there is one.
    pub(super) fn new<U: Unit>(units: &[UnitStart<U>], record: Option<TagRecord>) -> Self {
        let up = units.iter().filter_map(|unit| match unit {
            UnitStart::Ready(unit) => Some(unit.capabilities().last_tag),
            _ => None,
        });
        let last = up.min().unwrap_or(u16::MAX);
        let holds = |(index, unit): (usize, &UnitStart<U>)| {
            let noted = record.map(|record| !record.strangers.contains(index));
            match (noted, unit) {
                (Some(true), _) => Holds::Earlier,
                (_, UnitStart::Ready(unit)) if !unit.found_translating() => Holds::Nothing,
                // Its owner's tags are guessed.
                (None, UnitStart::Ready(_)) => Holds::Earlier,
                // Nobody has looked; or no server before has, and the guess was theirs.
                _ => Holds::Anything,
            }
        };
        let units = units.iter().enumerate().map(holds).collect();
        let held = record.map_or(HeldTags::of_strangers(last), |record| record.held);
        Self { units, held, last }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Before the first event. Without a unit that is known of, what was noted stays: those that are not known may
    /// hold it.
    pub(super) fn begin_tags(&mut self, Found { units, held, last }: Found) {
        if units.is_empty() {
            return;
        }
        self.registry.begin_tags(held, units, last);
        self.note_tags();
    }

    /// Notes the tags of a plan that is about to be run.
    pub(super) fn note_tags_of(&mut self, orders: &Orders) {
        if self.registry.take_tags_of(orders) {
            self.note_tags();
        }
    }

    /// Notes the tags that units may hold now.
    pub(super) fn note_tags(&mut self) {
        if !self.machine.units.is_empty() {
            self.driven.note_tags(self.registry.tag_record());
        }
    }

    /// A unit came later, and was found as it is.
    pub(super) fn found_later(&mut self, unit: UnitIndex, translating: bool) {
        if !translating {
            self.registry.found_off(unit);
        }
    }
}
