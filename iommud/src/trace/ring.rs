//! The ring: the latest records, in memory that may outlive the server.

use core::sync::atomic::{Ordering, compiler_fence};

use super::record::{Record, State, Status};

/// The first word of the memory of a ring.
pub const MARK: u64 = u64::from_le_bytes(*b"iommutr1");

/// Word of the memory that holds the number of records so far.
const NEXT: usize = 1;

/// Word of the memory that holds the number of records that were taken.
const TAKEN: usize = 2;

/// The latest records of one server. The first record of its memory has [`MARK`], the number of records so far and the
/// number that were taken. So whoever finds the memory knows what it holds.
#[derive(Debug)]
pub struct Ring {
    head: &'static mut Record,
    /// A power of two.
    records: &'static mut [Record],
    /// Number of records minus one: the bits of a record's number that are its index.
    mask: usize,
    /// Milliseconds, in bits 63:32.
    time: u64,
    /// Index of the first record of the event under way, or `CLOSED`.
    open: usize,
}

/// No event is under way: no record has this index.
const CLOSED: usize = usize::MAX;

impl Ring {
    /// Creates an empty ring in `memory`: its first record, and a power of two of others. `None` when it has fewer
    /// than two records.
    #[must_use]
    pub fn new(memory: &'static mut [Record]) -> Option<Self> {
        let mut ring = Self::over(memory)?;
        ring.clear();
        Some(ring)
    }

    /// The ring that is in `memory` since an earlier server; an empty one when there is none.
    #[must_use]
    pub fn over(memory: &'static mut [Record]) -> Option<Self> {
        let (head, records) = memory.split_first_mut()?;
        let count = 1 << records.len().checked_ilog2()?;
        let (records, _) = records.split_at_mut_checked(count)?;
        let mut ring = Self { head, records, mask: count - 1, time: 0, open: CLOSED };
        let [mark, next, taken, ..] = *ring.head;
        if mark != MARK || taken > next {
            ring.clear();
        }
        Some(ring)
    }

    /// Empties the ring. The next record is the first one of a life.
    pub fn clear(&mut self) {
        *self.head = [MARK, 0, 0, 0, 0, 0, 0, 0];
        self.records.fill([0; 8]);
        self.open = CLOSED;
    }

    /// Sets the time of the records from now on, in milliseconds. The loop does so at each wake-up.
    pub fn set_time(&mut self, milliseconds: u32) {
        self.time = u64::from(milliseconds) << 32;
    }

    /// Appends the first record of an event, which is under way from now on.
    #[inline]
    pub(super) fn begin(&mut self, mut record: Record) {
        record[1] = self.head[NEXT] & 0xffff_ffff | self.time;
        self.open = self.write(record);
    }

    /// Appends an element of the list of the event under way.
    pub(super) fn append(&mut self, record: Record) {
        // A list that goes around overwrites its event, whose end then goes nowhere.
        if self.write(record) == self.open {
            self.open = CLOSED;
        }
    }

    /// Writes the next record; returns its index.
    #[inline]
    fn write(&mut self, record: Record) -> usize {
        let next = self.head[NEXT];
        let index = usize::try_from(next).unwrap_or(0) & self.mask;
        if let Some(place) = self.records.get_mut(index) {
            *place = record;
        }
        // A server that dies here leaves no record that is counted and not written.
        compiler_fence(Ordering::Release);
        self.head[NEXT] = next + 1;
        index
    }

    /// Ends the event under way, if it has not ended.
    #[inline]
    pub(super) fn end(&mut self, value: u64, status: u64) {
        if let Some([.., outcome, end]) = self.records.get_mut(self.open) {
            (*outcome, *end) = (value, status);
        }
        self.open = CLOSED;
    }

    /// Sets a word of the `index`-th record of the list of the event under way.
    pub(super) fn set_item(&mut self, index: usize, word: usize, value: u64) {
        if self.open == CLOSED {
            return;
        }
        let index = (self.open + 1 + index) & self.mask;
        if let Some(place) = self.records.get_mut(index).and_then(|record| record.get_mut(word)) {
            *place = value;
        }
    }

    /// Appends a record that is no event.
    pub(super) fn fact(&mut self, record: Record) {
        self.begin(record);
        self.end(0, Status::new(State::Committed).to_bits());
    }

    #[inline]
    fn capacity(&self) -> u64 {
        u64::try_from(self.records.len()).unwrap_or(u64::MAX)
    }

