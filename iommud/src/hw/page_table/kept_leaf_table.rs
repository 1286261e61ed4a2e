//! Keeps one empty table of pages linked. The next map there builds no table, and the unmap before it invalidated
//! nothing above leaves.
//!
//! An empty table denies everything that an absent one denies. A page table keeps at most one, and only beside
//! another used slot of the table above. The last mapping of a GiB removes it too, so that unmapping restores the
//! state before.
//!
//! A map that covers its 2 MiB fills it with pages. A large leaf would need an invalidation first. The unmap of the 2
//! MiB then unlinks the table, and the next map there gets its large leaf.

use super::PageTable;
use super::detached::Detached;
use super::format::{KEPT, PteFormat, PteSlot, shift, slot_of, slot_size};
use super::recent::{Idle, NONE, Recent};
use crate::addr::{Iova, IovaRange};
use crate::hw::hal::TableMemory;

/// Number of other tables that become empty before one of them replaces the table that is kept. Units then invalidate
/// a range around both.
const PATIENCE: u8 = 16;

impl<F: PteFormat> PageTable<F> {
    /// The table of pages of a region, if there is one, and the table above it.
    pub(super) fn look_up<M: TableMemory>(&self, memory: &M, region: u64) -> Option<Recent> {
        if region == NONE {
            return None;
        }
        let iova = region << shift(2);
        let (mut parent, mut table) = (self.root, self.root);
        for level in (2..=self.levels).rev() {
            let entry = memory.load(table, slot_of(iova, level));
            let PteSlot::Table(next) = F::decode(entry, level) else { return None };
            (parent, table) = (table, next);
        }
        Some(Recent { region, table, parent })
    }

    /// Unlinks or keeps the table of pages of `at`, which was looked up and has become empty. With `new` it may
    /// become the one that is kept. Otherwise it stays only if it is that one already.
    #[inline]
    pub(super) fn emptied<M: TableMemory>(
        &mut self,
        memory: &mut M,
        at: Recent,
        new: bool,
        detached: &mut Detached,
    ) {
        if self.idle.region == at.region && *memory.live(at.parent) & !KEPT > 1 {
            return;
        }
        if self.retains && new {
            super::unmap::retain(memory.live(at.table));
            return;
        }
        self.emptied_other(memory, at.region, new, detached);
    }

    #[cold]
    fn emptied_other<M: TableMemory>(
        &mut self,
        memory: &mut M,
        region: u64,
        new: bool,
        detached: &mut Detached,
    ) {
        let idle = self.idle.region;
        if region != idle {
            let taken = self.is_idle(memory, idle);
            self.idle.others = self.idle.others.saturating_add(1);
            if !new || (taken && self.idle.others < PATIENCE) {
                self.unlink_empty(memory, region, detached);
            } else {
                if taken {
                    self.unlink_idle(memory, detached);
                }
                detached.stood_by(idle);
                self.idle = Idle { region, others: 0 };
            }
        }
        self.leave_none_alone(memory, region, detached);
    }

    /// Unlinks the table that is kept when it is the last one of the table above. For `region`, whose table just
    /// became empty, this needs no further invalidation.
    pub(super) fn leave_none_alone<M: TableMemory>(
        &mut self,
        memory: &mut M,
        region: u64,
        detached: &mut Detached,
    ) {
        let idle = self.idle.region;
        if let Some(found) = self.look_up(memory, idle)
            && *memory.live(found.table) == 0
            && *memory.live(found.parent) & !KEPT == 1
        {
            if idle == region {
                self.unlink_empty(memory, idle, detached);
            } else {
                self.unlink_idle(memory, detached);
            }
        }
    }

    /// Restores the region whose table was kept before the calls that are undone.
    pub(super) fn stand_by_again(&mut self, detached: &Detached) {
        if let Some(region) = detached.idle_before() {
            self.idle = Idle { region, others: 0 };
        }
    }

    fn is_idle<M: TableMemory>(&self, memory: &mut M, region: u64) -> bool {
        self.look_up(memory, region).is_some_and(|found| *memory.live(found.table) == 0)
    }

    /// Unlinks the table that is kept; units must invalidate the path to it.
    fn unlink_idle<M: TableMemory>(&mut self, memory: &mut M, detached: &mut Detached) {
        let region = self.idle.region;
        if let Some(range) = IovaRange::new(Iova(region << shift(2)), slot_size(2)) {
            detached.spoil(range);
        }
        self.unlink_empty(memory, region, detached);
    }

    /// Unlinks an empty table of pages, and the tables above it that become empty by this.
    fn unlink_empty<M: TableMemory>(
        &mut self,
        memory: &mut M,
        region: u64,
        detached: &mut Detached,
    ) {
        self.prune(memory, self.root, self.levels, region << shift(2), detached);
        self.recent = Recent::NOTHING;
    }
}
