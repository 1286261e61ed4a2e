//! What becomes of one map, unmap, grant or revoke: decided and marked, by itself or as an element of a batch.

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, MapFlags};

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::policy::buffers::take;
use crate::policy::change::{Change, Single};
use crate::policy::collections::ranges::Ranges;
use crate::policy::collections::slab::Slab;
use crate::policy::draft::Draft;
use crate::policy::event::{BatchRequest, MapRequest};
use crate::policy::ids::{DomainId, SessionId};
use crate::policy::iova::{SPACE_BITS, Wanted};
use crate::policy::plan::follow;
use crate::policy::registry::Registry;
use crate::policy::state::machine::Machine;
use crate::policy::state::mappings::{Mapping, MappingIndex};
use crate::policy::state::memory::Memory;
use crate::policy::state::objects::{Account, Buffer, Domain, Session, SlotRecord, Trust};
use crate::policy::step::Step;

/// A session whose mappings are to change, and what that needs of the registry.
pub(super) struct Work<'a> {
    id: DomainId,
    session_id: SessionId,
    session: &'a Session,
    machine: &'a Machine,
    domain: &'a mut Domain,
    slots: &'a mut Slab<SlotRecord>,
    buffers: &'a Slab<Buffer>,
    accounts: &'a mut Slab<Account>,
    closed: &'a Ranges,
}

impl Registry {
    /// What changing the mappings of a session needs; `None` when the session has no domain.
    #[inline(always)]
    pub(super) fn work(&mut self, session_id: SessionId) -> Result<Option<Work<'_>>, Refusal> {
        let session = self.sessions.get(session_id.0).ok_or(Refusal::BadHandle)?;
        self.machine.check_session(session)?;
        let Some(id) = session.domain else { return Ok(None) };
        let domain = self.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
        if domain.trust != Trust::Sound {
            return Err(Refusal::UnitFailed);
        }
        Ok(Some(Work {
            id,
            session_id,
            session,
            machine: &self.machine,
            domain,
            slots: &mut self.slots,
            buffers: &self.buffers,
            accounts: &mut self.accounts,
            closed: &self.closed,
        }))
    }
}

impl Work<'_> {
    /// The session's domain, and the account that its mappings are charged to.
    #[inline(always)]
    pub(super) const fn charged(&self) -> (DomainId, u32) {
        (self.id, self.session.client)
    }

    /// Decides one element of a batch and marks the registry accordingly. Returns what it comes to, but for the unit.
    #[inline(always)]
    pub(super) fn item(&mut self, item: &BatchRequest) -> Result<Single, Refusal> {
        let (domain, account) = self.charged();
        let mut single = Single { domain, account, ..Single::default() };
        match item {
            BatchRequest::Map(request) => self.map(request, &mut single),
            BatchRequest::Grant(request) => self.grant(request, &mut single),
            BatchRequest::Unmap { iova, length } => self.unmap(*iova, *length, &mut single),
            BatchRequest::Revoke { slot, offset, length } => {
                self.revoke(*slot, *offset, *length, &mut single)
            }
        }?;
        Ok(single)
    }

    #[inline(always)]
    pub(super) fn map(&mut self, request: &MapRequest, single: &mut Single) -> Result<(), Refusal> {
        let number = slot_of(self.session, request.slot)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        check(request, record.length)?;
        let account = account_for(self.accounts, self.session, self.machine)?;
        let range = addresses(self.domain, self.closed, self.machine, request)?;
        account.mappings += 1;
        enter(self.domain, record, (number, range, false), request, single);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn grant(
        &mut self,
        request: &MapRequest,
        single: &mut Single,
    ) -> Result<(), Refusal> {
        let number = slot_of(self.session, request.slot)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        check(request, record.length)?;
        let account = account_for(self.accounts, self.session, self.machine)?;
        let grants = record.granted.as_mut().ok_or(Refusal::BadOperation)?;
        let MapRequest { offset, length, .. } = *request;
        if !grants.is_free(offset, length) {
            return Err(Refusal::Mapped);
        }
        let first = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(first, length).ok_or(Refusal::Range)?;
        grants.set(offset, length, true);
        account.mappings += 1;
        enter(self.domain, record, (number, range, true), request, single);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn unmap(
        &mut self,
        iova: Iova,
        length: u64,
        single: &mut Single,
    ) -> Result<(), Refusal> {
        let Self { domain, slots, session_id, .. } = self;
        single.range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
        let left = domain.mappings.take_out(iova, length, |slot, grant| {
            let record = slots.get_mut(slot).filter(|record| record.session == *session_id)?;
            (!grant).then_some(&mut record.mappings)
        });
        leave(left, single)
    }

    #[inline(always)]
    pub(super) fn revoke(
        &mut self,
        slot: Slot,
        offset: u64,
        length: u64,
        single: &mut Single,
    ) -> Result<(), Refusal> {
        let number = slot_of(self.session, slot)?;
        let record = self.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let grants = record.granted.as_ref().ok_or(Refusal::BadOperation)?;
        let iova = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        single.range = IovaRange::new(iova, length).ok_or(Refusal::NotMapped)?;
        let left = self.domain.mappings.take_out(iova, length, |slot, grant| {
            (grant && slot == number).then_some(&mut record.mappings)
        });
        leave(left, single)
    }

    /// Whether what was decided is one change of memory in one piece for at most one unit, which makes room for
    /// nothing; then `single` is all of it.
    #[inline(always)]
    pub(super) fn is_plain(&self, single: &mut Single) -> bool {
        let unit = match *self.domain.active.as_slice() {
            [] => None,
            [(unit, _)] => Some(unit),
            _ => return false,
        };
        if single.mapped.is_none() {
            single.unit = unit.map(|unit| (unit, false));
            return true;
        }
        if self.domain.shape.has_larger_leaf(single.range) {
            return false;
        }
        single.unit = unit.map(|unit| (unit, self.machine.needs_publishing(unit)));
        if single.phys.is_none() {
            let memory = self.memory_of(single);
            let length = single.range.length();
            single.phys = memory.and_then(|memory| memory.contiguous(single.offset, length));
        }
        single.phys.is_some()
    }

    /// The memory of the buffer whose mapping was entered.
    #[inline(never)]
    fn memory_of(&self, single: &Single) -> Option<&Memory> {
        let (Change::Entered(_, slot) | Change::Left(_, slot)) = single.change;
        let buffer = self.slots.get(slot)?.buffer;
        self.buffers.get(buffer.0).map(|buffer| &buffer.memory)
    }

    /// Notes an element of a batch in the plan.
    #[inline(always)]
    pub(super) fn note(&self, single: &Single, draft: &mut Draft) {
        draft.changes.note(single);
        let Single { domain, range, .. } = *single;
        if single.mapped.is_some() {
            draft.changes.vacated |= draft.vacate(domain, self.domain, range);
        }
        match (single.mapped, single.phys) {
            (None, _) => draft.steps.push(Step::Unmap { domain, range }),
            (Some(access), Some(phys)) => {
                draft.steps.push(Step::Map { domain, range, phys, access });
            }
            (Some(access), None) => self.note_pieces(single, access, draft),
        }
    }

    /// Has memory mapped that is not in one piece.
    #[inline(never)]
    fn note_pieces(&self, single: &Single, access: Access, draft: &mut Draft) {
        let Single { domain, range, offset, .. } = *single;
        let Some(memory) = self.memory_of(single) else { return };
        memory.pieces(offset, range.length(), |at, phys, length| {
            if let Some(range) = IovaRange::new(Iova(range.first().0 + at), length) {
                draft.steps.push(Step::Map { domain, range, phys, access });
            }
        });
    }

    /// Orders what follows from all elements.
    pub(super) fn conclude(&self, draft: &mut Draft) {
        let units = self.domain.active.iter();
        let units = units.map(|&(unit, _)| (unit, self.machine.needs_publishing(unit)));
        let Draft { changes, steps, .. } = draft;
        let release = changes.unmapped.is_some() || changes.vacated;
        // A list takes every step.
        let Ok(()) = follow(self.id, changes.unmapped, changes.mapped, units, release, steps);
    }
}

/// The account of a session's client, if it may have one mapping more.
#[inline(always)]
fn account_for<'a>(
    accounts: &'a mut Slab<Account>,
    session: &Session,
    machine: &Machine,
) -> Result<&'a mut Account, Refusal> {
    let account = accounts.get_mut(session.client).ok_or(Refusal::Quota)?;
    if account.mappings < machine.config.quotas.mappings {
        Ok(account)
    } else {
        Err(Refusal::Quota)
    }
}

