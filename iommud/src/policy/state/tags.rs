//! Domain tags in use, and those of earlier servers that units may still hold.
//!
//! An entry is written with a tag only where the unit is known to hold nothing under it. Otherwise a cached
//! translation of another server would serve the new domain. A tag that a unit may hold is used behind it only after
//! the unit was flushed; until then its requesters are denied (see `transition::unit`).

use alloc::vec::Vec;

use crate::policy::ids::UnitIndex;
use crate::topology::capabilities::DomainTag;
use crate::topology::tags::{HeldTags, Strangers, TagRecord, TagRing};

/// The translations that a unit may hold of others than this server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    #[default]
    Nothing,
    /// Those under tags that earlier servers recorded, or that are guessed of an owner without a record.
    Earlier,
    /// Anything: its last owner left no record.
    Anything,
    /// Anything: it failed, and was not flushed since.
    Failed,
}

/// Domain tags in use.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Tags {
    /// A bit for each tag.
    used: Vec<u64>,
    ring: TagRing,
    /// Tags of earlier servers that units may hold, as far as they were recorded.
    held: HeldTags,
    /// By unit; units that are missing hold nothing.
    units: Vec<Holds>,
    /// The tag of this server that lies furthest round the ring.
    furthest: Option<DomainTag>,
}

impl Tags {
    /// Creates tags that are all free, except 0, which is never used, and the tag of untranslated requests. No unit
    /// holds anything.
    pub(in crate::policy) fn new() -> Self {
        let (held, units) = (HeldTags::Nothing, Vec::new());
        let ring = TagRing::new(held, u16::MAX);
        Self { used: alloc::vec![0b11], ring, held, units, furthest: None }
    }

    /// Creates tags that are all free, for units that may hold these tags of earlier servers.
    pub(in crate::policy) fn of(ring: TagRing, held: HeldTags, units: Vec<Holds>) -> Self {
        Self { ring, held, units, ..Self::new() }
    }

    /// Records a tag that is taken. True when it lies further round the ring than those before.
    pub(in crate::policy) fn reach(&mut self, tag: DomainTag) -> bool {
        let furthest = self.furthest.map_or(tag, |known| self.ring.later(known, tag));
        self.furthest.replace(furthest) != Some(furthest)
    }

    /// The next free tag behind `after`, not above `last`. Also `None` when half of all tags are taken.
    pub(in crate::policy) fn next(&self, after: Option<DomainTag>, last: u16) -> Option<DomainTag> {
        let stretches = self.ring.stretches(after, last);
        stretches.into_iter().find_map(|(first, last)| self.free_within(first, last))
    }

    fn free_within(&self, first: u32, last: u32) -> Option<DomainTag> {
        let mut tag = first;
        while tag <= last {
            let word = self.used.get(tag as usize / 64).copied().unwrap_or(0) >> (tag % 64);
            if word & 1 == 0 {
                return u16::try_from(tag).ok().map(DomainTag);
            }
            tag += word.trailing_ones();
        }
        None
    }

    /// Number of tags up to `last` that this server may take in all.
    pub(in crate::policy) fn count(&self, last: u16) -> u64 {
        let stretches = self.ring.stretches(None, last).into_iter();
        stretches.map(|(first, last)| u64::from((last + 1).saturating_sub(first))).sum()
    }

    pub(in crate::policy) fn set(&mut self, tag: DomainTag, used: bool) {
        let at = usize::from(tag.0) / 64;
        if self.used.len() <= at {
            self.used.resize(at + 1, 0);
        }
        if let Some(word) = self.used.get_mut(at) {
            let bit = 1 << (tag.0 % 64);
            *word = if used { *word | bit } else { *word & !bit };
        }
    }

    pub(in crate::policy) fn holds(&self, unit: UnitIndex) -> Holds {
        self.units.get(unit.0 as usize).copied().unwrap_or_default()
    }

    pub(in crate::policy) fn set_holds(&mut self, unit: UnitIndex, holds: Holds) {
        let at = unit.0 as usize;
        if self.units.len() <= at {
            self.units.resize(at + 1, Holds::Nothing);
        }
        if let Some(place) = self.units.get_mut(at) {
            *place = holds;
        }
    }

    /// Records that a unit was flushed: it holds nothing of others. When that is true of every unit that earlier
    /// servers used, their tags are as good as new.
    pub(in crate::policy) fn flushed(&mut self, unit: UnitIndex) {
        self.set_holds(unit, Holds::Nothing);
        if !self.units.iter().any(|holds| matches!(holds, Holds::Earlier | Holds::Failed)) {
            self.held = HeldTags::Nothing;
        }
    }

    /// Records that a unit has failed: it may hold everything that it was to invalidate.
    pub(in crate::policy) fn failed(&mut self, unit: UnitIndex) {
        if self.holds(unit) != Holds::Anything {
            self.set_holds(unit, Holds::Failed);
        }
    }

