//! Steps of a plan. All ordering of the server lives in the sequences of [`Step`] that policy builds.
//!
//! Each step assumes these steps before it:
//!
//! ```text
//! unmap      Unmap -> Invalidate (every unit of the domain) -> ReleaseTables -> ReleaseBuffer
//! map        Map -> Publish (every unit of the domain that needs it)
//! block      SetEntry(to Blocked) -> InvalidateEntry(old domain)
//! move       block -> SetEntry(to the new domain) -> InvalidateEntry(none)
//! end        block -> DestroyTable -> ReleaseBuffer
//! storm      SuppressFaults -> InvalidateEntry; a move of the entry begins with the opposite
//! bring-up   CreateTable -> Map .. -> SetEntry of every function -> Enable
//! take-over  .. -> SetEntry(to Blocked) -> Enable -> SetEntry(to its domain) -> InvalidateEntry(none), of each entry
//!            whose tag the unit may hold
//! come-back  Revive -> as bring-up, but a move of each entry that changes, and SetEntry of all others
//! proved     DestroyTable -> ReleaseBuffer -> ReleaseAbandoned, once every unit that failed was revived
//! deepen     Grow -> Deepen (every entry of the domain) -> InvalidateEntry(same domain) -> Map
//! ```

use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::Access;

use crate::addr::{IovaRange, PhysAddr};
use crate::policy::ids::{BufferId, DomainId, UnitIndex};
use crate::topology::capabilities::{DomainTag, TableFormat};

/// The tag under which units cache requests that go through untranslated. No domain has it.
pub const PASS_THROUGH_TAG: DomainTag = DomainTag(1);

/// One step of a plan. The engine runs steps in order; when one fails it undoes the ones before it, last
/// first, and the plan is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creates the empty page table of a domain. Undone by destroying it, since no entry has pointed to it.
    CreateTable {
        /// The domain.
        domain: DomainId,
        /// Its tag in every unit.
        tag: DomainTag,
        /// A format that every unit that may use the table can walk.
        format: TableFormat,
        /// The payer of its frames.
        payer: Payer,
    },
    /// Frees a domain's page table. No entry points to it and every unit has invalidated it. Cannot fail.
    DestroyTable {
        /// The domain.
        domain: DomainId,
    },
    /// Puts a new root above that of a domain. Translation stays the same: no entry points to the new root yet.
    /// Undone by freeing the new root, if every unit is known to have invalidated it.
    Grow {
        /// The domain.
        domain: DomainId,
        /// Levels before.
        from: u8,
        /// Levels from now on.
        levels: u8,
    },
    /// Points an entry from the old root of a domain to the new one, in one store. The requester's access is never
    /// interrupted. Undone in the same way.
    Deepen {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// The domain.
        domain: DomainId,
        /// Levels of the root that the entry points to.
        from: u8,
    },
    /// Inserts translations, all or none. Undone by removing them, invalidating, and freeing the tables that were
    /// added.
    Map {
        /// The domain.
        domain: DomainId,
        /// The addresses that devices use.
        range: IovaRange,
        /// Memory of the first byte; the rest follows.
        phys: PhysAddr,
        /// Access of devices.
        access: Access,
    },
    /// Inserts a translation for each page of a range, all or none. [`Orders::pages`](crate::policy::Orders::pages)
    /// has the memory of each page, in order. A plan has at most one such step. Undone like `Map`.
    MapList {
        /// The domain.
        domain: DomainId,
        /// The addresses that devices use.
        range: IovaRange,
        /// Access of devices.
        access: Access,
    },
    /// Removes translations. Tables that become empty are unlinked but kept until `ReleaseTables`. Undone by linking
    /// them again and restoring the same leaves.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// The addresses that devices use.
        range: IovaRange,
    },
    /// Makes new translations visible to a unit that caches absent entries.
    Publish {
        /// The unit.
        unit: UnitIndex,
        /// The domain.
        domain: DomainId,
        /// A range around everything that was mapped.
        range: IovaRange,
    },
    /// Invalidates translations in a unit: one invalidation, one wait. The invalidation is complete when the step
    /// returns.
    Invalidate {
        /// The unit.
        unit: UnitIndex,
        /// The domain.
        domain: DomainId,
        /// A range around everything that was unmapped.
        range: IovaRange,
    },
    /// Frees the tables that `Unmap` steps of this plan unlinked. Cannot fail.
    ReleaseTables {
        /// The domain.
        domain: DomainId,
    },
    /// Changes the binding of an entry, in one store. Every move from one domain to another goes through
    /// [`Binding::Blocked`], with an `InvalidateEntry` after each half. Its inverse is the same step with `from` and
    /// `to` exchanged, and an `InvalidateEntry` of `to`.
    ///
    /// With `from` equal to `to` it writes an entry anew. The entry was never written, or its unit failed and may
    /// have lost later writes.
    SetEntry {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// The binding of the entry so far.
        from: Binding,
        /// Its new binding.
        to: Binding,
    },
    /// Denies a requester in the tables of a unit that has failed. This is a precaution: the unit may not honour it,
    /// so nothing is ever freed on its account. Cannot fail the plan.
    Deny {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
    },
    /// Makes a unit suppress the faults of a requester, or report them again. The binding of the entry stays. Takes
    /// effect with the `InvalidateEntry` that follows. Undone by its opposite and an invalidation.
    SuppressFaults {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// Whether faults are suppressed.
        silent: bool,
        /// The binding of the entry.
        was: Binding,
    },
    /// Invalidates a requester's entry in the caches of a unit, and the translations of its old domain.
    InvalidateEntry {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// The binding of the entry before it was last written.
        was: Binding,
    },
    /// Brings a failed unit back until it accepts entries. Its caches are flushed, and it goes on with the entries in
    /// its tables. Needs no undo: a unit that works again does no harm.
    Revive {
        /// The unit.
        unit: UnitIndex,
    },
    /// Turns a unit's translation on. Every function behind it has its entry.
    Enable {
        /// The unit.
        unit: UnitIndex,
    },
    /// Gives a buffer's memory back. No translation reaches it, and every unit has invalidated those that did. An
    /// earlier step has mapped again what the allocation took out of `compat`, since the system may reuse the memory
    /// at once. Cannot fail.
    ReleaseBuffer {
        /// The buffer.
        buffer: BufferId,
    },
    /// Frees the tables that were kept because a failed unit might walk them. No unit can any more. Cannot fail.
    ReleaseAbandoned,
}

