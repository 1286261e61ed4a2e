//! Rings of 16-byte entries in memory, and the word by which a unit reports its progress. The queues and logs of both
//! vendors have this shape, with head and tail as byte offsets.

use super::hal::{MemoryError, TableMemory};
use crate::addr::{PAGE_SIZE, PhysAddr};

/// Bytes of an entry.
const ENTRY: u64 = 16;

/// Entries in a frame.
const PER_FRAME: usize = 256;

/// A ring and the position of software in it: where it writes next (a queue) or reads next (a log).
/// Hardware's position is in a register; the two are equal when the ring is empty.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    base: PhysAddr,
    entries: usize,
    next: usize,
}

impl Ring {
    /// A ring of `frames` frames (a power of two) of 256 entries, all zero.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(crate) fn allocate<M: TableMemory>(
        memory: &mut M,
        frames: usize,
    ) -> Result<Self, MemoryError> {
        Ok(Self { base: memory.allocate_run(frames)?, entries: frames * PER_FRAME, next: 0 })
    }

    /// Address of the ring.
    pub(crate) const fn base(&self) -> PhysAddr {
        self.base
    }

    /// Number of entries. One fewer can be used at a time, since a full ring would look empty.
    pub(crate) const fn entries(&self) -> usize {
        self.entries
    }

    /// The byte offset of software's position, as pointer registers hold it.
    pub(crate) const fn offset(&self) -> u64 {
        self.next as u64 * ENTRY
    }

    /// Moves software's position to the byte offset that a register holds.
    pub(crate) fn set_offset(&mut self, offset: u64) {
        self.next = self.index(offset);
    }

    /// Number of entries from software's position up to hardware's, a byte offset. In a log, these wait to be read.
    pub(crate) fn ahead(&self, hardware: u64) -> usize {
        (self.index(hardware) + self.entries - self.next) % self.entries
    }

    /// Index of the entry at a byte offset. A unit may report the end of the ring in place of its start.
    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset / ENTRY).unwrap_or(0) % self.entries
    }

    /// The frame and first word of the entry at software's position.
    const fn place(&self) -> (PhysAddr, usize) {
        self.place_of(self.next)
    }

    /// The frame and first word of the entry at a byte offset.
    pub(crate) fn place_at(&self, offset: u64) -> (PhysAddr, usize) {
        self.place_of(self.index(offset))
    }

    const fn place_of(&self, index: usize) -> (PhysAddr, usize) {
        let frame = self.base.0 + (index / PER_FRAME) as u64 * PAGE_SIZE;
        (PhysAddr(frame), index % PER_FRAME * 2)
    }

    const fn advance(&mut self) {
        self.next += 1;
        if self.next == self.entries {
            self.next = 0;
        }
    }

    /// Writes an entry and moves on. `coherent` says whether the unit snoops. The caller makes sure that there is
    /// room, and notifies the unit afterwards.
    pub(crate) fn put<M: TableMemory>(&mut self, memory: &mut M, entry: [u64; 2], coherent: bool) {
        let (frame, word) = self.place();
        memory.write(frame, word, 2, &mut entry.into_iter());
        if !coherent {
            memory.clean(frame, word, 2);
        }
        self.advance();
    }

    /// Writes two entries like [`Ring::put`], in one write if both are in the same frame.
    #[inline(always)]
    pub(crate) fn put_two<M: TableMemory>(
        &mut self,
        memory: &mut M,
        entries: [[u64; 2]; 2],
        coherent: bool,
    ) {
        let (frame, word) = self.place();
        if word + 4 > 2 * PER_FRAME {
            entries.into_iter().for_each(|entry| self.put(memory, entry, coherent));
            return;
        }
        memory.write(frame, word, 4, &mut entries.as_flattened().iter().copied());
        if !coherent {
            memory.clean(frame, word, 4);
        }
        self.advance();
        self.advance();
    }

    /// The entry at software's position.
    pub(crate) fn peek<M: TableMemory>(&self, memory: &M) -> [u64; 2] {
        let (frame, word) = self.place();
        [memory.load(frame, word), memory.load(frame, word + 1)]
    }

    /// Clears the entry at software's position and moves on. The zeros will show that the unit has announced an entry
    /// but not written it yet.
    pub(crate) fn consume<M: TableMemory>(&mut self, memory: &mut M, coherent: bool) {
        let (frame, word) = self.place();
        memory.store(frame, word, 0);
        memory.store(frame, word + 1, 0);
        if !coherent {
            memory.clean(frame, word, 2);
        }
        self.advance();
    }
}

/// A word of memory that a unit writes when it has finished everything before a wait. Values count up and
/// are not used twice, so that a late answer to an earlier wait is not taken for the one expected.
#[derive(Clone, Debug)]
pub(crate) struct Semaphore {
    frame: PhysAddr,
    /// Bits that the unit writes.
    mask: u64,
    value: u64,
}

impl Semaphore {
    /// Allocates a word, in which units write the bits of `mask` (all 64, or the low 32).
    ///
    /// # Errors
    /// `Exhausted`.
    pub(crate) fn allocate<M: TableMemory>(memory: &mut M, mask: u64) -> Result<Self, MemoryError> {
        Ok(Self { frame: memory.allocate_run(1)?, mask, value: 0 })
    }

    /// Address that the unit writes to.
    pub(crate) const fn address(&self) -> PhysAddr {
        self.frame
    }

