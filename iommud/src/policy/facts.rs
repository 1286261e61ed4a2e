//! Facts: what the next server is to know of sessions, slots of buffers, and mappings; and how a plan changes them.
//!
//! A plan's journal names every object that the plan changed, and the state has each of them as the plan made it. So
//! the facts of a plan are read off both, after its steps were carried out and before it is committed.

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::Access;

use crate::addr::IovaRange;
use crate::policy::ids::{BufferId, ClientId, DomainId, SessionId};
use crate::policy::journal::{Change, Image, Journal, Object};
use crate::policy::plan::Plan;
use crate::policy::registry::Registry;
use crate::policy::state::State;
use crate::policy::state::domain::Domain;
use crate::policy::state::mappings::MappingIndex;
use crate::policy::state::objects::{Activity, SlotRecord};

/// A fact about one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectFact {
    /// An open session.
    Session(SessionFact),
    /// A buffer in a slot of a session.
    Slot(SlotFact),
    /// A mapping of a slot.
    Mapping(MappingFact),
}

/// An open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionFact {
    /// Its number.
    pub session: SessionId,
    /// Its client.
    pub client: ClientId,
    /// Its device.
    pub device: PciAddress,
    /// Whether the device is in the domain of its owner.
    pub attached: bool,
}

/// A buffer in a slot of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFact {
    /// Number of the slot's record, which mappings name.
    pub record: u32,
    /// The session.
    pub session: SessionId,
    /// The slot.
    pub slot: Slot,
    /// The buffer.
    pub buffer: BufferId,
    /// Bytes of the buffer.
    pub length: u64,
}

/// A mapping of a slot in its session's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingFact {
    /// Number of the slot's record.
    pub record: u32,
    /// The addresses that devices use.
    pub range: IovaRange,
    /// First byte in the buffer; 0 for a list.
    pub offset: u64,
    /// Access of devices.
    pub access: Access,
    /// Made by a grant.
    pub grant: bool,
    /// Its pages lie anywhere in the buffer.
    pub list: bool,
}

/// Keeps facts, each in a cell with a number. All changes of one plan are kept together.
pub trait FactBook {
    /// Keeps a fact in a free cell; returns the cell's number, `None` when there is no room for it.
    fn enter(&mut self, fact: &ObjectFact) -> Option<u32>;

    /// Keeps a fact in place of the one in a cell.
    fn change(&mut self, cell: u32, fact: &ObjectFact);

    /// Frees a cell.
    fn remove(&mut self, cell: u32);
}

/// What a plan changes, whatever its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a>(&'a Journal);

impl<T> Plan<T> {
    /// What the plan changes.
    #[must_use]
    pub const fn changes(&self) -> Changes<'_> {
        Changes(&self.contents.journal)
    }
}

impl Registry {
    /// Passes the facts that a plan changed to `book`. The plan was carried out, and is committed next.
    pub fn record(&mut self, Changes(journal): Changes<'_>, book: &mut impl FactBook) {
        journal.record(&mut self.state, book);
    }
}

impl Journal {
    #[inline]
    fn record(&self, state: &mut State, book: &mut impl FactBook) {
        let mut images = self.images.iter();
        let mut around = Around { journal: self, known: None };
        for change in &self.changes {
            match *change {
                Change::Entered(domain, index, _) => enter(state, book, domain, index),
                Change::Left(domain, index, _) => {
                    let domain = state.domains.get_mut(domain.0);
                    let cell = domain.and_then(|domain| domain.mappings.take_cell(index));
                    cell.into_iter().for_each(|cell| book.remove(cell));
                }
                Change::Image => {
                    if let Some(image) = images.next() {
                        record_image(image, state, book, &mut around);
                    }
                }
                _ => {}
            }
        }
    }
}

/// The domains of sessions, of which the plan may have ended both.
struct Around<'a> {
    journal: &'a Journal,
    /// The session that was looked for last, its domain, and the domain as it was when the plan ended it.
    known: Option<(SessionId, DomainId, Option<&'a Domain>)>,
}

