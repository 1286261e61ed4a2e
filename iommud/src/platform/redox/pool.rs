//! Which frames of the buffer memory belong to which buffer.
//!
//! The memory is one range of virtual addresses made of chunks, each of which is one range of physical
//! memory. A buffer is a run of virtual pages, so that the kernel can show it to a client as one mapping.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::hw::{Constraints, MemoryError};

/// The frames, by number: number N lies N pages behind the first virtual address.
#[derive(Debug)]
pub struct Pool {
    frames: Vec<PhysAddr>,
    used: Vec<bool>,
    buffers: BTreeMap<u32, Range<usize>>,
}

impl Pool {
    /// Memory of these chunks, in the order of their virtual addresses.
    #[must_use]
    pub fn new(chunks: &[PhysRange]) -> Self {
        let pages = |chunk: &PhysRange| {
            let first = chunk.first().0;
            (0..chunk.length() / PAGE_SIZE).map(move |page| PhysAddr(first + page * PAGE_SIZE))
        };
        let frames: Vec<PhysAddr> = chunks.iter().flat_map(pages).collect();
        let used = vec![false; frames.len()];
        Self { frames, used, buffers: BTreeMap::new() }
    }

    /// Takes a run of pages for buffer `id`; returns its physical pieces in order.
    ///
    /// # Errors
    /// `Exhausted` when the run would fit into the pool if it were empty, `Constraints` when it would not,
    /// or when `id` is in use.
    pub fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let count = usize::try_from(length.div_ceil(PAGE_SIZE)).unwrap_or(usize::MAX);
        if count == 0 || count > self.frames.len() || self.buffers.contains_key(&id) {
            return Err(MemoryError::Constraints);
        }
        let mut possible = false;
        for first in 0..=self.frames.len() - count {
            let run = first..first + count;
            let pieces = self.pieces(&run);
            if !meets(&pieces, constraints) {
                continue;
            }
            possible = true;
            if self.used.get(run.clone()).is_some_and(|used| used.iter().all(|used| !used)) {
                self.mark(&run, true);
                self.buffers.insert(id, run);
                return Ok(pieces);
            }
        }
        Err(if possible { MemoryError::Exhausted } else { MemoryError::Constraints })
    }

    /// Takes the pages of buffer `id` back; returns where they were.
    pub fn release(&mut self, id: u32) -> Option<Range<usize>> {
        let run = self.buffers.remove(&id)?;
        self.mark(&run, false);
        Some(run)
    }

    /// The pages of buffer `id`.
    #[must_use]
    pub fn pages(&self, id: u32) -> Option<Range<usize>> {
        self.buffers.get(&id).cloned()
    }

    fn mark(&mut self, run: &Range<usize>, used: bool) {
        for page in self.used.get_mut(run.clone()).unwrap_or_default() {
            *page = used;
        }
    }

    fn pieces(&self, run: &Range<usize>) -> Vec<PhysRange> {
        let mut pieces: Vec<PhysRange> = Vec::new();
        for frame in self.frames.get(run.clone()).unwrap_or_default() {
            let Some(page) = PhysRange::new(*frame, PAGE_SIZE) else { continue };
            match pieces.last_mut() {
                Some(last) if last.last().checked_add(1) == Some(page.first()) => {
                    *last = PhysRange::inclusive(last.first(), page.last()).unwrap_or(*last);
                }
                _ => pieces.push(page),
            }
        }
        pieces
    }
}

fn meets(pieces: &[PhysRange], constraints: Constraints) -> bool {
    let Some(first) = pieces.first() else { return false };
    let low = |piece: &PhysRange| piece.last().0 <= u64::from(u32::MAX);
    let within = |piece: &PhysRange| match constraints.boundary {
        0 => true,
        boundary => piece.first().0 / boundary == piece.last().0 / boundary,
    };
    (!constraints.contiguous || pieces.len() == 1)
        && (!constraints.below_4g || pieces.iter().all(low))
        && first.first().is_aligned(constraints.alignment.max(PAGE_SIZE))
        && pieces.iter().all(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Constraints = Constraints {
        below_4g: false,
        contiguous: false,
        alignment: 0,
        boundary: 0,
        written_back: false,
    };

    fn range(first: u64, length: u64) -> PhysRange {
        PhysRange::new(PhysAddr(first), length).unwrap()
    }

    /// Two chunks of 16 KiB: the first at 4 GiB, the second at 64 KiB.
    fn pool() -> Pool {
        Pool::new(&[range(1 << 32, 0x4000), range(0x1_0000, 0x4000)])
    }

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let mut pool = pool();
        assert_eq!(pool.allocate(1, 0x3000, ANY), Ok(vec![range(1 << 32, 0x3000)]));
        assert_eq!(
            pool.allocate(2, 0x2000, ANY),
            Ok(vec![range((1 << 32) + 0x3000, 0x1000), range(0x1_0000, 0x1000)])
        );
        assert_eq!(pool.pages(2), Some(3..5));
        assert_eq!(pool.allocate(3, 0x4000, ANY), Err(MemoryError::Exhausted));
        assert_eq!(pool.allocate(2, 0x1000, ANY), Err(MemoryError::Constraints));
        assert_eq!(pool.release(1), Some(0..3));
        assert_eq!(pool.release(1), None);
        assert_eq!(pool.allocate(3, 1, ANY), Ok(vec![range(1 << 32, 0x1000)]));
    }

    #[test]
    fn constraints_are_met_or_refused() {
        let check = |length, constraints, expected: Result<u64, MemoryError>| {
            let found = pool().allocate(1, length, constraints);
            let expected = expected.map(|first| vec![range(first, length)]);
            assert_eq!(found, expected, "{length:#x} {constraints:?}");
        };
        check(0x1000, Constraints { below_4g: true, ..ANY }, Ok(0x1_0000));
        check(0x4000, Constraints { contiguous: true, ..ANY }, Ok(1 << 32));
        check(0x5000, Constraints { contiguous: true, ..ANY }, Err(MemoryError::Constraints));
        check(0x1000, Constraints { alignment: 1 << 33, ..ANY }, Err(MemoryError::Constraints));
        let low = Constraints { below_4g: true, contiguous: true, ..ANY };
        check(0x2000, Constraints { alignment: 0x1_0000, ..low }, Ok(0x1_0000));
        check(0x4000, Constraints { boundary: 0x2000, ..low }, Err(MemoryError::Constraints));
        check(0x9000, ANY, Err(MemoryError::Constraints));
        check(0, ANY, Err(MemoryError::Constraints));
    }

    #[test]
    fn a_run_that_straddles_chunks_is_pieced_in_order() {
        let mut pool = pool();
        let pieces = pool.allocate(9, 0x8000, ANY).unwrap();
        assert_eq!(pieces, [range(1 << 32, 0x4000), range(0x1_0000, 0x4000)]);
    }
}
