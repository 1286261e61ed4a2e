//! A value that a driver and its device share.
//!
//! The interface is that of `common::dma`, references included. So what that asks of a driver, this asks too: what the
//! device writes while a reference exists is of a type that bears it, a cell or one that is accessed volatilely.
#![allow(unsafe_code)]

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::ptr;

use super::{EINVAL, ENOMEM, Error, Result};
use crate::region::Region;

/// The alignment of all memory of this crate for this process, in bytes.
const PAGE: usize = 4096;

/// A `T` in memory that the device reaches, at the start of whole pages under adjacent addresses, aligned to the next
/// power of two as long as there is room.
///
/// ```
/// use redox_dma::dma::Dma;
///
/// let mut ring = unsafe { Dma::<[u64]>::zeroed_slice(512)?.assume_init() };
/// let status = Dma::new(0xff_u8)?;
/// ring[0] = status.physical() as u64;
/// # Ok::<(), redox_dma::Error>(())
/// ```
pub struct Dma<T: ?Sized> {
    /// Dropped in `drop`. A raw pointer: like the memory of `common`, it is neither `Send` nor `Sync` by itself.
    value: *mut T,
    /// Given back after the value was dropped.
    region: Region,
}

impl<T> Dma<T> {
    /// Allocates memory, and puts `value` there.
    ///
    /// # Errors
    /// The errors of [`Dma::zeroed`].
    pub fn new(value: T) -> Result<Self> {
        let mut memory = Self::zeroed()?;
        memory.write(value);
        // SAFETY: the value was just written.
        Ok(unsafe { memory.assume_init() })
    }

    /// Allocates memory for a `T`, filled with zeros.
    ///
    /// # Errors
    /// `EINVAL` for a type without bytes, or one that wants more alignment than a page; `ENOMEM`; what the crate's
    /// table says.
    pub fn zeroed() -> Result<Dma<MaybeUninit<T>>> {
        let region = region::<T>(1)?;
        Ok(Dma { value: region.start().as_ptr().cast(), region })
    }
}

impl<T> Dma<MaybeUninit<T>> {
    /// States that the memory holds a `T`.
    ///
    /// # Safety
    /// It does: it was written, or zeros are a value of `T`.
    #[must_use]
    pub unsafe fn assume_init(self) -> Dma<T> {
        self.become_value(<*mut MaybeUninit<T>>::cast)
    }
}

impl<T> Dma<[T]> {
    /// Allocates memory for `count` values, filled with zeros.
    ///
    /// # Errors
    /// The errors of [`Dma::zeroed`]; `EINVAL` for no values.
    pub fn zeroed_slice(count: usize) -> Result<Dma<[MaybeUninit<T>]>> {
        let region = region::<T>(count)?;
        let first = region.start().as_ptr().cast();
        Ok(Dma { value: ptr::slice_from_raw_parts_mut(first, count), region })
    }

    /// Takes the values for as many values of another type.
    ///
    /// # Safety
    /// The memory holds as many `U`s: they fit, and the bytes are values of that type. The `T`s need no drop.
    #[must_use]
    pub unsafe fn cast_slice<U>(self) -> Dma<[U]> {
        self.become_value(|values| values as *mut [U])
    }
}

impl<T> Dma<[MaybeUninit<T>]> {
    /// States that the memory holds `T`s.
    ///
    /// # Safety
    /// It does: they were written, or zeros are a value of `T`.
    #[must_use]
    pub unsafe fn assume_init(self) -> Dma<[T]> {
        self.become_value(|values| values as *mut [T])
    }
}

impl<T: ?Sized> Dma<T> {
    /// The address of the first byte for the device: an I/O virtual address where the device is confined, and else
    /// the physical address.
    #[must_use]
    pub fn physical(&self) -> usize {
        self.region.physical()
    }

    /// The same memory as another value. The callers, which are unsafe, pass on who says that it is one.
    fn become_value<U: ?Sized>(self, cast: impl FnOnce(*mut T) -> *mut U) -> Dma<U> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is neither dropped nor used again, so the region has one owner.
        let region = unsafe { ptr::read(&raw const this.region) };
        Dma { value: cast(this.value), region }
    }
}

/// Memory for `count` values.
fn region<T>(count: usize) -> Result<Region> {
    if align_of::<T>() > PAGE {
        return Err(Error::new(EINVAL));
    }
    let bytes = size_of::<T>().checked_mul(count).ok_or(Error::new(ENOMEM))?;
    let region = Region::zeroed(bytes)?;
    let fits = bytes <= region.length() && region.start().addr().get().is_multiple_of(PAGE);
    if fits { Ok(region) } else { Err(Error::new(EINVAL)) }
}

impl<T: ?Sized> Deref for Dma<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the region holds a `T` at its start: `region` has checked size and alignment, and whoever made this
        // value promised the bytes. The region is this value's alone among those of the process. What the device
        // writes is the driver's to order, as the module says.
        unsafe { &*self.value }
    }
}

impl<T: ?Sized> DerefMut for Dma<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; and this value is borrowed mutably, so no other reference of the process exists.
        unsafe { &mut *self.value }
    }
}

impl<T: ?Sized> Drop for Dma<T> {
    fn drop(&mut self) {
        // SAFETY: the region still holds the `T`, which nothing drops or uses after this. The region itself is dropped
        // afterwards.
        unsafe { ptr::drop_in_place(self.value) }
    }
}
