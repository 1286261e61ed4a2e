//! Memory for tables. A freed frame is handed out again at once, last in first out. Any use after it was freed is
//! detected.

use iommud::addr::PhysAddr;
use iommud::hw::{MemoryError, TableMemory};

use super::{FRAME, Machine, Map, State, Through, Use, Violation, WORDS};

/// Content of a freed frame until it is handed out again: entries that seem to allow everything, to an address
/// without memory.
const POISON: u64 = 0x000f_dead_bad0_0003;

/// Frames for tables.
#[derive(Clone)]
pub(super) struct Pool {
    next: u64,
    end: u64,
    free: Vec<u64>,
    in_use: usize,
    allocations: u64,
    fail_from: Option<(u64, u64)>,
    /// Whether tables of a previous owner can be read.
    sees_others: bool,
}

impl Pool {
    pub(super) fn new((start, length): (u64, u64)) -> Self {
        Self {
            next: start,
            end: start + length,
            free: Vec::new(),
            in_use: 0,
            allocations: 0,
            fail_from: None,
            sees_others: false,
        }
    }

    /// Frames that the server holds.
    pub(super) const fn in_use(&self) -> usize {
        self.in_use
    }

    /// Counts an allocation and returns whether it must fail.
    fn fails(&mut self) -> bool {
        self.allocations += 1;
        let index = self.allocations - 1;
        self.fail_from.is_some_and(|(first, count)| index >= first && index - first < count)
    }

    fn run(&mut self, count: usize) -> Result<u64, MemoryError> {
        let bytes = u64::try_from(count).map_err(|_| MemoryError::Exhausted)? * FRAME;
        if let Some(start) = self.gathered(bytes) {
            return Ok(start);
        }
        let start = self.next.next_multiple_of(bytes);
        if self.end - self.next.min(self.end) < bytes || start > self.end - bytes {
            return Err(MemoryError::Exhausted);
        }
        self.free.extend((self.next..start).step_by(4096));
        self.next = start + bytes;
        Ok(start)
    }
}

impl Pool {
    /// Takes an aligned run of frames that were skipped or freed, so that aligning long runs wastes none.
    fn gathered(&mut self, bytes: u64) -> Option<u64> {
        let frames = |start: u64| (start..start + bytes).step_by(4096);
        let whole = |start: u64| frames(start).all(|frame| self.free.contains(&frame));
        let aligned = self.free.iter().copied().filter(|start| start.is_multiple_of(bytes));
        let start = aligned.filter(|start| whole(*start)).min()?;
        self.free.retain(|frame| !(start..start + bytes).contains(frame));
        Some(start)
    }
}

impl State {
    fn hand_out(&mut self, start: u64, count: usize) -> PhysAddr {
        for index in 0..u64::try_from(count).unwrap() {
            let frame = start + index * FRAME;
            self.memory.fill(frame, 0);
            self.memory.set_purpose(frame, Use::Table);
        }
        self.tables.in_use += count;
        PhysAddr(start)
    }

    fn take_back(&mut self, frame: u64, is_zero: bool) -> bool {
        if !frame.is_multiple_of(FRAME) || self.memory.purpose(frame) != Some(Use::Table) {
            self.memory.report(Violation::FreedTwice { frame });
            return false;
        }
        if is_zero && let Some((word, value)) = self.memory.nonzero(frame) {
            self.memory.report(Violation::FreedNotZero { frame, word, value });
        }
        for unit in 0..self.units.len() {
            if self.audit && self.units[unit].translating() {
                let (device, view) = self.view(unit);
                let tables = device.tables(view, Through::TablesAndCaches);
                if let Some((_, how)) = tables.into_iter().find(|(table, _)| *table == frame) {
                    self.memory.report(Violation::FreedInUse { unit, address: frame, how });
                }
            }
        }
        self.memory.fill(frame, POISON);
        self.memory.set_purpose(frame, Use::FreeTable);
        self.tables.free.push(frame);
        self.tables.in_use -= 1;
        true
    }

    /// Returns the word's address if the server holds its frame as a table.
    fn table_word(&mut self, frame: PhysAddr, index: usize) -> Option<u64> {
        let frame = frame.0;
        if !frame.is_multiple_of(FRAME)
            || index >= WORDS
            || self.memory.purpose(frame) != Some(Use::Table)
        {
            self.memory.report(Violation::NotATable { frame });
            return None;
        }
        Some(frame + 8 * u64::try_from(index).unwrap())
    }
}

