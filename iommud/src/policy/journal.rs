//! What abort takes back, and what is left for commit.
//!
//! A decision changes the state at once and notes here how to undo each change. Abort undoes them, last first.
//! Commit forgets them, but for what another decision could be given too early: addresses that mappings leave are
//! free only when no unit can translate them.

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
use crate::policy::state::mappings::{Mapping, MappingIndex};
use crate::policy::state::objects::{
    Account, Buffer, Function, GroupState, Owner, Session, SlotRecord, Source, Unit,
};
use crate::policy::state::tags::Tags;
use crate::policy::step::Binding;
use crate::topology::capabilities::DomainTag;
use crate::topology::pci::PciFunction;
use crate::topology::table::FunctionIndex;

/// What a change did to an object of a table.
#[derive(Debug)]
pub(super) enum Object<T> {
    Inserted,
    Removed(Box<T>),
    /// It was this.
    Changed(Box<T>),
}

/// One change that was made, with what undoes it. There may be thousands in a plan: they are small, and a plan without
/// an [`Image`] is forgotten at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A mapping of a slot was entered, and charged.
    Entered(DomainId, MappingIndex, u32),
    /// A mapping of a slot was taken out. Commit frees its addresses.
    Left(DomainId, MappingIndex, u32),
    /// Addresses were taken.
    Taken(DomainId, IovaRange),
    /// Addresses are free at commit.
    Free(DomainId, IovaRange),
    /// At commit a unit is known to hold nothing of others. Until then the note for the next server says that it may.
    Flushed(UnitIndex),
    /// An entry pointed there.
    Entry(Key, Option<Binding>),
    /// The faults of a requester were not reported, or were.
    Silenced(Key, bool),
    /// An entry was made.
    Source(Key),
    /// A class of units was added.
    Class,
    Trust(DomainId, Trust),
    /// The table of a domain had so many levels.
    Levels(DomainId, u8),
    /// A buffer was left mapped in a domain.
    LeftMapped(DomainId),
    Tag(DomainTag, bool),
    /// It was owed, or not.
    Owed(Owed, bool),
    /// The next image, from the end on.
    Image,
}

const _: () = assert!(size_of::<Change>() == 24);

/// What something was before it was changed as a whole.
#[derive(Debug)]
pub(super) enum Image {
    Account(u32, Object<Account>),
    Buffer(u32, Object<Buffer>),
    Domain(u32, Object<Domain>),
    Owner(u32, Object<Owner>),
    Session(u32, Object<Session>),
    Slot(u32, Object<SlotRecord>),
    /// Without a unit: a part of a buffer was used once more, or once less.
    Direct {
        slot: u32,
        offset: u64,
        length: u64,
        more: bool,
    },
    Function(FunctionIndex, Box<Function>),
    Group(GroupId, GroupState),
    Unit(UnitIndex, Box<Unit>),
    /// Functions and groups were these.
    Machine(Box<Machine>),
    /// A function is entered at commit.
    Add(Box<PciFunction>),
    /// An entry whose last function is gone was dropped.
    Dropped(Key, Box<Source>),
    /// A domain of policy was made known.
    Shared(Box<Shared>),
    /// Policy `compat` mapped these.
    Compat(Box<Ranges>),
    /// A domain mapped these for firmware.
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
    changes: Vec<Change>,
    images: Vec<Image>,
    /// Commit has something left to do.
    unsettled: bool,
}

/// What a device may still reach of a plan whose steps could not all be undone.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    buffers: Vec<BufferId>,
    domains: Vec<DomainId>,
    /// A buffer that the plan entered, with its number.
    entered: Option<(u32, Buffer)>,
}

impl Journal {
    /// Notes a change that was made.
    #[inline]
    pub(super) fn note(&mut self, change: Change) {
        self.unsettled |=
            matches!(change, Change::Left(..) | Change::Free(..) | Change::Flushed(_));
        self.changes.push(change);
    }

    /// Notes what something was.
    pub(super) fn keep(&mut self, image: Image) {
        self.unsettled |= matches!(image, Image::Add(_));
        self.images.push(image);
        self.changes.push(Change::Image);
    }

    /// The plan was carried out: frees what could not be given to anybody before.
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
            if let Image::Add(function) = image {
                state.machine.add(*function);
            }
        }
    }

    /// The plan was not carried out, and its steps were undone: everything is as before.
    pub(super) fn abort(&mut self, state: &mut State) {
        self.unsettled = false;
        while let Some(change) = self.changes.pop() {
            match change {
                Change::Image => self.images.pop().into_iter().for_each(|image| image.undo(state)),
                change => change.undo(state),
            }
        }
    }

    /// The plan was not carried out, and a unit may go on using what it entered: that is kept from everybody.
    pub(super) fn quarantine(&mut self, state: &mut State) {
        let unproved = self.unproved(state);
        self.abort(state);
        for buffer in unproved.buffers {
            if let Some(buffer) = state.buffers.get_mut(buffer.0) {
                buffer.unproved = true;
            }
        }
        for domain in unproved.domains {
            if let Some(domain) = state.domains.get_mut(domain.0) {
                domain.trust = Trust::Suspect;
            }
        }
        if let Some((number, buffer)) = unproved.entered {
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
                    if let Some(Binding::Domain(domain)) = binding
                        && state.domains.get(domain.0).is_some_and(Domain::is_client)
                    {
                        unproved.domains.push(domain);
                    }
                }
                _ => {}
            }
        }
        for image in &self.images {
            if let Image::Buffer(number, Object::Inserted) = image {
                // Steps that took its memory out of policy `compat` were undone.
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
                    // Known to be there, or to have been: it cannot be refused.
                    let _ = record.count_direct(offset, length, !more);
                }
                state.charge_slot(slot, 1, !more);
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

/// A mapping that was entered goes, its addresses are free again.
fn undo_entered(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    let record = state.slots.get_mut(slot);
    let mapping = record.and_then(|record| of.mappings.remove(index, &mut record.mappings));
    if let Some(mapping) = mapping {
        free_addresses(state, domain, slot, &mapping);
        state.charge_slot(slot, mapping.charge(), false);
    }
}

/// A mapping that was taken out is there again.
fn undo_left(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    if let Some(record) = state.slots.get_mut(slot) {
        of.mappings.put_back(index, &mut record.mappings);
    }
    let charge = of.mappings.get(index).map_or(0, |mapping| mapping.charge());
    state.charge_slot(slot, charge, true);
}

/// A mapping that was taken out is forgotten; its addresses are free.
fn forget(state: &mut State, domain: DomainId, index: MappingIndex, slot: u32) {
    let Some(of) = state.domains.get_mut(domain.0) else { return };
    if let Some(mapping) = of.mappings.forget(index) {
        free_addresses(state, domain, slot, &mapping);
    }
}

/// Frees the addresses of a mapping that is gone: in the domain, or in what is reserved for grants of its buffer.
fn free_addresses(state: &mut State, domain: DomainId, slot: u32, mapping: &Mapping) {
    if mapping.grant {
        // With the slot all that was reserved for it is free.
        if let Some(SlotRecord { granted: Some(grants), .. }) = state.slots.get_mut(slot) {
            grants.set(mapping.offset, mapping.range.length(), false);
        }
    } else if let Some(domain) = state.domains.get_mut(domain.0) {
        domain.space.free(mapping.range);
    }
}

/// Gives memory back that records of mappings and addresses no longer need. No decision is under way: it would know
/// mappings by numbers that are others' now.
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
