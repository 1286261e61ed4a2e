//! Maps, unmaps, grants and revokes: the requests that drivers make for each transfer.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::Iova;
use crate::policy::draft::{Draft, Effect};
use crate::policy::event::{BatchRequest, Outcome, Refused};
use crate::policy::ids::SessionId;
use crate::policy::registry::Registry;
use crate::policy::state::memory::Memory;
use crate::policy::state::objects::SlotRecord;
use crate::policy::work::check;

impl Registry {
    pub(super) fn batch(
        &mut self,
        draft: &mut Draft,
        id: SessionId,
        items: &[BatchRequest],
    ) -> Result<Outcome, Refused> {
        let Some(mut work) = self.work(id)? else {
            return self.batch_direct(draft, id, items);
        };
        let outcome = each(items, |item| {
            let single = work.item(item)?;
            work.note(&single, draft);
            Ok(single.iova())
        })?;
        work.conclude(draft);
        Ok(outcome)
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
                check(request, record.length)?;
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
