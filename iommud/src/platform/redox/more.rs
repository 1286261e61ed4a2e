//! More memory for a server that runs: chunks of the memory scheme.

use std::io;

use super::free_part;
use super::memory::{Buffers, CHUNK, Files};
use crate::hw::{Nanos, Unit};
use crate::platform::growth::{Growth, MoreMemory};
use crate::platform::{HUGE_PAGE, HugeTables, Order};
use crate::server::Server;

/// Takes more memory when it is short. A server with a keeper has none of this: a keeper holds what it was given at
/// start, and one that grows when it is asked to is for later.
pub(super) struct More {
    growth: Growth,
    chunks: Chunks,
}

impl More {
    pub(super) const fn new(order: &Order, files: Files) -> Self {
        Self { growth: Growth::new(order), chunks: Chunks { files } }
    }

    /// As [`Growth::grow`].
    pub(super) fn grow<U: Unit<Memory = HugeTables>>(
        &mut self,
        server: &mut Server<U, Buffers>,
        now: Nanos,
    ) -> bool {
        self.growth.grow(server, &mut self.chunks, now)
    }
}

/// Takes chunks of the memory scheme, up to a part of its free memory.
struct Chunks {
    files: Files,
}

impl Chunks {
    fn check(&self, part: u64, taken: u64, more: u64) -> Result<(), String> {
        let free = self.files.free().map_err(reason)?;
        match free_part::allows(part, free, taken, more) {
            true => Ok(()),
            false => Err(format!("{} MiB are free", free >> 20)),
        }
    }
}

impl<U: Unit<Memory = HugeTables>> MoreMemory<U, Buffers> for Chunks {
    const TABLES: u64 = HUGE_PAGE;
    const BUFFERS: u64 = CHUNK as u64;

    fn tables(&mut self, server: &mut Server<U, Buffers>) -> Result<(), String> {
        let taken = server.budget().table_frames_total * crate::addr::PAGE_SIZE;
        self.check(free_part::FOR_TABLES, taken, HUGE_PAGE)?;
        let (page, range) = self.files.page().map_err(reason)?;
        let added = server.add_tables(range, page, |tables, page| tables.add(range.first(), page));
        // The page of a refusal is unmapped here.
        added.map_err(|(_, refusal)| refusal.to_string())
    }

    fn buffers(&mut self, server: &mut Server<U, Buffers>) -> Result<(), String> {
        let taken = server.budget().buffer_bytes_total;
        let more = <Self as MoreMemory<U, Buffers>>::BUFFERS;
        self.check(free_part::FOR_BUFFERS, taken, more)?;
        let range = server.buffer_memory().take(&self.files).map_err(reason)?;
        server.add_buffers(range, range, Buffers::add).map_err(|(_, refusal)| {
            server.buffer_memory().discard(&self.files);
            refusal.to_string()
        })
    }
}

fn reason(error: io::Error) -> String {
    error.to_string()
}
