//! A plan in the making: its steps, and what is to become of the registry.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use crate::addr::{IovaRange, PhysAddr, PhysRange};
use crate::policy::change::{Changes, hull};
use crate::policy::collections::ranges::Piece;
use crate::policy::event::{Outcome, Owed};
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, Key, SessionId, UnitIndex};
use crate::policy::state::machine::Machine;
use crate::policy::state::mappings::Mapping;
use crate::policy::state::objects::{Buffer, Domain, OwnerId, Session, Shared, SlotRecord};
use crate::policy::step::{Binding, Charge, Step};
use crate::topology::capabilities::DomainTag;
use crate::topology::pci::PciFunction;
use crate::topology::table::FunctionIndex;

/// One change of the registry. Those marked "done" were made when the plan was drawn up and are taken back by
/// abort; all others are made by commit.
#[derive(Debug)]
pub(super) enum Effect {
    /// A function is entered, while no unit was ever up and no group is claimed.
    AddFunction(PciFunction),
    /// Units, functions and groups are these.
    Machine(Box<Machine>),
    /// A session's device is gone.
    Orphan(SessionId),
    /// An entry points elsewhere.
    Bind { key: Key, was: Binding, now: Binding },
    /// A requester's faults are not reported, or are again.
    Silenced(Key, bool),
    /// A domain exists.
    Domain(Box<Domain>),
    /// A domain exists no more.
    DropDomain(DomainId),
    /// A unit was flushed; or it has failed, and may hold what it is told to forget.
    Flushed(UnitIndex, bool),
    /// A unit that failed may still use a domain.
    Taint(DomainId),
    /// Every unit that failed has forgotten a domain that sessions still hold.
    Retire(DomainId),
    /// Every unit that failed has forgotten a buffer that somebody still knows.
    Proved(BufferId),
    /// The table of a domain has so many levels.
    Deepen(DomainId, u8),
    /// A domain maps these for firmware.
    Reserved(DomainId, Vec<Piece>),
    /// A domain is one of policy's.
    Shared(Shared, DomainId),
    /// Policy `compat` maps these, or no longer.
    Compat(Vec<(u64, u64)>, bool),
    /// Done: a range of a domain's addresses was taken.
    Space(DomainId, IovaRange),
    /// Done: a function was attached, or detached.
    Attached(FunctionIndex, bool),
    /// Done: a function was cut off, or is driven again.
    Cut(FunctionIndex, bool),
    /// Done: a group lost its owner; these members were late.
    Freed(GroupId, OwnerId, Vec<FunctionIndex>),
    /// A session is open. Without an owner it is the first of a new one, with this client.
    Claim(Box<Session>, Claimant),
    /// A session is closed.
    Close(SessionId),
    /// A buffer is entered, under a slot of a session.
    Buffer(Box<Buffer>, Box<SlotRecord>),
    /// A session knows a buffer.
    Import(Box<SlotRecord>),
    /// A session gave up a slot.
    DropSlot(u32),
    /// A buffer is held once more, or once less.
    Hold(BufferId, bool),
    /// A buffer's memory is free.
    Release(BufferId),
    /// Something is owed, or no longer.
    Owe(Owed, bool),
    /// The mapping that came with a buffer exists.
    Map(DomainId, Mapping),
    /// Without a unit: a part of a buffer is used once more, or once less.
    Direct { slot: u32, offset: u64, length: u64, more: bool },
}

/// Who opens a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimant {
    /// A client, for a group of its own.
    New(ClientId),
    /// An owner, for a group that is free.
    Join(OwnerId),
    /// An owner, for another member of its group.
    Member(OwnerId),
}

/// A plan in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// What is to be told of it, once it is carried out.
    pub(super) outcome: Outcome,
    /// Which frames it may take.
    pub(super) charge: Charge,
    /// It may take no memory: an end of life for which there was none. What needs some is owed.
    pub(super) frugal: bool,
    /// Steps that may fail, in order.
    pub(super) steps: Vec<Step>,
    /// Steps that cannot fail nor be undone: they come last.
    pub(super) last: Vec<Step>,
    /// The memory of each page of a [`Step::MapList`].
    pub(super) pages: Vec<PhysAddr>,
    pub(super) effects: Vec<Effect>,
    pub(super) changes: Changes,
    /// Domains it makes.
    pub(super) domains: usize,
    /// The last tag it took.
    pub(super) tag: Option<DomainTag>,
    /// Domains of policy that it makes.
    pub(super) shared: Vec<(Shared, DomainId)>,
}

impl Draft {
    /// Puts the last steps behind the others: the plan is complete.
    #[inline]
    pub(super) fn finish(&mut self) {
        if !self.last.is_empty() {
            self.steps.append(&mut self.last);
        }
    }

