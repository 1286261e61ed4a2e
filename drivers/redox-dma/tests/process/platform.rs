//! What only unsafe functions of the interface give: values of zeros, cells, and the memory of a list. Drivers call
//! them directly.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;

use redox_dma::dma::Dma;
use redox_dma::sgl::Chunk;
use redox_dma::{Error, Result};

use crate::patterns::{ahci, e1000, nvme, virtio, xhci};

/// Types of which zeros are a value.
///
/// # Safety
/// They are.
pub(crate) unsafe trait Zeros {}

macro_rules! zeros {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: numbers, and arrays, cells and structures of numbers.
            unsafe impl Zeros for $type {}
        )*
    };
}

zeros!(u8, u16, u32, u64, ahci::Header, ahci::Table, e1000::Descriptor);
zeros!(
    nvme::Command,
    nvme::Completion,
    virtio::Descriptor,
    xhci::Trb,
    xhci::Segment,
    xhci::Context
);

// SAFETY: zeros are a value of each element.
unsafe impl<T: Zeros, const N: usize> Zeros for [T; N] {}
// SAFETY: a cell is its value.
unsafe impl<T: Zeros> Zeros for UnsafeCell<T> {}

pub(crate) fn zeroed<T: Zeros>() -> Result<Dma<T>> {
    // SAFETY: the memory holds zeros, which are a `T`.
    Ok(unsafe { Dma::<T>::zeroed()?.assume_init() })
}

pub(crate) fn zeroed_slice<T: Zeros>(count: usize) -> Result<Dma<[T]>> {
    // SAFETY: the memory holds zeros, which are `T`s.
    Ok(unsafe { Dma::<[T]>::zeroed_slice(count)?.assume_init() })
}

/// Values that a test wrote one by one.
pub(crate) fn written_slice<T>(count: usize, value: impl Fn(usize) -> T) -> Dma<[T]> {
    let mut memory = Dma::<[T]>::zeroed_slice(count).unwrap();
    for (index, place) in memory.iter_mut().enumerate() {
        place.write(value(index));
    }
    // SAFETY: each was just written.
    unsafe { memory.assume_init() }
}

/// Bytes as as many other bytes.
pub(crate) fn signed(bytes: Dma<[u8]>) -> Dma<[i8]> {
    // SAFETY: any byte is an `i8`, of the same size.
    unsafe { bytes.cast_slice() }
}

/// Reads what a device may have written.
pub(crate) fn look<T: Copy>(cell: &UnsafeCell<T>) -> T {
    // SAFETY: the pointer is that of a live cell, and no other thread of the test uses it.
    unsafe { cell.get().read_volatile() }
}

/// Writes where a device reads.
pub(crate) fn put<T: Copy>(cell: &UnsafeCell<T>, value: T) {
    // SAFETY: as for `look`; nothing refers to the inside of the cell.
    unsafe { cell.get().write_volatile(value) }
}

/// All bytes of a piece.
pub(crate) fn bytes(chunk: &mut Chunk) -> &mut [u8] {
    // SAFETY: the piece is as long, its list lives (the borrowed chunk is a part of it), and is used here only.
    unsafe { std::slice::from_raw_parts_mut(chunk.virt, chunk.length) }
}

/// The error of something without `Debug`.
pub(crate) fn number<T>(result: Result<T>) -> i32 {
    result.err().as_ref().map_or(0, |error: &Error| error.errno())
}
