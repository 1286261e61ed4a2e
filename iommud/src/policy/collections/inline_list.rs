//! Lists that almost always have one element, which is stored inline.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

/// A list in insertion order.
#[derive(Clone, Default)]
#[expect(clippy::box_collection, reason = "there are many lists, and the longer ones are few")]
pub(in crate::policy) enum InlineList<T> {
    #[default]
    None,
    One(T),
    Many(Box<Vec<T>>),
}

impl<T> Deref for InlineList<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(one) => core::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl<T: Copy> InlineList<T> {
    pub(in crate::policy) fn push(&mut self, new: T) {
        match self {
            Self::None => *self = Self::One(new),
            Self::One(one) => *self = Self::Many(Box::new(alloc::vec![*one, new])),
            Self::Many(many) => many.push(new),
        }
    }

    pub(in crate::policy) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        match self {
            Self::None => {}
            Self::One(one) if keep(one) => {}
            Self::One(_) => *self = Self::None,
            Self::Many(many) => many.retain(keep),
        }
    }
}

impl<T: Copy> FromIterator<T> for InlineList<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut few = Self::default();
        all.into_iter().for_each(|each| few.push(each));
        few
    }
}

impl<T: fmt::Debug> fmt::Debug for InlineList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_whatever_its_length() {
        let mut few = InlineList::default();
        let mut list = Vec::new();
        for (step, new) in [3, 1, 4, 1, 5].into_iter().enumerate() {
            few.push(new);
            list.push(new);
            assert_eq!((&*few, few.len()), (&list[..], step + 1));
        }
        for gone in [1, 3, 5, 4] {
            few.retain(|each| *each != gone);
            list.retain(|each| *each != gone);
            assert_eq!(*few, *list);
        }
        let mut one: InlineList<_> = [9].into_iter().collect();
        one.retain(|each| *each == 9);
        assert_eq!(*one, [9]);
        assert_eq!(alloc::format!("{few:?} {one:?}"), "[] [9]");
        few.push(9);
        few.retain(|each| *each == 9);
        assert_eq!(*few, [9]);
        few.retain(|_| false);
        assert!(few.is_empty());
        assert_eq!(*[7, 8].into_iter().collect::<InlineList<_>>(), [7, 8]);
    }
}
