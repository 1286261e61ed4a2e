//! A decision under way: the state as it will be, the plan that makes it so, and the journal that takes it back.
//!
//! Transitions change the state only through what is here, so that nothing is changed without a note.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use crate::addr::IovaRange;
use crate::policy::collections::ranges::Piece;
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, DomainId, GroupId, Key, UnitIndex};
use crate::policy::journal::{Change, Image, Journal, Kept, Object};
use crate::policy::plan::Orders;
use crate::policy::state::State;
use crate::policy::state::domain::{Domain, Trust};
use crate::policy::state::objects::{Activity, Buffer, Function, GroupState, Unit};
use crate::policy::step::{Binding, Step};
use crate::topology::table::FunctionIndex;

/// What every transition gets.
pub struct Decision<'a> {
    pub(super) state: &'a mut State,
    pub(super) plan: &'a mut Orders,
    pub(super) journal: &'a mut Journal,
    /// The plan may take no memory: it is of an end of life for which there was none. What needs some is owed.
    pub(super) frugal: bool,
}

/// `NoMemory` when the numbers of a kind of object are exhausted.
pub(super) fn full<T>(number: Option<T>) -> Result<T, Refusal> {
    number.ok_or(Refusal::NoMemory)
}

impl Decision<'_> {
    /// Adds a step.
    #[inline]
    pub(super) fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    /// Adds a step that cannot fail nor be undone: those come last.
    pub(super) fn last(&mut self, step: Step) {
        self.plan.last.push(step);
    }

    /// Enters an object; returns its number.
    pub(super) fn insert<T: Kept>(&mut self, object: T) -> Result<u32, Refusal> {
        let number = full(T::table(self.state).insert(object))?;
        self.journal.keep(T::image(number, Object::Inserted));
        Ok(number)
    }

    /// Removes an object.
    pub(super) fn remove<T: Kept>(&mut self, number: u32) {
        if let Some(was) = T::table(self.state).remove(number) {
            self.journal.keep(T::image(number, Object::Removed(Box::new(was))));
        }
    }

    /// An object that is to be changed. It is copied: not for domains.
    pub(super) fn change<T: Kept + Clone>(&mut self, number: u32) -> Option<&mut T> {
        let object = T::table(self.state).get_mut(number)?;
        self.journal.keep(T::image(number, Object::Changed(Box::new(object.clone()))));
        Some(object)
    }

    /// Enters a buffer, and the memory that it has.
    pub(super) fn insert_buffer(&mut self, buffer: Buffer) -> Result<BufferId, Refusal> {
        let number = self.insert(buffer)?;
        self.state.note_memory(number, true);
        Ok(BufferId(number))
    }

    /// Removes a buffer.
    pub(super) fn remove_buffer(&mut self, buffer: BufferId) {
        self.state.note_memory(buffer.0, false);
        self.remove::<Buffer>(buffer.0);
    }

    /// Takes addresses of a domain; false when they are not free.
    pub(super) fn take_addresses(&mut self, id: DomainId, range: IovaRange) -> bool {
        let domain = self.state.domains.get_mut(id.0);
        let taken = domain.is_some_and(|domain| domain.space.allocate_at(range));
        if taken {
            self.journal.note(Change::Taken(id, range));
        }
        taken
    }

    /// Points an entry elsewhere.
    pub(super) fn bind(&mut self, key: Key, now: Binding) {
        let (was, _) = self.state.machine.sources.under_way(key);
        self.journal.note(Change::Entry(key, was));
        self.state.set_binding(key, Some(now));
    }

    /// Drops an entry whose last function is gone. It was written, or its unit has failed.
    pub(super) fn drop_left(&mut self, key: Key) {
        if let Some(source) = self.state.machine.sources.drop_left(key) {
            self.journal.keep(Image::Dropped(key, Box::new(source)));
        }
    }

    /// Notes that the faults of a requester are not reported, or are again.
    pub(super) fn note_silence(&mut self, key: Key, silent: bool) {
        let was = self.state.machine.sources.is_silenced(key);
        if was != silent {
            self.journal.note(Change::Silenced(key, was));
            self.state.machine.sources.suppress_faults(key, silent);
        }
    }

    /// A function that is to be changed, but for what it does ([`Decision::set_activity`]).
    pub(super) fn change_function(&mut self, index: FunctionIndex) -> Option<&mut Function> {
        let function = self.state.machine.function_mut(index)?;
        self.journal.keep(Image::Function(index, Box::new(function.clone())));
        Some(function)
    }

    /// Notes what a device does.
    pub(super) fn set_activity(&mut self, index: FunctionIndex, activity: Activity) {
        let Some(function) = self.state.machine.function(index).cloned() else { return };
        if function.activity != activity {
            self.change_group(function.group);
            self.journal.keep(Image::Function(index, Box::new(function)));
            self.state.machine.set_activity(index, activity);
        }
    }

    /// A group's state, which is to be changed.
    pub(super) fn change_group(&mut self, id: GroupId) -> Option<&mut GroupState> {
        let group = self.state.machine.groups.get_mut(id.0)?;
        self.journal.keep(Image::Group(id, group.state));
        Some(&mut group.state)
    }

    /// Notes how a unit is.
    pub(super) fn set_unit(&mut self, unit: UnitIndex, now: Unit) {
        if let Some(was) = self.state.machine.unit(unit) {
            self.journal.keep(Image::Unit(unit, Box::new(*was)));
            self.state.machine.set_unit(unit, now);
        }
    }

    /// Notes whether a domain can be relied on.
    pub(super) fn set_trust(&mut self, id: DomainId, trust: Trust) {
        if let Some(domain) = self.state.domains.get_mut(id.0) {
            let was = core::mem::replace(&mut domain.trust, trust);
            self.journal.note(Change::Trust(id, was));
        }
    }

    /// Notes what a domain maps for firmware.
    pub(super) fn set_reserved(&mut self, id: DomainId, pieces: Vec<Piece>) {
        if let Some(domain) = self.state.domains.get_mut(id.0) {
            let was = core::mem::replace(&mut domain.reserved, pieces);
            self.journal.keep(Image::Reserved(id, was));
        }
    }

    /// Removes a domain whose table no unit uses. Its tag is free.
    pub(super) fn end_domain(&mut self, id: DomainId) {
        let Some(tag) = self.state.domains.get(id.0).map(|domain| domain.tag) else { return };
        self.last(Step::DestroyTable { domain: id });
        self.journal.note(Change::Tag(tag, true));
        self.state.tags.set(tag, false);
        self.remove::<Domain>(id.0);
    }

    /// Notes that something is owed, or no longer.
    pub(super) fn owe(&mut self, owed: Owed, more: bool) {
        let was = self.state.owed.contains(&owed);
        self.journal.note(Change::Owed(owed, was));
        if more {
            self.state.owed.insert(owed);
        } else {
            self.state.owed.remove(&owed);
        }
    }

    /// One invalidation for each unit that has an entry of the domain.
    pub(super) fn invalidate(&mut self, id: DomainId, range: IovaRange) {
        let Some(domain) = self.state.domains.get(id.0) else { return };
        let units = domain.active.iter();
        let steps = units.map(|&(unit, _)| Step::Invalidate { unit, domain: id, range });
        self.plan.steps.extend(steps);
    }

    /// Makes new translations visible to each unit that has an entry of the domain and needs to be told.
    pub(super) fn publish(&mut self, id: DomainId, range: IovaRange) {
        let Some(domain) = self.state.domains.get(id.0) else { return };
        let units = domain.active.iter().map(|(unit, _)| *unit);
        let units = units.filter(|unit| self.state.machine.needs_publishing(*unit));
        let steps = units.map(|unit| Step::Publish { unit, domain: id, range });
        self.plan.steps.extend(steps);
    }

    /// Frees tables that were unlinked, in the end.
    pub(super) fn release_tables(&mut self, domain: DomainId) {
        let step = Step::ReleaseTables { domain };
        if !self.plan.last.contains(&step) {
            self.last(step);
        }
    }

    /// Maps pieces one to one.
    pub(super) fn map_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        self.plan.steps.extend(pieces.iter().map(|piece| Step::Map {
            domain,
            range: piece.range,
            phys: piece.range.identity().first(),
            access: piece.access(),
        }));
    }

    /// Unmaps pieces mapped one to one.
    pub(super) fn unmap_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        let steps = pieces.iter().map(|piece| Step::Unmap { domain, range: piece.range });
        self.plan.steps.extend(steps);
    }

    /// Writes an entry that denies, and makes the unit forget the one before.
    pub(super) fn block(&mut self, (unit, source): (UnitIndex, RequesterId), was: Binding) {
        self.step(Step::SetEntry { unit, source, from: was, to: Binding::Blocked });
        self.step(Step::InvalidateEntry { unit, source, was });
    }
}
