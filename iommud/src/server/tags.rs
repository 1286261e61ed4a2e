//! Domain tags across servers: those of earlier servers that units may hold, and the note for the next server.
//!
//! ```text
//! start           the note and the state of the units go to policy; noted anew before any unit is changed
//! domain created  its tag is noted -> its table is created -> entries are written
//! unit enabled    it was flushed; when all were, only this server's own tags stay noted
//! death           at any time the note has every tag that a unit may hold
//! ```
//!
//! A unit that was found translating for an owner without a note (firmware, another system before `kexec`) is taken
//! to hold the lower half of all tags ([`HeldTags::of_strangers`]). A unit may hold any tag when it could not be
//! examined at the start of the first server, when it has failed, or when no tag is left. Its requesters are denied
//! from the take-over until it was flushed, and only then let into their domains.

use alloc::vec::Vec;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Holds, Orders, UnitIndex};
use crate::server::Server;
use crate::server::unit_status::UnitStart;
use crate::topology::tags::{HeldTags, TagRecord};
use crate::trace::Fact;

/// The state of the units before the first event.
pub(super) struct Found {
    units: Vec<Holds>,
    held: HeldTags,
    /// The highest tag that every unit that came up can hold.
    last: u16,
}

impl Found {
    /// Determines it from the units as they came up, and from the note of the server before, if there is one.
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
                // The unit was not examined, by this server or by earlier ones, which only guessed.
                _ => Holds::Anything,
            }
        };
        let units = units.iter().enumerate().map(holds).collect();
        let held = record.map_or(HeldTags::of_strangers(last), |record| record.held);
        Self { units, held, last }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Runs before the first event. Without any known unit the note stays: unknown units may hold its tags.
    pub(super) fn begin_tags(&mut self, Found { units, held, last }: Found) {
        if units.is_empty() {
            return;
        }
        self.trace.fact(&Fact::Tags(held, units.clone(), last));
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

    /// Records how a unit that came later was found.
    pub(super) fn found_later(&mut self, unit: UnitIndex, translating: bool) {
        if !translating {
            self.trace.fact(&Fact::FoundOff(unit));
            self.registry.found_off(unit);
        }
    }
}
