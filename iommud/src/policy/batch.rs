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
use crate::policy::state::{Buffer, Domain, Memory, Session, SlotRecord};

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
    /// Mappings that the client may still make.
    left: u32,
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
        let session = self.usable(id)?;
        let used = self.accounts.get(session.client).map_or(u32::MAX, |a| a.mappings);
        let quotas = &self.machine.config.quotas;
        let left = quotas.mappings.saturating_sub(used);
        let Some(domain_id) = session.domain else {
            return self.batch_direct(draft, id, items, left);
        };
        let domain = self.domains.get_mut(domain_id.0).ok_or(Refusal::BadHandle)?;
        let session = self.sessions.get(id.0).ok_or(Refusal::BadHandle)?;
        let mut batch = Batch {
            id: domain_id,
            session_id: id,
            session,
            domain,
            slots: &mut self.slots,
            buffers: &self.buffers,
            closed: &self.closed,
            quotas,
            left,
            draft,
            mapped: None,
            unmapped: None,
        };
        batch.draft.changes.domain = domain_id;
        batch.draft.changes.account = session.client;
        let outcome = each(items, |item| batch.item(item))?;
        let Batch { mapped, unmapped, draft, domain, .. } = batch;
        if let Some(range) = unmapped {
            draft.invalidate(domain_id, domain, range);
            draft.last.push(Step::ReleaseTables { domain: domain_id });
        }
        if let Some(range) = mapped {
            draft.publish(domain_id, domain, range);
        }
        Ok(outcome)
    }

    /// As `batch`, for a device that no unit confines: addresses are those of the memory, and only the count
    /// is kept.
    pub(super) fn batch_direct(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        items: &[BatchRequest],
        mut left: u32,
    ) -> Result<Outcome, Refused> {
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
    fn item(&mut self, item: &BatchRequest) -> Result<Iova, Refusal> {
        match item {
            BatchRequest::Map(request) => self.map(request),
            BatchRequest::Unmap { iova, length } => self.unmap(*iova, *length),
            BatchRequest::Grant(request) => self.grant(request),
            BatchRequest::Revoke { slot, offset, length } => {
                let number = self.slot(slot.0)?;
                let record = self.slots.get(number).ok_or(Refusal::BadHandle)?;
                let grants = record.granted.as_ref().ok_or(Refusal::BadOperation)?;
                let iova = grants.range.first().checked_add(*offset).ok_or(Refusal::Range)?;
                self.remove(iova, *length, Some(number))
            }
        }
    }

    fn slot(&self, slot: u32) -> Result<u32, Refusal> {
        self.session.slots.get(slot as usize).copied().flatten().ok_or(Refusal::BadHandle)
    }

    fn map(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = self.slot(request.slot.0)?;
        let record = self.slots.get(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        self.left = self.left.checked_sub(1).ok_or(Refusal::Quota)?;
        let range = if request.flags.contains(MapFlags::FIXED) {
            let range = IovaRange::new(request.iova, request.length).ok_or(Refusal::Range)?;
            fixed(self.domain, self.closed, self.quotas.regions, range)?
        } else {
            let above_4g = request.flags.contains(MapFlags::ABOVE_4G);
            let wanted = Wanted { length: request.length, alignment: 0, boundary: 0, above_4g };
            take(self.domain, self.quotas.regions, wanted)?
        };
        let MapRequest { offset, access, .. } = *request;
        self.enter(
            buffer,
            Mapping { range, slot: number, offset, access, grant: false, list: false },
        );
        Ok(range.first())
    }

    fn grant(&mut self, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = self.slot(request.slot.0)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let buffer = self.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
        check(request, buffer)?;
        self.left = self.left.checked_sub(1).ok_or(Refusal::Quota)?;
        let grants = record.granted.as_mut().ok_or(Refusal::BadOperation)?;
        let MapRequest { offset, length, access, .. } = *request;
        if !grants.is_free(offset, length) {
            return Err(Refusal::Mapped);
        }
        let first = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(first, length).ok_or(Refusal::Range)?;
        grants.set(offset, length, true);
        self.enter(
            buffer,
            Mapping { range, slot: number, offset, access, grant: true, list: false },
        );
        Ok(first)
    }

    fn enter(&mut self, buffer: &Buffer, mapping: Mapping) {
        let (domain, access, range) = (self.id, mapping.access, mapping.range);
        let steps = &mut self.draft.steps;
        buffer.memory.pieces(mapping.offset, range.length(), |at, phys, length| {
            let range = IovaRange::new(Iova(range.first().0 + at), length);
            steps.extend(range.map(|range| Step::Map { domain, range, phys, access }));
        });
        self.mapped = Some(hull(self.mapped, range));
        if let Some(slot) = self.slots.get_mut(mapping.slot) {
            let index = self.domain.mappings.insert(mapping, &mut slot.mappings);
            self.domain.mappings.unsettle(index);
            self.draft.changes.list.push(Change::Entered(index));
        }
    }

    fn unmap(&mut self, iova: Iova, length: u64) -> Result<Iova, Refusal> {
        if length == 0 {
            return Err(Refusal::Range);
        }
        self.remove(iova, length, None)
    }

    /// Removes the mapping of exactly this range: a grant of this slot, or one that is not a grant.
    fn remove(&mut self, iova: Iova, length: u64, granted: Option<u32>) -> Result<Iova, Refusal> {
        let index = self.domain.mappings.find(iova, length).ok_or(Refusal::NotMapped)?;
        let mapping = self.domain.mappings.get(index).ok_or(Refusal::NotMapped)?;
        let record = self.slots.get(mapping.slot).ok_or(Refusal::NotMapped)?;
        let right = match granted {
            Some(slot) => mapping.grant && mapping.slot == slot,
            None => !mapping.grant && record.session == self.session_id,
        };
        if !right {
            return Err(Refusal::NotMapped);
        }
        self.domain.mappings.unsettle(index);
        self.draft.steps.push(Step::Unmap { domain: self.id, range: mapping.range });
        self.unmapped = Some(hull(self.unmapped, mapping.range));
        self.draft.changes.list.push(Change::Leaving(index));
        Ok(Iova(0))
    }
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
