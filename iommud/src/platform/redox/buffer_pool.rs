//! Which frames of the buffer memory belong to which buffer.
//!
//! The memory is one range of virtual addresses made of chunks, each of which is one range of physical
//! memory. A buffer is a run of virtual pages, so that the kernel can show it to a client as one mapping.
//!
//! ```text
//! lot      64 KiB, aligned, one piece of physical memory; empty, or one account's
//! account  small buffers lie in lots that it has; if none has room, in as many empty ones as it takes
//! ```
//!
//! A lot comes and goes as a whole. So whoever may have one more finds it, however many others have theirs and whatever
//! these allocate and release in them. Only buffers of more than a lot need several that follow one another.
//!
//! A buffer of 2 MiB or more, for a device that a unit confines, lies where large leaves map it, if it can: each piece of
//! memory begins at a multiple of 2 MiB in memory and in the buffer. Else it lies anywhere. It takes no more lots.
//!
//! A search for a run goes through free runs and through extents, never through single pages: a refusal costs at most a
//! few steps for each of them.

mod runs;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::hw::{Constraints, MemoryError};
use runs::Runs;

/// Pages of a lot.
const LOT_PAGES: usize = 16;

/// Bytes of a lot.
pub const LOT: u64 = 64 << 10;

/// Bytes, and pages, that one large leaf maps.
const LARGE: u64 = 2 << 20;
const LARGE_PAGES: usize = 512;

/// Pages that follow one another in virtual and in physical memory; never one beside another that it could be joined
/// with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    pages: Range<usize>,
    /// Physical address of the first page.
    first: u64,
}

/// A buffer: the account that it is charged to, and its pages.
#[derive(Clone, Debug)]
struct Held {
    account: u32,
    run: Range<usize>,
}

/// The frames, by number: number N lies N pages behind the first virtual address.
#[derive(Debug)]
pub struct Pool {
    /// All memory, in the order of its virtual addresses.
    extents: Vec<Extent>,
    /// Lots that nobody has.
    empty: Runs,
    /// What no buffer has of the lots of each account: never a whole lot.
    spare: BTreeMap<u32, Runs>,
    buffers: BTreeMap<u32, Held>,
    /// Free runs and extents that searches have looked at.
    steps: Cell<u64>,
}

impl Pool {
    /// Memory of these chunks, in the order of their virtual addresses. Their addresses and lengths are multiples of
    /// [`LOT`]: what makes no whole lot is never used.
    #[must_use]
    pub fn new(chunks: &[PhysRange]) -> Self {
        let mut pool = Self {
            extents: Vec::new(),
            empty: Runs::default(),
            spare: BTreeMap::new(),
            buffers: BTreeMap::new(),
            steps: Cell::default(),
        };
        chunks.iter().for_each(|chunk| pool.add(*chunk));
        pool
    }

