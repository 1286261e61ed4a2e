//! The journal: the inverse of each change, for abort, and the changes that wait for commit.
//!
//! A decision changes the state at once and records here how to undo each change. Abort undoes the changes, last
//! first. Commit discards the records, except changes that must not be visible to another decision earlier. So
//! addresses of removed mappings become free only when no unit can translate them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::IovaRange;
use crate::policy::collections::ranges::{Piece, Ranges};
use crate::policy::collections::slab::Slab;
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, DomainId, GroupId, Key, UnitIndex};
use crate::policy::state::State;
use crate::policy::state::domain::{Domain, Shared, Trust};
use crate::policy::state::machine::Machine;
use crate::policy::state::mappings::MappingIndex;
use crate::policy::state::objects::{
    Account, Buffer, Function, GroupState, Owner, Session, SlotRecord, Source, Unit,
};
use crate::policy::state::tags::Tags;
use crate::policy::step::Binding;
use crate::topology::capabilities::DomainTag;
use crate::topology::pci::PciFunction;
use crate::topology::table::FunctionIndex;

/// A change to an object of a table.
#[derive(Debug)]
pub(super) enum Object<T> {
    Inserted,
    Removed(Box<T>),
    /// The object before the change.
    Changed(Box<T>),
}

/// One change, with the data that undoes it. A plan may have thousands, so they are small. A journal without an
/// [`Image`] is discarded at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A mapping of a slot was inserted, and charged.
    Entered(DomainId, MappingIndex, u32),
    /// A mapping of a slot was removed. Commit frees its addresses.
    Left(DomainId, MappingIndex, u32),
    /// Addresses were taken.
    Taken(DomainId, IovaRange),
    /// Addresses that commit frees.
    Free(DomainId, IovaRange),
    /// Commit records that a unit holds nothing of earlier servers. Until then the record for the next server says it
    /// may.
    Flushed(UnitIndex),
    /// The binding of an entry changed from this one.
    Entry(Key, Option<Binding>),
    /// The suppression of a requester's faults changed from this.
    Silenced(Key, bool),
    /// An entry was added.
    Source(Key),
    /// A class of units was added.
    Class,
    Trust(DomainId, Trust),
    /// The number of levels of a domain's table changed from this.
    Levels(DomainId, u8),
    /// A buffer was left mapped in a domain.
    LeftMapped(DomainId),
    Tag(DomainTag, bool),
    /// Owed work was added or removed; whether it was owed before.
    Owed(Owed, bool),
    /// Marks the place of an [`Image`] in the order. Images are consumed from the end.
    Image,
}

const _: () = assert!(size_of::<Change>() == 24);

/// The previous value of an object that changed as a whole.
#[derive(Debug)]
pub(super) enum Image {
    Account(u32, Object<Account>),
    Buffer(u32, Object<Buffer>),
    Domain(u32, Object<Domain>),
    Owner(u32, Object<Owner>),
    Session(u32, Object<Session>),
    Slot(u32, Object<SlotRecord>),
    /// Without a unit: the use count of a part of a buffer went up or down.
    Direct {
        slot: u32,
        offset: u64,
        length: u64,
        more: bool,
    },
    Function(FunctionIndex, Box<Function>),
    Group(GroupId, GroupState),
    Unit(UnitIndex, Box<Unit>),
    /// All functions and groups.
    Machine(Box<Machine>),
    /// A function that commit adds.
    Add(Box<PciFunction>),
    /// An entry whose last function is gone was dropped.
    Dropped(Key, Box<Source>),
    /// A domain of policy was registered.
    Shared(Box<Shared>),
    /// The memory that policy `compat` mapped.
    Compat(Box<Ranges>),
    /// The pieces that a domain mapped for firmware.
    Reserved(DomainId, Vec<Piece>),
    Tags(Box<Tags>),
}

/// An object that is kept in a table of its kind.
pub(super) trait Kept: Sized {
    fn table(state: &mut State) -> &mut Slab<Self>;
    fn image(number: u32, what: Object<Self>) -> Image;
}

macro_rules! kept {
    ($($kind:ident: $object:ty, $($table:ident).+;)*) => {$(
        impl Kept for $object {
            fn table(state: &mut State) -> &mut Slab<Self> {
                &mut state.$($table).+
            }

            fn image(number: u32, what: Object<Self>) -> Image {
                Image::$kind(number, what)
            }
        }
    )*};
}

kept! {
    Account: Account, accounts;
    Buffer: Buffer, buffers;
    Domain: Domain, domains;
    Owner: Owner, machine.owners;
    Session: Session, sessions;
    Slot: SlotRecord, slots;
}

/// The changes of one decision, in order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) changes: Vec<Change>,
    pub(super) images: Vec<Image>,
    /// Commit has changes to apply.
    unsettled: bool,
}

