//! A table of pages that became empty and stays linked: the next map there builds nothing, and the unmap before
//! it told units of no change above leaves.
//!
//! An empty table denies all that an absent one denies. There is at most one in a page table, and only beside
//! another slot in use of the table above: the last mapping of a GiB takes it along, so that what unmapping
//! leaves behind is what was there before.
//!
//! A map that covers its 2 MiB fills it with pages instead of entering a large leaf, which would take an invalidation
//! first. The unmap of the 2 MiB then unlinks it, and the next map there has its large leaf.

use super::PageTable;
use super::detached::Detached;
use super::format::{KEPT, PteFormat, PteSlot, shift, slot_of, slot_size};
use super::recent::{Idle, NONE, Recent};
use crate::addr::{Iova, IovaRange};
use crate::hw::hal::TableMemory;

/// How many other tables become empty before one of them takes the place of the one that is kept: units then
/// forget a range around both.
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

    /// The table of pages of `at`, which was looked up, has become empty: it is unlinked, or stays. With `new`
    /// it may begin to stay; else it stays only if it is the one that did.
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

    /// Unlinks the table that is kept when it is the last one of the table above. What units forget of `region`,
    /// whose table just became empty, they are told anyway.
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

    /// The region whose table stayed before the calls that are undone.
    pub(super) fn stand_by_again(&mut self, detached: &Detached) {
        if let Some(region) = detached.idle_before() {
            self.idle = Idle { region, others: 0 };
        }
    }

    fn is_idle<M: TableMemory>(&self, memory: &mut M, region: u64) -> bool {
        self.look_up(memory, region).is_some_and(|found| *memory.live(found.table) == 0)
    }

    /// Unlinks the table that is kept; units have to forget the way to it.
    fn unlink_idle<M: TableMemory>(&mut self, memory: &mut M, detached: &mut Detached) {
        let region = self.idle.region;
        if let Some(range) = IovaRange::new(Iova(region << shift(2)), slot_size(2)) {
            detached.spoil(range);
        }
        self.unlink_empty(memory, region, detached);
    }

    /// Unlinks an empty table of pages and what becomes empty by it.
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
