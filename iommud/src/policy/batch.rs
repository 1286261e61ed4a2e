//! Maps, unmaps, grants and revokes: the requests that drivers make for each transfer.

use alloc::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use crate::policy::buffers::take;
use crate::policy::config::Quotas;
use crate::policy::draft::{Change, Draft, Effect, hull};
use crate::policy::event::{BatchRequest, MapRequest, Outcome, Refused};
use crate::policy::ids::{DomainId, SessionId};
use crate::policy::mappings::{Mapping, MappingIndex};
use crate::policy::plan::Step;
use crate::policy::ranges::Ranges;
use crate::policy::registry::Registry;
use crate::policy::slab::Slab;
use crate::policy::space::{SPACE_BITS, Wanted};
use crate::policy::state::{Account, Buffer, Domain, Memory, Session, SlotRecord};

/// What one element of a batch works on.
struct Work<'a> {
    id: DomainId,
    session_id: SessionId,
    session: &'a Session,
    domain: &'a mut Domain,
    slots: &'a mut Slab<SlotRecord>,
    buffers: &'a Slab<Buffer>,
    accounts: &'a mut Slab<Account>,
    closed: &'a Ranges,
    quotas: &'a Quotas,
    draft: &'a mut Draft,
}

impl Registry {
    pub(super) fn batch(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        items: &[BatchRequest],
    ) -> Result<Outcome, Refused> {
        if self.usable(id)?.domain.is_none() {
            return self.batch_direct(draft, id, items);
        }
        let outcome = each(items, |item| self.item(draft, id, item)?.ok_or(Refusal::BadHandle))?;
        self.conclude(draft);
        Ok(outcome)
    }

    /// A batch of one: its address, 0 for an unmap or revoke.
    #[inline(always)]
    pub(super) fn change(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        item: &BatchRequest,
    ) -> Result<Iova, Refusal> {
        if let Some(iova) = self.item(draft, id, item)? {
            self.conclude(draft);
            return Ok(iova);
        }
        match self.batch_direct(draft, id, core::slice::from_ref(item))? {
            Outcome::Single(iova) => Ok(iova),
            _ => Err(Refusal::BadOperation),
        }
    }

    /// Decides one element, after the ones before it; `None` when the session has no domain.
    #[inline(always)]
    fn item(
        &mut self,
        draft: &mut Draft,
        session_id: SessionId,
        item: &BatchRequest,
    ) -> Result<Option<Iova>, Refusal> {
        let session = self.sessions.get(session_id.0).ok_or(Refusal::BadHandle)?;
        self.machine.check_session(session)?;
        let Some(id) = session.domain else { return Ok(None) };
        let domain = self.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
        if domain.tainted {
            return Err(Refusal::UnitFailed);
        }
        (draft.changes.domain, draft.changes.account) = (id, session.client);
        let mut work = Work {
            id,
            session_id,
            session,
            domain,
            slots: &mut self.slots,
            buffers: &self.buffers,
            accounts: &mut self.accounts,
            closed: &self.closed,
            quotas: &self.machine.config.quotas,
            draft,
        };
        work.item(item).map(Some)
    }

