//! Which frames of the buffer memory belong to which buffer.
//!
//! The memory is one range of virtual addresses made of chunks, each of which is one range of physical
//! memory. A buffer is a run of virtual pages, so that the kernel can show it to a client as one mapping.
//!
//! A search for a run goes through free runs and through extents, never through single pages: a refusal costs at most a
//! step for each of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::hw::{Constraints, MemoryError};

/// Pages that follow one another in virtual and in physical memory; never one beside another that it could be joined
/// with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    pages: Range<usize>,
    /// Physical address of the first page.
    first: u64,
}

/// The frames, by number: number N lies N pages behind the first virtual address.
#[derive(Debug)]
pub struct Pool {
    /// All memory, in the order of its virtual addresses.
    extents: Vec<Extent>,
    /// Runs that no buffer has, by their first page. Two of them never touch.
    free: BTreeMap<usize, usize>,
    buffers: BTreeMap<u32, Range<usize>>,
    /// Free runs and extents that searches have looked at.
    steps: Cell<u64>,
}

impl Pool {
    /// Memory of these chunks, in the order of their virtual addresses.
    #[must_use]
    pub fn new(chunks: &[PhysRange]) -> Self {
        let extents = extents(chunks);
        let total = extents.last().map_or(0, |extent| extent.pages.end);
        Self {
            extents,
            free: (total > 0).then_some((0, total)).into_iter().collect(),
            buffers: BTreeMap::new(),
            steps: Cell::default(),
        }
    }

    /// Takes a run of pages for buffer `id`, the first that serves; returns its physical pieces in order.
    /// `constraints.alignment` and `constraints.boundary` are powers of two or 0.
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
        if count == 0 || self.buffers.contains_key(&id) {
            return Err(MemoryError::Constraints);
        }
        let found = self.free.iter().find_map(|(first, end)| {
            self.count_step();
            self.first_fit(*first..*end, count, constraints)
        });
        let Some(run) = found else {
            let possible = self.first_fit(0..self.page_count(), count, constraints).is_some();
            return Err(if possible { MemoryError::Exhausted } else { MemoryError::Constraints });
        };
        self.take(&run);
        let pieces = self.pieces(&run).collect();
        self.buffers.insert(id, run);
        Ok(pieces)
    }

    /// Takes the pages of buffer `id` back; returns where they were.
    pub fn release(&mut self, id: u32) -> Option<Range<usize>> {
        let run = self.buffers.remove(&id)?;
        self.give(run.clone());
        Some(run)
    }

    /// Adds a chunk whose virtual addresses follow those of the last one.
    pub fn add(&mut self, chunk: PhysRange) {
        let start = self.page_count();
        append(&mut self.extents, chunk);
        let end = self.page_count();
        if start < end {
            self.give(start..end);
        }
    }

    /// All pages.
    fn page_count(&self) -> usize {
        self.extents.last().map_or(0, |extent| extent.pages.end)
    }

    /// Joins a run to what is free.
    fn give(&mut self, run: Range<usize>) {
        let Range { mut start, mut end } = run;
        if let Some((before, _)) =
            self.free.range(..start).next_back().filter(|(_, at)| **at == start)
        {
            start = *before;
        }
        if let Some(behind) = self.free.remove(&end) {
            end = behind;
        }
        self.free.insert(start, end);
    }

    /// The pages of buffer `id`.
    #[must_use]
    pub fn pages(&self, id: u32) -> Option<Range<usize>> {
        self.buffers.get(&id).cloned()
    }

    /// How many free runs and extents searches have looked at so far: what they cost, apart from the machine.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Takes a part of a free run out of what is free.
    fn take(&mut self, run: &Range<usize>) {
        let Some((first, end)) = self.free.range(..=run.start).next_back() else { return };
        let (first, end) = (*first, *end);
        self.free.remove(&first);
        if first < run.start {
            self.free.insert(first, run.start);
        }
        if run.end < end {
            self.free.insert(run.end, end);
        }
    }

    /// The first `count` pages of `room` in a row that meet the constraints. Looks at each extent of the room at most
    /// a few times: a start that fails rules out all others up to the next one that is tried.
    fn first_fit(
        &self,
        room: Range<usize>,
        count: usize,
        constraints: Constraints,
    ) -> Option<Range<usize>> {
        let mut start = room.start;
        loop {
            let run = start..start.checked_add(count).filter(|end| *end <= room.end)?;
            match self.obstacle(&run, constraints) {
                None => return Some(run),
                // It always lies further on.
                Some(next) => start = next.max(start + 1),
            }
        }
    }

    /// `None` when a run meets the constraints; else the first page behind its first where one may begin that does.
    fn obstacle(&self, run: &Range<usize>, constraints: Constraints) -> Option<usize> {
        let at = self.extents.partition_point(|extent| extent.pages.end <= run.start);
        let mut parts = self.extents.get(at..).unwrap_or_default().iter();
        let first = parts.next()?;
        self.count_step();
        if let Some(next) = first.better_start(run, constraints) {
            return Some(next);
        }
        let fails = |piece| !is_low(piece, constraints) || crosses(piece, constraints.boundary);
        for extent in parts.take_while(|extent| extent.pages.start < run.end) {
            self.count_step();
            // Runs that begin before this extent have at least as much of it.
            if extent.piece(run).is_none_or(fails) {
                return Some(extent.pages.start);
            }
        }
        None
    }

    fn pieces(&self, run: &Range<usize>) -> impl Iterator<Item = PhysRange> {
        let at = self.extents.partition_point(|extent| extent.pages.end <= run.start);
        let parts = self.extents.get(at..).unwrap_or_default().iter();
        let end = run.end;
        let run = run.clone();
        parts
            .take_while(move |extent| extent.pages.start < end)
            .filter_map(move |extent| extent.piece(&run))
    }

    fn count_step(&self) {
        self.steps.set(self.steps.get().wrapping_add(1));
    }
}

