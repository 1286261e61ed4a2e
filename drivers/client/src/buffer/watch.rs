//! Accesses of a buffer, as the sanitizer sees them.

use std::ops::Range;
use std::panic::Location;

use zerocopy::{FromBytes, IntoBytes};

use super::DmaBuffer;
use crate::error::Error;
use crate::snapshot::Snapshot;

impl<T: ?Sized> DmaBuffer<T> {
    /// Copies the value at `offset` once. The driver looks at the copy.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn snapshot_at<V: FromBytes + IntoBytes>(&self, offset: u64) -> Result<Snapshot<V>, Error> {
        let mut value = V::new_zeroed();
        self.copy_once(offset, value.as_mut_bytes())?;
        Ok(Snapshot::new(value))
    }

    /// Copies `length` bytes from `offset` on once. The driver looks at the copy.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[track_caller]
    pub fn snapshot_bytes(&self, offset: u64, length: usize) -> Result<Snapshot<Vec<u8>>, Error> {
        self.check(offset, length)?;
        let mut bytes = vec![0; length];
        self.copy_once(offset, &mut bytes)?;
        Ok(Snapshot::new(bytes))
    }

    #[inline]
    #[track_caller]
    fn copy_once(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        if let Some(sanitizer) = &self.sanitizer {
            sanitizer.snapshot(self.own(offset, bytes.len()), Location::caller());
        }
        self.memory.read(offset, bytes)
    }

    #[inline]
    #[track_caller]
    pub(super) fn watch_read(&self, offset: u64, length: usize) {
        if let Some(sanitizer) = &self.sanitizer {
            sanitizer.read(self.own(offset, length), Location::caller());
        }
    }

    #[inline]
    #[track_caller]
    pub(super) fn watch_write(&self, offset: u64, length: usize) {
        if let Some(sanitizer) = &self.sanitizer {
            sanitizer.written(self.own(offset, length), Location::caller());
        }
    }

    /// The buffer's own addresses of bytes that were checked.
    fn own(&self, offset: u64, length: usize) -> Range<u64> {
        let first = self.iova + offset;
        first..first.saturating_add(u64::try_from(length).unwrap_or(0))
    }
}