    /// Forgets everything but the capacity of the lists that every plan uses.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.last.clear();
        self.pages.clear();
        self.changes.clear();
        self.domains = 0;
        self.tag = None;
        (self.charge, self.frugal) = (Charge::Unlimited, false);
        // Elements that are to be dropped one by one.
        if !self.effects.is_empty() {
            self.effects.clear();
        }
        if !self.shared.is_empty() {
            self.shared.clear();
        }
    }

    /// Moves entries: all that let something through are blocked and forgotten before any is opened, so
    /// that no two members of a group are ever in different domains.
    pub(super) fn move_entries(&mut self, moves: &[(Key, Binding, Binding)]) {
        let closing = || moves.iter().filter(|(_, was, _)| *was != Binding::Blocked);
        let opening = || moves.iter().filter(|(_, _, now)| *now != Binding::Blocked);
        for &((unit, source), was, _) in closing() {
            self.steps.push(Step::Block { unit, source, was });
        }
        for &((unit, source), was, _) in closing() {
            self.steps.push(Step::InvalidateEntry { unit, source, was });
        }
        for &((unit, source), _, now) in opening() {
            self.steps.extend(entry(unit, source, now));
        }
        for &((unit, source), _, _) in opening() {
            self.steps.push(Step::InvalidateEntry { unit, source, was: Binding::Blocked });
        }
        let binds = moves.iter().map(|&(key, was, now)| Effect::Bind { key, was, now });
        self.effects.extend(binds);
    }

    /// Makes room for larger leaves in a range that is mapped next, if it can have any. True when tables are to be
    /// released in the end. No unit that failed may walk the domain's table: it would forget nothing.
    pub(super) fn vacate(&mut self, id: DomainId, domain: &Domain, range: IovaRange) -> bool {
        if !domain.shape.has_larger_leaf(range) {
            return false;
        }
        self.steps.push(Step::Vacate { domain: id, range });
        for &(unit, _) in &domain.active {
            self.steps.push(Step::Forget { unit, domain: id, range });
        }
        true
    }

    /// One invalidation for each unit that has an entry of the domain.
    #[inline(always)]
    pub(super) fn invalidate(&mut self, id: DomainId, domain: &Domain, range: IovaRange) {
        for &(unit, _) in &domain.active {
            self.steps.push(Step::Invalidate { unit, domain: id, range });
        }
    }

    /// Makes new translations visible to each unit that has an entry of the domain and needs to be told.
    #[inline(always)]
    pub(super) fn publish(
        &mut self,
        machine: &Machine,
        id: DomainId,
        domain: &Domain,
        range: IovaRange,
    ) {
        for &(unit, _) in &domain.active {
            if machine.needs_publishing(unit) {
                self.steps.push(Step::Publish { unit, domain: id, range });
            }
        }
    }

    /// Maps pieces one to one.
    pub(super) fn map_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        self.steps.extend(pieces.iter().map(|piece| Step::Map {
            domain,
            range: piece.range,
            phys: piece.range.identity().first(),
            access: piece.access(),
        }));
    }

    /// As [`Draft::map_pieces`], in a domain that is there already: room is made for larger leaves.
    pub(super) fn enter_pieces(&mut self, id: DomainId, domain: &Domain, pieces: &[Piece]) {
        let mut vacated = false;
        for piece in pieces {
            vacated |= self.vacate(id, domain, piece.range);
        }
        if vacated {
            self.last.push(Step::ReleaseTables { domain: id });
        }
        self.map_pieces(id, pieces);
    }

    /// Unmaps pieces mapped one to one.
    pub(super) fn unmap_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        self.steps.extend(pieces.iter().map(|piece| Step::Unmap { domain, range: piece.range }));
    }
}

/// The step that writes an entry which denied before; none that denies.
pub(super) const fn entry(unit: UnitIndex, source: RequesterId, now: Binding) -> Option<Step> {
    match now {
        Binding::Blocked => None,
        Binding::Domain(domain) => Some(Step::Translate { unit, source, domain }),
        Binding::PassThrough => Some(Step::PassThrough { unit, source }),
    }
}

/// The smallest range around some pieces.
pub(super) fn hull_of(pieces: &[Piece]) -> Option<IovaRange> {
    pieces.iter().fold(None, |all, piece| Some(hull(all, piece.range)))
}

/// As many as the number of an object can say.
pub(super) fn full<T>(number: Option<T>) -> Result<T, Refusal> {
    number.ok_or(Refusal::NoMemory)
}

/// First and last byte.
pub(super) const fn bounds(range: PhysRange) -> (u64, u64) {
    (range.first().0, range.last().0)
}
