//! A mapping cut into parts with one owner each.
#![allow(unsafe_code)]

use std::rc::Rc;

use super::Memory;
use super::span::Span;
use crate::error::Error;

/// A part of a mapping that no other part overlaps. The mapping's owner lives as long as any of its parts.
#[derive(Debug)]
pub(crate) struct Piece<O> {
    span: Span,
    address: u64,
    /// Keeps the mapping alive.
    _owner: Rc<O>,
}

/// Cuts `length` bytes of memory into parts of `size` bytes. The device's address of the first byte is `address`.
/// Memory behind the last part stays unused: a mapping may be longer than the range that the device reaches.
/// Afterwards, only the parts access the memory.
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
        let start = memory(&owner).span().range(offset, size)?;
        // SAFETY: the bytes lie in the mapping, which lives as long as its owner. The part keeps its owner alive.
        let span = unsafe { Span::new(start, size) };
        let address = address.checked_add(offset)?;
        Some(Piece { span, address, _owner: owner.clone() })
    };
    (0..count).filter_map(piece).collect()
}

impl<O> Piece<O> {
    /// The device's address of the first byte.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    /// Copies bytes out.
    #[inline]
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.span.read(offset, bytes)
    }

    /// Copies bytes in.
    #[inline]
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.span.write(offset, bytes)
    }

    /// Sets `length` bytes.
    pub(crate) fn fill(&mut self, offset: u64, length: usize, byte: u8) -> Result<(), Error> {
        self.span.fill(offset, length, byte)
    }
}
