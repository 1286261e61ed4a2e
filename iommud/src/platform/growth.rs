//! When a server takes more memory while it runs, and how much at most.
//!
//! ```text
//! each tick --(something is short, below its limit, no pause)--> one page is taken and added
//!   +--(the system has none, or policy refuses)--> a pause of 1 s, doubled each time up to 60 s
//! ```

use super::sizing::Order;
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::server::{Budget, Server};

/// How long it is not tried again after the system had no memory. Each further time doubles the next pause.
const FIRST_PAUSE: Nanos = Nanos(1_000_000_000);

/// No pause is longer.
const LONGEST_PAUSE: Nanos = Nanos(60_000_000_000);

/// Bytes of a frame.
const FRAME: u64 = 4096;

const MIB: u64 = 1 << 20;

/// A source of more memory. Memory that cannot be added goes back to the system.
pub(super) trait MoreMemory<U: Unit, B: BufferMemory> {
    /// Bytes that [`MoreMemory::tables`] adds.
    const TABLES: u64;

    /// Bytes that [`MoreMemory::buffers`] adds.
    const BUFFERS: u64;

    /// Takes memory and adds it to the server's for tables.
    ///
    /// # Errors
    /// Why there is none, or why the server does not take it.
    fn tables(&mut self, server: &mut Server<U, B>) -> Result<(), String>;

    /// Takes memory and adds it to the server's for buffers.
    ///
    /// # Errors
    /// As [`MoreMemory::tables`].
    fn buffers(&mut self, server: &mut Server<U, B>) -> Result<(), String>;
}

/// How much may be taken, and when.
#[derive(Debug)]
pub(super) struct Growth {
    most_tables: u64,
    most_buffers: u64,
    pause: Nanos,
    due: Nanos,
}

impl Growth {
    /// As far as an order says.
    pub(super) const fn new(order: &Order) -> Self {
        let (most_tables, most_buffers) = (order.tables.most, order.buffers.most);
        Self { most_tables, most_buffers, pause: FIRST_PAUSE, due: Nanos(0) }
    }

    /// Takes memory once where it is short. Returns whether it did: more may be short then.
    pub(super) fn grow<U: Unit, B: BufferMemory, M: MoreMemory<U, B>>(
        &mut self,
        server: &mut Server<U, B>,
        source: &mut M,
        now: Nanos,
    ) -> bool {
        if now < self.due {
            return false;
        }
        let (tables, buffers) = taken(server.budget());
        let (what, added, most) = if tables + M::TABLES <= self.most_tables && server.lacks_tables()
        {
            ("tables", source.tables(server), self.most_tables)
        } else if buffers + M::BUFFERS <= self.most_buffers && server.lacks_buffers() {
            ("buffers", source.buffers(server), self.most_buffers)
        } else {
            return false;
        };
        if let Err(reason) = added {
            self.rest(what, &reason, now);
            return false;
        }
        self.pause = FIRST_PAUSE;
        let (tables, buffers) = taken(server.budget());
        let total = if what == "tables" { tables } else { buffers };
        log::info!("memory: more for {what}: {} MiB now, {} MiB at most", total / MIB, most / MIB);
        true
    }

    /// Leaves the system alone for a while.
    fn rest(&mut self, what: &str, reason: &str, now: Nanos) {
        if self.pause == FIRST_PAUSE {
            log::warn!("memory: no more for {what}: {reason}");
        }
        self.due = Nanos(now.0.saturating_add(self.pause.0));
        self.pause = Nanos(LONGEST_PAUSE.0.min(self.pause.0.saturating_mul(2)));
    }
}

/// Bytes taken for tables and for buffers.
const fn taken(budget: &Budget) -> (u64, u64) {
    (budget.table_frames_total * FRAME, budget.buffer_bytes_total)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
