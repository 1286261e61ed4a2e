//! Allocates frames of 4 KiB for tables out of huge pages.

use std::cell::Cell;

use super::cache::CacheLines;
use super::mapping::Mapping;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::hw::{MemoryError, TableMemory};

/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 1 << 21;

/// Bytes of a huge page, as a `usize`.
pub const HUGE_PAGE_LENGTH: usize = 1 << 21;

/// Bytes of a frame.
const FRAME: usize = 4096;

/// Frames of a huge page.
const FRAMES: usize = 512;

/// The table memory of the process. A frame that is not handed out counts as an unknown frame address of
/// [`TableMemory`].
#[derive(Debug)]
pub struct HugeTables {
    /// Sorted by physical address.
    pages: Vec<TablePage>,
    /// Frames below `fresh` that are not handed out: freed, or skipped to align a run. They hold zeros, which may
    /// still be in a cache. The capacity suffices for all frames, so that freeing one allocates no memory.
    free: Vec<PhysAddr>,
    in_use: usize,
    lines: CacheLines,
    /// The counter that `live` returns for a frame that is not handed out.
    nobody: u16,
    /// Index in `pages` of the page found last.
    recent: Cell<usize>,
}

#[derive(Debug)]
struct TablePage {
    phys: u64,
    mapping: Mapping,
    frames: Box<[Frame; FRAMES]>,
    /// The frame with this number, and all after it, were never handed out.
    fresh: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    used: bool,
    live: u16,
}

impl HugeTables {
    /// Allocates tables from these pages, which must hold zeros.
    #[must_use]
    pub fn new(pages: impl IntoIterator<Item = (PhysAddr, Mapping)>) -> Self {
        let pages = pages.into_iter();
        let mut pages: Vec<_> =
            pages.map(|(phys, mapping)| TablePage::new(phys, mapping)).collect();
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

    /// Adds a page that no device can reach any more. Clears it first: a device may have written to it.
    pub fn add(&mut self, phys: PhysAddr, mut mapping: Mapping) {
        mapping.clear(0, HUGE_PAGE_LENGTH);
        let at = self.pages.partition_point(|page| page.phys < phys.0);
        self.pages.insert(at, TablePage::new(phys, mapping));
        let all = self.pages.len() * FRAMES;
        self.free.reserve(all.saturating_sub(self.free.len()));
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|_| HUGE_PAGE).sum()
    }

    /// Finds the index of a frame's page, and the frame's number in that page.
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

    /// Marks `count` frames as handed out and returns the address of the first.
    fn hand_out(&mut self, page: usize, first: usize, count: usize) -> Option<PhysAddr> {
        let page = self.pages.get_mut(page)?;
        for frame in page.frames.get_mut(first..first + count)? {
            *frame = Frame { used: true, live: 0 };
        }
        self.in_use += count;
        page.address(first)
    }

    /// Writes the zeros of a run of frames back from the caches to memory. Returns `frame`.
    fn cleaned(&mut self, frame: PhysAddr, count: usize) -> PhysAddr {
        let lines = self.lines;
        if let Some((page, number)) = self.handed_out(frame) {
            page.mapping.clean(lines, number * FRAME, count * FRAME);
        }
        frame
    }

    /// Hands out `count` adjacent frames that were never handed out. `count` is a power of two and at most 512.
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

    /// Hands out `count` adjacent frames of which each was freed or never handed out. So a unit that comes up late
    /// can get a run from the gaps between the tables of others.
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
    fn new(phys: PhysAddr, mapping: Mapping) -> Self {
        Self { phys: phys.0, mapping, frames: Box::new([Frame::default(); FRAMES]), fresh: 0 }
    }

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
mod tests;
