//! More memory for a server that runs: huge pages, one at a time, from where its buffers have theirs.

use std::fs;

use super::buffers::HugeBuffers;
use super::page::{Page, PageSource};
use crate::addr::PhysRange;
use crate::hw::Unit;
use crate::platform::Order;
use crate::platform::frame_allocator::{HUGE_PAGE, HugeTables};
use crate::platform::growth::MoreMemory;
use crate::server::Server;

/// Where the kernel says how many huge pages of 2 MiB are free, and how many of them are promised to somebody.
const COUNTS: [&str; 2] = [
    "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
];

/// Takes huge pages of the system, and leaves those that the next server takes at its start. That one takes the units
/// over while the memory of this one is still taken.
pub(in crate::platform) struct MorePages {
    kept: u64,
    free: fn() -> Option<u64>,
}

impl MorePages {
    /// All but what a server orders at its start.
    pub(in crate::platform::linux) const fn new(order: &Order) -> Self {
        let kept = order.tables.wanted.saturating_add(order.buffers.wanted) / HUGE_PAGE;
        Self { kept, free: free_pages }
    }

    #[cfg(test)]
    pub(in crate::platform) const fn leaving(kept: u64, free: fn() -> Option<u64>) -> Self {
        Self { kept, free }
    }

    /// A page of the system's that leaves it so many.
    fn take<U: Unit, S: PageSource>(
        &self,
        server: &mut Server<U, HugeBuffers<S>>,
        kept: u64,
    ) -> Result<(Page, PhysRange), String> {
        let free = (self.free)().unwrap_or(0);
        if free <= kept {
            return Err(format!("{free} huge pages are free, the next server needs {kept}"));
        }
        let page = server.buffer_memory().take().map_err(|error| error.to_string())?;
        let Some(range) = page.range() else {
            server.buffer_memory().discard(page);
            return Err("a page without an address".to_owned());
        };
        Ok((page, range))
    }
}

impl<U: Unit<Memory = HugeTables>, S: PageSource> MoreMemory<U, HugeBuffers<S>> for MorePages {
    const TABLES: u64 = HUGE_PAGE;
    const BUFFERS: u64 = HUGE_PAGE;

    fn tables(&mut self, server: &mut Server<U, HugeBuffers<S>>) -> Result<(), String> {
        let (page, range) = self.take(server, self.kept)?;
        let added = server.add_tables(range, page, |tables, page| {
            tables.add(page.phys, page.into_mapping());
        });
        added.map_err(|(page, refusal)| {
            server.buffer_memory().discard(page);
            refusal.to_string()
        })
    }

    fn buffers(&mut self, server: &mut Server<U, HugeBuffers<S>>) -> Result<(), String> {
        // A page that was lost had been taken at start, beside those of the next server.
        let kept = if server.buffer_memory().has_lost() { 0 } else { self.kept };
        let (page, range) = self.take(server, kept)?;
        server.add_buffers(range, page, HugeBuffers::add).map_err(|(page, refusal)| {
            server.buffer_memory().discard(page);
            refusal.to_string()
        })
    }
}

/// Huge pages of 2 MiB that nobody has or is promised; `None` when the kernel does not say.
fn free_pages() -> Option<u64> {
    let [free, promised] = COUNTS.map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    u64::checked_sub(free?, promised?)
}
