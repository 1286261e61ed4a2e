//! A previous owner (firmware, or a kernel before `kexec`): its tables, written bit by bit into system memory, and
//! the state of the unit that it left behind.

use iommud::hw::{Clock, RegisterIo};

use super::bits::{global, register};
use crate::machine::Machine;
use crate::paging::Frames;

/// The tables of a previous owner, and commands to its unit.
pub struct Firmware {
    frames: Frames,
    root: u64,
}

impl Firmware {
    /// Starts with an empty root table. All tables come from frames of system memory from `start` on.
    #[must_use]
    pub fn new(machine: &Machine, unit: usize, start: u64) -> Self {
        let mut frames = Frames::new(machine, unit, start);
        let root = frames.frame();
        Self { frames, root }
    }

    /// First byte of the root table.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// A new frame of zeros.
    pub fn frame(&mut self) -> u64 {
        self.frames.frame()
    }

    /// Writes a word of a table so that hardware sees it.
    pub fn put(&self, address: u64, value: u64) {
        self.frames.put(address, value);
    }

    /// Address of the context entry of `source`.
    pub fn context_entry(&mut self, source: u16) -> u64 {
        let [bus, devfn] = source.to_be_bytes().map(u64::from);
        self.frames.next_table(self.root + 16 * bus, 1) + 16 * devfn
    }

    /// Points `source` at a page table of `levels` levels at `table`, as domain `domain`.
    pub fn attach(&mut self, source: u16, domain: u16, table: u64, levels: u8) {
        let entry = self.context_entry(source);
        self.put(entry + 8, u64::from(domain) << 8 | u64::from(levels - 2));
        self.put(entry, table | 1);
    }

    /// Maps the page of 4 KiB at `iova` to `physical`, for reading and writing.
    pub fn map(&mut self, table: u64, levels: u8, iova: u64, physical: u64) {
        self.frames.map((table, levels), iova, |_| 3, physical | 3);
    }

    /// Gives one command to the unit and waits.
    pub fn command(&self, bit: u32, set: bool) {
        let mut registers = self.frames.machine().registers(self.frames.unit());
        let standing = registers.read32(register::GSTS) & global::STANDING;
        let value = if set { standing | bit } else { standing & !bit };
        registers.write32(register::GCMD, value);
        for _ in 0..100 {
            self.frames.machine().clock().relax();
        }
    }

    /// Makes the unit use the root table. Only a unit with ESRTPS empties its caches by this.
    pub fn set_root(&self) {
        let mut registers = self.frames.machine().registers(self.frames.unit());
        registers.write64(register::RTADDR, self.root);
        self.command(global::ROOT_POINTER, true);
    }

    /// Turns the queue on, with one frame, and leaves it empty.
    pub fn start_queue(&mut self) -> u64 {
        let queue = self.frame();
        let mut registers = self.frames.machine().registers(self.frames.unit());
        registers.write64(register::IQT, 0);
        registers.write64(register::IQA, queue);
        self.command(global::QUEUE, true);
        queue
    }

    /// Turns translation on.
    pub fn translate(&self) {
        self.command(global::TRANSLATION, true);
    }
}
