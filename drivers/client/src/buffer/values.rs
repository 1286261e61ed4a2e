//! Values in buffers, copied in and out.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::DmaBuffer;
use crate::error::Error;

impl<T: FromBytes + IntoBytes> DmaBuffer<T> {
    /// The value as it is now.
    #[must_use]
    #[track_caller]
    pub fn load(&self) -> T {
        // The size of the memory was checked when the buffer was made.
        self.load_at(0).unwrap_or_else(|_| T::new_zeroed())
    }

    /// Replaces the value.
    #[track_caller]
    pub fn store(&mut self, value: T) {
        let stored = self.store_at(0, value);
        debug_assert!(stored.is_ok());
    }
}

impl<T: FromBytes + IntoBytes> DmaBuffer<[T]> {
    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no values.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A value as it is now.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn get(&self, index: usize) -> Result<T, Error> {
        self.load_at(self.offset_of(index, 1)?)
    }

    /// Replaces one value.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn set(&mut self, index: usize, value: T) -> Result<(), Error> {
        let offset = self.offset_of(index, 1)?;
        self.store_at(offset, value)
    }

    /// Copies values out, from the one at `first` on.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[track_caller]
    pub fn copy_to(&self, first: usize, values: &mut [T]) -> Result<(), Error> {
        let offset = self.offset_of(first, values.len())?;
        self.read(offset, values.as_mut_bytes())
    }

    /// Copies values in, from the one at `first` on.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[track_caller]
    pub fn copy_from(&mut self, first: usize, values: &[T]) -> Result<(), Error>
    where
        T: Immutable,
    {
        let offset = self.offset_of(first, values.len())?;
        self.write(offset, values.as_bytes())
    }

    /// All values as they are now.
    #[must_use]
    #[track_caller]
    pub fn to_vec(&self) -> Vec<T> {
        let mut values: Vec<T> = std::iter::repeat_with(T::new_zeroed).take(self.count).collect();
        let copied = self.copy_to(0, &mut values);
        debug_assert!(copied.is_ok());
        values
    }

    /// Byte offset of `count` values, the first of which is at `index`.
    #[inline]
    fn offset_of(&self, index: usize, count: usize) -> Result<u64, Error> {
        let end = index.checked_add(count).filter(|end| *end <= self.count);
        let offset = end.and_then(|_| index.checked_mul(size_of::<T>()));
        offset.and_then(|offset| u64::try_from(offset).ok()).ok_or(Error::Outside)
    }
}

impl<T: ?Sized> DmaBuffer<T> {
    /// The value at `offset` as it is now.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn load_at<V: FromBytes + IntoBytes>(&self, offset: u64) -> Result<V, Error> {
        let mut value = V::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Puts a value at `offset`.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn store_at<V: FromBytes + IntoBytes>(
        &mut self,
        offset: u64,
        mut value: V,
    ) -> Result<(), Error> {
        self.write(offset, value.as_mut_bytes())
    }
}
