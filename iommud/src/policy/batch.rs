//! Maps, unmaps, grants and revokes: the requests that drivers make for each transfer.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use crate::policy::buffers::take;
use crate::policy::config::Quotas;
use crate::policy::draft::{Change, Draft, Effect, hull};
use crate::policy::event::{BatchRequest, MapRequest, Outcome, Refused};
use crate::policy::ids::{DomainId, SessionId};
use crate::policy::mappings::Mapping;
use crate::policy::plan::Step;
use crate::policy::ranges::Ranges;
use crate::policy::registry::Registry;
use crate::policy::slab::Slab;
use crate::policy::space::{SPACE_BITS, Wanted};
use crate::policy::state::{Account, Buffer, Domain, Memory, Session, SlotRecord};

/// What the elements of one batch work on.
struct Batch<'a> {
    id: DomainId,
    session_id: SessionId,
    session: &'a Session,
    domain: &'a mut Domain,
    slots: &'a mut Slab<SlotRecord>,
    buffers: &'a Slab<Buffer>,
    closed: &'a Ranges,
    quotas: &'a Quotas,
    accounts: &'a Slab<Account>,
    /// Mappings that the client may still make, once it makes one.
    left: Option<u32>,
    draft: &'a mut Draft,
    mapped: Option<IovaRange>,
    unmapped: Option<IovaRange>,
}

impl Registry {
    pub(super) fn batch(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        items: &[BatchRequest],
    ) -> Result<Outcome, Refused> {
        let work = |batch: &mut Batch<'_>| each(items, |item| batch.item(item));
        match self.in_domain(draft, id, work)? {
            Some(outcome) => Ok(outcome),
            None => self.batch_direct(draft, id, items),
        }
    }

    /// A batch of one: its address, 0 for an unmap or revoke.
    #[inline]
    pub(super) fn change(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        item: &BatchRequest,
    ) -> Result<Iova, Refusal> {
        match self.in_domain(draft, id, |batch| batch.item(item))? {
            Some(iova) => Ok(iova),
            None => match self.batch_direct(draft, id, core::slice::from_ref(item))? {
                Outcome::Single(iova) => Ok(iova),
                _ => Err(Refusal::BadOperation),
            },
        }
    }

    /// Has `work` decide what becomes of a session's domain, and orders what follows from it; `None` when the
    /// session has no domain.
    #[inline(always)]
    fn in_domain<T, E: From<Refusal>>(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let session = self.sessions.get(id.0).ok_or(Refusal::BadHandle)?;
        self.machine.check_session(session)?;
        let Some(domain_id) = session.domain else { return Ok(None) };
        let domain = self.domains.get_mut(domain_id.0).ok_or(Refusal::BadHandle)?;
        if domain.tainted {
            return Err(Refusal::UnitFailed.into());
        }
        let quotas = &self.machine.config.quotas;
        let mut batch = Batch {
            id: domain_id,
            session_id: id,
            session,
            domain,
            slots: &mut self.slots,
            buffers: &self.buffers,
            closed: &self.closed,
            quotas,
            accounts: &self.accounts,
            left: None,
            draft,
            mapped: None,
            unmapped: None,
        };
        batch.draft.changes.domain = domain_id;
        batch.draft.changes.account = session.client;
        let done = work(&mut batch)?;
        let Batch { mapped, unmapped, draft, domain, .. } = batch;
        if let Some(range) = unmapped {
            draft.invalidate(domain_id, domain, range);
        }
        if let Some(range) = mapped {
            draft.publish(domain_id, domain, range);
        }
        if unmapped.is_some() {
            draft.steps.push(Step::ReleaseTables { domain: domain_id });
        }
        Ok(Some(done))
    }

    /// As `batch`, for a device that no unit confines: addresses are those of the memory, and only the count
    /// is kept.
    pub(super) fn batch_direct(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        items: &[BatchRequest],
    ) -> Result<Outcome, Refused> {
        let session = self.open_session(id)?;
        let mut left = mappings_left(&self.accounts, session, &self.machine.config.quotas);
        each(items, |item| {
            let (slot, offset, length, more) = self.direct(id, item)?;
            if more {
                left = left.checked_sub(1).ok_or(Refusal::Quota)?;
            }
            let record = self.slots.get_mut(slot).ok_or(Refusal::BadHandle)?;
            let iova = match self.buffers.get(record.buffer.0).map(|buffer| &buffer.memory) {
                Some(Memory::One(range)) => Iova(range.first().0 + offset),
                _ => return Err(Refusal::NoMemory),
            };
            if let BatchRequest::Map(request) = item
                && request.flags.contains(MapFlags::FIXED)
                && request.iova != iova
            {
                return Err(Refusal::Unsupported);
            }
            record.count_direct(offset, length, more)?;
            draft.effects.push(Effect::Direct { slot, offset, length, more });
            Ok(if more { iova } else { Iova(0) })
        })
    }

