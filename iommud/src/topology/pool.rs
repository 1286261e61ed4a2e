//! A pool of objects. An object is found by its place, a number that is not stored with the object.

use alloc::vec::Vec;

/// No object has this place.
pub const NOWHERE: u32 = u32::MAX;

/// Objects by place. The places of removed objects are used again, the last one first.
#[derive(Clone, Debug)]
pub struct Pool<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Pool<T> {
    /// Makes room for `more` more objects.
    pub fn reserve(&mut self, more: usize) {
        self.places.reserve(more.saturating_sub(self.free.len()));
    }

    /// The place that [`Pool::insert`] will give next; [`NOWHERE`] when there is none left.
    #[must_use]
    pub fn next(&self) -> u32 {
        let fresh = || u32::try_from(self.places.len()).unwrap_or(NOWHERE);
        self.free.last().copied().unwrap_or_else(fresh)
    }

    /// Enters an object; `None` when the pool is full.
    pub fn insert(&mut self, value: T) -> Option<u32> {
        let place = self.next();
        if place == NOWHERE {
            return None;
        }
        match self.free.pop() {
            Some(_) => *self.places.get_mut(place as usize)? = Some(value),
            None => self.places.push(Some(value)),
        }
        Some(place)
    }

    /// Removes an object.
    pub fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(value)
    }

    /// The object at a place.
    #[must_use]
    pub fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    /// The object at a place.
    pub fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    /// All objects with their places, in order of place.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.places).filter_map(|(place, object)| Some((place, object.as_ref()?)))
    }

    /// Number of objects.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_the_last_one_first() {
        let mut pool = Pool::default();
        for (place, object) in (0..4).zip("abcd".chars()) {
            assert_eq!(pool.next(), place);
            assert_eq!(pool.insert(object), Some(place));
        }
        assert_eq!((pool.remove(1), pool.remove(3)), (Some('b'), Some('d')));
        assert_eq!((pool.remove(1), pool.len()), (None, 2));
        assert_eq!(pool.get(1), None);
        assert_eq!(pool.iter().collect::<Vec<_>>(), [(0, &'a'), (2, &'c')]);
        assert_eq!((pool.next(), pool.insert('e')), (3, Some(3)));
        assert_eq!((pool.insert('f'), pool.insert('g')), (Some(1), Some(4)));
        assert_eq!((pool.remove(9), pool.get(9)), (None, None));
    }
}