/// `TableMemory` over a machine.
#[derive(Clone)]
pub struct Tables {
    machine: Machine,
    live: Map<u64, u16>,
}

impl Machine {
    /// The memory for tables. Call it once: it holds the server's counters of live entries.
    #[must_use]
    pub fn tables(&self) -> Tables {
        Tables { machine: self.clone(), live: Map::default() }
    }

    /// Makes allocations of table memory fail: `count` of them, after `after` more have succeeded.
    pub fn fail_table_allocations(&self, after: u64, count: u64) {
        let mut state = self.state();
        let first = state.tables.allocations + after;
        state.tables.fail_from = (count > 0).then_some((first, count));
    }

    /// Lets the server read tables of the units' previous owner.
    pub fn show_others_tables(&self) {
        self.state().tables.sees_others = true;
    }

    /// Allocations of table memory so far, failed ones included.
    #[must_use]
    pub fn table_allocations(&self) -> u64 {
        self.state().tables.allocations
    }

    /// Frames of table memory that the server holds.
    #[must_use]
    pub fn table_frames(&self) -> usize {
        self.state().tables.in_use
    }
}

impl Tables {
    /// Adds system memory (first byte, length) to the pool. Devices may no longer reach it.
    pub fn add(&mut self, (start, length): (u64, u64)) {
        let mut state = self.machine.state();
        for frame in (start..start + length).step_by(4096) {
            state.memory.fill(frame, 0);
            state.memory.set_purpose(frame, Use::FreeTable);
            state.tables.free.push(frame);
        }
        state.observe();
    }

    /// Takes one frame of zeros. Unless it is clean, units that do not snoop find poison in it.
    fn one(&mut self, clean: bool) -> Result<PhysAddr, MemoryError> {
        let mut state = self.machine.state();
        if state.tables.fails() {
            return Err(MemoryError::Exhausted);
        }
        let frame = match state.tables.free.pop() {
            Some(frame) => frame,
            None => state.tables.run(1)?,
        };
        self.live.insert(frame, 0);
        let handed_out = state.hand_out(frame, 1);
        if !clean {
            state.memory.fill(frame, POISON);
            state.memory.fill_cached(frame, 0);
        }
        Ok(handed_out)
    }
}

impl TableMemory for Tables {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        self.one(true)
    }

    fn allocate_unclean(&mut self) -> Result<PhysAddr, MemoryError> {
        self.one(false)
    }

    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        assert!(count.is_power_of_two(), "a run of {count} frames");
        let mut state = self.machine.state();
        if state.tables.fails() {
            return Err(MemoryError::Exhausted);
        }
        let start = state.tables.run(count)?;
        Ok(state.hand_out(start, count))
    }

    fn free(&mut self, frame: PhysAddr, is_zero: bool) {
        if self.machine.state().take_back(frame.0, is_zero) {
            self.live.remove(&frame.0);
        }
    }

    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        let mut state = self.machine.state();
        let purpose = state.memory.purpose(frame.0);
        // The server may read a previous owner's tables; the platform decides whether they are visible.
        if purpose == Some(Use::Firmware) && !state.tables.sees_others {
            return 0;
        }
        let kept = matches!(purpose, Some(Use::Table | Use::Firmware));
        if !kept || !frame.is_aligned(FRAME) || index >= WORDS {
            state.memory.report(Violation::NotATable { frame: frame.0 });
            return 0;
        }
        state.memory.cpu_load(frame.0 + 8 * u64::try_from(index).unwrap())
    }

    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        let mut state = self.machine.state();
        let Some(address) = state.table_word(frame, index) else { return };
        state.memory.cpu_store(address, value);
        for unit in 0..state.units.len() {
            let (device, mut bus) = state.unit(unit);
            device.stored(&mut bus, address);
        }
        state.observe();
    }

    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        let mut state = self.machine.state();
        // One word of each line: eight words of 8 bytes.
        let end = first.saturating_add(count);
        for index in (first & !7..end).step_by(8) {
            let Some(address) = state.table_word(frame, index) else { break };
            state.memory.clean(address);
        }
        state.observe();
    }

    fn live(&mut self, frame: PhysAddr) -> &mut u16 {
        self.live.entry(frame.0).or_insert(0)
    }

    fn frames_in_use(&self) -> usize {
        self.machine.state().tables.in_use
    }

    fn frames_free(&self) -> usize {
        let pool = &self.machine.state().tables;
        pool.free.len() + usize::try_from((pool.end - pool.next) / FRAME).unwrap()
    }
}