    /// Undoes changes. The tags that were taken stay in the record for the next server: a plan may have been run.
    pub(in crate::policy) fn undo(&mut self, was: Self) {
        *self = Self { furthest: self.furthest, ..was };
    }

    /// Whether a unit may hold translations under a tag that belong to something else.
    pub(in crate::policy) fn is_stale(&self, unit: UnitIndex, tag: DomainTag) -> bool {
        match self.holds(unit) {
            Holds::Nothing => false,
            Holds::Earlier => self.held.contains(tag),
            Holds::Anything | Holds::Failed => true,
        }
    }

    /// The record for the next server, as long as no tag behind `furthest` is taken.
    pub(in crate::policy) fn record(&self) -> TagRecord {
        let held = match self.furthest {
            Some(tag) => self.ring.held_with(self.held, tag),
            None => self.held,
        };
        let mut strangers = Strangers::default();
        for (unit, _) in self.units.iter().enumerate().filter(|(_, h)| **h == Holds::Anything) {
            strangers.insert(unit);
        }
        TagRecord { held, strangers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tags::TagSpan;

    fn span(first: u16, last: u16) -> HeldTags {
        HeldTags::Span(TagSpan { first, last })
    }

    #[test]
    fn tags_begin_after_the_ones_that_are_never_given() {
        let mut tags = Tags::new();
        assert_eq!(tags.next(None, 255), Some(DomainTag(2)));
        for tag in 2..130 {
            tags.set(DomainTag(tag), true);
        }
        assert_eq!(tags.next(None, 255), Some(DomainTag(130)));
        assert_eq!(tags.next(Some(DomainTag(130)), 255), Some(DomainTag(131)));
        assert_eq!(tags.next(None, 129), None);
        tags.set(DomainTag(64), false);
        assert_eq!(tags.next(None, 129), Some(DomainTag(64)));
        assert_eq!(tags.next(Some(DomainTag(u16::MAX)), u16::MAX), None);
    }

    #[test]
    fn a_tag_that_is_taken_twice_is_taken() {
        let mut tags = Tags::new();
        tags.set(DomainTag(2), true);
        tags.set(DomainTag(2), true);
        assert_eq!(tags.next(None, 255), Some(DomainTag(3)));
        tags.set(DomainTag(2), false);
        tags.set(DomainTag(2), false);
        assert_eq!(tags.next(None, 255), Some(DomainTag(2)));
    }

    /// Half of the tags from 2 up, as far as units can hold them.
    #[test]
    fn tags_are_counted_as_far_as_units_hold_them() {
        let tags = |held, last| Tags::of(TagRing::new(held, last), held, Vec::new());
        let some = tags(HeldTags::Nothing, 33);
        assert_eq!([255, 33, 17, 16, 2, 1].map(|last| some.count(last)), [16, 16, 16, 15, 1, 0]);
        assert_eq!(tags(span(5, 11), 15).count(15), 7, "four, and three from the start");
        assert_eq!(tags(HeldTags::Nothing, u16::MAX).count(u16::MAX), 0x7fff);
    }

    /// A unit that fails may hold anything; one of which that is known already stays as it is.
    #[test]
    fn what_a_unit_may_hold_is_recorded_for_each() {
        let mut tags = Tags::new();
        tags.set_holds(UnitIndex(2), Holds::Anything);
        tags.set_holds(UnitIndex(1), Holds::Earlier);
        let holds = |tags: &Tags| [0, 1, 2, 3].map(|unit| tags.holds(UnitIndex(unit)));
        let before = [Holds::Nothing, Holds::Earlier, Holds::Anything, Holds::Nothing];
        assert_eq!(holds(&tags), before);
        (0..4).for_each(|unit| tags.failed(UnitIndex(unit)));
        assert_eq!(holds(&tags), [Holds::Failed, Holds::Failed, Holds::Anything, Holds::Failed]);
        tags.flushed(UnitIndex(1));
        assert_eq!(holds(&tags), [Holds::Failed, Holds::Nothing, Holds::Anything, Holds::Failed]);
    }

    /// A plan that was run may have written its tag, also if it was taken back.
    #[test]
    fn tags_that_were_reached_stay_in_the_record() {
        let mut tags = Tags::new();
        assert!(tags.reach(DomainTag(2)));
        let was = tags.clone();
        tags.set(DomainTag(3), true);
        tags.set_holds(UnitIndex(0), Holds::Failed);
        assert!(tags.reach(DomainTag(3)) && !tags.reach(DomainTag(2)));
        tags.undo(was);
        assert_eq!(tags.next(None, 255), Some(DomainTag(2)));
        assert_eq!(tags.holds(UnitIndex(0)), Holds::Nothing);
        assert_eq!(tags.record().held, span(2, 3));
    }
}
