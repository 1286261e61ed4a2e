//! The lowest level of the index of mappings.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::NONE;

/// The records that begin in 512 consecutive slots.
#[derive(Clone, Debug)]
pub(super) enum Leaf {
    /// A few, by slot.
    Few(Vec<(u16, u32)>),
    /// One place for each slot, and how many are taken.
    Many(Directory, u16),
}

/// Most records of a leaf that are kept as a list, so that none of its changes moves much.
const FEW: usize = 32;

pub(super) type Directory = Box<[u32; 512]>;

impl Default for Leaf {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Leaf {
    pub(super) fn get(&self, slot: u32) -> Option<u32> {
        match self {
            Self::Few(list) => {
                let at = list.binary_search_by_key(&slot, |(known, _)| u32::from(*known)).ok()?;
                list.get(at).map(|(_, record)| *record)
            }
            Self::Many(slots, _) => {
                slots.get(slot as usize).copied().filter(|record| *record != NONE)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(_, count) => *count == 0,
        }
    }

    pub(super) fn insert(&mut self, slot: u32, record: u32) {
        match self {
            Self::Few(list) => {
                let place = list.binary_search_by_key(&slot, |(known, _)| u32::from(*known));
                if let (Err(at), Ok(slot)) = (place, u16::try_from(slot)) {
                    list.insert(at, (slot, record));
                }
                if list.len() > FEW {
                    let mut slots: Directory = Box::new([NONE; 512]);
                    for (slot, record) in list.iter() {
                        if let Some(place) = slots.get_mut(usize::from(*slot)) {
                            *place = *record;
                        }
                    }
                    let count = u16::try_from(list.len()).unwrap_or(0);
                    *self = Self::Many(slots, count);
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

    pub(super) fn remove(&mut self, slot: u32) {
        match self {
            Self::Few(list) => {
                let place = list.binary_search_by_key(&slot, |(known, _)| u32::from(*known));
                if let Ok(at) = place {
                    list.remove(at);
                }
            }
            Self::Many(slots, count) => {
                if let Some(place) = slots.get_mut(slot as usize) {
                    *count -= u16::from(*place != NONE);
                    *place = NONE;
                }
                if usize::from(*count) <= FEW / 4 {
                    let left = (0_u16..).zip(slots.iter()).filter(|(_, record)| **record != NONE);
                    *self = Self::Few(left.map(|(slot, record)| (slot, *record)).collect());
                }
            }
        }
    }

    /// Every record.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (list, slots): (&[(u16, u32)], &[u32]) = match self {
            Self::Few(list) => (list, &[]),
            Self::Many(slots, _) => (&[], slots.as_slice()),
        };
        let slots = slots.iter().copied().filter(|record| *record != NONE);
        list.iter().map(|(_, record)| *record).chain(slots)
    }
}
