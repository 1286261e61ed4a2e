//! Fake registers that answer at once and record every action, for the tests of this folder.

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use crate::hw::hal::{Clock, Nanos, RegisterIo};
use crate::hw::testing::Bus;

/// A register write, or a descriptor that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    W32(u32, u32),
    W64(u32, u64),
    /// A descriptor that the unit executed.
    Did([u64; 2]),
}

/// Offsets and bits are written out here on purpose: the tests do not use the constants of the code under test.
#[derive(Debug)]
pub(super) struct State {
    pub(super) version: u32,
    pub(super) capability: u64,
    pub(super) extended: u64,
    pub(super) status: u32,
    pub(super) fault_status: u32,
    pub(super) root: u64,
    pub(super) protected: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) queue: u64,
    /// Low and high word of each fault record, at 0x220.
    pub(super) records: Vec<[u64; 2]>,
    pub(super) acts: Vec<Act>,
    /// Offsets of the registers that were read.
    pub(super) reads: Vec<u32>,
    /// Everything reads as ones.
    pub(super) dead: bool,
    /// Status bits that commands cannot change.
    pub(super) stuck: u32,
    /// The queue executes nothing.
    pub(super) stalled: bool,
    /// Descriptors with this type are refused.
    pub(super) refused: Option<u64>,
    /// Waits that end with a time-out of a device TLB instead.
    pub(super) timeouts: u32,
    bus: Bus,
}

/// Registers over a shared state.
#[derive(Clone, Debug)]
pub(super) struct Fake(pub(super) Rc<RefCell<State>>);

impl Fake {
    /// A unit after reset: 39 and 48 bits, all page sizes, PSI with MAMV 18, draining, one record, no
    /// caching mode, coherent.
    pub(super) fn new(bus: Bus) -> Self {
        Self(Rc::new(RefCell::new(State {
            version: 0x10,
            capability: 0x00d2_008c_222f_0606,
            extended: 0x00f0_0f4b,
            status: 0,
            fault_status: 0,
            root: 0,
            protected: 0,
            head: 0,
            tail: 0,
            queue: 0,
            records: vec![[0; 2]],
            acts: Vec::new(),
            reads: Vec::new(),
            dead: false,
            stuck: 0,
            stalled: false,
            refused: None,
            timeouts: 0,
            bus,
        })))
    }

    /// Actions since the last call.
    pub(super) fn acts(&self) -> Vec<Act> {
        core::mem::take(&mut self.0.borrow_mut().acts)
    }

    /// Offsets of the registers that were read since the last call.
    pub(super) fn reads(&self) -> Vec<u32> {
        core::mem::take(&mut self.0.borrow_mut().reads)
    }

    /// Descriptors executed since the last call, without the waits.
    pub(super) fn did(&self) -> Vec<[u64; 2]> {
        let did = |act| match act {
            Act::Did(descriptor) if descriptor[0] & 0xf != 5 => Some(descriptor),
            _ => None,
        };
        self.acts().into_iter().filter_map(did).collect()
    }
}

impl State {
    fn command(&mut self, value: u32) {
        let old = self.status;
        // TE, QIE, IRE, CFI and EAFL are kept; SRTP, SIRTP and SFL show when done; WBF clears at once.
        let new = value & 0x9680_0000 | (old | value) & 0x6100_0000;
        self.status = new & !self.stuck | old & self.stuck;
        if old & !self.status & 1 << 26 != 0 {
            self.head = 0;
        }
    }

    fn run(&mut self) {
        while self.status & 1 << 26 != 0
            && self.head != self.tail
            && self.fault_status & 0x50 == 0
            && !self.stalled
        {
            let at = (self.queue & !0xfff) + u64::from(self.head);
            let bus = Rc::clone(&self.bus);
            let descriptor = [bus.borrow()[&at], bus.borrow()[&(at + 8)]];
            let kind = descriptor[0] & 0xf;
            if self.refused == Some(kind) {
                self.fault_status |= 1 << 4;
                return;
            }
            self.head = (self.head + 16) % 4096;
            if kind == 5 && self.timeouts > 0 {
                self.timeouts -= 1;
                self.fault_status |= 1 << 6;
                return;
            }
            self.acts.push(Act::Did(descriptor));
            if kind == 5 {
                // The status word is 32 bits wide; the other half of the 64-bit word stays.
                let (word, high) = (descriptor[1] & !7, descriptor[1] & 4 != 0);
                let mut bus = bus.borrow_mut();
                let old = bus[&word];
                let data = descriptor[0] >> 32;
                let new =
                    if high { old & 0xffff_ffff | data << 32 } else { old >> 32 << 32 | data };
                bus.insert(word, new);
            }
        }
    }

    fn pending(&self) -> u32 {
        u32::from(self.records.iter().any(|record| record[1] >> 63 != 0)) << 1
    }
}

impl RegisterIo for Fake {
    fn read32(&mut self, offset: u32) -> u32 {
        let mut state = self.0.borrow_mut();
        state.reads.push(offset);
        if state.dead {
            return u32::MAX;
        }
        match offset {
            0x00 => state.version,
            0x1c => state.status,
            0x34 => state.fault_status | state.pending(),
            0x38 => 0,
            0x64 => state.protected,
            0x80 => state.head,
            0x88 => state.tail,
            _ => panic!("32-bit read of {offset:#x}"),
        }
    }

    fn read64(&mut self, offset: u32) -> u64 {
        let mut state = self.0.borrow_mut();
        state.reads.push(offset);
        if state.dead {
            return u64::MAX;
        }
        match offset {
            0x08 => state.capability,
            0x10 => state.extended,
            0x20 => state.root,
            0x90 => state.queue,
            0x220.. => state.records[(offset as usize - 0x220) / 16][offset as usize / 8 % 2],
            _ => panic!("64-bit read of {offset:#x}"),
        }
    }

    fn write32(&mut self, offset: u32, value: u32) {
        let mut state = self.0.borrow_mut();
        state.acts.push(Act::W32(offset, value));
        match offset {
            0x18 => state.command(value),
            0x34 => {
                state.fault_status &= !(value & 0x7d);
            }
            0x64 => state.protected = if value >> 31 == 0 { 0 } else { value },
            0x88 => state.tail = value,
            0x220.. if offset % 16 == 12 && value == 1 << 31 => {
                state.records[(offset as usize - 0x220) / 16][1] &= !(1 << 63);
            }
            0x38..=0x44 | 0xa0 => {}
            _ => panic!("32-bit write of {value:#x} to {offset:#x}"),
        }
        state.run();
    }

    fn write64(&mut self, offset: u32, value: u64) {
        let mut state = self.0.borrow_mut();
        state.acts.push(Act::W64(offset, value));
        match offset {
            0x20 => state.root = value,
            0x90 => state.queue = value,
            _ => panic!("64-bit write of {value:#x} to {offset:#x}"),
        }
    }
}

/// A clock that moves by 10 ms at each wait.
#[derive(Debug, Default)]
pub(super) struct Ticks(u64);

impl Clock for Ticks {
    fn now(&mut self) -> Nanos {
        Nanos(self.0)
    }

    fn relax(&mut self) {
        self.0 += 10_000_000;
    }
}
