//! The entries of all units: found by unit and requester id, listed in their order.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use iommu_protocol::ids::RequesterId;

use crate::policy::collections::inline_list::InlineList;
use crate::policy::ids::{Key, UnitIndex};
use crate::policy::state::objects::Source;
use crate::policy::step::Binding;
use crate::topology::numbers::Numbers;
use crate::topology::pool::{NOWHERE, Pool};

/// The entries of one unit.
#[derive(Clone)]
struct OfUnit {
    /// Places in the pool.
    places: Numbers,
    entries: Pool<Source>,
}

/// The most requester ids of no known function whose faults are suppressed, of all units together. Each may need a
/// table for its bus.
pub(in crate::policy) const MOST_STRANGERS: usize = 64;

/// The entries of all units that functions use.
#[derive(Clone)]
pub(in crate::policy) struct SourceTable {
    units: Vec<OfUnit>,
    /// Requester ids of no known function whose faults are suppressed. Their entries deny.
    strangers: BTreeSet<Key>,
    /// Entries whose last function was removed in the decision under way, and which it has not written yet.
    leaving: BTreeMap<Key, Source>,
}

impl SourceTable {
    pub(in crate::policy) fn get(&self, (unit, source): Key) -> Option<&Source> {
        let of = self.units.get(unit.0 as usize)?;
        of.entries.get(of.places.get(source)?)
    }

    /// An entry, including one whose last function was removed in the decision under way.
    pub(in crate::policy) fn get_mut(&mut self, key: Key) -> Option<&mut Source> {
        if let Some(left) = self.leaving.get_mut(&key) {
            return Some(left);
        }
        let of = self.units.get_mut(key.0.0 as usize)?;
        of.entries.get_mut(of.places.get(key.1)?)
    }

    /// Requester ids of no known function whose faults are suppressed.
    pub(in crate::policy) const fn strangers(&self) -> &BTreeSet<Key> {
        &self.strangers
    }

    /// Whether faults of a requester are suppressed.
    pub(in crate::policy) fn is_silenced(&self, key: Key) -> bool {
        let known = self.get(key).or_else(|| self.leaving.get(&key));
        known.is_some_and(|source| source.silenced) || self.strangers.contains(&key)
    }

    /// Records whether faults of a requester are suppressed.
    pub(in crate::policy) fn suppress_faults(&mut self, key: Key, silent: bool) {
        let known = self.get_mut(key).map(|source| source.silenced = silent).is_some();
        if silent && !known {
            self.strangers.insert(key);
        } else {
            self.strangers.remove(&key);
        }
    }

    /// The entries of a unit, in order of requester id.
    pub(in crate::policy) fn of(
        &self,
        unit: UnitIndex,
    ) -> impl Iterator<Item = (RequesterId, &Source)> {
        self.units.get(unit.0 as usize).into_iter().flat_map(|of| {
            of.places.iter().filter_map(|(source, place)| Some((source, of.entries.get(place)?)))
        })
    }

    /// All entries, in order of unit and requester id.
    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = (Key, &Source)> {
        (0..)
            .map(UnitIndex)
            .take(self.units.len())
            .flat_map(|unit| self.of(unit).map(move |(source, entry)| ((unit, source), entry)))
    }

