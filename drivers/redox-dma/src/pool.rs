//! Pages out of chunks that stay mapped for the device. Unlike `iommu_client::DmaPool` it serves all threads of a
//! process, since drivers hand this memory from one to another; and it gives unused chunks back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_client::{DmaBuffer, Error, PAGE};

/// Pages of a chunk: one bit of a word each.
const CHUNK: u32 = u64::BITS;

/// The most pages of one block.
pub(crate) const MOST: u32 = 16;

/// Length of a chunk in bytes.
pub(crate) const CHUNK_LENGTH: u64 = CHUNK as u64 * PAGE;

/// The chunks of a session.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Chunk>>);

#[derive(Debug)]
struct Chunk {
    /// Locked for a moment at a time; blocks are read and written without the lock.
    memory: Arc<Mutex<DmaBuffer>>,
    /// Bit n set: page n belongs to a block.
    used: u64,
}

/// Pages of a chunk that no other block has, given back when dropped.
#[derive(Debug)]
pub(crate) struct Block {
    memory: Arc<Mutex<DmaBuffer>>,
    first: u32,
    pages: u64,
    pool: Arc<Pool>,
}

impl Pool {
    /// Takes `count` adjacent pages, at most [`MOST`], aligned to the next power of two, filled with zeros.
    /// `grow` allocates a chunk.
    pub(crate) fn take(
        self: &Arc<Self>,
        count: u32,
        grow: impl FnOnce() -> Result<DmaBuffer, Error>,
    ) -> Result<Block, Error> {
        let mut chunks = lock(&self.0);
        let block = match chunks.iter_mut().find_map(|chunk| chunk.take(count, self)) {
            Some(block) => block,
            None => {
                let memory = Arc::new(Mutex::new(grow()?));
                let mut chunk = Chunk { memory, used: 0 };
                let block = chunk.take(count, self).ok_or(Error::Outside)?;
                chunks.push(chunk);
                block
            }
        };
        drop(chunks);
        block.clear(count)?;
        Ok(block)
    }

    /// Gives pages back. Returns the chunk if the pool does without it.
    fn put(&self, block: &Block) -> Option<Chunk> {
        let mut chunks = lock(&self.0);
        let at = chunks.iter().position(|chunk| Arc::ptr_eq(&chunk.memory, &block.memory))?;
        let chunk = chunks.get_mut(at)?;
        chunk.used &= !block.pages;
        let unused = chunks.iter().filter(|chunk| chunk.used == 0).count();
        let spare = unused > 1 && chunks.get(at)?.used == 0;
        spare.then(|| chunks.swap_remove(at))
    }
}

/// Locks, also after a panic: no thread panics in the middle of a change of what is behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Chunk {
    fn take(&mut self, count: u32, pool: &Arc<Pool>) -> Option<Block> {
        let pages = free(self.used, count)?;
        self.used |= pages;
        let (memory, pool) = (self.memory.clone(), pool.clone());
        Some(Block { memory, first: pages.trailing_zeros(), pages, pool })
    }
}

/// The bits of `count` adjacent free pages, from a multiple of the next power of two on.
fn free(used: u64, count: u32) -> Option<u64> {
    let run = 1_u64.checked_shl(count).filter(|_| count > 0)? - 1;
    let step = usize::try_from(count.next_power_of_two()).ok()?;
    (0..CHUNK).step_by(step).map(|first| run << first).find(|pages| {
        let whole = pages.count_ones() == count;
        whole && used & pages == 0
    })
}

impl Block {
    /// Address of its first byte in this process. The memory stays mapped as long as the block lives.
    pub(crate) fn start(&self) -> *mut u8 {
        let bytes = usize::try_from(self.offset()).unwrap_or(0);
        lock(&self.memory).as_ptr().wrapping_add(bytes)
    }

    /// Address of its first byte for the device.
    pub(crate) fn iova(&self) -> Option<u64> {
        lock(&self.memory).iova_at(self.offset())
    }

    /// Overwrites what its last owner left, and what the device has written since.
    fn clear(&self, count: u32) -> Result<(), Error> {
        let length = usize::try_from(u64::from(count) * PAGE).map_err(|_| Error::Outside)?;
        lock(&self.memory).fill(self.offset(), length, 0)
    }

    fn offset(&self) -> u64 {
        u64::from(self.first) * PAGE
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // The lock is free again when the chunk is released, which sends requests.
        drop(self.pool.put(self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_free_adjacent_and_aligned() {
        assert_eq!(free(0, 1), Some(1));
        assert_eq!(free(0b1011, 1), Some(0b100));
        assert_eq!(free(0b1, 2), Some(0b1100));
        assert_eq!(free(0b1, 3), Some(0b111_0000));
        assert_eq!(free(0xffff, 16), Some(0xffff_0000));
        assert_eq!(free(1 << 48, 16), Some(0xffff));
        assert_eq!(free(0x0001_0001_0001_0001, 16), None);
        assert_eq!(free(u64::MAX, 1), None);
        assert_eq!(free(0, 0), None);
        assert_eq!(free(u64::MAX >> 1, 1), Some(1 << 63));
    }
}
