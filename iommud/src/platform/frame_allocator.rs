//! Frames of 4 KiB out of huge pages, for tables.

use std::cell::Cell;

use super::cache::CacheLines;
use super::mapping::Mapping;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::hw::{MemoryError, TableMemory};

/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 1 << 21;

/// [`HUGE_PAGE`] as a length in memory.
pub const HUGE_PAGE_LENGTH: usize = 1 << 21;

/// Bytes of a frame.
const FRAME: usize = 4096;

/// Frames of a huge page.
const FRAMES: usize = 512;

/// Table memory of the process. What the trait says of other frames holds for frames that were not handed
/// out, too.
#[derive(Debug)]
pub struct HugeTables {
    /// Sorted by physical address.
    pages: Vec<TablePage>,
    /// Frames that were taken back: all zero, but perhaps not yet in memory. There is room for all, so that taking one
    /// back needs no memory.
    free: Vec<PhysAddr>,
    in_use: usize,
    lines: CacheLines,
    /// What `live` gives for a frame that was not handed out.
    nobody: u16,
    /// The page that was looked for last.
    recent: Cell<usize>,
}

#[derive(Debug)]
struct TablePage {
    phys: u64,
    mapping: Mapping,
    frames: Box<[Frame; FRAMES]>,
    /// Frames from here on were never handed out.
    fresh: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    used: bool,
    live: u16,
}

impl HugeTables {
    /// Tables live in these pages, all of which are zero.
    #[must_use]
    pub fn new(pages: impl IntoIterator<Item = (PhysAddr, Mapping)>) -> Self {
        let mut pages: Vec<TablePage> = pages
            .into_iter()
            .map(|(phys, mapping)| TablePage {
                phys: phys.0,
                mapping,
                frames: Box::new([Frame::default(); FRAMES]),
                fresh: 0,
            })
            .collect();
        pages.sort_by_key(|page| page.phys);
        let free = Vec::with_capacity(pages.len() * FRAMES);
        Self {
            pages,
            free,
            in_use: 0,
            lines: CacheLines::detect(),
            nobody: 0,
            recent: Cell::new(0),
        }
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|_| HUGE_PAGE).sum()
    }

    /// The page of a frame, and the frame's number in it.
    #[inline(always)]
    fn find(&self, frame: PhysAddr) -> Option<(usize, usize)> {
        let start = frame.0 & !(HUGE_PAGE - 1);
        let recent = self.recent.get();
        let page = match self.pages.get(recent) {
            Some(page) if page.phys == start => recent,
            _ => self.search(start)?,
        };
        let number = usize::try_from(frame.0 % HUGE_PAGE / PAGE_SIZE).ok()?;
        frame.is_aligned(PAGE_SIZE).then_some((page, number))
    }

    #[cold]
    fn search(&self, start: u64) -> Option<usize> {
        let page = self.pages.binary_search_by_key(&start, |page| page.phys).ok()?;
        self.recent.set(page);
        Some(page)
    }

    fn handed_out(&self, frame: PhysAddr) -> Option<(&TablePage, usize)> {
        let (page, number) = self.find(frame)?;
        let page = self.pages.get(page)?;
        page.frames.get(number)?.used.then_some((page, number))
    }

    fn handed_out_mut(&mut self, frame: PhysAddr) -> Option<(&mut TablePage, usize)> {
        let (page, number) = self.find(frame)?;
        let page = self.pages.get_mut(page)?;
        page.frames.get(number)?.used.then_some((page, number))
    }

    /// Marks `count` frames as handed out.
    fn hand_out(&mut self, page: usize, first: usize, count: usize) -> Option<PhysAddr> {
        let page = self.pages.get_mut(page)?;
        for frame in page.frames.get_mut(first..first + count)? {
            *frame = Frame { used: true, live: 0 };
        }
        self.in_use += count;
        page.address(first)
    }

    /// Writes the zeros of a run back to memory.
    fn cleaned(&mut self, frame: PhysAddr, count: usize) -> PhysAddr {
        let lines = self.lines;
        if let Some((page, number)) = self.handed_out(frame) {
            page.mapping.clean(lines, number * FRAME, count * FRAME);
        }
        frame
    }

    /// `count` frames that follow each other and were never handed out.
    fn fresh_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        if !count.is_power_of_two() || count > FRAMES {
            return Err(MemoryError::Exhausted);
        }
        for (index, page) in self.pages.iter_mut().enumerate() {
            let first = page.fresh.next_multiple_of(count);
            if first + count > FRAMES {
                continue;
            }
            let skipped = page.fresh..first;
            page.fresh = first + count;
            for number in skipped {
                self.free.extend(page.address(number));
            }
            return self.hand_out(index, first, count).ok_or(MemoryError::Exhausted);
        }
        Err(MemoryError::Exhausted)
    }

    /// `count` frames that follow each other and were all taken back, or never handed out: a unit that comes late
    /// finds room between the tables of others.
    #[cold]
    fn gathered_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        if !count.is_power_of_two() || count > FRAMES {
            return Err(MemoryError::Exhausted);
        }
        let found = self.pages.iter().enumerate().find_map(|(index, page)| {
            let unused = |run: &&[Frame]| run.iter().all(|frame| !frame.used);
            let at = page.frames.chunks_exact(count).position(|run| unused(&run))?;
            Some((index, at * count))
        });
        let (index, first) = found.ok_or(MemoryError::Exhausted)?;
        let page = self.pages.get_mut(index).ok_or(MemoryError::Exhausted)?;
        page.fresh = page.fresh.max(first + count);
        let run = page.address(first).zip(page.address(first + count - 1));
        let (from, to) = run.ok_or(MemoryError::Exhausted)?;
        self.free.retain(|frame| *frame < from || *frame > to);
        self.hand_out(index, first, count).ok_or(MemoryError::Exhausted)
    }
}

