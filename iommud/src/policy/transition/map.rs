//! Maps, unmaps, grants and revokes: the requests that drivers make for each transfer. A single one is a batch of one.
//!
//! Everything that a batch has in common is looked up once: the session, its domain, its account. The steps follow in
//! the order of the elements. One invalidation for each unit, around everything that was unmapped, comes after them.

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::policy::collections::ranges::{Ranges, hull};
use crate::policy::collections::slab::Slab;
use crate::policy::config::Quotas;
use crate::policy::decision::Decision;
use crate::policy::event::{Batch, BatchRequest, MapRequest, Refused};
use crate::policy::ids::{BufferId, DomainId, SessionId};
use crate::policy::iova::Wanted;
use crate::policy::journal::{Change, Journal};
use crate::policy::plan::Orders;
use crate::policy::state::domain::{Domain, Trust};
use crate::policy::state::machine::Machine;
use crate::policy::state::mappings::{Mapping, MappingIndex};
use crate::policy::state::objects::{Account, Buffer, Session, SlotRecord};
use crate::policy::step::{Charge, Step};
use crate::policy::transition::request::check;
use crate::policy::transition::{Request, unconfined};

impl Request for Batch<'_> {
    type Outcome = ();

    #[inline]
    fn decide(&self, decision: &mut Decision<'_>) -> Result<(), Refused> {
        let Self(session, items) = *self;
        let Some((mut work, slots)) = Work::new(decision, session)? else {
            return each(items, |item| {
                let iova = unconfined::carry_out(decision, session, item)?;
                decision.plan.addresses.push(iova);
                Ok(())
            });
        };
        each(items, |item| {
            let iova = work.item(slots, item)?;
            work.plan.addresses.push(iova);
            Ok(())
        })?;
        work.conclude();
        Ok(())
    }
}

/// Carries out elements in order. The error has the index of the one that was refused.
#[inline]
fn each(
    items: &[BatchRequest],
    mut work: impl FnMut(&BatchRequest) -> Result<(), Refusal>,
) -> Result<(), Refused> {
    for (at, item) in items.iter().enumerate() {
        if let Err(refusal) = work(item) {
            return Err(Refused { refusal, item: u32::try_from(at).unwrap_or(u32::MAX) });
        }
    }
    Ok(())
}

/// The records of slots.
type Slots = Slab<SlotRecord>;

/// A session whose mappings change, with the parts of the state and of the decision that this needs.
struct Work<'a> {
    id: DomainId,
    session_id: SessionId,
    session: &'a mut Session,
    machine: &'a Machine,
    quotas: &'a Quotas,
    domain: &'a mut Domain,
    buffers: &'a Slab<Buffer>,
    account: &'a mut Account,
    excluded: &'a Ranges,
    plan: &'a mut Orders,
    journal: &'a mut Journal,
    /// A range around everything that was mapped.
    mapped: Option<IovaRange>,
    /// A range around everything that was unmapped.
    unmapped: Option<IovaRange>,
}

impl<'a> Work<'a> {
    /// Also returns the records of slots; `None` when no unit confines the session's device.
    #[inline]
    fn new(
        decision: &'a mut Decision<'_>,
        session_id: SessionId,
    ) -> Result<Option<(Self, &'a mut Slots)>, Refusal> {
        let state = &mut *decision.state;
        let session = state.sessions.get_mut(session_id.0).ok_or(Refusal::BadHandle)?;
        state.machine.check_session(session)?;
        let Some(id) = session.domain else { return Ok(None) };
        let domain = state.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
        if domain.trust != Trust::Sound {
            return Err(Refusal::UnitFailed);
        }
        let client = session.client;
        decision.plan.charge = Charge::Account(client);
        let work = Self {
            id,
            session_id,
            session,
            machine: &state.machine,
            quotas: &state.machine.config.quotas,
            domain,
            buffers: &state.buffers,
            account: state.accounts.get_mut(client).ok_or(Refusal::Quota)?,
            excluded: &state.excluded,
            plan: &mut *decision.plan,
            journal: &mut *decision.journal,
            mapped: None,
            unmapped: None,
        };
        Ok(Some((work, &mut state.slots)))
    }

    /// Decides one element; returns its address, 0 for an unmap or revoke.
    #[inline]
    fn item(&mut self, slots: &mut Slots, item: &BatchRequest) -> Result<Iova, Refusal> {
        match item {
            BatchRequest::Map(request) => self.map(slots, request),
            BatchRequest::Grant(request) => self.grant(slots, request),
            BatchRequest::Unmap { iova, length } => self.unmap(slots, *iova, *length),
            BatchRequest::Revoke { slot, offset, length } => {
                self.revoke(slots, *slot, (*offset, *length))
            }
        }
    }

    fn map(&mut self, slots: &mut Slots, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = self.session.slot(request.slot)?;
        let record = slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        check(request, record.length)?;
        check_quota(self.account, self.quotas)?;
        let MapRequest { length, flags, iova, .. } = *request;
        let regions = self.quotas.regions;
        let range = if flags.contains(MapFlags::FIXED) {
            let range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
            self.domain.take_addresses_at(regions, range, self.excluded)?
        } else {
            let above_4g = flags.contains(MapFlags::ABOVE_4G);
            let wanted = Wanted { length, alignment: 0, boundary: 0, above_4g };
            self.domain.take_addresses(regions, wanted)?
        };
        Ok(self.enter((number, record), range, request, false))
    }