impl Extent {
    /// The memory of the pages of a run that lie here.
    fn piece(&self, run: &Range<usize>) -> Option<PhysRange> {
        let first = run.start.max(self.pages.start);
        let end = run.end.min(self.pages.end);
        PhysRange::new(PhysAddr(self.address(first)?), bytes(end.checked_sub(first)?)?)
    }

    /// Physical address of a page that lies here, or right behind it.
    fn address(&self, page: usize) -> Option<u64> {
        self.first.checked_add(bytes(page.checked_sub(self.pages.start)?)?)
    }

    /// The page that an address at or behind the first one falls on, rounded up; the end when it lies behind that.
    fn page_at(&self, address: Option<u64>) -> usize {
        let distance = address.and_then(|address| address.checked_sub(self.first));
        let pages = distance.and_then(|bytes| usize::try_from(bytes.div_ceil(PAGE_SIZE)).ok());
        pages.map_or(self.pages.end, |pages| {
            self.pages.end.min(self.pages.start.saturating_add(pages))
        })
    }

    /// Where a run that begins here may begin instead, at the earliest; `None` when the part of it that lies here
    /// meets the constraints.
    fn better_start(&self, run: &Range<usize>, constraints: Constraints) -> Option<usize> {
        let Some(piece) = self.piece(run) else { return Some(self.pages.end) };
        let first = piece.first();
        let alignment = constraints.alignment.max(PAGE_SIZE);
        if !first.is_aligned(alignment) {
            return Some(self.page_at(first.0.checked_next_multiple_of(alignment)));
        }
        // A run that begins further on ends further on too, or has the end of this extent as well.
        if (constraints.contiguous && run.end > self.pages.end) || !is_low(piece, constraints) {
            return Some(self.pages.end);
        }
        if !crosses(piece, constraints.boundary) {
            return None;
        }
        let next = first.0 / constraints.boundary + 1;
        let whole = bytes(run.len()).is_some_and(|length| length <= constraints.boundary);
        // When no run of this length can lie here as a whole, what lies here is a run's beginning: this extent's end.
        let last = self.address(self.pages.end).map_or(0, |end| (end - 1) / constraints.boundary);
        let multiple = if whole { next } else { next.max(last) };
        Some(self.page_at(multiple.checked_mul(constraints.boundary)))
    }
}

/// The chunks as extents, joined where they are one piece of physical memory.
fn extents(chunks: &[PhysRange]) -> Vec<Extent> {
    let mut all = Vec::new();
    chunks.iter().for_each(|chunk| append(&mut all, *chunk));
    all
}

/// One chunk more behind the others.
fn append(all: &mut Vec<Extent>, chunk: PhysRange) {
    let count = usize::try_from(chunk.length() / PAGE_SIZE).unwrap_or(0);
    let start = all.last().map_or(0, |extent| extent.pages.end);
    let pages = start..start.saturating_add(count);
    match all.last_mut() {
        Some(last) if last.address(start) == Some(chunk.first().0) => last.pages.end = pages.end,
        _ => all.push(Extent { pages, first: chunk.first().0 }),
    }
}