    /// Address of a word that units may write and that is never read.
    pub(crate) const fn spare(&self) -> PhysAddr {
        PhysAddr(self.frame.0 + 8)
    }

    /// The value that the next wait is to write; never 0.
    pub(crate) const fn advance(&mut self) -> u64 {
        self.value = self.value.wrapping_add(1) & self.mask;
        if self.value == 0 {
            self.value = 1;
        }
        self.value
    }

    /// Writes the latest value in the unit's place, so that nothing waits for it any longer.
    pub(crate) fn answer<M: TableMemory>(&self, memory: &mut M) {
        memory.store(self.frame, 0, self.value);
    }

    /// Whether the unit has written the latest value.
    pub(crate) fn reached<M: TableMemory>(&self, memory: &M) -> bool {
        memory.load(self.frame, 0) & self.mask == self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::testing::TestMemory;

    #[test]
    fn entries_go_around_over_all_frames() {
        let mut memory = TestMemory::new();
        let mut ring = Ring::allocate(&mut memory, 2).unwrap();
        assert_eq!((ring.entries(), ring.offset()), (512, 0));
        for number in 0..600 {
            ring.put(&mut memory, [number, !number], true);
        }
        // Entry 300 lies in the second frame, entry 599 overwrote entry 87.
        assert_eq!(ring.offset(), 88 * 16);
        assert_eq!(memory.load(PhysAddr(ring.base().0 + 4096), (300 - 256) * 2), 300);
        assert_eq!(memory.load(ring.base(), 87 * 2), 599);
        assert_eq!(memory.load(ring.base(), 87 * 2 + 1), !599);
    }

    #[test]
    fn a_log_is_read_around_its_end() {
        let mut memory = TestMemory::new();
        let mut ring = Ring::allocate(&mut memory, 1).unwrap();
        ring.set_offset(254 * 16);
        for (offset, value) in [(254, 7), (255, 8), (0, 9)] {
            memory.store(ring.base(), offset * 2, value);
        }
        assert_eq!(ring.ahead(16), 3);
        for value in [7, 8, 9] {
            assert_eq!(ring.peek(&memory), [value, 0]);
            ring.consume(&mut memory, true);
        }
        assert_eq!((ring.ahead(16), ring.offset()), (0, 16));
        assert!(
            (0..512).all(|word| memory.load(ring.base(), word) == 0),
            "what was read is cleared"
        );
        // QEMU shows the ring's end for its start.
        ring.set_offset(256 * 16);
        assert_eq!((ring.offset(), ring.ahead(256 * 16)), (0, 0));
    }

    /// An entry is two words. A unit that does not snoop sees what was cleaned.
    #[test]
    fn two_entries_are_one_write_unless_a_frame_ends_between_them() {
        let mut memory = TestMemory::new();
        let mut ring = Ring::allocate(&mut memory, 2).unwrap();
        let (base, next) = (ring.base(), PhysAddr(ring.base().0 + 0x1000));
        for (at, cleans, end) in [
            (0, &[(base, 0, 4)][..], 2),
            (200, &[(base, 400, 4)], 202),
            (254, &[(base, 508, 4)], 256),
            (255, &[(base, 510, 2), (next, 0, 2)], 257),
            (510, &[(next, 508, 4)], 0),
            (511, &[(next, 510, 2), (base, 0, 2)], 1),
        ] {
            ring.set_offset(at * 16);
            memory.cleans.clear();
            ring.put_two(&mut memory, [[at, 1], [at, 2]], false);
            assert_eq!((&memory.cleans[..], ring.offset()), (cleans, end * 16), "{at}");
            let words = cleans.iter().flat_map(|(frame, first, count)| {
                (*first..first + count).map(|word| memory.load(*frame, word))
            });
            assert!(words.eq([at, 1, at, 2]), "{at}");
            ring.set_offset(at * 16);
            ring.put_two(&mut memory, [[at, 3], [at, 4]], true);
            assert_eq!((&memory.cleans[..], ring.offset()), (cleans, end * 16), "{at}");
        }
    }

    #[test]
    fn both_words_of_an_entry_that_was_read_are_cleared() {
        let mut memory = TestMemory::new();
        let mut ring = Ring::allocate(&mut memory, 1).unwrap();
        for word in 0..8 {
            memory.store(ring.base(), word, 7);
        }
        ring.set_offset(16);
        ring.consume(&mut memory, true);
        assert_eq!(memory.cleans, []);
        ring.consume(&mut memory, false);
        assert_eq!(memory.cleans, [(ring.base(), 4, 2)]);
        let words: [u64; 8] = core::array::from_fn(|word| memory.load(ring.base(), word));
        assert_eq!(words, [7, 7, 0, 0, 0, 0, 7, 7]);
    }

    #[test]
    fn late_answers_are_not_taken_for_the_one_expected() {
        let mut memory = TestMemory::new();
        let mut done = Semaphore::allocate(&mut memory, u32::MAX.into()).unwrap();
        let first = done.advance();
        let second = done.advance();
        memory.store(done.address(), 0, first);
        assert!(!done.reached(&memory));
        memory.store(done.address(), 0, 0xdead_beef_0000_0000 | second);
        assert!(done.reached(&memory), "only the low 32 bits are the unit's");
        done.value = u64::from(u32::MAX);
        assert_eq!(done.advance(), 1, "0 is what a new word holds");
    }
}
