//! Table memory for the unit tests of this folder. It detects errors that would affect hardware: frames freed twice
//! or not zero as promised, stores to freed frames, lines that were not cleaned.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

use super::{MemoryError, TableMemory};
use crate::addr::PhysAddr;

/// The first frame handed out.
const BASE: u64 = 0x7000_0000_0000;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) words: Vec<u64>,
    pub(crate) live: u16,
}

/// Words by physical address, as a fake unit reads and writes them.
pub(crate) type Bus = Rc<RefCell<BTreeMap<u64, u64>>>;

/// Frames by address. `budget` is how many more allocations succeed.
pub(crate) struct TestMemory {
    pub(crate) frames: BTreeMap<u64, Frame>,
    pub(crate) budget: usize,
    /// Cache lines (by address) stored to and not cleaned.
    pub(crate) dirty: BTreeSet<u64>,
    /// Calls of `clean`: frame, first word, number of words.
    pub(crate) cleans: Vec<(PhysAddr, usize, usize)>,
    pub(crate) stores: usize,
    /// What was stored, in order: frame, word, value.
    pub(crate) written: Vec<(PhysAddr, usize, u64)>,
    pub(crate) loads: Cell<usize>,
    /// Frames given back with the promise that they are zero.
    pub(crate) zero_frees: usize,
    /// Table links that were stored while a line of the table they point to was dirty.
    pub(crate) dirty_links: usize,
    /// Words that units read and write; `load` returns their values. It holds the frames of `allocate_run`.
    pub(crate) bus: Bus,
    /// Frames from this address on were never handed out.
    next: u64,
}

impl TestMemory {
    pub(crate) fn new() -> Self {
        Self {
            frames: BTreeMap::new(),
            budget: usize::MAX,
            dirty: BTreeSet::new(),
            cleans: Vec::new(),
            stores: 0,
            written: Vec::new(),
            loads: Cell::new(0),
            zero_frees: 0,
            dirty_links: 0,
            bus: Bus::default(),
            next: BASE,
        }
    }

    /// The content and counters of all frames.
    pub(crate) fn snapshot(&self) -> BTreeMap<u64, Frame> {
        self.frames.clone()
    }

    fn line(frame: PhysAddr, index: usize) -> u64 {
        frame.0 + ((index as u64 * 8) & !63)
    }

    fn take(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        self.budget = self.budget.checked_sub(1).ok_or(MemoryError::Exhausted)?;
        let bytes = 4096 * count as u64;
        let first = self.next.next_multiple_of(bytes);
        self.next = first + bytes;
        for frame in (first..self.next).step_by(4096) {
            self.frames.insert(frame, Frame { words: vec![0; 512], live: 0 });
        }
        Ok(PhysAddr(first))
    }

    fn is_dirty(&self, frame: u64) -> bool {
        self.dirty.range(frame..frame + 4096).next().is_some()
    }
}

impl TableMemory for TestMemory {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        self.take(1)
    }

    fn allocate_unclean(&mut self) -> Result<PhysAddr, MemoryError> {
        let frame = self.take(1)?;
        self.dirty.extend((frame.0..frame.0 + 4096).step_by(64));
        Ok(frame)
    }

    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        let first = self.take(count)?;
        let words = (first.0..self.next).step_by(8).map(|address| (address, 0));
        self.bus.borrow_mut().extend(words);
        Ok(first)
    }
    fn free(&mut self, frame: PhysAddr, is_zero: bool) {
        let old = self.frames.remove(&frame.0).expect("frame freed twice");
        assert!(!is_zero || old.words.iter().all(|word| *word == 0), "{frame:?} is not zero");
        self.zero_frees += usize::from(is_zero);
        self.dirty = self.dirty.iter().copied().filter(|l| l & !4095 != frame.0).collect();
    }

    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        let written = self.bus.borrow().get(&(frame.0 + index as u64 * 8)).copied();
        written.unwrap_or(self.frames[&frame.0].words[index])
    }

    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        self.stores += 1;
        self.written.push((frame, index, value));
        let target = value & 0x000f_ffff_ffff_f000;
        if self.frames.contains_key(&target) && self.is_dirty(target) {
            self.dirty_links += 1;
        }
        self.dirty.insert(Self::line(frame, index));
        self.frames.get_mut(&frame.0).expect("store to a freed frame").words[index] = value;
        if let Some(word) = self.bus.borrow_mut().get_mut(&(frame.0 + index as u64 * 8)) {
            *word = value;
        }
    }

    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        self.cleans.push((frame, first, count));
        for index in first..first + count {
            self.dirty.remove(&Self::line(frame, index));
        }
    }

    fn live(&mut self, frame: PhysAddr) -> &mut u16 {
        &mut self.frames.get_mut(&frame.0).expect("counter of a freed frame").live
    }

    fn frames_in_use(&self) -> usize {
        self.frames.len()
    }

    fn frames_free(&self) -> usize {
        self.budget
    }
}
