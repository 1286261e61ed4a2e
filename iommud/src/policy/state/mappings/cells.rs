//! The cell of each mapping in the store of facts, by the mapping's number. Takes no memory without a store.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::place::NONE;
use super::record::{CHUNK, MappingIndex};

/// The cells of as many mappings as are allocated together.
type Chunk = Box<[u32]>;

/// The numbers of cells, in chunks, so that growing moves none of them.
#[derive(Clone, Default)]
pub(super) struct Cells(Vec<Chunk>);

impl Cells {
    /// Sets the cell of a mapping.
    #[inline]
    pub(super) fn set(&mut self, MappingIndex(index): MappingIndex, cell: u32) {
        let (chunk, at) = (index as usize / CHUNK, index as usize % CHUNK);
        if self.0.len() <= chunk {
            self.grow(chunk);
        }
        if let Some(place) = self.0.get_mut(chunk).and_then(|chunk| chunk.get_mut(at)) {
            *place = cell;
        }
    }

    #[cold]
    fn grow(&mut self, chunk: usize) {
        self.0.resize_with(chunk + 1, || vec![NONE; CHUNK].into_boxed_slice());
    }

    /// Takes the cell of a mapping away from it.
    #[inline]
    pub(super) fn take(&mut self, MappingIndex(index): MappingIndex) -> Option<u32> {
        let place = self.0.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)?;
        Some(core::mem::replace(place, NONE)).filter(|cell| *cell != NONE)
    }

    /// The cell of a mapping.
    pub(super) fn get(&self, MappingIndex(index): MappingIndex) -> Option<u32> {
        let cell = self.0.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?;
        Some(*cell).filter(|cell| *cell != NONE)
    }
}