    /// What an element is about: slot record, part of the buffer, and whether it is used or no longer.
    fn direct(&self, id: SessionId, item: &BatchRequest) -> Result<(u32, u64, u64, bool), Refusal> {
        let session = self.open_session(id)?;
        match item {
            BatchRequest::Map(request) | BatchRequest::Grant(request) => {
                let slot = self.slot(session, request.slot)?;
                let record = self.slots.get(slot).ok_or(Refusal::BadHandle)?;
                let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
                check(request, buffer)?;
                Ok((slot, request.offset, request.length, true))
            }
            BatchRequest::Revoke { slot, offset, length } => {
                Ok((self.slot(session, *slot)?, *offset, *length, false))
            }
            BatchRequest::Unmap { iova, length } => {
                let buffer = self.memory.overlapping(iova.0, iova.0).ok_or(Refusal::NotMapped)?;
                let slot = self.slot_of(id, buffer).ok_or(Refusal::NotMapped)?;
                let first = match self.buffers.get(buffer.0).map(|buffer| &buffer.memory) {
                    Some(Memory::One(range)) => range.first().0,
                    _ => return Err(Refusal::NotMapped),
                };
                Ok((self.slot(session, slot)?, iova.0 - first, *length, false))
            }
        }
    }
}

impl SlotRecord {
    /// Counts one use of a part more or less.
    pub(super) fn count_direct(
        &mut self,
        offset: u64,
        length: u64,
        more: bool,
    ) -> Result<(), Refusal> {
        if more {
            let count = self.direct.entry((offset, length)).or_insert(0);
            *count = count.saturating_add(1);
            return Ok(());
        }
        let count = self.direct.get_mut(&(offset, length)).ok_or(Refusal::NotMapped)?;
        *count -= 1;
        if *count == 0 {
            self.direct.remove(&(offset, length));
        }
        Ok(())
    }
}

impl Batch<'_> {
    #[inline(always)]
    fn item(&mut self, item: &BatchRequest) -> Result<Iova, Refusal> {
        match item {
            BatchRequest::Map(request) => self.map(request),
            BatchRequest::Unmap { iova, length } => self.unmap(*iova, *length),
            BatchRequest::Grant(request) => self.grant(request),
            BatchRequest::Revoke { slot, offset, length } => {
                let number = slot_of(self.session, slot.0)?;
                let record = self.slots.get(number).ok_or(Refusal::BadHandle)?;
                let grants = record.granted.as_ref().ok_or(Refusal::BadOperation)?;
                let iova = grants.range.first().checked_add(*offset).ok_or(Refusal::Range)?;
                self.remove(iova, *length, Some(number))
            }
        }
    }

    #[inline(always)]
    fn map(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = slot_of(self.session, request.slot.0)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        self.left = charge(self.left, self.accounts, self.session, self.quotas)?;
        let range = if request.flags.contains(MapFlags::FIXED) {
            let range = IovaRange::new(request.iova, request.length).ok_or(Refusal::Range)?;
            fixed(self.domain, self.closed, self.quotas.regions, range)?
        } else {
            let above_4g = request.flags.contains(MapFlags::ABOVE_4G);
            let wanted = Wanted { length: request.length, alignment: 0, boundary: 0, above_4g };
            take(self.domain, self.quotas.regions, wanted)?
        };
        let MapRequest { offset, access, .. } = *request;
        let mapping = Mapping { range, slot: number, offset, access, grant: false, list: false };
        self.mapped = Some(hull(self.mapped, range));
        enter(self.id, self.domain, self.draft, record, buffer, mapping);
        Ok(range.first())
    }

    fn grant(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = slot_of(self.session, request.slot.0)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        self.left = charge(self.left, self.accounts, self.session, self.quotas)?;
        let grants = record.granted.as_mut().ok_or(Refusal::BadOperation)?;
        let MapRequest { offset, length, access, .. } = *request;
        if !grants.is_free(offset, length) {
            return Err(Refusal::Mapped);
        }
        let first = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(first, length).ok_or(Refusal::Range)?;
        grants.set(offset, length, true);
        let mapping = Mapping { range, slot: number, offset, access, grant: true, list: false };
        self.mapped = Some(hull(self.mapped, range));
        enter(self.id, self.domain, self.draft, record, buffer, mapping);
        Ok(first)
    }

    #[inline(always)]
    fn unmap(&mut self, iova: Iova, length: u64) -> Result<Iova, Refusal> {
        if length == 0 {
            return Err(Refusal::Range);
        }
        self.remove(iova, length, None)
    }

    /// Removes the mapping of exactly this range: a grant of this slot, or one that is not a grant.
    #[inline(always)]
    fn remove(&mut self, iova: Iova, length: u64, granted: Option<u32>) -> Result<Iova, Refusal> {
        let Batch { slots, session_id, .. } = self;
        let right = |mapping: &Mapping| match granted {
            Some(slot) => mapping.grant && mapping.slot == slot,
            None => {
                let record = slots.get(mapping.slot);
                !mapping.grant && record.is_some_and(|record| record.session == *session_id)
            }
        };
        let found = self.domain.mappings.find_to_remove(iova, length, right);
        let (index, mapping) = found.ok_or(Refusal::NotMapped)?;
        self.draft.steps.push(Step::Unmap { domain: self.id, range: mapping.range });
        self.unmapped = Some(hull(self.unmapped, mapping.range));
        self.draft.changes.list.push(Change::Leaving(index, mapping.slot));
        Ok(Iova(0))
    }
}