    /// Takes a run of pages for buffer `id`, of lots that its account has or else of empty ones; returns its physical
    /// pieces in order. `constraints.alignment` and `constraints.boundary` are powers of two or 0.
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
        let (account, count) = (constraints.account, pages_of(length));
        if count == 0 || self.buffers.contains_key(&id) {
            return Err(MemoryError::Constraints);
        }
        let run = match self.find_spare(count, constraints) {
            Some(run) => run,
            None => self.take_lots(count, constraints)?,
        };
        if let Some(spare) = self.spare.get_mut(&account) {
            spare.take(&run);
        }
        self.forget_empty(account);
        let pieces = self.pieces(&run).collect();
        self.buffers.insert(id, Held { account, run });
        Ok(pieces)
    }

    /// Whether a buffer would lie in lots that its account has.
    #[must_use]
    pub fn has_room(&self, length: u64, constraints: Constraints) -> bool {
        self.find_spare(pages_of(length), constraints).is_some()
    }

    /// Takes the pages of buffer `id` back; returns where they were.
    pub fn release(&mut self, id: u32) -> Option<Range<usize>> {
        let Held { account, run } = self.buffers.remove(&id)?;
        let spare = self.spare.entry(account).or_default();
        let lots = whole_lots(&spare.give(run.clone()));
        if !lots.is_empty() {
            spare.take(&lots);
            self.empty.give(lots);
        }
        self.forget_empty(account);
        Some(run)
    }

    /// Adds a chunk whose virtual addresses follow those of the last one.
    pub fn add(&mut self, chunk: PhysRange) {
        let start = self.page_count();
        append(&mut self.extents, chunk);
        if start.is_multiple_of(LOT_PAGES) && chunk.first().is_aligned(LOT) {
            self.empty.give(whole_lots(&(start..self.page_count())));
        }
    }

    /// All pages.
    fn page_count(&self) -> usize {
        self.extents.last().map_or(0, |extent| extent.pages.end)
    }

    /// The pages of buffer `id`.
    #[must_use]
    pub fn pages(&self, id: u32) -> Option<Range<usize>> {
        self.buffers.get(&id).map(|held| held.run.clone())
    }

    /// How many free runs and extents searches have looked at so far: what they cost, apart from the machine.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// A run of the lots that the account has.
    fn find_spare(&self, count: usize, constraints: Constraints) -> Option<Range<usize>> {
        self.search(self.spare.get(&constraints.account)?.iter(), count, constraints, false)
    }

    /// Gives the account as many empty lots as a run takes, which begins with the first of them.
    fn take_lots(
        &mut self,
        count: usize,
        constraints: Constraints,
    ) -> Result<Range<usize>, MemoryError> {
        let whole = Constraints { alignment: constraints.alignment.max(LOT), ..constraints };
        let anything = constraints.alignment <= LOT && constraints.boundary == 0;
        let sizes: &[bool] = match anything && !constraints.contiguous && count >= LARGE_PAGES {
            true => &[true, false],
            false => &[false],
        };
        let high = sizes.iter().find_map(|large| self.find_high(count, whole, *large));
        let found = high.or_else(|| {
            let search = |large: &bool| self.search(self.empty.iter(), count, whole, *large);
            sizes.iter().find_map(search)
        });
        let Some(run) = found else {
            let possible = self.first_fit(0..self.page_count(), count, whole).is_some();
            return Err(if possible { MemoryError::Exhausted } else { MemoryError::Constraints });
        };
        let lots = run.start..run.end.next_multiple_of(LOT_PAGES);
        self.empty.take(&lots);
        self.spare.entry(constraints.account).or_default().give(lots);
        Ok(run)
    }

    /// As [`Pool::search`] in the empty lots above 4 GiB, for buffers that may lie anywhere: those below are kept for
    /// the ones that may not.
    fn find_high(
        &self,
        count: usize,
        constraints: Constraints,
        large: bool,
    ) -> Option<Range<usize>> {
        let high = |extent: &&Extent| extent.first > u64::from(u32::MAX);
        if constraints.below_4g || !self.extents.iter().any(|extent| high(&extent)) {
            return None;
        }
        self.empty.iter().find_map(|run| {
            let at = self.extents.partition_point(|extent| extent.pages.end <= run.start);
            let parts = self.extents.get(at..).unwrap_or_default().iter();
            let parts = parts.take_while(|extent| extent.pages.start < run.end).filter(high);
            let parts = parts
                .map(|extent| run.start.max(extent.pages.start)..run.end.min(extent.pages.end));
            self.search(parts, count, constraints, large)
        })
    }

    /// The first run of `count` pages in one of these free runs that meets the constraints, and that large leaves map
    /// if they are to.
    fn search(
        &self,
        mut free: impl Iterator<Item = Range<usize>>,
        count: usize,
        constraints: Constraints,
        large: bool,
    ) -> Option<Range<usize>> {
        free.find_map(|room| {
            self.count_step();
            match large {
                true => self.first_large(room, count, constraints),
                false => self.first_fit(room, count, constraints),
            }
        })
    }

    /// As [`Pool::first_fit`], for a run that large leaves map. A piece that they cannot map rules out every start
    /// before it.
    fn first_large(
        &self,
        mut room: Range<usize>,
        count: usize,
        constraints: Constraints,
    ) -> Option<Range<usize>> {
        let constraints = Constraints { alignment: LARGE, ..constraints };
        loop {
            let run = self.first_fit(room.clone(), count, constraints)?;
            match self.odd_piece(&run) {
                None => return Some(run),
                Some(next) => room.start = next,
            }
        }
    }

    /// The first page of the first piece behind the first one that has 2 MiB of the run and no large leaf for them.
    fn odd_piece(&self, run: &Range<usize>) -> Option<usize> {
        let at = self.extents.partition_point(|extent| extent.pages.end <= run.start);
        let behind = self.extents.get(at + 1..).unwrap_or_default().iter();
        let mut pieces = behind.take_while(|extent| extent.pages.start + LARGE_PAGES <= run.end);
        let odd = pieces.find(|extent| {
            self.count_step();
            let within = (extent.pages.start - run.start).is_multiple_of(LARGE_PAGES);
            !within || !extent.first.is_multiple_of(LARGE)
        });
        odd.map(|extent| extent.pages.start)
    }

    /// Forgets an account whose lots have no room left, or which has none.
    fn forget_empty(&mut self, account: u32) {
        if self.spare.get(&account).is_some_and(Runs::is_empty) {
            self.spare.remove(&account);
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

/// The lots that lie in a run as a whole.
fn whole_lots(run: &Range<usize>) -> Range<usize> {
    let start = run.start.next_multiple_of(LOT_PAGES);
    start..(run.end / LOT_PAGES * LOT_PAGES).max(start)
}

/// Pages that so many bytes take.
fn pages_of(length: u64) -> usize {
    usize::try_from(length.div_ceil(PAGE_SIZE)).unwrap_or(usize::MAX)
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
#[cfg(target_os = "linux")]
mod promises;
#[cfg(test)]
mod tests;
