//! Numbered objects: constant-time access by number, numbers that are not used again at once.

use alloc::vec::Vec;

/// Bits of a number that are the place; the bits above count how often the place was used.
const PLACE_BITS: u32 = 20;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

/// Objects and their numbers.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    /// Whether a number says how often its place was used, so that one of a removed object names nothing.
    generations: bool,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    number: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// Objects whose numbers stay small: the number of a removed one is used again.
    pub(in crate::policy) const fn small() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), generations: false }
    }

    /// Objects whose numbers come back only after 4096 uses of the same place.
    pub(in crate::policy) const fn distinct() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), generations: true }
    }

    /// The number that the `ahead`-th [`Slab::insert`] from now will give, from 0; `None` when the slab is full.
    pub(in crate::policy) fn upcoming(&self, ahead: usize) -> Option<u32> {
        if let Some(at) = self.free.len().checked_sub(ahead + 1) {
            return Some(self.entries.get(*self.free.get(at)? as usize)?.number);
        }
        let fresh = self.entries.len() + ahead - self.free.len();
        u32::try_from(fresh).ok().filter(|place| *place <= PLACE_MASK)
    }

    /// Enters an object under the number that [`Slab::upcoming`] gave.
    pub(in crate::policy) fn insert(&mut self, value: T) -> Option<u32> {
        let number = self.upcoming(0)?;
        match self.free.pop() {
            Some(place) => self.entries.get_mut(place as usize)?.value = Some(value),
            None => self.entries.push(Entry { number, value: Some(value) }),
        }
        Some(number)
    }

    /// Removes an object; its number then names nothing.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upcoming_numbers_are_the_ones_given() {
        for mut slab in [Slab::small(), Slab::distinct()] {
            for n in 0..5 {
                slab.insert(n);
            }
            slab.remove(1);
            slab.remove(3);
            let expected: Vec<_> = (0..4).map(|ahead| slab.upcoming(ahead)).collect();
            let given: Vec<_> = (0..4).map(|n| slab.insert(n)).collect();
            assert_eq!(given, expected);
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
}
