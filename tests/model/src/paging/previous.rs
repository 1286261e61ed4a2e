//! Tables of a previous owner (firmware, or a kernel before `kexec`), written bit by bit into system memory.

use super::shift;
use crate::machine::{Machine, Use};

/// Frames of system memory, taken one after the other.
pub(crate) struct Frames {
    machine: Machine,
    unit: usize,
    next: u64,
}

impl Frames {
    /// Takes all frames from `start` on.
    pub(crate) fn new(machine: &Machine, unit: usize, start: u64) -> Self {
        Self { machine: machine.clone(), unit, next: start }
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    /// A new frame of zeros.
    pub(crate) fn frame(&mut self) -> u64 {
        let frame = self.next;
        self.next += 4096;
        self.machine.with_memory(|memory| {
            memory.fill(frame, 0);
            memory.set_purpose(frame, Use::Firmware);
        });
        frame
    }

    /// Writes a word of a table so that hardware sees it.
    pub(crate) fn put(&self, address: u64, value: u64) {
        self.machine.with_memory(|memory| {
            memory.cpu_store(address, value);
            memory.clean(address);
            memory.flush_write_buffer(self.unit);
        });
    }

    fn load(&self, address: u64) -> u64 {
        self.machine.with_memory(|memory| memory.cpu_load(address))
    }

    /// Returns the table that an entry (bits 51:12) points to. An entry of 0 gets a new table, with `flags` set.
    pub(crate) fn next_table(&mut self, entry: u64, flags: u64) -> u64 {
        let old = self.load(entry);
        if old != 0 {
            return old & 0x000f_ffff_ffff_f000;
        }
        let table = self.frame();
        self.put(entry, table | flags);
        table
    }

    /// Maps the 4 KiB page at `iova`. `link` gives the flags of an entry that points to a table, by level. `leaf` is
    /// the last entry.
    pub(crate) fn map(
        &mut self,
        (table, levels): (u64, u8),
        iova: u64,
        link: impl Fn(u8) -> u64,
        leaf: u64,
    ) {
        let mut at = table;
        for level in (2..=levels).rev() {
            let index = iova >> shift(level) & 511;
            at = self.next_table(at + 8 * index, link(level));
        }
        self.put(at + 8 * (iova >> 12 & 511), leaf);
    }
}
