//! Pages of a buffer, in any order, at consecutive addresses: one mapping for a whole scattered transfer.
//!
//! Everything that the pages have in common is checked once; a page costs a comparison and the look-up of its
//! address.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MapFlags;

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::policy::decision::Decision;
use crate::policy::event::{BatchRequest, ListRequest, MapList, MapRequest, Refused};
use crate::policy::ids::SessionId;
use crate::policy::iova::Wanted;
use crate::policy::journal::Change;
use crate::policy::state::mappings::Mapping;
use crate::policy::state::memory::Memory;
use crate::policy::state::objects::Buffer;
use crate::policy::step::{Charge, Step};
use crate::policy::transition::{Request, unconfined};

impl Request for MapList<'_> {
    type Outcome = Iova;

    fn decide(&self, decision: &mut Decision<'_>) -> Result<Iova, Refused> {
        map(decision, self.0, self.1)
    }
}

/// Each page counts as one of the mappings that the client may make.
fn map(decision: &mut Decision<'_>, id: SessionId, request: &ListRequest) -> Result<Iova, Refused> {
    let ListRequest { slot, access, flags, iova, ref pages } = *request;
    if access.is_empty() || access.bits() & !3 != 0 {
        return Err(Refusal::BadAccess.into());
    }
    let state = &mut *decision.state;
    let session = state.usable(id)?;
    let Some(domain_id) = session.domain else { return direct(decision, id, request) };
    let (number, client) = (session.slot(slot)?, session.client);
    decision.plan.charge = Charge::Account(client);
    let account = state.accounts.get_mut(client).ok_or(Refusal::Quota)?;
    let record = state.slots.get_mut(number).ok_or(Refusal::BadHandle)?;
    let buffer = state.buffers.get(record.buffer.0).ok_or(Refusal::BadHandle)?;
    if pages.is_empty() {
        return Err(Refusal::Range.into());
    }
    within(pages, buffer)?;
    let length = bytes(pages.len())?;
    let quotas = &state.machine.config.quotas;
    let left = quotas.mappings.saturating_sub(account.mappings);
    if left < u32::try_from(pages.len()).unwrap_or(u32::MAX) {
        return Err(Refusal::Quota.into());
    }
    let domain = state.domains.get_mut(domain_id.0).ok_or(Refusal::BadHandle)?;
    let range = if flags.contains(MapFlags::FIXED) {
        let range = IovaRange::new(iova, length).ok_or(Refusal::Range)?;
        domain.take_addresses_at(quotas.regions, range, &state.excluded)?
    } else {
        let above_4g = flags.contains(MapFlags::ABOVE_4G);
        let wanted = Wanted { length, alignment: 0, boundary: 0, above_4g };
        domain.take_addresses(quotas.regions, wanted)?
    };
    let mapping = Mapping { range, slot: number, offset: 0, access, grant: false, list: true };
    let index = domain.mappings.insert(mapping, &mut record.mappings);
    account.charge(mapping.charge(), true);
    decision.journal.note(Change::Entered(domain_id, index, number));
    buffer.memory.addresses(pages, &mut decision.plan.pages);
    decision.step(Step::MapList { domain: domain_id, range, access });
    decision.publish(domain_id, range);
    decision.state.tally(number, length, true);
    Ok(range.first())
}

/// Maps for a device that no unit confines, which uses physical addresses. Its pages must follow each other, as one
/// range; `Unsupported` otherwise.
fn direct(
    decision: &mut Decision<'_>,
    id: SessionId,
    request: &ListRequest,
) -> Result<Iova, Refused> {
    let ListRequest { slot, access, flags, iova, ref pages } = *request;
    let Some(&first) = pages.first() else { return Err(Refusal::Range.into()) };
    if pages.iter().zip(u64::from(first)..).any(|(page, next)| u64::from(*page) != next) {
        return Err(Refusal::Unsupported.into());
    }
    let (offset, length) = (u64::from(first) * PAGE_SIZE, bytes(pages.len())?);
    let map = BatchRequest::Map(MapRequest { slot, offset, length, iova, access, flags });
    Ok(unconfined::carry_out(decision, id, &map)?)
}

fn bytes(pages: usize) -> Result<u64, Refusal> {
    u64::try_from(pages).ok().and_then(|pages| pages.checked_mul(PAGE_SIZE)).ok_or(Refusal::Range)
}

/// Refuses unless all pages are within the buffer.
fn within(pages: &[u32], buffer: &Buffer) -> Result<(), Refused> {
    let count = buffer.length / PAGE_SIZE;
    // One pass without a branch for each page. The index of a wrong page is searched only when there is one.
    let highest = pages.iter().fold(0, |highest, page| highest.max(*page));
    if u64::from(highest) < count {
        return Ok(());
    }
    let at = pages.iter().position(|page| u64::from(*page) >= count).unwrap_or(0);
    Err(Refused { refusal: Refusal::Range, item: u32::try_from(at).unwrap_or(u32::MAX) })
}

impl Memory {
    /// Adds the address of each page to `into`. All pages are within the buffer.
    fn addresses(&self, pages: &[u32], into: &mut Vec<PhysAddr>) {
        match self {
            Self::One(range) => {
                let base = range.first().0;
                into.extend(pages.iter().map(|page| PhysAddr(base + u64::from(*page) * PAGE_SIZE)));
            }
            Self::Many(many) => {
                // Neighbours are mostly in the same segment.
                let (mut start, mut end, mut base) = (0, 0, 0);
                into.extend(pages.iter().map(|page| {
                    let offset = u64::from(*page) * PAGE_SIZE;
                    if !(start..end).contains(&offset) {
                        let at = many.partition_point(|(at, _)| *at <= offset).saturating_sub(1);
                        if let Some((at, range)) = many.get(at) {
                            (start, end, base) = (*at, at + range.length(), range.first().0);
                        }
                    }
                    PhysAddr(base + (offset - start))
                }));
            }
        }
    }
}