    /// Creates a table without entries, for this number of units.
    pub(super) fn new(units: usize) -> Self {
        let none = OfUnit { places: Numbers::default(), entries: Pool::default() };
        Self {
            units: alloc::vec![none; units],
            strangers: BTreeSet::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// An entry, created when there is none. A new one has no users and denies. `None` without such a unit, or when
    /// the pool is full.
    pub(in crate::policy) fn enter(&mut self, (unit, source): Key) -> Option<&mut Source> {
        let of = self.units.get_mut(unit.0 as usize)?;
        // Until the entry is written, the record has the state of the entry in the unit.
        let silenced = !self.strangers.is_empty() && self.strangers.remove(&(unit, source));
        let left = self.leaving.remove(&(unit, source));
        let new =
            || left.unwrap_or(Source { users: InlineList::default(), binding: None, silenced });
        let entries = &mut of.entries;
        let place = of
            .places
            .update(source, |known| known.or_else(|| entries.insert(new())).unwrap_or(NOWHERE));
        of.entries.get_mut(place)
    }

    /// Reserves room for this many more entries, if there is one unit.
    pub(super) fn reserve(&mut self, more: usize) {
        if let [only] = self.units.as_mut_slice() {
            only.entries.reserve(more);
        }
    }

    /// Drops an entry that was never written.
    pub(in crate::policy) fn remove(&mut self, key: Key) {
        if self.take(key).is_some_and(|entry| entry.silenced) {
            self.strangers.insert(key);
        }
    }

    /// Records that the last function that used an entry is gone. The decision must write the entry, if anything was
    /// ever written there.
    pub(super) fn leave(&mut self, key: Key) {
        let written = |entry: &Source| entry.binding.is_some() || entry.silenced;
        if let Some(entry) = self.take(key).filter(written) {
            self.leaving.insert(key, entry);
        }
    }

    fn take(&mut self, (unit, source): Key) -> Option<Source> {
        let of = self.units.get_mut(unit.0 as usize)?;
        of.entries.remove(of.places.remove(source)?)
    }

    /// The binding of an entry in the decision under way, and whether its last function was removed in it.
    pub(in crate::policy) fn under_way(&self, key: Key) -> (Option<Binding>, bool) {
        match self.leaving.get(&key) {
            Some(left) => (left.binding, true),
            None => (self.get(key).and_then(|source| source.binding), false),
        }
    }

    /// Drops an entry whose last function was removed, and which is written now.
    pub(in crate::policy) fn drop_left(&mut self, key: Key) -> Option<Source> {
        self.leaving.remove(&key)
    }

    /// Undoes [`SourceTable::drop_left`].
    pub(in crate::policy) fn undo_drop(&mut self, key: Key, source: Source) {
        self.leaving.insert(key, source);
    }
}

impl fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).entry(&"strangers", &self.strangers).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    const fn key(unit: u32, id: u16) -> Key {
        (UnitIndex(unit), RequesterId(id))
    }

    /// The faults of an id may be suppressed before a function uses it. Its entry then begins in that state.
    #[test]
    fn an_entry_begins_as_silent_as_its_id() {
        let mut table = SourceTable::new(2);
        let ids = [key(0, 8), key(1, 8), key(1, 9)];
        let silenced = |table: &SourceTable| ids.map(|id| table.is_silenced(id));
        assert!(!table.enter(key(0, 7)).unwrap().silenced);
        table.suppress_faults(ids[0], true);
        table.suppress_faults(ids[2], true);
        assert_eq!(silenced(&table), [true, false, true]);
        assert!(!table.enter(ids[1]).unwrap().silenced, "another unit, and another id");
        assert!(table.enter(ids[0]).unwrap().silenced);
        assert_eq!(silenced(&table), [true, false, true]);
        assert_eq!(table.strangers().iter().collect::<Vec<_>>(), [&ids[2]]);
        assert!(table.enter(ids[0]).unwrap().silenced, "which is there already");
        table.remove(ids[0]);
        assert_eq!(table.strangers().len(), 2, "and ends as it is");
        table.suppress_faults(ids[0], false);
        table.suppress_faults(ids[2], false);
        assert_eq!(silenced(&table), [false; 3]);
        assert!(table.enter(key(2, 0)).is_none(), "there is no such unit");
    }

    /// Checkpoints are compared by what is shown.
    #[test]
    fn entries_and_silent_ids_are_shown() {
        let mut table = SourceTable::new(1);
        let shown = |table: &SourceTable| format!("{table:?}");
        let none = shown(&table);
        table.enter(key(0, 8));
        let entry = shown(&table);
        table.suppress_faults(key(0, 9), true);
        let both = shown(&table);
        assert!(none != entry && entry != both, "{both}");
        table.suppress_faults(key(0, 9), false);
        assert_eq!(shown(&table), entry);
        table.remove(key(0, 8));
        assert_eq!(shown(&table), none);
    }
}