/// Buffers and domains that a device may still reach, because not all steps of the plan could be undone.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    buffers: Vec<BufferId>,
    domains: Vec<DomainId>,
    /// Units with entries of policy's domains.
    units: Vec<UnitIndex>,
    /// A buffer that the plan inserted, with its number.
    entered: Option<(u32, Buffer)>,
}

impl Journal {
    /// Records a change.
    #[inline]
    pub(super) fn note(&mut self, change: Change) {
        self.unsettled |=
            matches!(change, Change::Left(..) | Change::Free(..) | Change::Flushed(_));
        self.changes.push(change);
    }

    /// Records the previous value of an object.
    pub(super) fn keep(&mut self, image: Image) {
        self.unsettled |= matches!(image, Image::Add(_) | Image::Session(_, Object::Removed(_)));
        self.images.push(image);
        self.changes.push(Change::Image);
    }

    /// Concludes a plan that was carried out. Applies the changes that wait for that, such as freed addresses.
    #[inline]
    pub(super) fn commit(&mut self, state: &mut State) {
        if self.unsettled {
            self.settle(state);
        }
        self.changes.clear();
        if !self.images.is_empty() {
            self.images.clear();
        }
    }

    fn settle(&mut self, state: &mut State) {
        self.unsettled = false;
        let mut touched: Option<DomainId> = None;
        for change in &self.changes {
            let domain = match *change {
                Change::Left(domain, index, slot) => {
                    forget(state, domain, index, slot);
                    domain
                }
                Change::Free(domain, range) => {
                    if let Some(domain) = state.domains.get_mut(domain.0) {
                        domain.space.free(range);
                    }
                    domain
                }
                Change::Flushed(unit) => {
                    state.tags.flushed(unit);
                    state.machine.suspect.remove(&unit);
                    continue;
                }
                _ => continue,
            };
            if touched != Some(domain) {
                touched.into_iter().for_each(|last| tidy(state, last));
                touched = Some(domain);
            }
        }
        touched.into_iter().for_each(|last| tidy(state, last));
        for image in self.images.drain(..) {
            match image {
                Image::Add(function) => {
                    state.machine.add(*function);
                }
                Image::Session(_, Object::Removed(session)) => {
                    state.tallies.take_over(session.address, session.tally)
                }
                _ => {}
            }
        }
    }

    /// Undoes all changes of a plan that was not carried out and whose steps were undone.
    pub(super) fn abort(&mut self, state: &mut State) {
        self.unsettled = false;
        while let Some(change) = self.changes.pop() {
            match change {
                Change::Image => self.images.pop().into_iter().for_each(|image| image.undo(state)),
                change => change.undo(state),
            }
        }
    }

    /// Undoes all changes of a plan whose steps may not be undone. A unit may still use its memory, which nobody else
    /// gets.
    pub(super) fn quarantine(&mut self, state: &mut State) {
        let unproved = self.unproved(state);
        self.abort(state);
        for buffer in unproved.buffers {
            if let Some(buffer) = state.buffers.get_mut(buffer.0) {
                buffer.unproved = true;
            }
        }
        state.machine.suspect.extend(unproved.units);
        for domain in unproved.domains {
            if let Some(domain) = state.domains.get_mut(domain.0) {
                domain.trust = Trust::Suspect;
            }
        }
        if let Some((number, mut buffer)) = unproved.entered {
            state.charge_unproved(&mut buffer);
            state.buffers.insert(buffer);
            state.note_memory(number, true);
        }
    }

    fn unproved(&self, state: &State) -> Unproved {
        let mut unproved = Unproved::default();
        for change in &self.changes {
            match change {
                Change::Entered(_, _, slot) => {
                    unproved.buffers.extend(state.slots.get(*slot).map(|slot| slot.buffer));
                }
                Change::Entry(key, _) => {
                    let (binding, _) = state.machine.sources.under_way(*key);
                    let Some(Binding::Domain(domain)) = binding else { continue };
                    match state.domains.get(domain.0) {
                        Some(domain) if !domain.is_client() => unproved.units.push(key.0),
                        Some(_) => unproved.domains.push(domain),
                        None => {}
                    }
                }
                _ => {}
            }
        }
        for image in &self.images {
            if let Image::Buffer(number, Object::Inserted) = image {
                // The steps that took its memory out of policy `compat` were undone, so it has taken nothing.
                let known = state.buffers.get(*number).cloned();
                let kept = known.map(|buffer| Buffer {
                    slots: 0,
                    unproved: true,
                    taken: Vec::new(),
                    charged: false,
                    ..buffer
                });
                unproved.entered = kept.map(|buffer| (*number, buffer));
            }
        }
        unproved
    }
}

