//! A machine for the tests of this folder: registers and memory of a unit that executes commands, with constants of
//! its own. It records writes in order, and misbehaves on request. (How well a unit confines is tested on the
//! software model in the test crate.)

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

use iommu_protocol::ids::RequesterId;

use super::{AmdUnit, Capability};
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::hal::{Clock, MemoryError, Nanos, RegisterIo, TableMemory};
use crate::hw::unit::UnitError;
use crate::topology::firmware::{EntryRange, UnitDescription, UnitKind};

/// First frame handed out.
const FIRST: u64 = 0x4000_0000;

pub(super) const CONTROL: u32 = 0x18;
pub(super) const STATUS: u32 = 0x2020;
pub(super) const COMMAND_TAIL: u32 = 0x2008;
pub(super) const EVENT_TAIL: u32 = 0x2018;
pub(super) const PPR_TAIL: u32 = 0x2038;

/// Prefetch, PPR, invalidate-all, 6 levels.
pub(super) const FEATURES: u64 = 0x0000_0000_0000_0843;

#[derive(Default)]
pub(super) struct Machine {
    pub(super) registers: BTreeMap<u32, u64>,
    /// Register writes, in order.
    pub(super) writes: Vec<(u32, u64)>,
    pub(super) reads: usize,
    /// Words as the processor sees them, by address.
    cpu: BTreeMap<u64, u64>,
    /// Words as seen by a unit that does not snoop.
    ram: BTreeMap<u64, u64>,
    frames: BTreeSet<u64>,
    next: u64,
    /// Stores to table memory, in order.
    pub(super) stores: Vec<(u64, u64)>,
    /// Commands executed, without waits.
    pub(super) commands: Vec<[u64; 2]>,
    pub(super) waits: usize,
    /// Allocations that still succeed.
    pub(super) budget: Option<usize>,
    /// The Coherent bit does not stick: the unit reads `ram`.
    pub(super) incoherent: bool,
    /// Execute this many more commands, then stop with CmdBufRun clear.
    pub(super) stop_after: Option<usize>,
    /// Stop again after a restart, this many times.
    pub(super) stop_again: usize,
    /// Execute no more commands, and report nothing.
    pub(super) hangs: bool,
    /// Logs do not stop.
    pub(super) logs_hang: bool,
    /// Rings and logs do not start.
    pub(super) never_runs: bool,
    /// The command ring stops at this time, and executes commands again after a restart.
    pub(super) stops_at: Option<u64>,
    /// It hangs until this time, and goes on.
    pub(super) answers_at: Option<u64>,
    /// Nanoseconds that passed in waits.
    pub(super) time: u64,
}

impl Machine {
    pub(super) fn set(&mut self, register: u32, value: u64) {
        self.registers.insert(register, value);
    }

    pub(super) fn get(&self, register: u32) -> u64 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    /// A word as the unit reads it.
    pub(super) fn word(&self, address: u64) -> u64 {
        let view = if self.incoherent { &self.ram } else { &self.cpu };
        view.get(&address).copied().unwrap_or(0)
    }

    /// A word written by the unit.
    pub(super) fn put(&mut self, address: u64, value: u64) {
        self.cpu.insert(address, value);
        self.ram.insert(address, value);
    }

    /// The four words of an entry of the device table in force.
    pub(super) fn entry(&self, source: u16) -> [u64; 4] {
        let base = self.get(0) & 0x000f_ffff_ffff_f000;
        [0, 8, 16, 24].map(|at| self.word(base + 32 * u64::from(source) + at))
    }

    /// Appends an entry to the log with these base and tail registers.
    pub(super) fn log(&mut self, base: u32, tail: u32, entry: [u64; 2]) {
        let register = self.get(base);
        let bytes = 16 << (register >> 56);
        let (at, ring) = (self.get(tail), register & 0x000f_ffff_ffff_f000);
        self.put(ring + at, entry[0]);
        self.put(ring + at + 8, entry[1]);
        self.set(tail, (at + 16) % bytes);
    }

    fn run_bits(&mut self) {
        let control = self.get(CONTROL);
        let on = |bit: u32| control & 1 != 0 && control & 1 << bit != 0;
        let mut run = 0;
        for (enable, bit) in [(12, 4), (2, 3), (13, 7)] {
            let hang = self.logs_hang && bit != 4 && self.get(STATUS) & 1 << bit != 0;
            if on(enable) && !self.never_runs || hang {
                run |= 1 << bit;
            }
        }
        let rest = self.get(STATUS) & !0x98;
        self.set(STATUS, rest | run);
    }

    pub(super) fn run_commands(&mut self) {
        while self.get(STATUS) & 0x10 != 0 && !self.hangs {
            let register = self.get(8);
            let bytes = 16 << (register >> 56);
            let (head, tail) = (self.get(0x2000), self.get(COMMAND_TAIL));
            if head == tail {
                return;
            }
            if self.stop_after == Some(0) {
                self.stop_after = (self.stop_again > 0).then_some(0);
                self.stop_again = self.stop_again.saturating_sub(1);
                let status = self.get(STATUS) & !0x10;
                self.set(STATUS, status);
                return;
            }
            self.stop_after = self.stop_after.map(|left| left - 1);
            let at = (register & 0x000f_ffff_ffff_f000) + head;
            self.carry_out([self.word(at), self.word(at + 8)]);
            self.set(0x2000, (head + 16) % bytes);
        }
    }

