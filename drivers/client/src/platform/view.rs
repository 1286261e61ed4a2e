//! Shared memory as Rust values: a whole mapping as one value or slice, or cut into parts with one owner each.
//!
//! Any bytes are a valid value of the types allowed here ([`FromBytes`]), so whatever a device writes cannot
//! break Rust's rules on values. When a device may write while a reference exists, the fields it writes are
//! to be atomics, as for memory shared with another thread.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use zerocopy::{FromBytes, IntoBytes};

use super::Memory;
use crate::error::Error;

/// A mapping that begins with a value of this type.
#[derive(Debug)]
pub(crate) struct View<T: ?Sized> {
    /// Inside of `memory`, aligned for `T`, and of its size.
    value: NonNull<T>,
    memory: Memory,
}

// SAFETY: the mapping is the process's, not a thread's; the value is reached as through a `Box<T>`.
unsafe impl<T: ?Sized + Send> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for View<T> {}

impl<T: FromBytes + IntoBytes> View<T> {
    /// # Errors
    /// [`Error::Outside`] when the memory is too short, or not aligned for the type.
    pub(crate) fn value(memory: Memory) -> Result<Self, Error> {
        let value = memory.aligned(0).ok_or(Error::Outside)?;
        Ok(Self { value, memory })
    }
}

impl<T: FromBytes + IntoBytes> View<[T]> {
    /// # Errors
    /// As [`View::value`].
    pub(crate) fn slice(memory: Memory, count: usize) -> Result<Self, Error> {
        let length = size_of::<T>().checked_mul(count).ok_or(Error::Outside)?;
        let first = memory.range(0, length).ok_or(Error::Outside)?.cast::<T>();
        if !first.is_aligned() {
            return Err(Error::Outside);
        }
        Ok(Self { value: NonNull::slice_from_raw_parts(first, count), memory })
    }
}

impl<T: ?Sized> View<T> {
    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

impl<T: ?Sized> Deref for View<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: both constructors checked that the value lies in the mapping, aligned; any bytes are a
        // value of it; the mapping lives as long as this, and is written only through `&mut self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for View<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the reference to `self` is the only one.
        unsafe { self.value.as_mut() }
    }
}

/// A part of a mapping that no other part overlaps. The mapping's owner lives as long as any of its parts.
#[derive(Debug)]
pub(crate) struct Piece<O> {
    bytes: NonNull<[u8]>,
    address: u64,
    /// Never shown: a reference to it would reach the bytes of other parts.
    _owner: Rc<O>,
}

/// Cuts `length` bytes of memory, whose first is at `address` for the device, into parts of `size` bytes. What is
/// behind them stays unused: a mapping may be longer than what the device reaches of it. Nothing but the parts
/// reaches the memory any more.
pub(crate) fn split<O>(
    owner: O,
    memory: fn(&O) -> &Memory,
    (address, length): (u64, u64),
    size: usize,
) -> Vec<Piece<O>> {
    let owner = Rc::new(owner);
    let length = usize::try_from(length).unwrap_or(0);
    let count = length.checked_div(size).unwrap_or(0);
    let piece = |index: usize| {
        let offset = u64::try_from(index * size).ok()?;
        let start = memory(&owner).range(offset, size)?;
        let bytes = NonNull::slice_from_raw_parts(start, size);
        let address = address.checked_add(offset)?;
        Some(Piece { bytes, address, _owner: owner.clone() })
    };
    (0..count).filter_map(piece).collect()
}

impl<O> Piece<O> {
    /// The device's address of the first byte.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    pub(crate) const fn bytes(&self) -> &[u8] {
        // SAFETY: inside of the owner's mapping, which lives; parts do not overlap, none is ever copied, and
        // this one is written only through `&mut self`.
        unsafe { self.bytes.as_ref() }
    }

    pub(crate) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the reference to `self` is the only one.
        unsafe { self.bytes.as_mut() }
    }
}
