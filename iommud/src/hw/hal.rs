//! The hardware abstraction layer: all access of this crate to a machine goes through these traits. A platform
//! implements them over real hardware, the test crate over software units.

use alloc::vec::Vec;

use crate::addr::{PhysAddr, PhysRange};

/// Registers of one unit. Offsets are in bytes from the unit's base, within the mapped length. An implementation
/// answers reads beyond that length with all ones and ignores such writes.
pub trait RegisterIo {
    /// Reads the 32-bit register at `offset`.
    fn read32(&mut self, offset: u32) -> u32;
    /// Reads the 64-bit register at `offset`.
    fn read64(&mut self, offset: u32) -> u64;
    /// Writes the 32-bit register at `offset`. All stores to [`TableMemory`] made before are visible first.
    fn write32(&mut self, offset: u32, value: u32);
    /// Writes the 64-bit register at `offset`. All stores to [`TableMemory`] made before are visible first.
    fn write64(&mut self, offset: u32, value: u64);
}

/// Time in nanoseconds since an arbitrary start; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

/// A monotonic clock.
pub trait Clock {
    /// The time now.
    fn now(&mut self) -> Nanos;
    /// Called between two reads of a register while waiting; may spin, yield or advance a simulated clock.
    fn relax(&mut self);
}

/// Memory of the server that units read and write: tables, rings, status words. It comes in frames of
/// 4096 bytes, aligned to their size, named by physical address and seen as 512 words of 64 bits.
///
/// No client and no device domain ever maps these frames.
pub trait TableMemory {
    /// A frame of zeros, visible as such to hardware whatever its coherency.
    ///
    /// # Errors
    /// `MemoryError::Exhausted` when there is none.
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError>;

    /// A frame of zeros that the caller is going to write. Hardware that does not snoop may see any content until the
    /// caller has cleaned the whole frame. A frame may be given back without that: [`TableMemory::allocate`] cleans it.
    ///
    /// # Errors
    /// `MemoryError::Exhausted` when there is none.
    fn allocate_unclean(&mut self) -> Result<PhysAddr, MemoryError> {
        self.allocate()
    }

    /// `count` frames of zeros (a power of two) that follow each other, aligned to their total size: root and device
    /// tables, and rings. Where there are several such runs, frames that were given back are taken from the lowest on.
    /// Each frame may be given back by itself.
    ///
    /// # Errors
    /// `MemoryError::Exhausted` when there is no such run.
    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError>;

    /// Takes a frame back. `is_zero` is the caller's promise that every word of it is 0 again. Otherwise the memory
    /// clears the frame before it hands it out again.
    fn free(&mut self, frame: PhysAddr, is_zero: bool);

    /// Reads word `index` (0 to 511) of a frame. An unknown frame address or index gives 0.
    fn load(&self, frame: PhysAddr, index: usize) -> u64;

    /// Writes word `index` (0 to 511) of a frame in one 64-bit store. Stores become visible to coherent hardware in
    /// program order. An unknown frame address or index is ignored.
    fn store(&mut self, frame: PhysAddr, index: usize, value: u64);

    /// Writes `count` words from `first` on, each like [`TableMemory::store`]. The first word is `value`, and each
    /// next one is greater by `step`.
    fn fill(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        let mut next = value;
        for index in first..first + count {
            self.store(frame, index, next);
            next = next.wrapping_add(step);
        }
    }

    /// Writes the same words as [`TableMemory::fill`], in a frame that no device reaches yet. The stores may have any
    /// order and size, but all of them come before any later store.
    fn fill_new(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        self.fill(frame, first, count, value, step);
    }

    /// Writes the next `count` words of `values` from `first` on, each like [`TableMemory::store`].
    fn write(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        values: &mut impl Iterator<Item = u64>,
    ) {
        for (index, value) in (first..first + count).zip(values) {
            self.store(frame, index, value);
        }
    }

    /// Calls `change` with the index and value of each of the words `first` to `first + count - 1`, in order. Stores
    /// the value that it returns, if any, in place of the word. The frame is looked up only once. Loads and stores
    /// are like those of [`TableMemory::load`] and [`TableMemory::store`]. When some of the words do not exist, an
    /// implementation need not call `change` at all.
    fn change_each(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        mut change: impl FnMut(usize, u64) -> Option<u64>,
    ) {
        for index in first..first + count {
            if let Some(new) = change(index, self.load(frame, index)) {
                self.store(frame, index, new);
            }
        }
    }

    /// Calls `change` with one word of a frame and the frame's counter. Stores the value that it returns, if any, in
    /// place of the word. The frame is looked up only once. For an unknown frame address or index the word is 0, and
    /// nothing is stored.
    fn change<T>(
        &mut self,
        frame: PhysAddr,
        index: usize,
        change: impl FnOnce(u64, &mut u16) -> (Option<u64>, T),
    ) -> T {
        let word = self.load(frame, index);
        let (new, told) = change(word, self.live(frame));
        if let Some(new) = new {
            self.store(frame, index, new);
        }
        told
    }

    /// Writes the cache lines that hold words `first` to `first + count - 1` back to memory, for hardware that does
    /// not snoop. Everything later is ordered after these writes.
    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize);

    /// Software's own counter of a frame, which hardware never sees; 0 in a new frame.
    fn live(&mut self, frame: PhysAddr) -> &mut u16;

    /// Frames handed out and not taken back.
    fn frames_in_use(&self) -> usize;

    /// Frames that can still be handed out, one by one.
    fn frames_free(&self) -> usize;
}

