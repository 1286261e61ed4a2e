//! A previous owner (firmware, or a kernel before `kexec`): its tables, written bit by bit into system memory, and
//! the state of the unit that it left behind.

use iommud::hw::{Clock, RegisterIo};

use super::bits::{control, device, page, register};
use crate::machine::Machine;
use crate::paging::Frames;

/// Frames of a device table for all 65536 requesters.
const TABLE: usize = 512;

/// The tables, ring and log of a previous owner.
pub struct Firmware {
    frames: Frames,
    table: u64,
    ring: u64,
    log: u64,
}

impl Firmware {
    /// Starts with a device table of zeros, which passes everything, and a command ring and an event log of 256
    /// entries each. All come from frames of system memory from `start` on.
    #[must_use]
    pub fn new(machine: &Machine, unit: usize, start: u64) -> Self {
        let mut frames = Frames::new(machine, unit, start);
        let table = (0..TABLE).map(|_| frames.frame()).min().unwrap();
        let (ring, log) = (frames.frame(), frames.frame());
        Self { frames, table, ring, log }
    }

    /// A new frame of zeros.
    pub fn frame(&mut self) -> u64 {
        self.frames.frame()
    }

    /// Writes a word of a table so that hardware sees it.
    pub fn put(&self, address: u64, value: u64) {
        self.frames.put(address, value);
    }

    /// First byte of the command ring.
    #[must_use]
    pub fn ring(&self) -> u64 {
        self.ring
    }

    /// Writes the entry of `source`, words 0 to 2.
    pub fn entry(&self, source: u16, words: [u64; 3]) {
        let at = self.table + 32 * u64::from(source);
        for (offset, word) in (0..).step_by(8).zip(words) {
            self.put(at + offset, word);
        }
    }

    /// Writes word 2 of the entry of `source`: its treatment of interrupts.
    pub fn third_word(&self, source: u16, word: u64) {
        self.put(self.table + 32 * u64::from(source) + 16, word);
    }

    /// Denies every requester every access: a page table without a page, no permissions.
    pub fn deny_all(&mut self) {
        let nothing = self.frame();
        let mode = 4 << device::MODE_SHIFT;
        for source in 0..=u16::MAX {
            let word = nothing | mode | device::VALID | device::TRANSLATION_VALID;
            self.put(self.table + 32 * u64::from(source), word);
        }
    }

    /// Points `source` at a page table of `levels` levels at `table`, as domain `domain`.
    pub fn attach(&self, source: u16, domain: u16, table: u64, levels: u8) {
        let mode = u64::from(levels) << device::MODE_SHIFT;
        let flags = device::VALID | device::TRANSLATION_VALID | device::READ | device::WRITE;
        self.entry(source, [table | mode | flags, u64::from(domain), 0]);
    }

    /// Maps the page of 4 KiB at `iova` to `physical`, for reading and writing.
    pub fn map(&mut self, table: u64, levels: u8, iova: u64, physical: u64) {
        let flags = page::PRESENT | page::READ | page::WRITE;
        let link = |level: u8| flags | u64::from(level - 1) << page::NEXT_SHIFT;
        self.frames.map((table, levels), iova, link, physical | flags);
    }

    /// Turns the unit on with these tables: translation, command ring and event log. `more` are further bits of the
    /// control register.
    pub fn start(&self, more: u64) {
        let (machine, unit) = (self.frames.machine(), self.frames.unit());
        let mut registers = machine.registers(unit);
        // 512 frames of device table; 2^8 entries each.
        registers.write64(register::DEVICE_TABLE, self.table | 0x1ff);
        registers.write64(register::COMMAND_BASE, self.ring | 8 << 56);
        registers.write64(register::EVENT_BASE, self.log | 8 << 56);
        let on = control::ENABLE | control::COMMANDS | control::EVENT_LOG | control::COHERENT;
        registers.write64(register::CONTROL, on | more);
        for _ in 0..100 {
            machine.clock().relax();
        }
    }
}
