//! Views of owners' domains: the sessions in them, their buffers, and what is mapped.

use iommu_protocol::ids::Slot;

use crate::addr::IovaRange;
use crate::policy::ids::{DomainId, SessionId};
use crate::policy::registry::Registry;
use crate::policy::state::unmapped::Unmapped;
use crate::policy::view::{MappingView, SlotView};

impl Registry {
    /// The domains that sessions have. Each comes once for each session in it, in order of sessions.
    pub fn session_domains(&self) -> impl Iterator<Item = (SessionId, DomainId)> + '_ {
        let sessions = self.state.sessions.iter();
        sessions.filter_map(|(id, session)| Some((SessionId(id), session.domain?)))
    }

    /// The buffers that a session knows, by slot; `None` for a slot that is free.
    pub fn slots(&self, session: SessionId) -> impl Iterator<Item = Option<SlotView>> + '_ {
        let slots = self.state.sessions.get(session.0).map(|session| session.slots.as_slice());
        slots.unwrap_or_default().iter().map(|slot| self.slot((*slot)?))
    }

    fn slot(&self, record: u32) -> Option<SlotView> {
        let record = self.state.slots.get(record)?;
        let reserved = record.granted.as_ref().map(|grants| grants.range);
        Some(SlotView { slot: record.number, length: record.length, reserved })
    }

    /// The ranges that a domain unmapped last, the last one first, each with its age in milliseconds.
    pub fn unmapped(&self, domain: DomainId) -> impl Iterator<Item = (IovaRange, u32)> + '_ {
        let domain = self.state.domains.get(domain.0);
        let ranges = domain.into_iter().flat_map(|domain| domain.unmapped.iter());
        ranges.map(|Unmapped { range, at }| (range, self.state.time.wrapping_sub(at)))
    }

    /// The mappings of a buffer in the domain of a session, oldest first. None where no unit confines the device.
    pub fn mappings(
        &self,
        session: SessionId,
        slot: Slot,
    ) -> impl Iterator<Item = MappingView> + '_ {
        let known = || {
            let session = self.state.sessions.get(session.0)?;
            let record = self.state.slots.get(session.slot(slot).ok()?)?;
            Some((self.state.domains.get(session.domain?.0)?, record))
        };
        let mappings =
            known().into_iter().flat_map(|(domain, record)| domain.mappings.list(&record.mappings));
        mappings.map(|(_, mapping)| MappingView {
            range: mapping.range,
            offset: (!mapping.list).then_some(mapping.offset),
            access: mapping.access,
        })
    }
}