impl Change {
    fn undo(self, state: &mut State) {
        match self {
            Self::Entered(domain, index, slot) => undo_entered(state, domain, index, slot),
            Self::Left(domain, index, slot) => undo_left(state, domain, index, slot),
            Self::Free(..) | Self::Flushed(_) | Self::Image => {}
            Self::Entry(key, was) => state.set_binding(key, was),
            Self::Silenced(key, was) => state.machine.sources.suppress_faults(key, was),
            Self::Source(key) => state.machine.sources.remove(key),
            Self::Class => drop(state.machine.classes.pop()),
            Self::Tag(tag, was) => state.tags.set(tag, was),
            Self::Owed(owed, true) => drop(state.owed.insert(owed)),
            Self::Owed(owed, false) => drop(state.owed.remove(&owed)),
            Self::Taken(domain, _)
            | Self::Trust(domain, _)
            | Self::Levels(domain, _)
            | Self::LeftMapped(domain) => {
                if let Some(domain) = state.domains.get_mut(domain.0) {
                    self.undo_in(domain);
                }
            }
        }
    }

    fn undo_in(self, domain: &mut Domain) {
        match self {
            Self::Taken(_, range) => domain.space.free(range),
            Self::Trust(_, was) => domain.trust = was,
            Self::Levels(_, was) => domain.shape.format.levels = was,
            Self::LeftMapped(_) => drop(domain.left.pop()),
            _ => {}
        }
    }
}

impl Image {
    fn undo(self, state: &mut State) {
        match self {
            Self::Add(_) => {}
            Self::Account(number, what) => {
                if let Some(account) = state.accounts.get(number) {
                    state.clients.remove(&account.client);
                }
                undo_object(state, number, what);
                if let Some(account) = state.accounts.get(number) {
                    state.clients.insert(account.client, number);
                }
            }
            Self::Buffer(number, what) => {
                state.note_memory(number, false);
                undo_object(state, number, what);
                state.note_memory(number, true);
            }
            Self::Domain(number, what) => undo_object(state, number, what),
            Self::Owner(number, what) => undo_object(state, number, what),
            Self::Session(number, what) => undo_object(state, number, what),
            Self::Slot(number, what) => undo_object(state, number, what),
            Self::Direct { slot, offset, length, more } => {
                if let Some(record) = state.slots.get_mut(slot) {
                    // Cannot be refused: it reverses a count that succeeded.
                    let _ = record.count_direct(offset, length, !more);
                }
                state.charge_slot(slot, 1, !more);
                state.undo_tally(slot, length, more);
            }
            Self::Function(index, was) => state.machine.set_function(index, *was),
            Self::Group(group, was) => {
                if let Some(group) = state.machine.groups.get_mut(group.0) {
                    group.state = was;
                }
            }
            Self::Unit(unit, was) => state.machine.set_unit(unit, *was),
            Self::Machine(was) => state.machine = *was,
            Self::Dropped(key, source) => state.machine.sources.undo_drop(key, *source),
            Self::Shared(shared) => drop(state.machine.shared.remove(&shared)),
            Self::Compat(was) => state.compat = *was,
            Self::Reserved(domain, was) => {
                if let Some(domain) = state.domains.get_mut(domain.0) {
                    domain.reserved = was;
                }
            }
            Self::Tags(was) => state.tags.undo(*was),
        }
    }
}

fn undo_object<T: Kept>(state: &mut State, number: u32, what: Object<T>) {
    let table = T::table(state);
    match what {
        Object::Inserted => table.undo_insert(number),
        Object::Removed(was) => table.undo_remove(number, *was),
        Object::Changed(was) => {
            if let Some(object) = table.get_mut(number) {
                *object = *was;
            }
        }
    }
}

/// Removes an inserted mapping and frees its addresses.
fn undo_entered(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    let record = state.slots.get_mut(slot);
    let mapping = record.and_then(|record| of.mappings.remove(index, &mut record.mappings));
    if let Some(mapping) = mapping {
        state.free_addresses(domain, slot, &mapping);
        state.charge_slot(slot, mapping.charge(), false);
        state.undo_tally(slot, mapping.range.length(), true);
    }
}

/// Restores a removed mapping.
fn undo_left(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    if let Some(record) = state.slots.get_mut(slot) {
        of.mappings.put_back(index, &mut record.mappings);
    }
    let Some(mapping) = of.mappings.get(index) else { return };
    state.charge_slot(slot, mapping.charge(), true);
    state.undo_tally(slot, mapping.range.length(), false);
}

/// Deletes a removed mapping for good and frees its addresses.
fn forget(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    if let Some(mapping) = of.mappings.forget(index) {
        of.unmapped.note(mapping.range, state.time);
        state.free_addresses(domain, slot, &mapping);
    }
}

/// Gives back memory that the records of mappings and addresses no longer need. Not while a decision is under way:
/// its journal refers to mappings by number, and the numbers change here.
fn tidy(state: &mut State, domain: DomainId) {
    let Some(domain) = state.domains.get_mut(domain.0) else { return };
    if domain.mappings.len() == 0 {
        domain.mappings.tidy();
        domain.space.shrink();
    }
    if domain.mappings.is_sparse() {
        let slots = &mut state.slots;
        domain.mappings.rebuild(|slot, change| {
            if let Some(record) = slots.get_mut(slot) {
                change(&mut record.mappings);
            }
        });
        domain.space.shrink();
    }
}
