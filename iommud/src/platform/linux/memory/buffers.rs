//! DMA buffers: whole huge pages, each of one buffer at a time.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use iommu_protocol::frame::MAX_DESCRIPTORS;

use super::error::DirectoryError;
use super::page::{Page, PageSource};
use crate::addr::PhysRange;
use crate::hw::{BufferMemory, BufferPool, Constraints, MemoryError};
use crate::platform::frame_allocator::{HUGE_PAGE, HUGE_PAGE_LENGTH};

/// Buffer memory of the process. A share is one descriptor a page, in the order of the buffer's bytes.
#[derive(Debug)]
pub struct HugeBuffers<S> {
    source: S,
    /// All zero, in no buffer, sorted by physical address.
    free: Vec<Page>,
    buffers: BTreeMap<u32, Vec<Page>>,
    /// Pages that were lost at their release, and not replaced yet.
    lost: usize,
}

impl<S: PageSource> HugeBuffers<S> {
    /// Buffers are made of these pages, all of which are zero.
    #[must_use]
    pub fn new(source: S, mut free: Vec<Page>) -> Self {
        free.sort_by_key(|page| page.phys);
        Self { source, free, buffers: BTreeMap::new(), lost: 0 }
    }

    /// Takes a page of the system's, which is nobody's yet: see [`HugeBuffers::add`].
    ///
    /// # Errors
    /// As [`PageSource::take`].
    pub fn take(&mut self) -> Result<Page, DirectoryError> {
        self.source.take()
    }

    /// Gives a page back to the system that was taken and added to nothing.
    pub fn discard(&mut self, page: Page) {
        self.source.discard(page);
    }

    /// Makes buffers of one page more, which no device reaches any more. Whatever one has written to it is cleared.
    pub fn add(&mut self, mut page: Page) {
        page.mapping.clear(0, HUGE_PAGE_LENGTH);
        self.lost = self.lost.saturating_sub(1);
        self.put(page);
    }

    /// Whether a page was lost at its release, and not replaced yet.
    #[must_use]
    pub const fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Puts a page of zeros among the free ones.
    fn put(&mut self, page: Page) {
        let at = self.free.partition_point(|other| other.phys < page.phys);
        self.free.insert(at, page);
    }

    /// Indices into `free` of pages that meet the constraints, in ascending order: one run of adjacent
    /// pages if there is one, since long runs need few table entries.
    fn choose(&self, length: u64, constraints: Constraints) -> Result<Vec<usize>, MemoryError> {
        let count = usize::try_from(length.div_ceil(HUGE_PAGE)).unwrap_or(usize::MAX);
        if length == 0 || count > MAX_DESCRIPTORS {
            return Err(MemoryError::Constraints);
        }
        let runs = (0..self.free.len()).filter_map(|first| self.free.get(first..first + count));
        let fits = |run: &[Page]| run_fits(run, length, constraints);
        if let Some(first) = runs.enumerate().find_map(|(first, run)| fits(run).then_some(first)) {
            return Ok((first..first + count).collect());
        }
        let bounded = constraints.boundary != 0 || constraints.alignment > HUGE_PAGE;
        if constraints.contiguous || bounded {
            return Err(MemoryError::Constraints);
        }
        let low = |page: &Page| !constraints.below_4g || ends_below_4g(page);
        let single = self.free.iter().enumerate().filter(|(_, page)| low(page));
        let chosen: Vec<usize> = single.map(|(index, _)| index).take(count).collect();
        match chosen.len() {
            enough if enough == count => Ok(chosen),
            _ if self.free.len() < count => Err(MemoryError::Exhausted),
            _ => Err(MemoryError::Constraints),
        }
    }

    /// Writes the first `length` bytes of pages back from the caches: they were cleared through those.
    fn write_back(&self, pages: &[Page], length: u64) {
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        for page in pages {
            let part = left.min(HUGE_PAGE_LENGTH);
            self.source.write_back(page, part);
            left -= part;
        }
    }
}

fn ends_below_4g(page: &Page) -> bool {
    page.range().is_some_and(|range| range.last().0 <= u64::from(u32::MAX))
}

/// Whether `length` bytes at the start of these pages are one piece of memory that meets the constraints.
fn run_fits(run: &[Page], length: u64, constraints: Constraints) -> bool {
    let Some(first) = run.first().map(|page| page.phys) else { return false };
    let Some(range) = PhysRange::new(first, length) else { return false };
    let adjacent = run.array_windows().all(|[a, b]| a.phys.checked_add(HUGE_PAGE) == Some(b.phys));
    let crosses = constraints.boundary != 0
        && range.first().0 & !(constraints.boundary - 1)
            != range.last().0 & !(constraints.boundary - 1);
    adjacent
        && !crosses
        && first.is_aligned(constraints.alignment.max(1))
        && (!constraints.below_4g || run.iter().all(ends_below_4g))
}

