//! The free blocks of each size of a pool.

use std::cell::Cell;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::buffer::DmaBuffer;
use crate::platform::Piece;
use crate::sanitizer::{POISON, Place, Sanitizer};

/// The free blocks of one size. Their list runs through the blocks themselves, so that neither taking nor giving back
/// allocates.
pub(super) struct Class {
    pub(super) size: u64,
    free: Cell<Option<Box<Node>>>,
    /// Watches the blocks, if the driver wants it.
    pub(super) sanitizer: Option<Arc<Sanitizer>>,
}

/// A block of memory, in use or in the list of its class.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) piece: Piece<DmaBuffer>,
    next: Option<Box<Node>>,
}

impl Class {
    /// The blocks of this size, of which there are none yet.
    pub(super) fn new(size: u64, sanitizer: Option<Arc<Sanitizer>>) -> Self {
        Self { size, free: Cell::default(), sanitizer }
    }

    /// Adds a block that nobody has had yet.
    pub(super) fn add(&self, piece: Piece<DmaBuffer>) {
        self.link(Box::new(Node { piece, next: None }));
    }

    #[inline]
    #[track_caller]
    pub(super) fn take(&self) -> Option<Box<Node>> {
        let mut node = self.free.take()?;
        put_into(&self.free, node.next.take());
        if let Some(sanitizer) = &self.sanitizer {
            node.examine(sanitizer, self.size, Location::caller());
        }
        Some(node)
    }

    /// Takes a block back.
    #[inline]
    pub(super) fn put(&self, mut node: Box<Node>) {
        if let Some(sanitizer) = &self.sanitizer {
            node.poison(sanitizer, self.size);
        }
        self.link(node);
    }

    #[inline]
    fn link(&self, mut node: Box<Node>) {
        debug_assert!(node.next.is_none());
        std::mem::forget(std::mem::replace(&mut node.next, self.free.take()));
        put_into(&self.free, Some(node));
    }

    /// Number of free blocks.
    pub(super) fn ready(&self) -> usize {
        let first = self.free.take();
        let count = std::iter::successors(first.as_deref(), |node| node.next.as_deref()).count();
        self.free.set(first);
        count
    }
}

/// Puts a list into a place that was just emptied. `forget` leaves out the drop of the old value. That value is
/// `None`, and a drop would check for it.
#[inline]
fn put_into(place: &Cell<Option<Box<Node>>>, list: Option<Box<Node>>) {
    std::mem::forget(place.replace(list));
}

impl Node {
    /// Reports a device that wrote to the block after its end.
    #[cold]
    fn examine(&self, sanitizer: &Sanitizer, size: u64, place: Place) {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let read = self.piece.read(0, &mut bytes);
        debug_assert!(read.is_ok());
        sanitizer.taken(self.piece.address(), &bytes, place);
    }

    /// Fills the block, so that its bytes are of no use any more and a late write shows.
    #[cold]
    fn poison(&mut self, sanitizer: &Sanitizer, size: u64) {
        let filled = self.piece.fill(0, usize::try_from(size).unwrap_or(0), POISON);
        debug_assert!(filled.is_ok());
        sanitizer.poisoned(self.piece.address());
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class").field("size", &self.size).field("ready", &self.ready()).finish()
    }
}

impl Drop for Class {
    /// One block after the other: a list that drops itself does so recursively.
    fn drop(&mut self) {
        let mut rest = self.free.take();
        while let Some(mut node) = rest {
            rest = node.next.take();
        }
    }
}