impl TablePage {
    fn address(&self, number: usize) -> Option<PhysAddr> {
        let offset = u64::try_from(number * FRAME).ok()?;
        PhysAddr(self.phys).checked_add(offset)
    }
}

impl TableMemory for HugeTables {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        let frame = self.allocate_unclean()?;
        Ok(self.cleaned(frame, 1))
    }

    fn allocate_unclean(&mut self) -> Result<PhysAddr, MemoryError> {
        let Some(frame) = self.free.pop() else { return self.fresh_run(1) };
        self.find(frame)
            .and_then(|(page, number)| self.hand_out(page, number, 1))
            .ok_or(MemoryError::Exhausted)
    }

    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        let first = self.fresh_run(count).or_else(|_| self.gathered_run(count))?;
        Ok(self.cleaned(first, count))
    }

    fn free(&mut self, frame: PhysAddr, is_zero: bool) {
        let Some((page, number)) = self.handed_out_mut(frame) else { return };
        if !is_zero {
            page.mapping.clear(number * FRAME, FRAME);
        }
        if let Some(slot) = page.frames.get_mut(number) {
            *slot = Frame::default();
        }
        self.in_use -= 1;
        self.free.push(frame);
    }

    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        let word = self.handed_out(frame).filter(|_| index < FRAME / 8);
        word.and_then(|(page, number)| page.mapping.read64(number * FRAME + index * 8)).unwrap_or(0)
    }

    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        if index < FRAME / 8
            && let Some((page, number)) = self.handed_out_mut(frame)
        {
            page.mapping.write64(number * FRAME + index * 8, value);
        }
    }

    fn fill(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        let Some((page, number)) = self.handed_out_mut(frame) else { return };
        if first <= FRAME / 8 && count <= FRAME / 8 - first {
            page.mapping.fill64(number * FRAME + first * 8, count, value, step);
        }
    }

    fn fill_new(&mut self, frame: PhysAddr, first: usize, count: usize, value: u64, step: u64) {
        let Some((page, number)) = self.handed_out_mut(frame) else { return };
        if first <= FRAME / 8 && count <= FRAME / 8 - first {
            page.mapping.fill64_unseen(number * FRAME + first * 8, count, value, step);
        }
    }

    #[inline(always)]
    fn write(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        values: &mut impl Iterator<Item = u64>,
    ) {
        let Some((page, number)) = self.handed_out_mut(frame) else { return };
        if first <= FRAME / 8 && count <= FRAME / 8 - first {
            page.mapping.write64_each(number * FRAME + first * 8, count, values);
        }
    }

    #[inline(always)]
    fn change_each(
        &mut self,
        frame: PhysAddr,
        first: usize,
        count: usize,
        mut change: impl FnMut(usize, u64) -> Option<u64>,
    ) {
        let Some((page, number)) = self.handed_out_mut(frame) else { return };
        if first <= FRAME / 8 && count <= FRAME / 8 - first {
            let change = |index, word| change(first + index, word);
            page.mapping.change64_each(number * FRAME + first * 8, count, change);
        }
    }

    #[inline(always)]
    fn change<T>(
        &mut self,
        frame: PhysAddr,
        index: usize,
        change: impl FnOnce(u64, &mut u16) -> (Option<u64>, T),
    ) -> T {
        self.nobody = 0;
        let place = if index < FRAME / 8 { self.find(frame) } else { None };
        let page = place.and_then(|(page, number)| Some((self.pages.get_mut(page)?, number)));
        if let Some((TablePage { mapping, frames, .. }, number)) = page
            && let Some(Frame { live, used: true }) = frames.get_mut(number)
        {
            return mapping.change64(number * FRAME + index * 8, |word| change(word, live));
        }
        change(0, &mut self.nobody).1
    }

    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        let lines = self.lines;
        let words = FRAME / 8;
        if let Some((page, number)) = self.handed_out_mut(frame)
            && first < words
        {
            let count = count.min(words - first);
            page.mapping.clean(lines, number * FRAME + first * 8, count * 8);
        }
    }

    fn live(&mut self, frame: PhysAddr) -> &mut u16 {
        self.nobody = 0;
        let found = self.find(frame);
        let frame =
            found.and_then(|(page, number)| self.pages.get_mut(page)?.frames.get_mut(number));
        match frame.filter(|frame| frame.used) {
            Some(frame) => &mut frame.live,
            None => &mut self.nobody,
        }
    }

    fn frames_in_use(&self) -> usize {
        self.in_use
    }

    fn frames_free(&self) -> usize {
        self.pages.len() * FRAMES - self.in_use
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::platform::linux::memory::testing::FakePages;

    const LOW: u64 = 0x4000_0000;
    const HIGH: u64 = 0x1_8000_0000;

    fn tables() -> HugeTables {
        let mut source = FakePages::default();
        let mut page = |phys| (PhysAddr(phys), source.page(phys).into_mapping());
        HugeTables::new([page(HIGH), page(LOW)])
    }

    #[test]
    fn frames_are_zero_aligned_and_distinct_until_there_are_none() {
        let mut tables = tables();
        let mut seen = std::collections::BTreeSet::new();
        while let Ok(frame) = tables.allocate() {
            assert!(frame.is_aligned(4096) && seen.insert(frame.0));
            assert!((0..512).all(|word| tables.load(frame, word) == 0));
            tables.store(frame, 0, u64::MAX);
        }
        assert_eq!((seen.len(), tables.frames_in_use()), (1024, 1024));
        assert_eq!(seen.first(), Some(&LOW));
        assert_eq!(seen.last(), Some(&(HIGH + 511 * 4096)));
        assert_eq!(tables.allocate(), Err(MemoryError::Exhausted));
    }

    #[test]
    fn runs_are_aligned_to_their_size_and_the_gap_is_not_lost() {
        let mut tables = tables();
        let first = tables.allocate().unwrap();
        let run = tables.allocate_run(8).unwrap();
        assert_eq!((first.0, run.0), (LOW, LOW + 8 * 4096));
        assert_eq!(tables.allocate_run(512), Ok(PhysAddr(HIGH)));
        let rest: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
        assert_eq!(rest.len(), 512 - 9);
        assert!(rest.contains(&PhysAddr(LOW + 4096)));
        for bad in [0, 3, 1024] {
            assert_eq!(tables.allocate_run(bad), Err(MemoryError::Exhausted));
        }
    }

    /// Every frame was in use, and all but one come back: runs are found between what is left, and no frame is
    /// handed out twice.
    #[test]
    fn runs_are_gathered_from_frames_that_came_back() {
        let mut tables = tables();
        let frames: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
        assert_eq!(tables.allocate_run(2), Err(MemoryError::Exhausted));
        let kept = PhysAddr(LOW + 16 * 4096);
        for frame in frames.iter().rev().filter(|frame| **frame != kept) {
            tables.store(*frame, 7, 7);
            tables.free(*frame, false);
        }
        assert_eq!(tables.allocate_run(512), Ok(PhysAddr(HIGH)));
        assert_eq!(tables.allocate_run(512), Err(MemoryError::Exhausted));
        assert_eq!(tables.allocate_run(256), Ok(PhysAddr(LOW + 256 * 4096)));
        assert_eq!(tables.allocate_run(16), Ok(PhysAddr(LOW)));
        assert_eq!(tables.allocate_run(16), Ok(PhysAddr(LOW + 32 * 4096)));
        assert!((0..512).all(|word| tables.load(PhysAddr(LOW), word) == 0));
        let rest: std::collections::BTreeSet<_> =
            std::iter::from_fn(|| tables.allocate().ok()).map(|frame| frame.0).collect();
        assert_eq!(rest.len(), 256 - 16 - 16 - 1);
        assert!(rest.iter().all(|frame| (LOW + 17 * 4096..LOW + 256 * 4096).contains(frame)));
        assert_eq!(tables.frames_in_use(), 1024);
    }

    /// Units of AMD-Vi take their runs one after the other, and all the rest goes to tables of one frame.
    #[test]
    fn the_pages_that_are_said_to_be_needed_hold_all_runs() {
        for units in 1..12 {
            let runs = [512, 1, 1, 1, 16, 16];
            let single = 40 * units + 3;
            let need = crate::sizing::Need {
                runs: runs.into_iter().filter(|run| *run > 1).collect(),
                base_frames: 547 * units + single,
                ..crate::sizing::Need::default()
            };
            let pages = need.least_table_bytes() / HUGE_PAGE;
            let mut source = FakePages::default();
            let mut page = |index: u64| {
                let phys = LOW + index * 3 * HUGE_PAGE;
                (PhysAddr(phys), source.page(phys).into_mapping())
            };
            let mut tables = HugeTables::new((0..pages).map(&mut page));
            for run in (0..units).flat_map(|_| runs) {
                let first = tables.allocate_run(run).unwrap();
                assert!(first.is_aligned(run as u64 * 4096), "{units} units, run of {run}");
            }
            for _ in 0..single {
                tables.allocate().unwrap();
            }
            let frames = tables.frames_in_use() as u64;
            assert!(pages * 512 - frames < 1024, "{units} units: {frames} of {pages} pages");
        }
    }

    #[test]
    fn a_frame_taken_back_is_cleared_and_forgotten() {
        let mut tables = tables();
        let frame = tables.allocate().unwrap();
        tables.store(frame, 511, 0x1234);
        *tables.live(frame) = 9;
        tables.free(frame, false);
        tables.free(frame, false);
        assert_eq!(tables.frames_in_use(), 0);
        tables.store(frame, 3, 1);
        assert_eq!((tables.load(frame, 511), *tables.live(frame)), (0, 0));
        let again = tables.allocate().unwrap();
        assert_eq!(again, frame);
        assert!((0..512).all(|word| tables.load(again, word) == 0));
        assert_eq!(*tables.live(again), 0);
        assert_ne!(tables.allocate().unwrap(), again, "freed twice, handed out once");
    }

    #[test]
    fn other_frames_and_indices_do_nothing() {
        let mut tables = tables();
        let frame = tables.allocate().unwrap();
        let next = tables.allocate().unwrap();
        tables.store(frame, 512, 7);
        tables.clean(frame, 511, 2);
        tables.clean(frame, 512, 1);
        assert_eq!(tables.load(next, 0), 0);
        for other in
            [PhysAddr(frame.0 + 8), PhysAddr(0), PhysAddr(LOW + 2 * 4096), PhysAddr(u64::MAX)]
        {
            tables.store(other, 0, 7);
            *tables.live(other) = 7;
            tables.free(other, false);
            assert_eq!((tables.load(other, 0), *tables.live(other)), (0, 0), "{other:?}");
        }
        assert_eq!(tables.frames_in_use(), 2);
        assert_eq!(tables.load(frame, 0), 0);
    }

    /// As the trait does it with `load`, `live` and `store`.
    #[test]
    fn a_change_sees_a_word_and_its_frame_s_counter() {
        let mut tables = tables();
        let (frame, other) = (tables.allocate().unwrap(), tables.allocate().unwrap());
        tables.store(frame, 511, 5);
        *tables.live(frame) = 3;
        let seen = tables.change(frame, 511, |word, live| {
            *live += 1;
            (Some(word + 1), (word, *live))
        });
        assert_eq!((seen, tables.load(frame, 511), *tables.live(frame)), ((5, 4), 6, 4));
        let kept = tables.change(frame, 511, |word, _| (None, word));
        assert_eq!((kept, tables.load(frame, 511)), (6, 6));
        assert_eq!(
            (tables.load(frame, 510), tables.load(other, 511), *tables.live(other)),
            (0, 0, 0)
        );
        for (outside, index) in [(frame, 512), (PhysAddr(frame.0 + 8), 0), (PhysAddr(u64::MAX), 0)]
        {
            let seen = tables.change(outside, index, |word, live| {
                *live += 1;
                (Some(9), (word, *live))
            });
            assert_eq!(seen, (0, 1), "{outside:?} {index}");
        }
        assert_eq!((tables.load(frame, 0), tables.load(other, 0), *tables.live(frame)), (0, 0, 4));
    }

    /// As the trait does it with `load` and `store`.
    #[test]
    fn words_are_written_and_changed_in_the_frame_that_was_named() {
        let mut tables = tables();
        let (_, frame, next) = (tables.allocate(), tables.allocate().unwrap(), tables.allocate());
        tables.write(frame, 509, 3, &mut [5, 6, 7, 8].into_iter());
        let mut seen = Vec::new();
        tables.change_each(frame, 508, 3, |index, word| {
            seen.push((index, word));
            (word == 5).then_some(9)
        });
        assert_eq!(seen, [(508, 0), (509, 5), (510, 6)]);
        let words = [507, 508, 509, 510, 511].map(|index| tables.load(frame, index));
        assert_eq!(words, [0, 0, 9, 6, 7]);
        for (outside, first, count) in [
            (frame, 511, 2),
            (frame, 512, 1),
            (frame, 0, usize::MAX),
            (PhysAddr(frame.0 + 8), 0, 1),
            (PhysAddr(LOW + 100 * 4096), 0, 1),
        ] {
            tables.write(outside, first, count, &mut std::iter::repeat(1));
            tables.change_each(outside, first, count, |_, _| panic!("{outside:?} {first}"));
        }
        assert!((0..512).all(|index| tables.load(next.unwrap(), index) == 0));
        assert_eq!((tables.load(frame, 0), tables.load(frame, 511)), (0, 7));
    }

    #[test]
    fn stores_are_seen_through_the_page_itself() {
        let mut source = FakePages::default();
        let page = source.page(LOW);
        let file = std::fs::File::from(source.files.borrow_mut().pop_first().unwrap().1);
        let mut tables = HugeTables::new([(PhysAddr(LOW), page.into_mapping())]);
        tables.allocate().unwrap();
        let second = tables.allocate().unwrap();
        tables.store(second, 2, 0x8877_6655_4433_2211);
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096 + 16).unwrap();
        assert_eq!(bytes, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    }
}
