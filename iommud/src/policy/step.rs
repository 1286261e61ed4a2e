//! Plans. All ordering of the server lives in the sequences of [`Step`] that policy builds.
//!
//! What each step assumes of the ones before it:
//!
//! ```text
//! unmap      Unmap -> Invalidate (every unit of the domain) -> ReleaseTables -> ReleaseBuffer
//! map        Map -> Publish (every unit of the domain that needs to be told)
//! block      SetEntry(to Blocked) -> InvalidateEntry(old domain)
//! move       block -> SetEntry(to the new domain) -> InvalidateEntry(none)
//! end        block -> DestroyTable -> ReleaseBuffer
//! storm      SuppressFaults -> InvalidateEntry; a move of the entry begins with the opposite
//! bring-up   CreateTable -> Map .. -> SetEntry of every function -> Enable
//! take-over  .. -> SetEntry(to Blocked) -> Enable -> SetEntry(to its domain) -> InvalidateEntry(none), of each requester
//!            whose tag the unit may hold
//! come-back  Revive -> as bring-up, but a move of each entry that changes, SetEntry of all others to what they are
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
    /// Makes the empty page table of a domain. Undone by destroying it: nothing has pointed to it.
    CreateTable {
        /// The domain.
        domain: DomainId,
        /// Its tag in every unit.
        tag: DomainTag,
        /// What every unit that may use it can walk.
        format: TableFormat,
        /// Who pays for its frames.
        payer: Payer,
    },
    /// Frees a domain's page table. No entry points to it and every unit has forgotten it. Cannot fail.
    DestroyTable {
        /// The domain.
        domain: DomainId,
    },
    /// Puts a root above that of a domain, which goes on translating what it did: nothing points to the new one
    /// yet. Undone by freeing it, if every unit is known to have forgotten it.
    Grow {
        /// The domain.
        domain: DomainId,
        /// Levels before.
        from: u8,
        /// Levels from now on.
        levels: u8,
    },
    /// Points an entry from the root that a domain had to the one that it has, in one store: what the requester
    /// reaches it reaches throughout. Undone by the same way back.
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
    /// Enters translations, all or none. Undone by removing them, invalidating and freeing what was added.
    Map {
        /// The domain.
        domain: DomainId,
        /// Where.
        range: IovaRange,
        /// Memory of the first byte; the rest follows.
        phys: PhysAddr,
        /// What devices may do.
        access: Access,
    },
    /// Enters a translation for each page of a range, all or none: to the memory that [`Orders::pages`](crate::policy::Orders::pages) says, in
    /// order. There is at most one such step in a plan. Undone as `Map`.
    MapList {
        /// The domain.
        domain: DomainId,
        /// Where.
        range: IovaRange,
        /// What devices may do.
        access: Access,
    },
    /// Removes translations. Tables that become empty are unlinked but kept until `ReleaseTables`. Undone
    /// by linking them again and entering the same leaves.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// Where.
        range: IovaRange,
    },
    /// Makes translations just entered visible where a unit caches absent entries.
    Publish {
        /// The unit.
        unit: UnitIndex,
        /// The domain.
        domain: DomainId,
        /// A range around all that was mapped.
        range: IovaRange,
    },
    /// Makes a unit forget translations: one invalidation, one wait. When the step returns, it has.
    Invalidate {
        /// The unit.
        unit: UnitIndex,
        /// The domain.
        domain: DomainId,
        /// A range around all that was unmapped.
        range: IovaRange,
    },
    /// Frees the tables that `Unmap` steps of this plan unlinked. Cannot fail.
    ReleaseTables {
        /// The domain.
        domain: DomainId,
    },
    /// Changes what an entry lets its requester do, in one store. Every move from one domain to another goes through
    /// [`Binding::Blocked`], with an `InvalidateEntry` after each half. Its inverse is the same step with `from` and `to`
    /// exchanged, and an `InvalidateEntry` of `to`.
    ///
    /// With `from` equal to `to` it writes an entry anew: one that was never written, or one of a unit that failed and
    /// may have lost what was written since.
    SetEntry {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// What the entry is now.
        from: Binding,
        /// What it is from now on.
        to: Binding,
    },
    /// Writes an entry that denies into the tables of a unit that has failed. A precaution: nobody can say
    /// whether the unit honours it, so nothing is ever freed on its account. Cannot fail the plan.
    Deny {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
    },
    /// Makes a unit report no faults of a requester, or report them again; what the entry lets it do stays. In
    /// effect when `InvalidateEntry` follows. Undone by its opposite and an invalidation.
    SuppressFaults {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// No faults are to be reported.
        silent: bool,
        /// What the entry is.
        was: Binding,
    },
    /// Makes a unit forget what it cached of a requester's entry, and of its old domain's translations.
    InvalidateEntry {
        /// The unit.
        unit: UnitIndex,
        /// The requester.
        source: RequesterId,
        /// What the entry was before it was last written.
        was: Binding,
    },
    /// Takes a unit that failed back as far as taking entries. It has forgotten all that it cached, and goes on with
    /// the entries that it has. Undone by nothing: a unit that does as it is told is none the worse.
    Revive {
        /// The unit.
        unit: UnitIndex,
    },
    /// Turns a unit's translation on. Every function behind it has its entry.
    Enable {
        /// The unit.
        unit: UnitIndex,
    },
    /// Gives a buffer's memory back. What the allocation took out of the compat domain was entered there
    /// again by a step before this one, since the system may hand the memory out at once.
    /// No translation reaches it and every unit has forgotten those that
    /// did. Cannot fail.
    ReleaseBuffer {
        /// The buffer.
        buffer: BufferId,
    },
    /// Frees the tables that were kept because a unit that failed might walk them. None may any more. Cannot fail.
    ReleaseAbandoned,
}

impl Step {
    /// Whether it cannot fail nor be undone. Such steps come last in a plan.
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

/// Who pays for the frames of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The server: the domain is one of policy. Its tables stay linked when they are empty, so that memory which goes
    /// back to policy needs no frame.
    Server,
    /// The client with this account.
    Account(u32),
}

/// Which frames a plan may take: what is free is shared out ([`engine::budget`](crate::engine)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charge {
    /// All that there are: bring-up, and ends of life.
    #[default]
    Unlimited,
    /// Those that no client was promised.
    Server,
    /// As `Server`, and of those only the share of the client with this account.
    Account(u32),
}

/// What a requester's entry lets it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: blocked, or never written.
    Blocked,
    /// What a domain maps.
    Domain(DomainId),
    /// Everything, untranslated.
    PassThrough,
}