    fn carry_out(&mut self, command: [u64; 2]) {
        if command[0] >> 60 == 1 {
            assert_eq!(command[0] & 7, 1, "a wait stores and does nothing else");
            self.put(command[0] & 0x000f_ffff_ffff_fff8, command[1]);
            self.waits += 1;
        } else {
            self.commands.push(command);
        }
    }

    fn write(&mut self, offset: u32, value: u64) {
        self.writes.push((offset, value));
        match offset {
            STATUS => {
                let status = self.get(STATUS) & !(value & 0x67);
                self.set(STATUS, status);
            }
            CONTROL if self.incoherent => self.set(CONTROL, value & !(1 << 10)),
            _ => self.set(offset, value),
        }
        if offset == CONTROL {
            self.run_bits();
        }
        if offset == CONTROL || offset == COMMAND_TAIL {
            self.run_commands();
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Shared {
    pub(super) machine: Rc<RefCell<Machine>>,
    counter: u16,
}

impl Shared {
    pub(super) fn new() -> Self {
        let shared = Self::default();
        shared.machine.borrow_mut().set(0x30, FEATURES);
        shared.machine.borrow_mut().next = FIRST;
        shared
    }
}

impl RegisterIo for Shared {
    fn read32(&mut self, _: u32) -> u32 {
        panic!("all registers are 64 bits wide");
    }
    fn read64(&mut self, offset: u32) -> u64 {
        let mut machine = self.machine.borrow_mut();
        machine.reads += 1;
        machine.get(offset)
    }
    fn write32(&mut self, _: u32, _: u32) {
        panic!("all registers are 64 bits wide");
    }
    fn write64(&mut self, offset: u32, value: u64) {
        self.machine.borrow_mut().write(offset, value);
    }
}

impl Clock for Shared {
    fn now(&mut self) -> Nanos {
        Nanos(self.machine.borrow().time)
    }
    fn relax(&mut self) {
        let mut machine = self.machine.borrow_mut();
        machine.time += 100_000;
        if machine.stops_at.is_some_and(|at| at <= machine.time) {
            let status = machine.get(STATUS) & !0x10;
            machine.set(STATUS, status);
            (machine.stops_at, machine.hangs) = (None, false);
        }
        if machine.answers_at.is_some_and(|at| at <= machine.time) {
            (machine.answers_at, machine.hangs) = (None, false);
            machine.run_commands();
        }
    }
}

impl TableMemory for Shared {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        self.allocate_run(1)
    }
    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        let mut machine = self.machine.borrow_mut();
        if let Some(left) = &mut machine.budget {
            *left = left.checked_sub(1).ok_or(MemoryError::Exhausted)?;
        }
        let bytes = 4096 * count as u64;
        let first = machine.next.next_multiple_of(bytes);
        machine.next = first + bytes;
        machine.frames.extend((first..first + bytes).step_by(4096));
        Ok(PhysAddr(first))
    }
    fn free(&mut self, _: PhysAddr, _: bool) {}
    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        let address = frame.0 + index as u64 * 8;
        self.machine.borrow().cpu.get(&address).copied().unwrap_or(0)
    }
    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        let mut machine = self.machine.borrow_mut();
        assert!(machine.frames.contains(&frame.0) && index < 512, "store outside of table memory");
        let address = frame.0 + index as u64 * 8;
        machine.stores.push((address, value));
        machine.cpu.insert(address, value);
    }
    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        let mut machine = self.machine.borrow_mut();
        let lines = (first / 8 * 8)..(first + count).next_multiple_of(8);
        for address in lines.map(|index| frame.0 + index as u64 * 8) {
            let value = machine.cpu.get(&address).copied().unwrap_or(0);
            machine.ram.insert(address, value);
        }
    }
    fn live(&mut self, _: PhysAddr) -> &mut u16 {
        &mut self.counter
    }
    fn frames_in_use(&self) -> usize {
        self.machine.borrow().frames.len()
    }

    fn frames_free(&self) -> usize {
        usize::MAX / 2
    }
}

pub(super) type TestUnit = AmdUnit<Shared, Shared, Shared>;

/// QEMU's unit 00:00.2, with the settings of `entries`.
pub(super) fn description(entries: Vec<EntryRange>) -> UnitDescription {
    UnitDescription {
        kind: UnitKind::AmdVi {
            function: RequesterId(2),
            capability: 0x40,
            flags: 0,
            features: Some(FEATURES),
        },
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed8_0000), 0x4000).unwrap()),
        include_all: false,
        scopes: Vec::new(),
        entries,
    }
}

/// The capability block of QEMU's unit, with or without NpCache.
pub(super) fn capability(caches_absent: bool) -> Capability {
    let header = 0x1b0b_000f | u32::from(caches_absent) << 26;
    Capability::new(header, 0xfed8_0001, 0, 48 << 15 | 40 << 8)
}

pub(super) fn bring_up(shared: &mut Shared) -> Result<TestUnit, UnitError> {
    let (registers, clock) = (shared.clone(), shared.clone());
    TestUnit::bring_up(registers, clock, shared, &description(Vec::new()), Some(capability(false)))
}
