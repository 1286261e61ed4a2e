//! Numbered objects, with access by number in constant time. Numbers are not reused at once.

use alloc::vec::Vec;
use core::fmt;

/// Bits of a number that are the place. The bits above count the uses of the place.
const PLACE_BITS: u32 = 20;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

/// Objects and their numbers.
#[derive(Clone)]
pub(in crate::policy) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    /// Whether a number counts the uses of its place, so that the number of a removed object stays invalid.
    generations: bool,
}

#[derive(Clone)]
struct Entry<T> {
    number: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// A slab whose numbers stay small: the number of a removed object is reused.
    pub(in crate::policy) const fn small() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), generations: false }
    }

    /// A slab whose numbers are reused only after 4096 uses of the same place.
    pub(in crate::policy) const fn distinct() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), generations: true }
    }

    /// The number that the next [`Slab::insert`] gives; `None` when the slab is full.
    pub(in crate::policy) fn next(&self) -> Option<u32> {
        match self.free.last() {
            Some(place) => Some(self.entries.get(*place as usize)?.number),
            None => u32::try_from(self.entries.len()).ok().filter(|place| *place <= PLACE_MASK),
        }
    }

    /// Inserts an object; returns its number. `None` when the slab is full.
    pub(in crate::policy) fn insert(&mut self, value: T) -> Option<u32> {
        let number = self.next()?;
        match self.free.pop() {
            Some(place) => self.entries.get_mut(place as usize)?.value = Some(value),
            None => self.entries.push(Entry { number, value: Some(value) }),
        }
        Some(number)
    }

    /// Undoes the last [`Slab::insert`] that was not undone: its number is the next one again. All later changes were
    /// undone before.
    pub(in crate::policy) fn undo_insert(&mut self, number: u32) {
        let place = number & PLACE_MASK;
        if let Some(entry) = self.entries.get_mut(place as usize) {
            entry.value = None;
            self.free.push(place);
        }
    }

    /// Undoes the last [`Slab::remove`] that was not undone. All later changes were undone before.
    pub(in crate::policy) fn undo_remove(&mut self, number: u32, value: T) {
        let place = number & PLACE_MASK;
        if let Some(entry) = self.entries.get_mut(place as usize) {
            *entry = Entry { number, value: Some(value) };
            self.free.pop();
        }
    }

    /// Removes an object; its number becomes invalid.
    pub(in crate::policy) fn remove(&mut self, number: u32) -> Option<T> {
        let generations = self.generations;
        let place = number & PLACE_MASK;
        let entry = self.entries.get_mut(place as usize).filter(|entry| entry.number == number)?;
        let value = entry.value.take()?;
        if generations {
            entry.number = number.wrapping_add(1 << PLACE_BITS);
        }
        self.free.push(place);
        Some(value)
    }

    /// The object with a number.
    pub(in crate::policy) fn get(&self, number: u32) -> Option<&T> {
        let entry = self.entries.get((number & PLACE_MASK) as usize)?;
        if entry.number == number { entry.value.as_ref() } else { None }
    }

    /// The object with a number.
    pub(in crate::policy) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let entry = self.entries.get_mut((number & PLACE_MASK) as usize)?;
        if entry.number == number { entry.value.as_mut() } else { None }
    }

    /// All objects with their numbers.
    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries.iter().filter_map(|entry| Some((entry.number, entry.value.as_ref()?)))
    }

    /// Number of objects.
    pub(in crate::policy) const fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

impl<T: fmt::Debug> fmt::Debug for Slab<T> {
    /// Shows the objects, and the numbers that the next ones get: all state that is visible from outside. Free places
    /// that equal new ones at the end are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut end = self.entries.len();
        let is_new = |place: &u32, at: usize| {
            let entry = self.entries.get(*place as usize);
            *place as usize == at && entry.is_some_and(|entry| entry.number >> PLACE_BITS == 0)
        };
        let kept = self.free.iter().take_while(|place| {
            let new = is_new(place, end.wrapping_sub(1));
            end -= usize::from(new);
            new
        });
        let skipped = kept.count();
        let next = self.free.iter().skip(skipped).rev();
        let next = next.filter_map(|place| self.entries.get(*place as usize));
        f.debug_map()
            .entries(self.iter())
            .entry(&"next", &next.map(|entry| entry.number).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn shown(slab: &Slab<char>) -> alloc::string::String {
        format!("{slab:?}")
    }

    #[test]
    fn the_next_number_is_the_one_given() {
        for mut slab in [Slab::small(), Slab::distinct()] {
            for n in 0..5 {
                slab.insert(n);
            }
            slab.remove(1);
            slab.remove(3);
            for n in 0..4 {
                let next = slab.next();
                assert_eq!((next.is_some(), slab.insert(n)), (true, next));
            }
            assert_eq!(slab.len(), 7);
        }
    }

    #[test]
    fn a_removed_object_is_named_by_nothing() {
        let mut slab = Slab::distinct();
        let old = slab.insert('a').unwrap();
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('b').unwrap();
        assert_ne!(old, new);
        assert_eq!((slab.get(old), slab.get(new)), (None, Some(&'b')));
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.iter().collect::<Vec<_>>(), [(new, &'b')]);
    }

    #[test]
    fn free_places_are_shown_unless_they_equal_new_ones_at_the_end() {
        let filled = |mut slab: Slab<char>, gone: &[u32]| {
            for value in ['a', 'b', 'c'] {
                slab.insert(value);
            }
            for number in gone {
                assert!(slab.remove(*number).is_some());
            }
            shown(&slab)
        };
        assert_eq!(filled(Slab::small(), &[2]), r#"{0: 'a', 1: 'b', "next": []}"#);
        assert_eq!(filled(Slab::small(), &[1]), r#"{0: 'a', 2: 'c', "next": [1]}"#);
        assert_eq!(filled(Slab::small(), &[0, 1]), r#"{2: 'c', "next": [1, 0]}"#);
        // The next use of the last place has another number than the first one had: 2^20 + 2.
        assert_eq!(filled(Slab::distinct(), &[2]), r#"{0: 'a', 1: 'b', "next": [1048578]}"#);
    }

    /// Undone changes leave no trace: the same numbers come next, in the same order.
    #[test]
    fn undone_is_as_before() {
        for make in [Slab::small, Slab::distinct] {
            let mut slab = make();
            let numbers = ['a', 'b', 'c', 'd'].map(|value| slab.insert(value).unwrap());
            slab.remove(numbers[1]);
            let before = (shown(&slab), slab.clone());
            let inserted = ['e', 'f', 'g'].map(|value| slab.insert(value).unwrap());
            let c = slab.remove(numbers[2]).unwrap();
            let f = slab.remove(inserted[1]).unwrap();
            assert_ne!(shown(&slab), before.0);
            slab.undo_remove(inserted[1], f);
            slab.undo_remove(numbers[2], c);
            inserted.iter().rev().for_each(|number| slab.undo_insert(*number));
            assert_eq!(shown(&slab), before.0);
            let mut same = before.1;
            for value in ['x', 'y', 'z', 'u'] {
                assert_eq!(slab.insert(value), same.insert(value));
            }
        }
    }
}