impl Step {
    /// Whether the step can neither fail nor be undone. Such steps come last in a plan.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::ReleaseTables { .. }
                | Self::DestroyTable { .. }
                | Self::ReleaseBuffer { .. }
                | Self::ReleaseAbandoned
        )
    }
}

/// The payer of the frames of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The server: the domain is one of policy. Its tables stay linked when they are empty, so that returning memory
    /// to policy needs no frame.
    Server,
    /// The client with this account.
    Account(u32),
}

/// The frames that a plan may take: free frames are shared out ([`engine::budget`](crate::engine)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charge {
    /// All frames that are free: bring-up, and ends of life.
    #[default]
    Unlimited,
    /// Frames that were promised to no client.
    Server,
    /// The frames that were promised to the client with this account, and its share of those promised to none.
    Account(u32),
}

/// The access that an entry gives its requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No access: blocked, or never written.
    Blocked,
    /// The mappings of a domain.
    Domain(DomainId),
    /// All memory, untranslated.
    PassThrough,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;

    #[test]
    fn the_last_steps_of_a_plan_are_those_that_cannot_be_undone() {
        let (unit, source, domain) = (UnitIndex(0), RequesterId(2), DomainId(1));
        let range = IovaRange::new(Iova(4096), 4096).unwrap();
        let (access, was) = (Access::READ, Binding::Blocked);
        let last = [
            Step::ReleaseTables { domain },
            Step::DestroyTable { domain },
            Step::ReleaseBuffer { buffer: BufferId(3) },
            Step::ReleaseAbandoned,
        ];
        assert!(last.iter().all(Step::is_final));
        let others = [
            Step::Grow { domain, from: 3, levels: 4 },
            Step::Deepen { unit, source, domain, from: 3 },
            Step::Map { domain, range, phys: PhysAddr(0), access },
            Step::MapList { domain, range, access },
            Step::Unmap { domain, range },
            Step::Publish { unit, domain, range },
            Step::Invalidate { unit, domain, range },
            Step::SetEntry { unit, source, from: was, to: was },
            Step::Deny { unit, source },
            Step::SuppressFaults { unit, source, silent: true, was },
            Step::InvalidateEntry { unit, source, was },
            Step::Revive { unit },
            Step::Enable { unit },
        ];
        assert!(!others.iter().any(Step::is_final));
    }
}