    fn grant(&mut self, slots: &mut Slots, request: &MapRequest) -> Result<Iova, Refusal> {
        let number = self.session.slot(request.slot)?;
        let record = slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        check(request, record.length)?;
        check_quota(self.account, self.quotas)?;
        let grants = record.granted.as_mut().ok_or(Refusal::BadOperation)?;
        let MapRequest { offset, length, .. } = *request;
        if !grants.is_free(offset, length) {
            return Err(Refusal::Mapped);
        }
        let first = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(first, length).ok_or(Refusal::Range)?;
        grants.set(offset, length, true);
        Ok(self.enter((number, record), range, request, true))
    }

    fn unmap(&mut self, slots: &mut Slots, iova: Iova, length: u64) -> Result<Iova, Refusal> {
        let range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
        let session_id = self.session_id;
        let left = self.domain.mappings.take_out(iova, length, |slot, grant| {
            let record = slots.get_mut(slot).filter(|record| record.session == session_id)?;
            (!grant).then_some(&mut record.mappings)
        });
        self.leave(left, range)
    }

    fn revoke(
        &mut self,
        slots: &mut Slots,
        slot: Slot,
        (offset, length): (u64, u64),
    ) -> Result<Iova, Refusal> {
        let number = self.session.slot(slot)?;
        let record = slots.get_mut(number).ok_or(Refusal::BadHandle)?;
        let grants = record.granted.as_ref().ok_or(Refusal::BadOperation)?;
        let iova = grants.range.first().checked_add(offset).ok_or(Refusal::Range)?;
        let range = IovaRange::new(iova, length).ok_or(Refusal::NotMapped)?;
        let left = self.domain.mappings.take_out(iova, length, |slot, grant| {
            (grant && slot == number).then_some(&mut record.mappings)
        });
        self.leave(left, range)
    }

    /// Inserts a mapping or a grant of a slot.
    #[inline]
    fn enter(
        &mut self,
        (slot, record): (u32, &mut SlotRecord),
        range: IovaRange,
        request: &MapRequest,
        grant: bool,
    ) -> Iova {
        let MapRequest { offset, access, .. } = *request;
        let mapping = Mapping { range, slot, offset, access, grant, list: false };
        let index = self.domain.mappings.insert(mapping, &mut record.mappings);
        self.account.mappings += 1;
        self.session.tally.map(range.length());
        self.journal.note(Change::Entered(self.id, index, slot));
        self.mapped = Some(hull(self.mapped, range));
        match record.base {
            Some(base) => {
                let (domain, phys) = (self.id, PhysAddr(base.0 + offset));
                self.plan.steps.push(Step::Map { domain, range, phys, access });
            }
            None => self.map_pieces(record.buffer, &mapping),
        }
        range.first()
    }

    /// Maps memory of several segments.
    #[inline(never)]
    fn map_pieces(&mut self, buffer: BufferId, mapping: &Mapping) {
        let Mapping { range, offset, access, .. } = *mapping;
        let domain = self.id;
        let Some(buffer) = self.buffers.get(buffer.0) else { return };
        let steps = &mut self.plan.steps;
        buffer.memory.pieces(offset, range.length(), |at, phys, length| {
            if let Some(range) = IovaRange::new(Iova(range.first().0 + at), length) {
                steps.push(Step::Map { domain, range, phys, access });
            }
        });
    }

    /// Records that a mapping was taken out; `NotMapped` when there was none.
    #[inline]
    fn leave(
        &mut self,
        left: Option<(MappingIndex, u32, u32)>,
        range: IovaRange,
    ) -> Result<Iova, Refusal> {
        let (index, slot, charge) = left.ok_or(Refusal::NotMapped)?;
        self.account.charge(charge, false);
        self.session.tally.unmap(range.length());
        self.journal.note(Change::Left(self.id, index, slot));
        self.unmapped = Some(hull(self.unmapped, range));
        self.plan.steps.push(Step::Unmap { domain: self.id, range });
        Ok(Iova(0))
    }

    /// Adds the steps that come once for the whole batch.
    #[inline]
    fn conclude(&mut self) {
        let (domain, steps) = (self.id, &mut self.plan.steps);
        if let Some(range) = self.unmapped {
            let units = self.domain.active.iter();
            steps.extend(units.map(|&(unit, _)| Step::Invalidate { unit, domain, range }));
            self.plan.last.push(Step::ReleaseTables { domain });
        }
        if let Some(range) = self.mapped {
            let units = self.domain.active.iter().map(|(unit, _)| *unit);
            let units = units.filter(|unit| self.machine.needs_publishing(*unit));
            steps.extend(units.map(|unit| Step::Publish { unit, domain, range }));
        }
    }
}

/// Refuses unless a client may have one more mapping.
#[inline]
const fn check_quota(account: &Account, quotas: &Quotas) -> Result<(), Refusal> {
    if account.mappings < quotas.mappings { Ok(()) } else { Err(Refusal::Quota) }
}