/// The pieces of memory that hold the first `length` bytes of the pages.
fn segments(pages: &[Page], length: u64) -> Vec<PhysRange> {
    let mut left = length;
    let mut found: Vec<PhysRange> = Vec::new();
    for page in pages {
        let Some(range) = PhysRange::new(page.phys, left.min(HUGE_PAGE)) else { break };
        left -= range.length();
        match found.last_mut() {
            Some(last) if last.last().checked_add(1) == Some(range.first()) => {
                *last = PhysRange::inclusive(last.first(), range.last()).unwrap_or(*last);
            }
            _ => found.push(range),
        }
    }
    found
}

impl<S: PageSource> BufferMemory for HugeBuffers<S> {
    type Share = Vec<OwnedFd>;

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        if self.buffers.contains_key(&id) {
            return Err(MemoryError::Exhausted);
        }
        let mut chosen = self.choose(length, constraints)?;
        chosen.reverse();
        let mut pages: Vec<Page> =
            chosen.into_iter().map(|index| self.free.remove(index)).collect();
        pages.reverse();
        if constraints.written_back {
            self.write_back(&pages, length);
        }
        let segments = segments(&pages, length);
        self.buffers.insert(id, pages);
        Ok(segments)
    }

    /// Clears the pages now, not when they are next used: what a client leaves is gone when it is.
    fn release(&mut self, id: u32) {
        for page in self.buffers.remove(&id).unwrap_or_default() {
            match self.source.renew(page) {
                Some(page) => self.put(page),
                None => {
                    log::warn!("a huge page of buffer {id} was taken by somebody else");
                    self.lost += 1;
                }
            }
        }
    }

    fn pool(&self) -> BufferPool {
        let used: usize = self.buffers.values().map(Vec::len).sum();
        let pages = u64::try_from(self.free.len() + used).unwrap_or(u64::MAX);
        BufferPool { capacity: pages.saturating_mul(HUGE_PAGE), granule: HUGE_PAGE }
    }

    fn share(&mut self, id: u32) -> Option<Self::Share> {
        self.buffers.get(&id)?.iter().map(|page| self.source.share(page)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;
    use crate::platform::linux::memory::testing::FakePages;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;
    const ANY: Constraints = Constraints {
        below_4g: false,
        contiguous: false,
        alignment: 4096,
        boundary: 0,
        written_back: false,
        account: 0,
    };

    fn buffers(addresses: &[u64]) -> HugeBuffers<FakePages> {
        let mut source = FakePages::at(addresses);
        let pages = addresses.iter().map(|_| source.take().unwrap()).collect();
        HugeBuffers::new(source, pages)
    }

    fn range(first: u64, length: u64) -> PhysRange {
        PhysRange::new(PhysAddr(first), length).unwrap()
    }

    #[test]
    fn a_page_is_never_in_two_buffers() {
        let mut memory = buffers(&[2 * MIB, 6 * MIB]);
        assert_eq!(memory.allocate(1, 4096, ANY), Ok(vec![range(2 * MIB, 4096)]));
        assert_eq!(memory.allocate(2, 8192, ANY), Ok(vec![range(6 * MIB, 8192)]));
        assert_eq!(memory.allocate(3, 4096, ANY), Err(MemoryError::Exhausted));
        assert_eq!(memory.allocate(1, 4096, ANY), Err(MemoryError::Exhausted));
        memory.release(1);
        memory.release(1);
        assert_eq!(memory.allocate(3, 4096, ANY), Ok(vec![range(2 * MIB, 4096)]));
    }

    #[test]
    fn runs_are_preferred_and_pieces_are_in_order() {
        let mut memory = buffers(&[16 * MIB, 4 * MIB, 10 * MIB, 12 * MIB]);
        assert_eq!(memory.allocate(1, 3 * MIB, ANY), Ok(vec![range(10 * MIB, 3 * MIB)]));
        assert_eq!(
            memory.allocate(2, 4 * MIB, ANY),
            Ok(vec![range(4 * MIB, 2 * MIB), range(16 * MIB, 2 * MIB)])
        );
    }

    #[test]
    fn constraints_are_met_or_refused() {
        const GIB: u64 = 1 << 30;
        let memory =
            || buffers(&[2 * MIB, 4 * MIB, 6 * MIB, 4 * GIB - 2 * MIB, 4 * GIB, 4 * GIB + 8 * MIB]);
        let check = |length, constraints, expected: Option<u64>| {
            let found = memory().allocate(1, length, constraints);
            let expected = expected.map(|first| vec![range(first, length)]);
            assert_eq!(found.ok(), expected, "{length:#x} {constraints:?}");
        };
        check(4 * MIB, Constraints { alignment: 4 * MIB, ..ANY }, Some(4 * MIB));
        check(4 * MIB, Constraints { boundary: 4 * MIB, ..ANY }, Some(4 * MIB));
        check(4 * MIB, Constraints { boundary: 2 * MIB, ..ANY }, None);
        check(6 * MIB, Constraints { contiguous: true, ..ANY }, Some(2 * MIB));
        check(8 * MIB, Constraints { contiguous: true, ..ANY }, None);
        check(MIB, Constraints { alignment: GIB, ..ANY }, Some(4 * GIB));
        check(MIB, Constraints { alignment: GIB, below_4g: true, ..ANY }, None);
        check(0, ANY, None);
        check((MAX_DESCRIPTORS as u64 + 1) * 2 * MIB, ANY, None);
        let low = Constraints { below_4g: true, ..ANY };
        let mut found = memory();
        assert_eq!(
            found.allocate(1, 8 * MIB, low),
            Ok(vec![range(2 * MIB, 6 * MIB), range(4 * GIB - 2 * MIB, 2 * MIB)])
        );
        assert_eq!(found.allocate(2, 4096, low), Err(MemoryError::Constraints));
        let mut scattered = buffers(&[2 * MIB, 6 * MIB, 4 * GIB, 4 * GIB + 8 * MIB]);
        assert_eq!(scattered.allocate(1, 6 * MIB, low), Err(MemoryError::Constraints));
        assert!(scattered.allocate(1, 4 * MIB, low).is_ok());
        assert_eq!(found.allocate(2, 4096, ANY), Ok(vec![range(4 * GIB, 4096)]));
    }

    #[test]
    fn a_share_is_exactly_the_buffers_memory_and_ends_with_it() {
        let mut memory = buffers(&[2 * MIB, 8 * MIB]);
        assert!(memory.share(1).is_none());
        memory.allocate(1, 3 * MIB, ANY).unwrap();
        let shares = memory.share(1).unwrap();
        assert_eq!(shares.len(), 2);
        let files: Vec<_> = shares.into_iter().map(std::fs::File::from).collect();
        files[1].write_all_at(b"secret", 100).unwrap();
        memory.release(1);
        assert!(memory.share(1).is_none());
        assert!(
            files.iter().all(|file| file.metadata().unwrap().len() == 0),
            "the old share is empty"
        );
        memory.allocate(2, 4 * MIB, ANY).unwrap();
        let again = std::fs::File::from(memory.share(2).unwrap().pop().unwrap());
        let mut bytes = [1; 6];
        again.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(bytes, [0; 6]);
    }

    /// What is asked to be in memory is written back before anybody is given it: all of it, and no page else.
    #[test]
    fn memory_is_written_back_where_it_is_asked_for() {
        let mut memory = buffers(&[2 * MIB, 4 * MIB, 8 * MIB]);
        memory.allocate(1, MIB, ANY).unwrap();
        assert_eq!(memory.source.written_back.take(), []);
        memory.allocate(2, 3 * MIB, Constraints { written_back: true, ..ANY }).unwrap();
        assert_eq!(memory.source.written_back.take(), [(4 * MIB, 2 << 20), (8 * MIB, 1 << 20)]);
        // What was cleared when it came back is written back for the next one.
        memory.release(1);
        memory.allocate(3, 4096, Constraints { written_back: true, ..ANY }).unwrap();
        assert_eq!(memory.source.written_back.take(), [(2 * MIB, 4096)]);
    }

    #[test]
    fn a_page_that_cannot_be_had_back_is_not_used_again() {
        let mut memory = buffers(&[2 * MIB]);
        memory.source.lossy = true;
        memory.allocate(1, 4096, ANY).unwrap();
        memory.release(1);
        assert_eq!(memory.allocate(2, 4096, ANY), Err(MemoryError::Exhausted));
        assert!(memory.pool().capacity == 0 && memory.has_lost());
        memory.source.addresses = vec![8 * MIB];
        let page = memory.take().unwrap();
        memory.add(page);
        assert!(memory.pool().capacity == 2 * MIB && !memory.has_lost(), "it was replaced");
    }

    /// A page that comes later is one of all others, without what was written to it before.
    #[test]
    fn a_page_is_added_clear_and_in_its_place() {
        let mut memory = buffers(&[2 * MIB, 6 * MIB]);
        memory.source.addresses = vec![8 * MIB, 4 * MIB];
        let page = memory.take().unwrap();
        memory.source.dirty(&page, 100);
        memory.add(page);
        assert_eq!(memory.pool().capacity, 6 * MIB);
        assert_eq!(memory.allocate(1, 6 * MIB, ANY), Ok(vec![range(2 * MIB, 6 * MIB)]));
        let file = std::fs::File::from(memory.share(1).unwrap().remove(1));
        let mut bytes = [1; 8];
        file.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(bytes, [0; 8]);
        let page = memory.take().unwrap();
        memory.discard(page);
        assert!(memory.take().is_err(), "there were two");
        assert_eq!((memory.pool().capacity, memory.source.files.borrow().len()), (6 * MIB, 3));
    }
}
