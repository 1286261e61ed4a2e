//! Memory of the server: huge pages, each in a file of its own.
//!
//! ```text
//!                       +-> HugeTables   tables, rings, status words: frames of 4 KiB
//!  --memory-dir -> Page |
//!                       +-> HugeBuffers  DMA buffers: whole pages, never shared by two buffers
//! ```
//!
//! What is taken at start is never mapped by a domain; what is taken later is removed from domains of policy first, and
//! then cleared (`more`). A page stays where it is: it has the same physical address as long as its file exists. The files are not removed when the process ends, in
//! whatever way it does: hardware may go on using tables and buffers, and as long as their files exist the
//! kernel gives their memory to nobody. The next server takes the units over and then removes them
//! ([`LeftOver`]). What no unit was ever told of, because its server died before, it removes first: servers
//! that die one after the other do not use the memory up.
//!
//! A client maps its buffer through a writable descriptor of the buffer's files, and can cut a file with it
//! while its device still reaches the page. The server holds a reference of its own to every page of buffers
//! ([`Pin`]): the client loses its memory, and nobody else gets it before the device is cut off. The keeper
//! has the pins too, so that they outlive the server; it drops them when a later server has removed the files. Without
//! a keeper a pin ends with its server: between its death and the next server's tables a cut file's page is
//! free. A driver has such descriptors if it has a session, which user 0 opened or handed to it.
//!
//! A client can also put huge pages of the system into its files: hugetlbfs has no seals. A server that starts cuts the
//! files that it finds to their pages. Nothing else is done: every process can take free huge pages with `MAP_HUGETLB`,
//! and keep them as long as it lives. So a page can also be lost while it is renewed. Then the shares of clients become
//! smaller, and the server takes another page when they need it.

mod buffers;
mod directory;
mod error;
mod held_pins;
mod left_over;
mod more;
mod page;
mod page_name;
mod pagemap;
mod pin;

pub use crate::platform::handover_page::NotesPage;
pub use buffers::HugeBuffers;
pub use directory::{HugeDirectory, remove_files};
pub use error::DirectoryError;
pub use left_over::LeftOver;
pub(in crate::platform) use more::MorePages;
pub use page::{Page, PageSource};
pub use page_name::PageName;
pub use pagemap::PagemapError;
pub use pin::Pin;
pub(in crate::platform::linux) use pin::allow_many;

use crate::addr::PhysRange;
use crate::platform::Order;
use crate::platform::frame_allocator::{HUGE_PAGE, HugeTables};

/// Memory taken at start.
pub struct Taken<S: PageSource> {
    /// For tables.
    pub tables: HugeTables,
    /// For buffers.
    pub buffers: HugeBuffers<S>,
    /// All of it.
    pub ranges: Vec<PhysRange>,
    /// Bytes of buffers.
    pub buffer_bytes: u64,
}

/// Huge pages of tables among `taken` ones that are not all that was ordered: the least that is needed, and half of
/// what is left over.
fn for_tables(taken: u64, order: &Order) -> u64 {
    let pages = |bytes: u64| bytes / HUGE_PAGE;
    let (tables, buffers) = (order.tables, order.buffers);
    let over = taken.saturating_sub(pages(tables.least) + pages(buffers.least));
    let share = pages(tables.least) + over.div_ceil(2);
    share.max(taken.saturating_sub(pages(buffers.wanted))).min(pages(tables.wanted))
}

impl<S: PageSource> Taken<S> {
    /// Takes what was ordered, or as much of it as the system has, but no less than is needed.
    ///
    /// # Errors
    /// Not even the least could be had; nothing stays taken.
    pub fn take(mut source: S, order: &Order) -> Result<Self, DirectoryError> {
        let wanted = (order.tables.wanted + order.buffers.wanted) / HUGE_PAGE;
        let least = (order.tables.least + order.buffers.least) / HUGE_PAGE;
        let (mut pages, mut taken) = (Vec::new(), 0);
        while taken < wanted {
            match source.take() {
                Ok(page) => pages.push(page),
                Err(error) if taken < least => {
                    log::error!("memory: {least} huge pages are needed, {wanted} wanted");
                    pages.into_iter().for_each(|page| source.discard(page));
                    return Err(error);
                }
                Err(error) => {
                    log::warn!("memory: {taken} huge pages of {wanted} wanted: {error}");
                    break;
                }
            }
            taken += 1;
        }
        Ok(Self::share_out(source, pages, for_tables(taken, order)))
    }

    /// The highest `count` pages are for tables: low ones are kept for buffers of devices that are not translated
    /// and reach only 4 GiB.
    fn share_out(source: S, mut pages: Vec<Page>, count: u64) -> Self {
        pages.sort_by_key(|page| page.phys);
        let ranges = pages.iter().filter_map(Page::range).collect();
        let count = usize::try_from(count).unwrap_or(pages.len());
        let tables = pages.split_off(pages.len().saturating_sub(count));
        let buffer_bytes = pages.iter().map(|_| HUGE_PAGE).sum();
        let tables =
            HugeTables::new(tables.into_iter().map(|page| (page.phys, page.into_mapping())));
        Self { tables, buffers: HugeBuffers::new(source, pages), ranges, buffer_bytes }
    }
}

#[cfg(test)]
pub(in crate::platform) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::FakePages;
    use super::*;
    use crate::hw::{BufferMemory, Constraints, TableMemory};
    use crate::platform::Amount;

    const PAGES: [u64; 5] = [0x80_0000, 0x20_0000, 0x60_0000, 0x40_0000, 0xa0_0000];

    fn order(tables: [u64; 2], buffers: [u64; 2]) -> Order {
        let amount = |[least, wanted]: [u64; 2]| Amount {
            least: least * HUGE_PAGE,
            wanted: wanted * HUGE_PAGE,
            most: wanted * HUGE_PAGE,
        };
        Order { tables: amount(tables), buffers: amount(buffers) }
    }

    #[test]
    fn the_highest_pages_are_for_tables_and_all_of_it_is_reported() {
        let order = Order::exactly(2 * HUGE_PAGE, 3 * HUGE_PAGE - 1);
        let mut taken = Taken::take(FakePages::at(&PAGES), &order).unwrap();
        assert_eq!((taken.ranges.len(), taken.buffer_bytes), (5, 3 * HUGE_PAGE));
        assert_eq!(taken.tables.bytes(), 2 * HUGE_PAGE);
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
        assert!(Taken::take(pages, &order([2, 4], [1, 1])).is_err());
        assert!(files.borrow().is_empty());
    }

    /// Five pages: tables get what they need before anything else, then half of the rest.
    #[test]
    fn what_there_is_does_when_it_is_enough() {
        for (tables, buffers, expected) in [
            ([1, 8], [1, 8], 3),
            ([4, 8], [1, 8], 4),
            ([2, 8], [1, 2], 3),
            ([1, 8], [1, 1], 4),
            ([1, 1], [1, 8], 1),
            ([1, 2], [3, 8], 2),
        ] {
            let taken = Taken::take(FakePages::at(&PAGES), &order(tables, buffers)).unwrap();
            let split = (taken.tables.bytes() / HUGE_PAGE, taken.buffer_bytes / HUGE_PAGE);
            assert_eq!(split, (expected, 5 - expected), "{tables:?} {buffers:?}");
        }
    }
}