/// Number of the record of a slot.
#[inline(always)]
fn slot_of(session: &Session, slot: Slot) -> Result<u32, Refusal> {
    session.slots.get(slot.0 as usize).copied().flatten().ok_or(Refusal::BadHandle)
}

/// Enters a mapping of a slot, a grant or not.
#[inline(always)]
fn enter(
    domain: &mut Domain,
    record: &mut SlotRecord,
    (slot, range, grant): (u32, IovaRange, bool),
    request: &MapRequest,
    single: &mut Single,
) {
    let MapRequest { offset, access, .. } = *request;
    let mapping = Mapping { range, slot, offset, access, grant, list: false };
    let index = domain.mappings.insert(mapping, &mut record.mappings);
    single.range = range;
    single.offset = offset;
    single.phys = record.base.map(|base| PhysAddr(base.0 + offset));
    single.mapped = Some(access);
    single.change = Change::Entered(index, slot);
}

/// A mapping left, if there was one.
#[inline(always)]
fn leave(left: Option<(MappingIndex, u32)>, single: &mut Single) -> Result<(), Refusal> {
    let (index, slot) = left.ok_or(Refusal::NotMapped)?;
    single.mapped = None;
    single.change = Change::Left(index, slot);
    Ok(())
}

/// Takes addresses for a mapping.
#[inline(always)]
fn addresses(
    domain: &mut Domain,
    closed: &Ranges,
    machine: &Machine,
    request: &MapRequest,
) -> Result<IovaRange, Refusal> {
    let regions = machine.config.quotas.regions;
    let MapRequest { length, flags, iova, .. } = *request;
    if flags.contains(MapFlags::FIXED) {
        let range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
        return fixed(domain, closed, regions, range);
    }
    let above_4g = flags.contains(MapFlags::ABOVE_4G);
    take(domain, regions, Wanted { length, alignment: 0, boundary: 0, above_4g })
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

/// Whether a request names a part of a buffer of `size` bytes, in whole pages, with an access.
#[inline(always)]
pub(super) fn check(request: &MapRequest, size: u64) -> Result<(), Refusal> {
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
        Some(end) if end <= size => Ok(()),
        _ => Err(Refusal::Range),
    }
}
