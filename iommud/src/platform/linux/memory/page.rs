//! Huge pages, and where they come from.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::error::DirectoryError;
use super::pagemap::{PagemapError, physical_address};
use super::pin::Pin;
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::cache::CacheLines;
use crate::platform::frame_allocator::{HUGE_PAGE, HUGE_PAGE_LENGTH};
use crate::platform::mapping::{Mapping, Sharing};

/// A huge page, mapped into this process.
#[derive(Debug)]
pub struct Page {
    pub(super) phys: PhysAddr,
    pub(super) mapping: Mapping,
    pub(super) name: String,
    pin: Option<Pin>,
}

impl Page {
    /// The page at `phys`, a multiple of 2 MiB, mapped whole by `mapping`. `name` is how its
    /// [`PageSource`] knows it.
    #[must_use]
    pub fn new(phys: PhysAddr, mapping: Mapping, name: String) -> Self {
        Self { phys, mapping, name, pin: None }
    }

    /// The page with a reference of its own, given up when the page is dropped.
    #[must_use]
    pub fn pinned(self, pin: Pin) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// Gives up its reference, also for every process that has a descriptor of it.
    pub fn unpin(&mut self) {
        if let Some(pin) = self.pin.take() {
            pin.release();
        }
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
    /// accesses fail from then on. `None` when the memory could not be had back; the page is the system's then.
    fn renew(&mut self, page: Page) -> Option<Page>;

    /// Gives a page back to the system that no unit and no client ever knew.
    fn discard(&mut self, page: Page);

    /// Writes the first `length` bytes of a page back from the caches to memory.
    fn write_back(&self, page: &Page, length: usize) {
        page.write_back(CacheLines::detect(), length);
    }

    /// A descriptor of the page's memory; `None` when there is no descriptor left.
    fn share(&self, page: &Page) -> Option<OwnedFd>;
}

/// Maps a file's huge page, and tells where that is.
///
/// # Errors
/// `Unusable`; `Address`.
pub(super) fn map(file: &OwnedFd) -> Result<(Mapping, PhysRange), DirectoryError> {
    let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Populated)
        .map_err(|error| DirectoryError::Unusable(PathBuf::new(), error))?;
    let first = physical_address(&mapping).map_err(DirectoryError::Address)?;
    let range =
        PhysRange::new(first, HUGE_PAGE).ok_or(DirectoryError::Address(PagemapError::Hidden))?;
    Ok((mapping, range))
}