/// Mappings that the client of a session may still make.
#[inline]
fn mappings_left(accounts: &Slab<Account>, session: &Session, quotas: &Quotas) -> u32 {
    let used = accounts.get(session.client).map_or(u32::MAX, |account| account.mappings);
    quotas.mappings.saturating_sub(used)
}

/// Charges a batch for one mapping more: what is left, if that is known.
#[inline]
fn charge(
    left: Option<u32>,
    accounts: &Slab<Account>,
    session: &Session,
    quotas: &Quotas,
) -> Result<Option<u32>, Refusal> {
    let left = left.unwrap_or_else(|| mappings_left(accounts, session, quotas));
    left.checked_sub(1).map(Some).ok_or(Refusal::Quota)
}

/// Number of the record of a slot.
#[inline]
fn slot_of(session: &Session, slot: u32) -> Result<u32, Refusal> {
    session.slots.get(slot as usize).copied().flatten().ok_or(Refusal::BadHandle)
}

/// Enters a mapping of a buffer's slot, and has it mapped.
#[inline(always)]
fn enter(
    id: DomainId,
    domain: &mut Domain,
    draft: &mut Draft,
    record: &mut SlotRecord,
    buffer: &Buffer,
    mapping: Mapping,
) {
    let (range, access) = (mapping.range, mapping.access);
    buffer.memory.pieces(mapping.offset, range.length(), |at, phys, length| {
        if let Some(range) = IovaRange::new(Iova(range.first().0 + at), length) {
            draft.steps.push(Step::Map { domain: id, range, phys, access });
        }
    });
    let index = domain.mappings.insert_unsettled(mapping, &mut record.mappings);
    draft.changes.list.push(Change::Entered(index, mapping.slot));
}

/// Takes the addresses that a client asks for, as long as the domain's page tables stay within bounds.
pub(super) fn fixed(
    domain: &mut Domain,
    closed: &Ranges,
    regions: u32,
    range: IovaRange,
) -> Result<IovaRange, Refusal> {
    if !range.first().is_aligned(PAGE_SIZE) {
        return Err(Refusal::Alignment);
    }
    let last = range.last().0;
    if range.first().0 < PAGE_SIZE || last >> SPACE_BITS != 0 || last > domain.shape.last_iova() {
        return Err(Refusal::Range);
    }
    let closed = closed.within(range.first().0, last).next().is_some();
    if closed || domain.reserved.iter().any(|piece| piece.range.overlaps(range)) {
        return Err(Refusal::Reserved);
    }
    if !domain.space.allocate_at(range) {
        return Err(Refusal::Mapped);
    }
    if domain.space.exceeds(regions) {
        domain.space.free(range);
        return Err(Refusal::Quota);
    }
    Ok(range)
}

/// Carries out elements in order, and says which one was refused.
fn each(
    items: &[BatchRequest],
    mut work: impl FnMut(&BatchRequest) -> Result<Iova, Refusal>,
) -> Result<Outcome, Refused> {
    if let [one] = items {
        return Ok(Outcome::Single(work(one)?));
    }
    let mut addresses = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let item = work(item)
            .map_err(|refusal| Refused { refusal, item: u32::try_from(at).unwrap_or(u32::MAX) });
        addresses.push(item?);
    }
    Ok(Outcome::Batch(addresses))
}

/// Whether a request names a part of a buffer, in whole pages, with an access.
#[inline]
fn check(request: &MapRequest, buffer: &Buffer) -> Result<(), Refusal> {
    let MapRequest { offset, length, access, .. } = *request;
    if access.is_empty() || access.bits() & !3 != 0 {
        return Err(Refusal::BadAccess);
    }
    if length == 0 {
        return Err(Refusal::Range);
    }
    if (offset | length) & (PAGE_SIZE - 1) != 0 {
        return Err(Refusal::Alignment);
    }
    match offset.checked_add(length) {
        Some(end) if end <= buffer.length => Ok(()),
        _ => Err(Refusal::Range),
    }
}
