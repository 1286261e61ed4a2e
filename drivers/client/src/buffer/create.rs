//! Buffers of values, allocated through a device.

use zerocopy::{FromBytes, IntoBytes};

use super::{Allocation, BufferOptions, DmaBuffer, PAGE};
use crate::device::Device;
use crate::error::Error;

/// The length of a buffer that holds this many bytes.
fn pages(bytes: usize) -> Result<u64, Error> {
    let bytes = u64::try_from(bytes).map_err(|_| Error::Outside)?;
    bytes.max(1).checked_next_multiple_of(PAGE).ok_or(Error::Outside)
}

impl<T: FromBytes + IntoBytes> DmaBuffer<T> {
    /// Allocates a value, filled with zeros, at any page below 4 GiB.
    ///
    /// # Errors
    /// The errors of [`Device::allocate`].
    #[track_caller]
    pub fn zeroed(device: &Device) -> Result<Self, Error> {
        Self::zeroed_with(device, BufferOptions::default())
    }

    /// Allocates a value, filled with zeros.
    ///
    /// # Errors
    /// The errors of [`Device::allocate`].
    #[track_caller]
    pub fn zeroed_with(device: &Device, options: BufferOptions) -> Result<Self, Error> {
        let size = size_of::<T>();
        Allocation::new(&device.session, pages(size)?, options)?.values(size, 1)
    }

    /// Allocates this value, at any page below 4 GiB.
    ///
    /// # Errors
    /// The errors of [`Device::allocate`].
    #[track_caller]
    pub fn new(device: &Device, value: T) -> Result<Self, Error> {
        let mut buffer = Self::zeroed(device)?;
        buffer.store(value);
        Ok(buffer)
    }
}

impl<T: FromBytes + IntoBytes> DmaBuffer<[T]> {
    /// Allocates `count` values, filled with zeros, at any page below 4 GiB.
    ///
    /// # Errors
    /// The errors of [`Device::allocate`].
    #[track_caller]
    pub fn zeroed_slice(device: &Device, count: usize) -> Result<Self, Error> {
        Self::zeroed_slice_with(device, count, BufferOptions::default())
    }

    /// Allocates `count` values, filled with zeros.
    ///
    /// # Errors
    /// The errors of [`Device::allocate`].
    #[track_caller]
    pub fn zeroed_slice_with(
        device: &Device,
        count: usize,
        options: BufferOptions,
    ) -> Result<Self, Error> {
        let bytes = size_of::<T>().checked_mul(count).ok_or(Error::Outside)?;
        Allocation::new(&device.session, pages(bytes)?, options)?.values(bytes, count)
    }
}
