//! The lowest level of the index of mappings.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::place::NONE;

/// The records that begin in 512 consecutive slots.
#[derive(Clone, Debug)]
pub(super) enum Leaf {
    /// A few, by slot.
    List(Vec<(u16, u32)>),
    /// One place for each slot, and the number of those that are taken.
    Many(Directory, u16),
}

/// Most records in the list of a leaf, so that no change moves many of them.
const FEW: usize = 32;

pub(super) type Directory = Box<[u32; 512]>;

impl Default for Leaf {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Leaf {
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<u32> {
        match self {
            Self::List(list) => match list.last() {
                Some((last, record)) if u32::from(*last) == slot => Some(*record),
                _ => list.get(place_of(list, slot).ok()?).map(|(_, record)| *record),
            },
            Self::Many(slots, _) => {
                slots.get(slot as usize).copied().filter(|record| *record != NONE)
            }
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::List(list) => list.is_empty(),
            Self::Many(_, count) => *count == 0,
        }
    }

    #[inline]
    pub(super) fn insert(&mut self, slot: u32, record: u32) {
        match self {
            Self::List(list) => {
                let Ok(number) = u16::try_from(slot) else { return };
                if list.last().is_none_or(|(last, _)| *last < number) {
                    list.push((number, record));
                } else if let Err(at) = place_of(list, slot) {
                    list.insert(at, (number, record));
                }
                if list.len() > FEW {
                    *self = many(list);
                }
            }
            Self::Many(slots, count) => {
                if let Some(place) = slots.get_mut(slot as usize) {
                    *count += u16::from(*place == NONE);
                    *place = record;
                }
            }
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: u32) {
        match self {
            Self::List(list) => {
                if let [.., (last, _)] = list.as_slice()
                    && u32::from(*last) == slot
                {
                    list.truncate(list.len() - 1);
                } else if let Ok(at) = place_of(list, slot) {
                    list.remove(at);
                }
            }
            Self::Many(slots, count) => {
                if let Some(place) = slots.get_mut(slot as usize) {
                    *count -= u16::from(*place != NONE);
                    *place = NONE;
                }
                if usize::from(*count) <= FEW / 4 {
                    *self = few(slots);
                }
            }
        }
    }

    /// Every record.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (list, slots): (&[(u16, u32)], &[u32]) = match self {
            Self::List(list) => (list, &[]),
            Self::Many(slots, _) => (&[], slots.as_slice()),
        };
        let slots = slots.iter().copied().filter(|record| *record != NONE);
        list.iter().map(|(_, record)| *record).chain(slots)
    }
}

/// The index of a slot in a list, or the index at which it would be inserted.
#[inline(never)]
fn place_of(list: &[(u16, u32)], slot: u32) -> Result<usize, usize> {
    list.binary_search_by_key(&slot, |(known, _)| u32::from(*known))
}

/// Turns a list into one place for each slot.
#[cold]
fn many(list: &[(u16, u32)]) -> Leaf {
    let mut slots: Directory = Box::new([NONE; 512]);
    for (slot, record) in list {
        if let Some(place) = slots.get_mut(usize::from(*slot)) {
            *place = *record;
        }
    }
    Leaf::Many(slots, u16::try_from(list.len()).unwrap_or(0))
}

/// Turns the places that are taken into a list.
#[cold]
fn few(slots: &[u32; 512]) -> Leaf {
    let left = (0_u16..).zip(slots.iter()).filter(|(_, record)| **record != NONE);
    Leaf::List(left.map(|(slot, record)| (slot, *record)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slot of each record: all different, in no order.
    fn slot_of(record: u32) -> u32 {
        record * 211 % 512
    }

    fn check(leaf: &Leaf, records: core::ops::Range<u32>) {
        for record in 0..40 {
            let expected = records.contains(&record).then_some(record);
            assert_eq!(leaf.get(slot_of(record)), expected, "{record} of {records:?}");
        }
        let mut all: Vec<u32> = leaf.iter().collect();
        all.sort_unstable();
        assert_eq!(all, records.clone().collect::<Vec<_>>());
        assert_eq!(leaf.is_empty(), records.is_empty());
    }

    #[test]
    fn a_leaf_has_places_for_all_slots_from_33_records_down_to_9() {
        let mut leaf = Leaf::default();
        for _ in 0..2 {
            check(&leaf, 0..0);
            for record in 0..40 {
                leaf.insert(slot_of(record), record);
                check(&leaf, 0..record + 1);
                assert_eq!(matches!(leaf, Leaf::List(_)), record < 32, "{record}");
            }
            for record in 0..40 {
                leaf.remove(slot_of(record));
                check(&leaf, record + 1..40);
                assert_eq!(matches!(leaf, Leaf::List(_)), record >= 31, "{record}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_removed() {
        let mut leaf = Leaf::default();
        for count in 0..40 {
            leaf.remove(slot_of(count));
            check(&leaf, 0..count);
            leaf.insert(slot_of(count), count);
        }
    }
}