impl<'a> Around<'a> {
    fn domain_of(
        &mut self,
        state: &State,
        id: SessionId,
    ) -> Option<(DomainId, Option<&'a Domain>)> {
        if let Some((known, domain, ended)) = self.known
            && known == id
        {
            return Some((domain, ended));
        }
        let images = &self.journal.images;
        let gone = images.iter().find_map(|image| match image {
            Image::Session(number, Object::Removed(was)) if *number == id.0 => Some(&**was),
            _ => None,
        });
        let domain = state.sessions.get(id.0).or(gone)?.domain?;
        let ended = images.iter().find_map(|image| match image {
            Image::Domain(number, Object::Removed(was)) if *number == domain.0 => Some(&**was),
            _ => None,
        });
        self.known = Some((id, domain, ended));
        Some((domain, ended))
    }
}

#[inline(never)]
fn record_image(
    image: &Image,
    state: &mut State,
    book: &mut impl FactBook,
    around: &mut Around<'_>,
) {
    match image {
        Image::Session(_, Object::Removed(was)) => {
            was.cell.into_iter().for_each(|cell| book.remove(cell));
        }
        Image::Session(number, _) => put_session(state, book, SessionId(*number)),
        Image::Function(index, _) => {
            let session = state.machine.function(*index).and_then(|function| function.session);
            session.into_iter().for_each(|session| put_session(state, book, session));
        }
        Image::Slot(_, Object::Removed(was)) => {
            remove_mappings(was, state, book, around);
            was.cell.into_iter().for_each(|cell| book.remove(cell));
        }
        Image::Slot(number, Object::Inserted) => put_slot(state, book, *number),
        _ => {}
    }
}

/// Removes the mappings that a slot still had when it was removed: those that ended with their domain, and those that a
/// failed unit may still use.
fn remove_mappings(
    slot: &SlotRecord,
    state: &State,
    book: &mut impl FactBook,
    around: &mut Around<'_>,
) {
    if slot.mappings.count == 0 {
        return;
    }
    let Some((id, ended)) = around.domain_of(state, slot.session) else { return };
    let Some(domain) = ended.or_else(|| state.domains.get(id.0)) else { return };
    for (index, _) in domain.mappings.list(&slot.mappings) {
        domain.mappings.cell(index).into_iter().for_each(|cell| book.remove(cell));
    }
}

#[inline]
fn enter(state: &mut State, book: &mut impl FactBook, domain: DomainId, index: MappingIndex) {
    let Some(domain) = state.domains.get_mut(domain.0) else { return };
    let Some(mapping) = domain.mappings.get(index) else { return };
    let cell = book.enter(&ObjectFact::Mapping(MappingFact {
        record: mapping.slot,
        range: mapping.range,
        offset: mapping.offset,
        access: mapping.access,
        grant: mapping.grant,
        list: mapping.list,
    }));
    cell.into_iter().for_each(|cell| domain.mappings.set_cell(index, cell));
}

fn put_slot(state: &mut State, book: &mut impl FactBook, number: u32) {
    let Some(record) = state.slots.get_mut(number) else { return };
    let SlotRecord { session, number: slot, buffer, length, .. } = *record;
    let fact = SlotFact { record: number, session, slot, buffer, length };
    record.cell = book.enter(&ObjectFact::Slot(fact));
}

fn put_session(state: &mut State, book: &mut impl FactBook, id: SessionId) {
    let Some(session) = state.sessions.get_mut(id.0) else { return };
    let Some(account) = state.accounts.get(session.client) else { return };
    let function = session.function.and_then(|index| state.machine.function(index));
    let fact = ObjectFact::Session(SessionFact {
        session: id,
        client: account.client,
        device: session.address,
        attached: function.is_some_and(|function| function.activity == Activity::Attached),
    });
    match session.cell {
        Some(cell) => book.change(cell, &fact),
        None => session.cell = book.enter(&fact),
    }
}
