//! The seams of `iommud::hw` over the bare machine.

use alloc::vec::Vec;
use core::cell::Cell;
use core::ptr::with_exposed_provenance_mut;

use alloc::rc::Rc;
use iommud::addr::PhysAddr;
use iommud::hw::{Clock, MemoryError, Nanos, RegisterIo, TableMemory};

use crate::{cpu, phys};

/// Register accesses since the counters were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// Reads.
    pub reads: u32,
    /// Writes.
    pub writes: u32,
    /// Writes of the global command register that left translation enable (bit 31) clear.
    pub translation_off: u32,
    /// Descriptors submitted: the movement of the queue's tail, in entries of 16 bytes.
    pub descriptors: u32,
}

/// The counters, and the last written tail of the queue.
#[derive(Debug, Default)]
struct Counts {
    accesses: Cell<Accesses>,
    tail: Cell<u32>,
}

impl Counts {
    fn count(&self, change: impl FnOnce(&mut Accesses)) {
        let mut accesses = self.accesses.get();
        change(&mut accesses);
        self.accesses.set(accesses);
    }
}

/// Registers at a physical address. Counts accesses to them.
#[derive(Clone, Debug)]
pub struct Registers {
    base: u64,
    counts: Rc<Counts>,
}

/// Global command register: GCMD_REG (VT-d 4.1 section 11.4.4.1).
const COMMAND: u32 = 0x18;

/// Invalidation queue tail register: IQT_REG (VT-d 4.1 section 11.4.9.2).
const TAIL: u32 = 0x88;

impl Registers {
    /// The registers at `base`.
    pub fn new(base: u64) -> Self {
        Self { base, counts: Rc::default() }
    }

    /// Takes the counters, which restart from 0.
    pub fn take_counts(&self) -> Accesses {
        self.counts.accesses.take()
    }
}

impl RegisterIo for Registers {
    fn read32(&mut self, offset: u32) -> u32 {
        self.counts.count(|counts| counts.reads += 1);
        phys::read32(self.base + u64::from(offset))
    }

    fn read64(&mut self, offset: u32) -> u64 {
        self.counts.count(|counts| counts.reads += 1);
        phys::read64(self.base + u64::from(offset))
    }

    fn write32(&mut self, offset: u32, value: u32) {
        self.counts.count(|counts| {
            counts.writes += 1;
            if offset == COMMAND && value & 1 << 31 == 0 {
                counts.translation_off += 1;
            }
            if offset == TAIL {
                let before = self.counts.tail.replace(value);
                counts.descriptors += (value.wrapping_sub(before) & 4095) / 16;
            }
        });
        phys::write32(self.base + u64::from(offset), value);
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.counts.count(|counts| counts.writes += 1);
        phys::write64(self.base + u64::from(offset), value);
    }
}

/// The instruction counter as a clock.
#[derive(Clone, Copy, Debug)]
pub struct Time;

impl Clock for Time {
    fn now(&mut self) -> Nanos {
        Nanos(cpu::nanos())
    }

    fn relax(&mut self) {
        cpu::pause();
    }
}

/// First byte of the frames.
pub const FRAMES: u64 = 32 << 20;

/// Number of frames.
const COUNT: usize = 4096;

/// Bytes of all frames.
pub const FRAMES_LENGTH: u64 = COUNT as u64 * 4096;

/// Frames of table memory, from [`FRAMES`] on.
pub struct Frames {
    next: usize,
    free: Vec<usize>,
    live: Vec<u16>,
    in_use: usize,
    none: u16,
    /// Cache lines written back so far.
    pub cleaned: u32,
}

impl Frames {
    /// Creates the pool with all frames free. Called once.
    pub fn new() -> Self {
        let live = alloc::vec![0; COUNT];
        Self { next: 0, free: Vec::new(), live, in_use: 0, none: 0, cleaned: 0 }
    }

    fn index(frame: PhysAddr) -> Option<usize> {
        let offset = frame.0.checked_sub(FRAMES)?;
        let index = usize::try_from(offset / 4096).ok()?;
        (offset % 4096 == 0 && index < COUNT).then_some(index)
    }

