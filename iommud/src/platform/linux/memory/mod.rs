//! Memory of the server: huge pages, each in a file of its own.
//!
//! ```text
//!                       +-> HugeTables   tables, rings, status words: frames of 4 KiB
//!  --memory-dir -> Page |
//!                       +-> HugeBuffers  DMA buffers: whole pages, never shared by two buffers
//! ```
//!
//! All of it is taken at start, so that no domain ever maps it, and stays where it is: a page has the same
//! physical address as long as its file exists. The files are not removed when the process ends, in
//! whatever way it does: hardware may go on using tables and buffers, and as long as their files exist the
//! kernel gives their memory to nobody. The next server takes the units over and then removes them
//! ([`LeftOver`]). What no unit was ever told of, because its server died before, it removes first: servers
//! that die one after the other do not use the memory up.
//!
//! A client maps its buffer through a writable descriptor of the buffer's files, and can cut a file with it
//! while its device still reaches the page. The server holds a reference of its own to every page of buffers
//! ([`Pin`]): the client loses its memory, and nobody else gets it before the device is cut off. The
//! references end with the server: between its death and the next server's tables a cut file's page is
//! free. Only user 0 gets descriptors, and user 0 can reach all memory anyway.

mod buffers;
mod directory;
mod pagemap;
mod pin;

use std::os::fd::OwnedFd;

pub use crate::platform::notes::NotesPage;
pub use buffers::HugeBuffers;
pub use directory::{DirectoryError, HugeDirectory, LeftOver, remove_files};
pub use pagemap::PagemapError;
pub use pin::Pin;

use crate::addr::{PhysAddr, PhysRange};
use crate::platform::cache::CacheLines;
use crate::platform::mapping::Mapping;
use crate::platform::tables::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables};

/// A huge page, mapped into this process.
#[derive(Debug)]
pub struct Page {
    phys: PhysAddr,
    mapping: Mapping,
    name: String,
    _pin: Option<Pin>,
}

impl Page {
    /// The page at `phys`, a multiple of 2 MiB, mapped whole by `mapping`. `name` is how its
    /// [`PageSource`] knows it.
    #[must_use]
    pub fn new(phys: PhysAddr, mapping: Mapping, name: String) -> Self {
        Self { phys, mapping, name, _pin: None }
    }

    /// The page with a reference of its own, given up when the page is dropped.
    #[must_use]
    pub fn pinned(self, pin: Pin) -> Self {
        Self { _pin: Some(pin), ..self }
    }

    /// How its source knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes its first `length` bytes back from the caches to memory.
    pub fn write_back(&self, lines: CacheLines, length: usize) {
        self.mapping.clean(lines, 0, length);
    }

    /// Its memory alone.
    #[must_use]
    pub fn into_mapping(self) -> Mapping {
        self.mapping
    }

    /// Where it is; `None` when it would end past the last address, which no real page does.
    #[must_use]
    pub fn range(&self) -> Option<PhysRange> {
        PhysRange::new(self.phys, HUGE_PAGE)
    }
}

/// Where pages come from.
pub trait PageSource {
    /// A new page of zeros.
    ///
    /// # Errors
    /// There is none, or its physical address cannot be had.
    fn take(&mut self) -> Result<Page, DirectoryError>;

    /// The same physical memory as a new page of zeros, which takes about half a millisecond. Whoever had a share of the old one loses it: its
    /// accesses fail from then on. `None` when the memory could not be had back; the page is lost then.
    fn renew(&mut self, page: Page) -> Option<Page>;

    /// Gives a page back to the system that no unit and no client ever knew.
    fn discard(&mut self, page: Page);

    /// Writes the first `length` bytes of a page back from the caches to memory.
    fn write_back(&self, page: &Page, length: usize);

    /// A descriptor of the page's memory; `None` when there is no descriptor left.
    fn share(&self, page: &Page) -> Option<OwnedFd>;
}

/// Memory taken at start.
pub struct Taken<S: PageSource> {
    /// For tables.
    pub tables: HugeTables,
    /// For buffers.
    pub buffers: HugeBuffers<S>,
    /// All of it.
    pub ranges: Vec<PhysRange>,
}

impl<S: PageSource> Taken<S> {
    /// Takes `bytes` of memory, rounded up to at least two huge pages: a quarter for tables, the rest for
    /// buffers.
    ///
    /// # Errors
    /// Not all of it could be had; nothing stays taken.
    pub fn take(mut source: S, bytes: u64) -> Result<Self, DirectoryError> {
        let count = bytes.div_ceil(HUGE_PAGE).max(2);
        let mut pages = Vec::new();
        for _ in 0..count {
            match source.take() {
                Ok(page) => pages.push(page),
                Err(error) => {
                    pages.into_iter().for_each(|page| source.discard(page));
                    return Err(error);
                }
            }
        }
        pages.sort_by_key(|page| page.phys);
        let ranges = pages.iter().filter_map(Page::range).collect();
        let for_tables = usize::try_from(count.div_ceil(4)).unwrap_or(pages.len());
        // Low pages are kept for buffers of devices that are not translated and reach only 4 GiB.
        let tables = pages.split_off(pages.len().saturating_sub(for_tables));
        let tables =
            HugeTables::new(tables.into_iter().map(|page| (page.phys, page.into_mapping())));
        Ok(Self { tables, buffers: HugeBuffers::new(source, pages), ranges })
    }
}

#[cfg(test)]
pub(in crate::platform) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::FakePages;
    use super::*;
    use crate::hw::{BufferMemory, Constraints, TableMemory};

    #[test]
    fn a_quarter_is_for_tables_and_all_of_it_is_reported() {
        let pages = FakePages::at(&[0x80_0000, 0x20_0000, 0x60_0000, 0x40_0000, 0xa0_0000]);
        let mut taken = Taken::take(pages, 5 * HUGE_PAGE - 1).unwrap();
        assert_eq!(taken.ranges.len(), 5);
        let frames: Vec<_> = std::iter::from_fn(|| taken.tables.allocate().ok()).collect();
        assert_eq!(frames.len(), 1024);
        assert!(frames.iter().all(|frame| frame.0 >= 0x80_0000), "the highest pages");
        let all = Constraints { contiguous: true, ..Constraints::default() };
        assert!(taken.buffers.allocate(1, 6 * 0x10_0000, all).is_ok());
        assert!(taken.buffers.allocate(2, 4096, Constraints::default()).is_err());
    }

    #[test]
    fn what_cannot_all_be_had_is_not_kept() {
        let pages = FakePages::at(&[0x20_0000, 0x40_0000]);
        let files = pages.files.clone();
        assert!(Taken::take(pages, 3 * HUGE_PAGE).is_err());
        assert!(files.borrow().is_empty());
    }
}
