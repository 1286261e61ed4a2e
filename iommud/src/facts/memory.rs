//! The memory of a store, and the one order of its stores.

use core::sync::atomic::{Ordering, compiler_fence};

use super::cell::{Cell, place_of};
use super::layout::MARK;

/// Memory of cells that outlives the server. Stores take effect in their order: whoever finds the memory after the
/// death of the process finds those that were made.
pub trait CellMemory {
    /// Number of cells.
    fn count(&self) -> u32;

    /// Reads a cell; zeros when there is none with this number.
    fn read(&self, cell: u32) -> Cell;

    /// Writes a cell, word by word. Does nothing when there is none with this number.
    fn write(&mut self, cell: u32, words: &Cell);

    /// Writes one word of a cell, in one store.
    fn write_word(&mut self, cell: u32, word: usize, value: u64);

    /// Makes a commit: writes the new content of cells into the record that begins at cell `record`, then the mark, then
    /// each cell.
    fn commit(&mut self, record: u32, mark: u64, cells: &[Cell]) {
        for (place, cell) in (record..).zip(cells) {
            self.write(place, cell);
        }
        compiler_fence(Ordering::Release);
        self.write_word(0, MARK, mark);
        compiler_fence(Ordering::Release);
        self.apply(cells);
    }

    /// Writes each cell to its own place.
    fn apply(&mut self, cells: &[Cell]) {
        for cell in cells {
            self.write(place_of(cell), cell);
        }
    }
}

impl CellMemory for &'static mut [Cell] {
    fn count(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    fn read(&self, cell: u32) -> Cell {
        self.get(cell as usize).copied().unwrap_or_default()
    }

    #[inline]
    fn write(&mut self, cell: u32, words: &Cell) {
        if let Some(place) = self.get_mut(cell as usize) {
            *place = *words;
        }
    }

    #[inline]
    fn write_word(&mut self, cell: u32, word: usize, value: u64) {
        if let Some(place) = self.get_mut(cell as usize).and_then(|cell| cell.get_mut(word)) {
            *place = value;
        }
    }
}