    /// Orders what follows from all elements.
    #[inline(always)]
    fn conclude(&self, draft: &mut Draft) {
        let id = draft.changes.domain;
        let Some(domain) = self.domains.get(id.0) else { return };
        let (mapped, unmapped) = (draft.changes.mapped, draft.changes.unmapped);
        if let Some(range) = unmapped {
            draft.invalidate(id, domain, range);
        }
        if let Some(range) = mapped {
            draft.publish(&self.machine, id, domain, range);
        }
        if unmapped.is_some() {
            draft.steps.push(Step::ReleaseTables { domain: id });
        }
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
        let used = self.accounts.get(session.client).map_or(u32::MAX, |account| account.mappings);
        let mut left = self.machine.config.quotas.mappings.saturating_sub(used);
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

impl Work<'_> {
    #[inline(always)]
    fn item(&mut self, item: &BatchRequest) -> Result<Iova, Refusal> {
        match item {
            BatchRequest::Map(request) => self.map(request),
            BatchRequest::Unmap { iova, length } => self.unmap(*iova, *length),
            BatchRequest::Grant(request) => self.grant(request),
            BatchRequest::Revoke { slot, offset, length } => self.revoke(*slot, *offset, *length),
        }
    }

    #[inline(always)]
    fn map(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = slot_of(self.session, request.slot.0)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        let account = account_for(self.accounts, self.session, self.quotas)?;
        let MapRequest { offset, length, access, .. } = *request;
        let range = if request.flags.contains(MapFlags::FIXED) {
            let range = IovaRange::new(request.iova, length).ok_or(Refusal::Range)?;
            fixed(self.domain, self.closed, self.quotas.regions, range)?
        } else {
            let above_4g = request.flags.contains(MapFlags::ABOVE_4G);
            let wanted = Wanted { length, alignment: 0, boundary: 0, above_4g };
            take(self.domain, self.quotas.regions, wanted)?
        };
        account.mappings += 1;
        let mapping = Mapping { range, slot: number, offset, access, grant: false, list: false };
        enter(self.id, self.domain, self.draft, record, buffer, mapping);
        Ok(range.first())
    }

    #[inline(never)]
    fn grant(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = slot_of(self.session, request.slot.0)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        let account = account_for(self.accounts, self.session, self.quotas)?;
        let grants = record.granted.as_mut().ok_or(Refusal::BadOperation)?;
        let MapRequest { offset, length, access, .. } = *request;
        if !grants.is_free(offset, length) {
            return Err(Refusal::Mapped);
        }
        let first = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(first, length).ok_or(Refusal::Range)?;
        grants.set(offset, length, true);
        account.mappings += 1;
        let mapping = Mapping { range, slot: number, offset, access, grant: true, list: false };
        enter(self.id, self.domain, self.draft, record, buffer, mapping);
        Ok(first)
    }

    #[inline(always)]
    fn unmap(&mut self, iova: Iova, length: u64) -> Result<Iova, Refusal> {
        let Self { slots, session_id, .. } = self;
        let right = |slot: u32, grant: bool| {
            let record = slots.get(slot);
            !grant && record.is_some_and(|record| record.session == *session_id)
        };
        let found = self.domain.mappings.find_to_remove(iova, length, right);
        self.remove(iova, length, found)
    }

    #[inline(never)]
    fn revoke(&mut self, slot: Slot, offset: u64, length: u64) -> Result<Iova, Refusal> {
        let number = slot_of(self.session, slot.0)?;
        let record = self.slots.get(number).ok_or(Refusal::BadHandle)?;
        let grants = record.granted.as_ref().ok_or(Refusal::BadOperation)?;
        let iova = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let right = |slot: u32, grant: bool| grant && slot == number;
        let found = self.domain.mappings.find_to_remove(iova, length, right);
        self.remove(iova, length, found)
    }

    /// Has a mapping of exactly this range leave, if there is one.
    #[inline(always)]
    fn remove(
        &mut self,
        iova: Iova,
        length: u64,
        found: Option<(MappingIndex, u32)>,
    ) -> Result<Iova, Refusal> {
        let range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
        let (index, slot) = found.ok_or(Refusal::NotMapped)?;
        let changes = &mut self.draft.changes;
        changes.unmapped = Some(hull(changes.unmapped, range));
        changes.list.push(Change::Leaving(index, slot));
        self.draft.steps.push(Step::Unmap { domain: self.id, range });
        Ok(Iova(0))
    }
}

/// The account of a session's client, if it may have one mapping more.
#[inline(always)]
fn account_for<'a>(
    accounts: &'a mut Slab<Account>,
    session: &Session,
    quotas: &Quotas,
) -> Result<&'a mut Account, Refusal> {
    let account = accounts.get_mut(session.client).ok_or(Refusal::Quota)?;
    if account.mappings < quotas.mappings { Ok(account) } else { Err(Refusal::Quota) }
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
    draft.changes.mapped = Some(hull(draft.changes.mapped, range));
    buffer.memory.pieces(mapping.offset, range.length(), |at, phys, length| {
        if let Some(range) = IovaRange::new(Iova(range.first().0 + at), length) {
            draft.steps.push(Step::Map { domain: id, range, phys, access });
        }
    });
    let index = domain.mappings.insert(mapping, &mut record.mappings);
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
