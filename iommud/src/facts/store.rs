//! What the server writes.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, compiler_fence};

use super::cell::{Cell, FREE, encode, freed};
use super::layout::{FORMAT, Layout, MARK, PLACES, STATE, VOID, mark};
use super::memory::CellMemory;
use crate::policy::{Changes, FactBook, ObjectFact, Registry};

/// The facts of a running server.
pub struct Store {
    memory: Box<dyn CellMemory>,
    layout: Layout,
    commit: u64,
    /// Cells from here on were never used.
    fresh: u32,
    /// Cells that were used and are free.
    free: Vec<u32>,
    /// The cells that the plan under way changes, in order.
    changed: Vec<Cell>,
    missed: u64,
    noted: u64,
}

impl core::fmt::Debug for Store {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store").field("commit", &self.commit).finish_non_exhaustive()
    }
}

impl Store {
    /// Begins an empty store; whatever was in the memory is gone. `None` when it has too few cells.
    #[must_use]
    pub fn begin(mut memory: Box<dyn CellMemory>) -> Option<Self> {
        let layout = Layout::of(memory.count());
        if layout.places == 0 {
            return None;
        }
        // A server that dies here leaves no store.
        memory.write_word(0, 0, 0);
        compiler_fence(Ordering::Release);
        for cell in layout.first..layout.end {
            memory.write(cell, &FREE);
        }
        memory.write_word(0, PLACES, u64::from(layout.places));
        memory.write_word(0, MARK, mark(0, 0));
        memory.write_word(0, STATE, 0);
        compiler_fence(Ordering::Release);
        memory.write_word(0, 0, FORMAT);
        Some(Self {
            memory,
            layout,
            commit: 0,
            fresh: layout.first,
            free: Vec::new(),
            changed: Vec::new(),
            missed: 0,
            noted: 0,
        })
    }

    /// Commits the facts that a plan changed. It was carried out.
    #[inline(never)]
    pub fn record(&mut self, registry: &mut Registry, changes: Changes<'_>) {
        registry.record(changes, self);
        self.commit();
    }

    /// Number of commits.
    #[must_use]
    pub const fn commits(&self) -> u64 {
        self.commit
    }

    /// Cells in use.
    #[must_use]
    pub fn kept(&self) -> u64 {
        let used = u64::from(self.fresh - self.layout.first);
        used.saturating_sub(u64::try_from(self.free.len()).unwrap_or(0))
    }

    /// Facts for which there was no room, so far.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// Makes all changes since the last commit, or none of them if the process dies before the mark.
    #[inline]
    pub(super) fn commit(&mut self) {
        self.commit += 1;
        if self.missed != self.noted {
            self.note_missed();
        }
        match u16::try_from(self.changed.len()) {
            Ok(count) if u32::from(count) <= self.layout.places => {
                let record = self.layout.record_of(self.commit);
                let mark = mark(self.commit, u64::from(count));
                self.memory.commit(record, mark, &self.changed);
            }
            _ => self.commit_large(),
        }
        self.changed.clear();
    }

    #[cold]
    fn commit_large(&mut self) {
        self.memory.write_word(0, STATE, VOID | self.missed);
        compiler_fence(Ordering::Release);
        self.memory.apply(&self.changed);
        self.memory.write_word(0, MARK, mark(self.commit, 0));
        compiler_fence(Ordering::Release);
        self.memory.write_word(0, STATE, self.missed);
    }

    #[cold]
    fn note_missed(&mut self) {
        self.noted = self.missed;
        self.memory.write_word(0, STATE, self.missed);
    }

    /// A free cell. Mappings leave the last eighth of the cells to sessions and slots, so that one client's mappings
    /// take no other's session out of the store.
    #[inline]
    fn cell_for(&mut self, fact: &ObjectFact) -> Option<u32> {
        let spare = match fact {
            ObjectFact::Mapping(_) => (self.layout.end - self.layout.first) / 8,
            ObjectFact::Session(_) | ObjectFact::Slot(_) => 0,
        };
        if self.fresh < self.layout.end - spare {
            if let Some(cell) = self.free.pop() {
                return Some(cell);
            }
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.last_cell(spare)
    }

    /// Like [`Store::cell_for`], when few cells were never used.
    #[cold]
    fn last_cell(&mut self, spare: u32) -> Option<u32> {
        let free = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        if free.saturating_add(self.layout.end - self.fresh) <= spare {
            return None;
        }
        if let Some(cell) = self.free.pop() {
            return Some(cell);
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }
}

impl FactBook for Store {
    #[inline(always)]
    fn enter(&mut self, fact: &ObjectFact) -> Option<u32> {
        let Some(cell) = self.cell_for(fact) else {
            self.missed = self.missed.saturating_add(1) & !VOID;
            return None;
        };
        self.changed.push(encode(fact, cell));
        Some(cell)
    }

    #[inline]
    fn change(&mut self, cell: u32, fact: &ObjectFact) {
        self.changed.push(encode(fact, cell));
    }

    #[inline]
    fn remove(&mut self, cell: u32) {
        self.changed.push(freed(cell));
        self.free.push(cell);
    }
}