fn bytes(pages: usize) -> Option<u64> {
    u64::try_from(pages).ok()?.checked_mul(PAGE_SIZE)
}

fn is_low(piece: PhysRange, constraints: Constraints) -> bool {
    !constraints.below_4g || piece.last().0 <= u64::from(u32::MAX)
}

/// Whether a piece lies on both sides of a multiple of `boundary`, which is 0 when there is none.
const fn crosses(piece: PhysRange, boundary: u64) -> bool {
    boundary != 0 && piece.first().0 / boundary != piece.last().0 / boundary
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    /// A chunk that comes later is the end of the last free run, and of the last piece of memory if it is its next.
    #[test]
    fn a_chunk_is_added_behind_the_others() {
        let mut pool = pool();
        assert_eq!(pool.allocate(1, 0x7000, ANY).map(|pieces| pieces.len()), Ok(2));
        pool.add(range(0x1_4000, 0x4000));
        pool.add(range(0x8_0000, 0x4000));
        let pieces = pool.allocate(2, 0x9000, ANY);
        assert_eq!(pieces, Ok(vec![range(0x1_3000, 0x5000), range(0x8_0000, 0x4000)]));
        assert_eq!(pool.pages(2), Some(7..16));
        assert_eq!(pool.allocate(3, 0x1000, ANY), Err(MemoryError::Exhausted));
        pool.add(range(0x10_0000, 0x1000));
        assert_eq!(pool.allocate(3, 0x1000, ANY), Ok(vec![range(0x10_0000, 0x1000)]));
    }

    /// The pool of a large machine: 256 MiB in chunks of 4 MiB, no two of which are one piece of physical memory.
    const CHUNKS: u64 = 64;
    const CHUNK: u64 = 4 << 20;

    fn large() -> Pool {
        let chunks: Vec<_> = (0..CHUNKS).map(|n| range(CHUNK + 2 * n * CHUNK, CHUNK)).collect();
        Pool::new(&chunks)
    }

    /// What one more allocation comes to, and how many steps it takes.
    fn measured(
        pool: &mut Pool,
        length: u64,
        constraints: Constraints,
    ) -> (Result<Vec<PhysRange>, MemoryError>, u64) {
        let before = pool.steps();
        let result = pool.allocate(u32::MAX, length, constraints);
        (result, pool.steps() - before)
    }

    /// One that tells every kind of constraint.
    const HARD: Constraints = Constraints {
        below_4g: true,
        contiguous: true,
        alignment: 0x1_0000,
        boundary: 0x40_0000,
        ..ANY
    };

    #[test]
    fn a_refusal_by_a_full_pool_of_256_mib_takes_few_steps() {
        let mut pool = large();
        pool.allocate(1, CHUNKS * CHUNK, ANY).unwrap();
        for constraints in [ANY, HARD] {
            let (result, steps) = measured(&mut pool, PAGE_SIZE, constraints);
            assert_eq!(result, Err(MemoryError::Exhausted));
            // Nothing is free; the first extent shows that the request is possible.
            assert!(steps <= 4, "{steps} steps");
        }
    }

    #[test]
    fn a_refusal_for_a_constraint_looks_at_each_extent_a_few_times() {
        let mut pool = large();
        let contiguous = Constraints { contiguous: true, ..ANY };
        let aligned = Constraints { alignment: 1 << 40, ..ANY };
        let bounded = Constraints { boundary: 8192, ..ANY };
        for (length, constraints) in
            [(2 * CHUNK, contiguous), (PAGE_SIZE, aligned), (3 * CHUNK, bounded)]
        {
            let (result, steps) = measured(&mut pool, length, constraints);
            assert_eq!(result, Err(MemoryError::Constraints), "{constraints:?}");
            // Twice through the pool: as it is, and as if it were empty.
            assert!(steps <= 2 * 3 * CHUNKS + 1, "{steps} steps {constraints:?}");
        }
    }

    /// Every second piece is free: pieces of 1 MiB, then of single pages.
    #[test]
    fn a_refusal_by_a_fragmented_pool_of_256_mib_is_linear_in_its_free_runs() {
        for piece in [1 << 20, PAGE_SIZE] {
            let mut pool = large();
            let count = CHUNKS * CHUNK / piece;
            let ids = 0..u32::try_from(count).unwrap();
            ids.clone().for_each(|id| drop(pool.allocate(id, piece, ANY).unwrap()));
            for id in ids.step_by(2) {
                pool.release(id).unwrap();
            }
            let contiguous = Constraints { contiguous: true, ..ANY };
            let aligned = Constraints { alignment: 1 << 40, ..ANY };
            for (length, constraints, expected) in [
                (2 * piece, ANY, MemoryError::Exhausted),
                (2 * piece, contiguous, MemoryError::Exhausted),
                (piece, aligned, MemoryError::Constraints),
            ] {
                let (result, steps) = measured(&mut pool, length, constraints);
                assert_eq!(result, Err(expected), "{constraints:?}");
                assert!(steps <= 3 * count / 2 + 3 * CHUNKS, "{steps} steps {constraints:?}");
            }
        }
    }

    /// Which run a search over every start position would find: the plain way to say what [`Pool`] does.
    fn plain(
        frames: &[u64],
        used: &[bool],
        count: usize,
        constraints: Constraints,
    ) -> Option<usize> {
        let starts = 0..(frames.len() + 1).checked_sub(count)?;
        starts.into_iter().find(|start| {
            let run = &frames[*start..start + count];
            let mut pieces: Vec<(u64, u64)> = Vec::new();
            for frame in run {
                match pieces.last_mut() {
                    Some((_, end)) if *end == *frame => *end += PAGE_SIZE,
                    _ => pieces.push((*frame, frame + PAGE_SIZE)),
                }
            }
            let low = |(_, end): &(u64, u64)| !constraints.below_4g || *end <= 1 << 32;
            let within = |(first, end): &(u64, u64)| {
                constraints.boundary == 0
                    || first / constraints.boundary == (end - 1) / constraints.boundary
            };
            used[*start..start + count].iter().all(|used| !used)
                && (!constraints.contiguous || pieces.len() == 1)
                && run[0].is_multiple_of(constraints.alignment.max(PAGE_SIZE))
                && pieces.iter().all(|piece| low(piece) && within(piece))
        })
    }

    fn constraints() -> impl Strategy<Value = Constraints> {
        let powers = || prop_oneof![Just(0), (9_u32..18).prop_map(|bits| 1 << bits)];
        (any::<bool>(), any::<bool>(), powers(), powers()).prop_map(
            |(below_4g, contiguous, alignment, boundary)| Constraints {
                below_4g,
                contiguous,
                alignment,
                boundary,
                ..ANY
            },
        )
    }

    proptest! {
        /// Chunks of 1 to 16 pages around 4 GiB, some of them one piece with the one before; then takes and releases.
        #[test]
        fn a_search_finds_the_first_run_there_is(
            chunks in proptest::collection::vec((1_u64..=16, 0_u64..4), 1..6),
            requests in proptest::collection::vec((1_usize..24, constraints(), 0_u32..8), 1..40),
        ) {
            let mut next = (1 << 32) - 0x1_8000;
            let chunks: Vec<_> = chunks
                .into_iter()
                .map(|(pages, gap)| {
                    let first = next + gap * PAGE_SIZE;
                    next = first + pages * PAGE_SIZE;
                    range(first, pages * PAGE_SIZE)
                })
                .collect();
            let frames: Vec<u64> = chunks
                .iter()
                .flat_map(|chunk| (chunk.first().0..=chunk.last().0).step_by(4096))
                .collect();
            let mut used = vec![false; frames.len()];
            let mut pool = Pool::new(&chunks);
            for (count, constraints, id) in requests {
                if let Some(run) = pool.release(id) {
                    used[run].fill(false);
                }
                let expected = plain(&frames, &used, count, constraints);
                let result = pool.allocate(id, count as u64 * PAGE_SIZE, constraints);
                match (&result, expected) {
                    (Ok(pieces), Some(start)) => {
                        prop_assert_eq!(pool.pages(id), Some(start..start + count));
                        let pages = pieces
                            .iter()
                            .flat_map(|piece| (piece.first().0..=piece.last().0).step_by(4096));
                        prop_assert!(pages.eq(frames[start..start + count].iter().copied()));
                        used[start..start + count].fill(true);
                    }
                    (Err(error), None) => {
                        let empty = vec![false; frames.len()];
                        let possible = plain(&frames, &empty, count, constraints).is_some();
                        prop_assert_eq!(*error == MemoryError::Exhausted, possible);
                    }
                    _ => prop_assert!(false, "{:?}, but {:?}", result, expected),
                }
            }
        }
    }
}
