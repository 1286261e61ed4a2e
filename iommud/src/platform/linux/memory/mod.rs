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
//! ([`LeftOver`]).

mod buffers;
mod directory;
mod pagemap;
mod tables;

use std::os::fd::OwnedFd;

pub use buffers::HugeBuffers;
pub use directory::{DirectoryError, HugeDirectory, LeftOver};
pub use pagemap::PagemapError;
pub use tables::HugeTables;

use super::mapping::Mapping;
use crate::addr::{PhysAddr, PhysRange};

/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 1 << 21;

/// [`HUGE_PAGE`] as a length in memory.
pub const HUGE_PAGE_LENGTH: usize = 1 << 21;

/// A huge page, mapped into this process.
#[derive(Debug)]
pub struct Page {
    phys: PhysAddr,
    mapping: Mapping,
    name: String,
}

impl Page {
    /// The page at `phys`, a multiple of 2 MiB, mapped whole by `mapping`. `name` is how its
    /// [`PageSource`] knows it.
    #[must_use]
    pub fn new(phys: PhysAddr, mapping: Mapping, name: String) -> Self {
        Self { phys, mapping, name }
    }

    /// How its source knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
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

    /// The same physical memory as a new page of zeros. Whoever had a share of the old one loses it: its
    /// accesses fail from then on. `None` when the memory could not be had back; the page is lost then.
    fn renew(&mut self, page: Page) -> Option<Page>;

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
    /// Not all of it could be had. What was taken stays taken until the server starts again.
    pub fn take(mut source: S, bytes: u64) -> Result<Self, DirectoryError> {
        let count = bytes.div_ceil(HUGE_PAGE).max(2);
        let mut pages = Vec::new();
        for _ in 0..count {
            pages.push(source.take()?);
        }
        pages.sort_by_key(|page| page.phys);
        let ranges = pages.iter().filter_map(Page::range).collect();
        let for_tables = usize::try_from(count.div_ceil(4)).unwrap_or(pages.len());
        // Low pages are kept for buffers of devices that are not translated and reach only 4 GiB.
        let tables = pages.split_off(pages.len().saturating_sub(for_tables));
        let tables = HugeTables::new(tables);
        Ok(Self { tables, buffers: HugeBuffers::new(source, pages), ranges })
    }
}

#[cfg(test)]
mod testing;