    fn word(frame: PhysAddr, index: usize) -> Option<*mut u64> {
        Self::index(frame)?;
        (index < 512).then(|| with_exposed_provenance_mut(frame.0 as usize + index * 8))
    }

    const fn address(index: usize) -> PhysAddr {
        PhysAddr(FRAMES + index as u64 * 4096)
    }

    fn clear(&mut self, frame: PhysAddr) {
        for index in 0..512 {
            self.store(frame, index, 0);
        }
        self.clean(frame, 0, 512);
    }
}

impl TableMemory for Frames {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        let Some(index) = self.free.pop() else { return self.allocate_run(1) };
        self.in_use += 1;
        Ok(Self::address(index))
    }

    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        let first = self.next.next_multiple_of(count.max(1));
        if first + count > COUNT {
            return Err(MemoryError::Exhausted);
        }
        self.next = first + count;
        self.in_use += count;
        (first..first + count).for_each(|index| self.clear(Self::address(index)));
        Ok(Self::address(first))
    }

    fn free(&mut self, frame: PhysAddr, is_zero: bool) {
        if let Some(index) = Self::index(frame) {
            if !is_zero {
                self.clear(frame);
            }
            self.live[index] = 0;
            self.in_use -= 1;
            self.free.push(index);
        }
    }

    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        // SAFETY: inside the frames, which only this object and hardware use (`word`).
        Self::word(frame, index).map_or(0, |word| unsafe { word.read_volatile() })
    }

    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        if let Some(word) = Self::word(frame, index) {
            // SAFETY: inside the frames, which only this object and hardware use (`word`).
            unsafe { word.write_volatile(value) };
        }
    }

    fn write(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        values: &mut impl Iterator<Item = u64>,
    ) {
        let Some(start) = Self::word(frame, first).filter(|_| first + count <= 512) else { return };
        for (index, value) in (0..count).zip(values) {
            // SAFETY: inside the frames, which only this object and hardware use (`word`); the last word lies in the
            // same frame.
            unsafe { start.add(index).write_volatile(value) };
        }
    }

    fn change_each(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        mut change: impl FnMut(usize, u64) -> Option<u64>,
    ) {
        let Some(start) = Self::word(frame, first).filter(|_| first + count <= 512) else { return };
        for index in 0..count {
            // SAFETY: the last word lies in the same frame as the first (checked above).
            let word = unsafe { start.add(index) };
            // SAFETY: inside the frames, which only this object and hardware use (`word`).
            if let Some(new) = change(first + index, unsafe { word.read_volatile() }) {
                // SAFETY: inside the frames, which only this object and hardware use (`word`).
                unsafe { word.write_volatile(new) };
            }
        }
    }

    fn change<T>(
        &mut self,
        frame: PhysAddr,
        index: usize,
        change: impl FnOnce(u64, &mut u16) -> (Option<u64>, T),
    ) -> T {
        let Some(word) = Self::word(frame, index) else { return change(0, &mut self.none).1 };
        let live = self.live(frame);
        // SAFETY: inside the frames, which only this object and hardware use (`word`).
        let (new, told) = change(unsafe { word.read_volatile() }, live);
        if let Some(new) = new {
            // SAFETY: inside the frames, which only this object and hardware use (`word`).
            unsafe { word.write_volatile(new) };
        }
        told
    }

    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        if Self::word(frame, first).is_none() || count == 0 {
            return;
        }
        let (start, end) = (frame.0 + first as u64 * 8, frame.0 + (first + count) as u64 * 8);
        let mut line = start & !63;
        while line < end {
            cpu::flush_line(line);
            self.cleaned += 1;
            line += 64;
        }
        cpu::fence();
    }

    fn live(&mut self, frame: PhysAddr) -> &mut u16 {
        match Self::index(frame) {
            Some(index) => &mut self.live[index],
            None => &mut self.none,
        }
    }

    fn frames_in_use(&self) -> usize {
        self.in_use
    }

    fn frames_free(&self) -> usize {
        COUNT - self.in_use
    }
}
