//! The hardware abstraction layer: the only ways in which this crate touches a machine. A platform implements them
//! over real hardware, the test crate over software units.

use alloc::vec::Vec;

use crate::addr::{PhysAddr, PhysRange};

/// Registers of one unit. Offsets are in bytes from the unit's base and within the length that was mapped;
/// an implementation answers reads outside of it with all ones and ignores writes.
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
    /// Called between two looks at a register while waiting; may spin, yield or advance a simulated clock.
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

    /// A frame of zeros for whoever writes it anyway: hardware that does not snoop may see anything in it until
    /// the caller has cleaned all of it, which it does before it gives the frame back, too.
    ///
    /// # Errors
    /// As [`TableMemory::allocate`].
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

    /// Takes a frame back. `is_zero` is the caller's word that every word of it is 0 again; else the
    /// memory clears it before handing it out.
    fn free(&mut self, frame: PhysAddr, is_zero: bool);

    /// Reads word `index` (0 to 511) of a frame. Another frame address or index gives 0.
    fn load(&self, frame: PhysAddr, index: usize) -> u64;

    /// Writes word `index` (0 to 511) of a frame in one 64-bit store. Stores become visible to coherent
    /// hardware in program order. Another frame address or index is ignored.
    fn store(&mut self, frame: PhysAddr, index: usize, value: u64);

    /// Writes `count` words from `first` on, as [`TableMemory::store`] does each: `value`, and each next one
    /// greater by `step`.
    fn fill(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        let mut next = value;
        for index in first..first + count {
            self.store(frame, index, next);
            next = next.wrapping_add(step);
        }
    }

    /// As [`TableMemory::fill`], in a frame that no device reaches yet: in any order, and by stores of any size,
    /// but all before whatever is stored after this.
    fn fill_new(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        self.fill(frame, first, count, value, step);
    }

    /// Writes the next `count` words of `values` from `first` on, as [`TableMemory::store`] does each.
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

    /// Words `first` to `first + count - 1` of a frame, looked up once: `change` gets the index and the word of each,
    /// in order, and says what is to be stored in its place, if anything is. As [`TableMemory::load`] and
    /// [`TableMemory::store`] in all else; when not all of the words exist, none may be handed over.
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

    /// One word of a frame and the frame's counter, looked up once: `change` gets both, and says what is to be
    /// stored in place of the word, if anything is. Another frame address or index gives 0 and ignores what is to
    /// be stored.
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

    /// Writes the cache lines that hold words `first` to `first + count - 1` back to memory, for hardware
    /// that does not snoop, and orders them before whatever comes after.
    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize);

    /// Software's own counter of a frame, which hardware never sees; 0 in a new frame.
    fn live(&mut self, frame: PhysAddr) -> &mut u16;

    /// Frames handed out and not taken back.
    fn frames_in_use(&self) -> usize;

    /// Frames that can still be handed out, one by one.
    fn frames_free(&self) -> usize;
}

/// Why memory could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// There is no more.
    Exhausted,
    /// None meets the constraints (alignment, below 4 GiB, contiguity).
    Constraints,
    /// Whoever asks has its share.
    Share,
}

/// What memory of a buffer must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Constraints {
    /// Bus addresses fit in 32 bits. Only asked for when addresses are not translated.
    pub below_4g: bool,
    /// One segment. Only asked for when addresses are not translated.
    pub contiguous: bool,
    /// The address of the first byte is a multiple of this power of two (at least 4096).
    pub alignment: u64,
    /// The memory may not cross a multiple of this power of two; 0 for no limit.
    pub boundary: u64,
    /// The zeros are in memory, not only in caches: a device may read past those (PCI Express "No Snoop"), and would
    /// find what the last user left.
    pub written_back: bool,
    /// Whose it is: a piece of the pool that has memory of one account has none of another one's.
    pub account: u32,
}

/// How much memory buffers can have: what clients' shares are parts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferPool {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes of a piece, which has memory of one account only. Pieces are aligned to their size.
    pub granule: u64,
}

impl BufferPool {
    /// As much as anybody asks for.
    pub const UNLIMITED: Self = Self { capacity: u64::MAX, granule: 4096 };
}

/// DMA memory that is shared with clients. The platform owns it; the server names it by its own number.
pub trait BufferMemory {
    /// How a client is given the memory (a descriptor, an address to share).
    type Share;

    /// Makes buffer `id` of `length` bytes (a multiple of 4096), filled with zeros. The segments are in
    /// the order of the buffer's bytes, each a multiple of 4096 long.
    ///
    /// # Errors
    /// No such memory.
    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError>;

    /// Whether such a buffer would lie in pieces that its account has already. Else it takes as many more as hold it.
    fn has_room(&self, length: u64, constraints: Constraints) -> bool {
        let _ = (length, constraints);
        false
    }

    /// Gives the memory of buffer `id` back. The caller has proved that no device reaches it. When this
    /// returns no client sees it either: mappings that clients still have are revoked (on Linux the
    /// buffer's hugetlbfs file is cut to length 0, so that the kernel takes its pages out of every
    /// process). Its content is cleared before anyone else gets it. An unknown id is ignored.
    ///
    /// Memory that is not the server's own (from the start by `Registry::new`, or since by `Event::MemoryTaken`) goes back
    /// to the system here; the plan has mapped it into the domain of policy again one step earlier.
    fn release(&mut self, id: u32);

    /// What there is, in use or not.
    fn pool(&self) -> BufferPool;

    /// A new share of the memory of buffer `id`; `None` when there is no such buffer or no descriptor left.
    fn share(&mut self, id: u32) -> Option<Self::Share>;
}
