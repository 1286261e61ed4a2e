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