    /// Number of records that are to be taken.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.head[NEXT].wrapping_sub(self.head[TAKEN])
    }

    /// Whether half of the ring is to be taken.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.waiting() >= self.capacity() / 2
    }

    /// Passes the records that were not taken yet to `sink`, oldest first, in one or two pieces. Records that were
    /// overwritten before are missing; their numbers show it.
    pub fn take(&mut self, mut sink: impl FnMut(&[Record])) {
        let (capacity, next) = (self.capacity(), self.head[NEXT]);
        let mut at = self.head[TAKEN].max(next.saturating_sub(capacity));
        while at < next {
            let start = usize::try_from(at % capacity).unwrap_or(0);
            let count = usize::try_from(next - at).unwrap_or(usize::MAX);
            let piece = self.records.get(start..).unwrap_or_default();
            let piece = piece.get(..count).unwrap_or(piece);
            sink(piece);
            at += u64::try_from(piece.len()).unwrap_or(1).max(1);
        }
        self.head[TAKEN] = next;
    }
}

#[cfg(test)]
impl Ring {
    /// A copy of the memory, as it stays when a server dies.
    pub(crate) fn into_memory(self) -> alloc::vec::Vec<Record> {
        core::iter::once(*self.head).chain(self.records.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn memory(records: usize) -> &'static mut [Record] {
        vec![[0; 8]; records].leak()
    }

    fn taken(ring: &mut Ring) -> Vec<Record> {
        let mut out = Vec::new();
        ring.take(|piece| out.extend_from_slice(piece));
        out
    }

    #[test]
    fn records_are_numbered_timed_and_taken_once() {
        let mut ring = Ring::new(memory(9)).unwrap();
        ring.set_time(0x77);
        ring.begin([1, 0, 2, 3, 4, 5, 6, 0]);
        ring.append([8; 8]);
        ring.set_item(0, 4, 0x44);
        ring.end(0x66, 0x77);
        ring.end(1, 1);
        ring.set_time(0x78);
        ring.fact([9, 0, 0, 0, 0, 0, 0, 0]);
        let expected = [
            [1, 0x77_0000_0000, 2, 3, 4, 5, 0x66, 0x77],
            [8, 8, 8, 8, 0x44, 8, 8, 8],
            [9, 0x78_0000_0002, 0, 0, 0, 0, 0, 1],
        ];
        assert_eq!((ring.waiting(), taken(&mut ring)), (3, expected.to_vec()));
        assert_eq!((ring.waiting(), taken(&mut ring)), (0, vec![]));
    }

    #[test]
    fn the_oldest_are_overwritten() {
        let mut ring = Ring::new(memory(5)).unwrap();
        for number in 0..6 {
            assert_eq!(ring.is_half_full(), number >= 2);
            ring.fact([number, 0, 0, 0, 0, 0, 0, 0]);
        }
        let numbers: Vec<u64> = taken(&mut ring).iter().map(|record| record[0] & 0xff).collect();
        assert_eq!(numbers, [2, 3, 4, 5]);
        // The end of an event whose record was overwritten goes nowhere.
        ring.begin([7, 0, 0, 0, 0, 0, 0, 0]);
        for _ in 0..4 {
            ring.append([0; 8]);
        }
        ring.end(9, 9);
        assert_eq!(taken(&mut ring), [[0; 8]; 4]);
    }

    #[test]
    fn the_next_server_finds_what_was_not_taken() {
        let mut ring = Ring::new(memory(5)).unwrap();
        ring.fact([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(taken(&mut ring).len(), 1);
        ring.begin([2, 0, 0, 0, 0, 0, 0, 0]);
        let mut found = Ring::over(ring.into_memory().leak()).unwrap();
        assert_eq!(taken(&mut found), [[2, 1, 0, 0, 0, 0, 0, 0]]);
        for head in [[MARK, 1, 2, 0, 0, 0, 0, 0], [MARK - 1, 2, 1, 0, 0, 0, 0, 0]] {
            let mut other = vec![[1; 8]; 5];
            other[0] = head;
            let mut ring = Ring::over(other.leak()).unwrap();
            assert_eq!((ring.waiting(), taken(&mut ring)), (0, vec![]));
        }
    }

    #[test]
    fn a_ring_has_a_power_of_two_of_records() {
        assert!(Ring::new(memory(0)).is_none() && Ring::new(memory(1)).is_none());
        for (memory_of, capacity) in [(2, 1), (3, 2), (4, 2), (17, 16), (20, 16)] {
            assert_eq!(Ring::new(memory(memory_of)).unwrap().capacity(), capacity);
        }
    }
}
