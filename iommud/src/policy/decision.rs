//! A decision under way: the new state, the plan that carries it out, and the journal that undoes it.
//!
//! Transitions change the state through these methods, or record their change in the journal themselves.

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

/// The state, plan and journal that every transition works on.
pub struct Decision<'a> {
    pub(super) state: &'a mut State,
    pub(super) plan: &'a mut Orders,
    pub(super) journal: &'a mut Journal,
    /// The plan may take no memory: it retries the end of something, for which there was none. Work that needs memory
    /// is owed.
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

    /// Adds a step that can neither fail nor be undone: such steps come last.
    pub(super) fn last(&mut self, step: Step) {
        self.plan.last.push(step);
    }

    /// Inserts an object; returns its number.
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

    /// Lends an object to be changed, after copying it to the journal. Not for domains: a copy has all their
    /// mappings.
    pub(super) fn change<T: Kept + Clone>(&mut self, number: u32) -> Option<&mut T> {
        let object = T::table(self.state).get_mut(number)?;
        self.journal.keep(T::image(number, Object::Changed(Box::new(object.clone()))));
        Some(object)
    }

    /// Inserts a buffer and records the memory that it occupies.
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

    /// Sets the binding of an entry.
    pub(super) fn bind(&mut self, key: Key, now: Binding) {
        let (was, _) = self.state.machine.sources.under_way(key);
        self.journal.note(Change::Entry(key, was));
        self.state.set_binding(key, Some(now));
    }

    /// Drops an entry whose last function is gone. It was written before, or its unit has failed.
    pub(super) fn drop_left(&mut self, key: Key) {
        if let Some(source) = self.state.machine.sources.drop_left(key) {
            self.journal.keep(Image::Dropped(key, Box::new(source)));
        }
    }

    /// Records whether the faults of a requester are suppressed.
    pub(super) fn note_silence(&mut self, key: Key, silent: bool) {
        let was = self.state.machine.sources.is_silenced(key);
        if was != silent {
            self.journal.note(Change::Silenced(key, was));
            self.state.machine.sources.suppress_faults(key, silent);
        }
    }

    /// Lends a function to be changed. Its activity changes with [`Decision::set_activity`] instead.
    pub(super) fn change_function(&mut self, index: FunctionIndex) -> Option<&mut Function> {
        let function = self.state.machine.function_mut(index)?;
        self.journal.keep(Image::Function(index, Box::new(function.clone())));
        Some(function)
    }

    /// Sets the activity of a function.
    pub(super) fn set_activity(&mut self, index: FunctionIndex, activity: Activity) {
        let Some(function) = self.state.machine.function(index).cloned() else { return };
        if function.activity != activity {
            self.change_group(function.group);
            self.journal.keep(Image::Function(index, Box::new(function)));
            self.state.machine.set_activity(index, activity);
        }
    }

    /// Lends the state of a group to be changed.
    pub(super) fn change_group(&mut self, id: GroupId) -> Option<&mut GroupState> {
        let group = self.state.machine.groups.get_mut(id.0)?;
        self.journal.keep(Image::Group(id, group.state));
        Some(&mut group.state)
    }

    /// Sets the state of a unit.
    pub(super) fn set_unit(&mut self, unit: UnitIndex, now: Unit) {
        if let Some(was) = self.state.machine.unit(unit) {
            self.journal.keep(Image::Unit(unit, Box::new(*was)));
            self.state.machine.set_unit(unit, now);
        }
    }

    /// Sets the trust in a domain.
    pub(super) fn set_trust(&mut self, id: DomainId, trust: Trust) {
        if let Some(domain) = self.state.domains.get_mut(id.0) {
            let was = core::mem::replace(&mut domain.trust, trust);
            self.journal.note(Change::Trust(id, was));
        }
    }

    /// Sets the pieces that a domain maps for firmware.
    pub(super) fn set_reserved(&mut self, id: DomainId, pieces: Vec<Piece>) {
        if let Some(domain) = self.state.domains.get_mut(id.0) {
            let was = core::mem::replace(&mut domain.reserved, pieces);
            self.journal.keep(Image::Reserved(id, was));
        }
    }

    /// Removes a domain whose table no unit uses. Its tag becomes free.
    pub(super) fn end_domain(&mut self, id: DomainId) {
        let Some(tag) = self.state.domains.get(id.0).map(|domain| domain.tag) else { return };
        self.last(Step::DestroyTable { domain: id });
        self.journal.note(Change::Tag(tag, true));
        self.state.tags.set(tag, false);
        self.remove::<Domain>(id.0);
    }

    /// Adds owed work, or removes it.
    pub(super) fn owe(&mut self, owed: Owed, more: bool) {
        let was = self.state.owed.contains(&owed);
        self.journal.note(Change::Owed(owed, was));
        if more {
            self.state.owed.insert(owed);
        } else {
            self.state.owed.remove(&owed);
        }
    }

    /// Adds one invalidation for each unit that has an entry of the domain.
    pub(super) fn invalidate(&mut self, id: DomainId, range: IovaRange) {
        let Some(domain) = self.state.domains.get(id.0) else { return };
        let units = domain.active.iter();
        let steps = units.map(|&(unit, _)| Step::Invalidate { unit, domain: id, range });
        self.plan.steps.extend(steps);
    }

    /// Adds a `Publish` for each unit that has an entry of the domain and needs one.
    pub(super) fn publish(&mut self, id: DomainId, range: IovaRange) {
        let Some(domain) = self.state.domains.get(id.0) else { return };
        let units = domain.active.iter().map(|(unit, _)| *unit);
        let units = units.filter(|unit| self.state.machine.needs_publishing(*unit));
        let steps = units.map(|unit| Step::Publish { unit, domain: id, range });
        self.plan.steps.extend(steps);
    }

    /// Frees unlinked tables, as one of the last steps.
    pub(super) fn release_tables(&mut self, domain: DomainId) {
        let step = Step::ReleaseTables { domain };
        if !self.plan.last.contains(&step) {
            self.last(step);
        }
    }

    /// Adds steps that map pieces one to one.
    pub(super) fn map_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        self.plan.steps.extend(pieces.iter().map(|piece| Step::Map {
            domain,
            range: piece.range,
            phys: piece.range.identity().first(),
            access: piece.access(),
        }));
    }

    /// Adds steps that unmap pieces mapped one to one.
    pub(super) fn unmap_pieces(&mut self, domain: DomainId, pieces: &[Piece]) {
        let steps = pieces.iter().map(|piece| Step::Unmap { domain, range: piece.range });
        self.plan.steps.extend(steps);
    }

    /// Blocks a requester, then invalidates its entry of before.
    pub(super) fn block(&mut self, (unit, source): (UnitIndex, RequesterId), was: Binding) {
        self.step(Step::SetEntry { unit, source, from: was, to: Binding::Blocked });
        self.step(Step::InvalidateEntry { unit, source, was });
    }
}
