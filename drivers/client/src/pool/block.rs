//! A block of a pool.

use std::ops::Range;
use std::panic::Location;
use std::rc::Rc;

use zerocopy::{FromBytes, IntoBytes};

use super::class::{Class, Node};
use crate::error::Error;
use crate::scatter::DeviceMemory;
use crate::snapshot::Snapshot;

/// A block of a pool, given back when dropped. It may outlive its pool. The device reaches it all the time, so bytes
/// are copied in and out, like those of a [`DmaBuffer`](crate::DmaBuffer).
#[derive(Debug)]
pub struct DmaBlock {
    /// Present until the drop.
    node: Option<Box<Node>>,
    length: u64,
    home: Rc<Class>,
}

impl DmaBlock {
    #[inline]
    #[track_caller]
    pub(super) fn take(home: &Rc<Class>, length: u64) -> Option<Self> {
        let node = home.take()?;
        Some(Self { node: Some(node), length, home: home.clone() })
    }

    /// The I/O virtual address of the first byte, to be given to the device.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> u64 {
        self.node.as_ref().map_or(0, |node| node.piece.address())
    }

    /// The requested length, in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Copies bytes into the block.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    #[track_caller]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.watch_write(offset, bytes.len());
        self.node.as_mut().ok_or(Error::Outside)?.piece.write(offset, bytes)
    }

    /// Copies bytes out of the block.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    #[track_caller]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        if let Some(sanitizer) = &self.home.sanitizer {
            let bytes = self.addresses(offset, bytes.len());
            sanitizer.read_block((self.iova(), self.length), bytes, Location::caller());
        }
        self.node.as_ref().ok_or(Error::Outside)?.piece.read(offset, bytes)
    }

    /// All of its bytes as they are now.
    #[must_use]
    #[track_caller]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(0)];
        let copied = self.read(0, &mut bytes);
        debug_assert!(copied.is_ok());
        bytes
    }

    /// Sets every byte.
    #[track_caller]
    pub fn fill(&mut self, byte: u8) {
        let length = usize::try_from(self.length).unwrap_or(0);
        self.watch_write(0, length);
        let filled = self.node.as_mut().map(|node| node.piece.fill(0, length, byte));
        debug_assert!(matches!(filled, Some(Ok(()))));
    }

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

    /// Copies the value at `offset` once. The driver looks at the copy.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    #[track_caller]
    pub fn snapshot_at<V: FromBytes + IntoBytes>(&self, offset: u64) -> Result<Snapshot<V>, Error> {
        let mut value = V::new_zeroed();
        let bytes = value.as_mut_bytes();
        self.check(offset, bytes.len())?;
        if let Some(sanitizer) = &self.home.sanitizer {
            sanitizer.snapshot(self.addresses(offset, bytes.len()), Location::caller());
        }
        self.node.as_ref().ok_or(Error::Outside)?.piece.read(offset, bytes)?;
        Ok(Snapshot::new(value))
    }

    #[inline]
    #[track_caller]
    fn watch_write(&self, offset: u64, length: usize) {
        if let Some(sanitizer) = &self.home.sanitizer {
            sanitizer.written(self.addresses(offset, length), Location::caller());
        }
    }

    /// I/O virtual addresses of bytes that were checked.
    fn addresses(&self, offset: u64, length: usize) -> Range<u64> {
        let first = self.iova() + offset;
        first..first.saturating_add(u64::try_from(length).unwrap_or(0))
    }

    /// Checks against the requested length, since the block may be larger.
    #[inline]
    fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= self.length) { Ok(()) } else { Err(Error::Outside) }
    }
}

impl DeviceMemory for DmaBlock {
    fn iova(&self) -> u64 {
        Self::iova(self)
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for DmaBlock {
    #[inline]
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.home.put(node);
        }
    }
}