/// Why memory could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// No memory is left.
    Exhausted,
    /// No free memory meets the constraints (alignment, below 4 GiB, contiguity).
    Constraints,
    /// The client's share is used up.
    Share,
}

/// Constraints on the memory of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Constraints {
    /// Bus addresses fit in 32 bits. Only requested when addresses are not translated.
    pub below_4g: bool,
    /// One segment. Only requested when addresses are not translated.
    pub contiguous: bool,
    /// The address of the first byte is a multiple of this power of two (at least 4096).
    pub alignment: u64,
    /// The memory may not cross a multiple of this power of two; 0 for no limit.
    pub boundary: u64,
    /// The zeros are in memory, not only in caches. A device may read past the caches (PCI Express "No Snoop"), and
    /// would find data of the last user.
    pub written_back: bool,
    /// Whose it is: a piece of the pool that has memory of one account has none of another one's.
    pub account: u32,
}

/// The memory that all buffers together can have. Clients' shares are parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferPool {
    /// Bytes of the whole pool.
    pub capacity: u64,
    /// Bytes of a piece, which has memory of one account only. Pieces are aligned to their size.
    pub granule: u64,
}

impl BufferPool {
    /// A pool without a limit.
    pub const UNLIMITED: Self = Self { capacity: u64::MAX, granule: 4096 };
}

/// DMA memory that is shared with clients. The platform owns it; the server identifies a buffer by its own number.
pub trait BufferMemory {
    /// Gives a client access to the memory (a descriptor, an address to share).
    type Share;

    /// Allocates buffer `id` of `length` bytes (a multiple of 4096), filled with zeros. The segments are in the order
    /// of the buffer's bytes, each a multiple of 4096 long. 2 MiB and more that may be in several segments begin at a
    /// multiple of 2 MiB, and so does each segment behind a multiple of 2 MiB, if such memory is free: large leaves map
    /// it then.
    ///
    /// # Errors
    /// No such memory.
    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError>;

    /// Whether such a buffer fits into pieces that its account has already.
    fn has_room(&self, length: u64, constraints: Constraints) -> bool {
        let _ = (length, constraints);
        false
    }

    /// Gives the memory of buffer `id` back. The caller has proved that no device reaches it. Mappings that clients
    /// still have are revoked, so that no client sees the memory when this returns. On Linux the buffer's hugetlbfs
    /// files are cut to length 0, and the kernel takes their pages out of every process. The content is cleared
    /// before the memory is used for another buffer. An unknown id is ignored.
    ///
    /// Memory that is not the server's own goes back to the system here. (The server's own was given to
    /// `Registry::new`, or since taken by `Event::MemoryTaken`.) One step earlier, the plan has mapped it into the
    /// domains of policy `compat` again.
    fn release(&mut self, id: u32);

    /// Size of the whole pool, whether in use or not.
    fn pool(&self) -> BufferPool;

    /// A new share of the memory of buffer `id`; `None` when there is no such buffer or no descriptor left.
    fn share(&mut self, id: u32) -> Option<Self::Share>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One frame at 0x5000, and its counter: all that an implementation must write itself.
    struct OneFrame([u64; 512], u16);

    impl TableMemory for OneFrame {
        fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
            Ok(PhysAddr(0x5000))
        }
        fn allocate_run(&mut self, _: usize) -> Result<PhysAddr, MemoryError> {
            Err(MemoryError::Exhausted)
        }
        fn free(&mut self, _: PhysAddr, _: bool) {}
        fn load(&self, frame: PhysAddr, index: usize) -> u64 {
            if frame.0 == 0x5000 { self.0.get(index).copied().unwrap_or(0) } else { 0 }
        }
        fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
            if let Some(word) = self.0.get_mut(index).filter(|_| frame.0 == 0x5000) {
                *word = value;
            }
        }
        fn clean(&mut self, _: PhysAddr, _: usize, _: usize) {}
        fn live(&mut self, _: PhysAddr) -> &mut u16 {
            &mut self.1
        }
        fn frames_in_use(&self) -> usize {
            1
        }
        fn frames_free(&self) -> usize {
            0
        }
    }

    #[test]
    fn table_memory_does_by_single_words_what_it_cannot_do_better() {
        let mut memory = OneFrame([0; 512], 0);
        let frame = memory.allocate_unclean().unwrap();
        assert_eq!(frame, PhysAddr(0x5000));
        memory.fill(frame, 1, 3, 7, 10);
        memory.fill_new(frame, 4, 2, u64::MAX, 2);
        memory.write(frame, 6, 2, &mut [5, 6, 8].into_iter());
        let whole = [0, 7, 17, 27, u64::MAX, 1, 5, 6, 0];
        assert_eq!(memory.0[..9], whole);
        let mut seen = Vec::new();
        memory.change_each(frame, 2, 3, |index, word| {
            seen.push((index, word));
            (index == 3).then_some(99)
        });
        assert_eq!(seen, [(2, 17), (3, 27), (4, u64::MAX)]);
        assert_eq!(memory.0[..6], [0, 7, 17, 99, u64::MAX, 1]);
        let told = memory.change(frame, 1, |word, live| {
            *live += 3;
            (Some(8), word + 1)
        });
        assert_eq!((told, memory.0[1], memory.1), (8, 8, 3));
        assert_eq!(memory.change(frame, 1, |word, _| (None, word)), 8);
        assert_eq!(memory.0[1], 8);
    }
}
