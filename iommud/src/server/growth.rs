//! Memory that is taken while the server runs.
//!
//! ```text
//! system --a page--> taken from policy, invalidated in units --> cleared --> tables or buffers
//!                     +--(refused)--> given back to the system; nothing has changed
//! ```
//!
//! A device that nobody has claimed may write to the page until units have invalidated it. So the page is cleared
//! after that, before its first use.

mod lack;

use iommu_protocol::Refusal;

use crate::addr::PhysRange;
use crate::hw::{BufferMemory, Unit};
use crate::policy::Event;
use crate::server::{Budget, Server};

pub(super) use lack::Growth;

/// Table memory is short when fewer frames are free beyond the promised ones: half a huge page.
const FEW_FRAMES: usize = 256;

/// Buffer memory is short when less than this fraction (1/4) of it is free.
const PARTS: u64 = 4;

/// Frames of 4096 bytes.
const FRAME: u64 = 4096;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Whether little memory is left for tables.
    #[must_use]
    pub fn lacks_tables(&self) -> bool {
        let shares = self.engine.shares();
        shares.free.saturating_sub(shares.promised) < FEW_FRAMES
    }

    /// Whether little memory is left for buffers, or a buffer was refused only for lack of it.
    pub fn lacks_buffers(&mut self) -> bool {
        if let Some((session, length)) = self.growth.refused
            && !self.registry.lacks_pool(session, length)
        {
            self.growth.refused = None;
        }
        self.growth.refused.is_some() || self.growth.exhausted || self.registry.pool_is_below(PARTS)
    }

    /// Adds a page of the system to the memory of tables. `add` clears it, and is called when no unclaimed device
    /// reaches `range` any more.
    ///
    /// # Errors
    /// The page, and the reason why devices still reach it: nothing has changed.
    pub fn add_tables<P>(
        &mut self,
        range: PhysRange,
        page: P,
        add: impl FnOnce(&mut U::Memory, P),
    ) -> Result<(), (P, Refusal)> {
        if let Err(refusal) = self.run_event(&Event::MemoryTaken(range)) {
            return Err((page, refusal));
        }
        add(self.engine.memory_mut(), page);
        self.set_aside();
        self.machine.budget.table_frames_total += range.length() / FRAME;
        self.counts.memory_added_bytes += range.length();
        self.finish_endings();
        Ok(())
    }

    /// Like [`Server::add_tables`], for the memory of buffers.
    ///
    /// # Errors
    /// Those of [`Server::add_tables`].
    pub fn add_buffers<P>(
        &mut self,
        range: PhysRange,
        page: P,
        add: impl FnOnce(&mut B, P),
    ) -> Result<(), (P, Refusal)> {
        if let Err(refusal) = self.run_event(&Event::MemoryTaken(range)) {
            return Err((page, refusal));
        }
        add(&mut self.buffers, page);
        self.growth.exhausted = false;
        self.count_buffers();
        self.counts.memory_added_bytes += range.length();
        Ok(())
    }

    /// Counts the memory of buffers: the platform may have added a page, or lost one at its release. The shares of clients
    /// are parts of it.
    pub(super) fn count_buffers(&mut self) {
        if self.set_buffer_pool() {
            self.machine.budget.buffer_bytes_total = self.buffers.pool().capacity;
        }
    }

    /// The memory that was taken.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.machine.budget
    }

    /// The memory of buffers, as the platform knows it.
    pub const fn buffer_memory(&mut self) -> &mut B {
        &mut self.buffers
    }
}
