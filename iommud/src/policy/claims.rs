//! Sessions: claim, attach, detach, close.
//!
//! ```text
//! attach   Block every member that policy lets through, forget; then open the attached member's entries
//! detach   Block, forget; the last one: then open what policy says
//! close    unmap what the session mapped, forget; block what is attached; give memory back to policy; free it
//! end      detach; destroy the page table; free memory
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;

use crate::addr::{Iova, IovaRange};
use crate::policy::collections::ranges::{Piece, Ranges, addresses, difference};
use crate::policy::config::Mode;
use crate::policy::draft::{Claimant, Draft, Effect, full, hull_of};
use crate::policy::event::Outcome;
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::iova::SPACE_BITS;
use crate::policy::registry::Registry;
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::{OwnerId, Purpose, Session, Trust, Unit};
use crate::policy::step::{Payer, Step};
use crate::policy::units::{last_tag, top_of};
use crate::topology::firmware::UnitKind;
use crate::topology::table::FunctionIndex;

impl Machine {
    #[inline(always)]
    fn check_unit(&self, unit: UnitIndex) -> Result<(), Refusal> {
        if matches!(self.unit(unit), Some(Unit::Enabled { .. })) {
            return Ok(());
        }
        self.not_up(unit)
    }

    #[cold]
    fn not_up(&self, unit: UnitIndex) -> Result<(), Refusal> {
        match self.unit(unit) {
            Some(Unit::Enabled { .. }) => Ok(()),
            Some(Unit::Failed) => Err(Refusal::UnitFailed),
            Some(Unit::Parsed) | None => Err(Refusal::NotReady),
        }
    }

    /// Refuses unless a session's device is there and behind no unit that failed.
    #[inline(always)]
    pub(super) fn check_session(&self, session: &Session) -> Result<(), Refusal> {
        if session.function.is_none() {
            return Err(Refusal::NotProbed);
        }
        session.unit.map_or(Ok(()), |unit| self.check_unit(unit))
    }
}

impl Registry {
    /// A session that is open.
    pub(super) fn open_session(&self, session: SessionId) -> Result<&Session, Refusal> {
        self.sessions.get(session.0).ok_or(Refusal::BadHandle)
    }

    /// Refuses unless a unit is up.
    pub(super) fn check_unit(&self, unit: UnitIndex) -> Result<(), Refusal> {
        self.machine.check_unit(unit)
    }

    pub(super) fn claim(
        &mut self,
        draft: &mut Draft,
        client: ClientId,
        address: PciAddress,
        parent: Option<SessionId>,
    ) -> Result<Outcome, Refusal> {
        let (index, function) = self.machine.find(address).ok_or(Refusal::NotProbed)?;
        let (unit, group) = (function.unit, function.group);
        match unit {
            Some(unit) => self.check_unit(unit)?,
            None if function.mode == Mode::Strict => return Err(Refusal::NoUnit),
            None if self.is_unit(address) => return Err(Refusal::Permission),
            None => {}
        }
        let claimant = self.claimant(client, group, parent)?;
        if function.session.is_some() {
            return Err(Refusal::Busy);
        }
        let account = match self.clients.get(&client) {
            Some(account) => *account,
            None => full(self.accounts.upcoming(0))?,
        };
        self.check_session_quota(account, claimant)?;
        let (owner, domain) = match claimant {
            Claimant::New(_) => (OwnerId(full(self.machine.owners.upcoming(0))?), None),
            Claimant::Join(owner) | Claimant::Member(owner) => {
                (owner, self.machine.owner(owner).and_then(|owner| owner.domain))
            }
        };
        let id = SessionId(full(self.sessions.upcoming(0))?);
        let domain = match unit {
            Some(unit) => Some(self.domain_for(draft, unit, (owner, account), group, domain)?),
            None => None,
        };
        self.prepare_end(draft, group)?;
        let session = Session {
            address,
            generation: self.machine.generation(address),
            function: Some(index),
            group,
            owner,
            client: account,
            unit,
            domain,
            slots: Vec::new(),
        };
        draft.effects.push(Effect::Claim(Box::new(session), claimant));
        Ok(Outcome::Session(id))
    }

    /// Whether the function is a unit itself (AMD-Vi).
    fn is_unit(&self, address: PciAddress) -> bool {
        self.machine.firmware.units.iter().any(|unit| {
            matches!(unit.kind, UnitKind::AmdVi { function, .. }
                if function == address.requester && unit.segment == address.segment)
        })
    }

    /// In whose name a group is claimed.
    fn claimant(
        &self,
        client: ClientId,
        group: GroupId,
        parent: Option<SessionId>,
    ) -> Result<Claimant, Refusal> {
        let held = self.machine.group(group).ok_or(Refusal::NotProbed)?.owner;
        let Some(parent) = parent else {
            return if held.is_some() { Err(Refusal::NotOwner) } else { Ok(Claimant::New(client)) };
        };
        let parent = self.open_session(parent)?;
        let account = self.accounts.get(parent.client).ok_or(Refusal::BadHandle)?;
        if account.client != client {
            return Err(Refusal::BadHandle);
        }
        if parent.function.is_none() {
            return Err(Refusal::NotProbed);
        }
        match held {
            None => Ok(Claimant::Join(parent.owner)),
            Some(owner) if owner == parent.owner => Ok(Claimant::Member(owner)),
            Some(_) => Err(Refusal::NotOwner),
        }
    }

    fn check_session_quota(&self, account: u32, claimant: Claimant) -> Result<(), Refusal> {
        let quotas = &self.machine.config.quotas;
        let (sessions, domains) = self
            .accounts
            .get(account)
            .map_or((0, 0), |account| (account.sessions, account.domains));
        let new = matches!(claimant, Claimant::New(_));
        if sessions >= quotas.sessions || new && domains >= quotas.domains {
            return Err(Refusal::Quota);
        }
        if new { self.check_tag_share(domains) } else { Ok(()) }
    }

    /// The owner's domain, with what firmware reserves for `group`; a new one for a new owner.
    fn domain_for(
        &mut self,
        draft: &mut Draft,
        unit: UnitIndex,
        (owner, account): (OwnerId, u32),
        group: GroupId,
        known: Option<DomainId>,
    ) -> Result<DomainId, Refusal> {
        let owned = self.machine.owner(owner).map_or(&[][..], |owner| owner.groups.as_slice());
        let groups: Vec<GroupId> = owned.iter().copied().chain([group]).collect();
        let needed = self.reserved_of_groups(&groups);
        let Some(id) = known else {
            let shape = self.shape_for(unit, &needed)?;
            let tag = last_tag(&self.machine);
            let of = (Purpose::Client, Payer::Account(account));
            let id = self.new_domain(draft, of, shape, tag, &needed)?;
            if let Some(Effect::Domain(domain)) = draft.effects.last_mut() {
                let mut closed = addresses(&needed);
                for (first, last) in self.closed.iter() {
                    closed.insert(first, last);
                }
                if let Some(beyond) = domain.shape.last_iova().checked_add(1) {
                    closed.insert(beyond, u64::MAX);
                }
                for range in in_space(&closed) {
                    domain.space.allocate_at(range);
                }
            }
            return Ok(id);
        };
        self.widen(draft, unit, id, needed)?;
        Ok(id)
    }

    pub(super) fn reserved_of_groups(&self, groups: &[GroupId]) -> Vec<Piece> {
        let members = groups.iter().filter_map(|group| self.machine.group(*group));
        self.machine.reserved_of_all(members.flat_map(|group| group.members.iter().copied()))
    }

    /// Lets a domain that is in use map what firmware reserves for one more device.
    fn widen(
        &mut self,
        draft: &mut Draft,
        unit: UnitIndex,
        id: DomainId,
        needed: Vec<Piece>,
    ) -> Result<(), Refusal> {
        let domain = self.domain(id)?;
        if domain.trust != Trust::Sound {
            return Err(Refusal::UnitFailed);
        }
        if let Some(Unit::Enabled { capabilities, .. }) = self.machine.unit(unit)
            && !(domain.shape.serves(capabilities) && domain.tag.0 <= capabilities.last_tag)
        {
            return Err(Refusal::Unsupported);
        }
        self.deepen(draft, id, unit, top_of(&needed))?;
        let domain = self.domains.get_mut(id.0).ok_or(Refusal::BadHandle)?;
        let mut new = addresses(&needed);
        for (first, last) in addresses(&domain.reserved).iter() {
            new.remove(first, last);
        }
        for (first, last) in self.closed.iter() {
            new.remove(first, last);
        }
        for range in in_space(&new) {
            if !domain.space.allocate_at(range) {
                return Err(Refusal::Reserved);
            }
            draft.effects.push(Effect::Space(id, range));
        }
        self.change_reserved(draft, id, needed)
    }

    /// Makes a domain map just these pieces for firmware.
    fn change_reserved(
        &self,
        draft: &mut Draft,
        id: DomainId,
        needed: Vec<Piece>,
    ) -> Result<(), Refusal> {
        let domain = self.domain(id)?;
        let (enter, remove) = difference(&domain.reserved, &needed);
        draft.unmap_pieces(id, &remove);
        if let Some(range) = hull_of(&remove) {
            draft.invalidate(id, domain, range);
            draft.last.push(Step::ReleaseTables { domain: id });
        }
        draft.enter_pieces(id, domain, &enter);
        if let Some(range) = hull_of(&enter) {
            draft.publish(&self.machine, id, domain, range);
        }
        if !(enter.is_empty() && remove.is_empty()) {
            draft.effects.push(Effect::Reserved(id, needed));
        }
        Ok(())
    }

    /// The function of a session, and whether it is attached.
    fn movable(&self, session: SessionId) -> Result<(FunctionIndex, bool), Refusal> {
        let session = self.open_session(session)?;
        let index = session.function.ok_or(Refusal::NotProbed)?;
        let attached = self.machine.function(index).is_some_and(|function| function.attached);
        Ok((index, attached))
    }

    pub(super) fn attach(&mut self, draft: &mut Draft, id: SessionId) -> Result<(), Refusal> {
        let (index, attached) = self.movable(id)?;
        if attached {
            return Ok(());
        }
        let group = self.usable(id)?.group;
        self.machine.set_attached(index, true);
        draft.effects.push(Effect::Attached(index, true));
        if self.machine.set_cut(index, false) {
            draft.effects.push(Effect::Cut(index, false));
        }
        self.rebind_groups(draft, &[group])
    }

    pub(super) fn detach(&mut self, draft: &mut Draft, id: SessionId) -> Result<(), Refusal> {
        let (index, attached) = self.movable(id)?;
        if !attached {
            return Ok(());
        }
        let group = self.open_session(id)?.group;
        self.machine.set_attached(index, false);
        draft.effects.push(Effect::Attached(index, false));
        self.rebind_groups(draft, &[group])
    }

    pub(super) fn close(
        &mut self,
        draft: &mut Draft,
        closing: &[SessionId],
    ) -> Result<(), Refusal> {
        let mut groups: Vec<(GroupId, u32)> = Vec::new();
        let mut owners: Vec<(OwnerId, u32)> = Vec::new();
        let mut buffers: Vec<(BufferId, u32)> = Vec::new();
        for id in closing {
            let session = self.open_session(*id)?;
            if session.function.is_some() {
                count(&mut groups, session.group);
            }
            count(&mut owners, session.owner);
            for slot in session.slots.iter().flatten() {
                if let Some(slot) = self.slots.get(*slot) {
                    count(&mut buffers, slot.buffer);
                }
            }
        }
        let ends = |owner: OwnerId| {
            let closing = owners.iter().find(|(id, _)| *id == owner).map_or(0, |(_, n)| *n);
            self.machine.owner(owner).is_none_or(|owner| owner.sessions <= closing)
        };
        let lasting: Vec<_> = closing
            .iter()
            .copied()
            .filter(|id| self.open_session(*id).is_ok_and(|session| !ends(session.owner)))
            .collect();
        let ended: Vec<OwnerId> =
            owners.iter().map(|(owner, _)| *owner).filter(|owner| ends(*owner)).collect();
        for id in lasting {
            self.unmap_session(draft, id)?;
        }
        self.mark_closing(draft, closing, &groups);
        let touched: Vec<GroupId> = groups.iter().map(|(group, _)| *group).collect();
        self.rebind_groups(draft, &touched)?;
        for (owner, _) in owners.iter().filter(|(owner, _)| !ended.contains(owner)) {
            self.narrow(draft, &self.machine, *owner)?;
        }
        for owner in ended {
            self.end_domain(draft, owner)?;
        }
        draft.effects.extend(closing.iter().map(|id| Effect::Close(*id)));
        for (buffer, slots) in buffers {
            self.release_if_last(draft, buffer, slots, closing)?;
        }
        Ok(())
    }

    /// Marks members as detached and groups as free, as they will be.
    fn mark_closing(
        &mut self,
        draft: &mut Draft,
        closing: &[SessionId],
        groups: &[(GroupId, u32)],
    ) {
        for id in closing {
            let index = self.sessions.get(id.0).and_then(|session| session.function);
            let Some(index) = index else { continue };
            if self.machine.function(index).is_some_and(|function| function.attached) {
                self.machine.set_attached(index, false);
                draft.effects.push(Effect::Attached(index, false));
                if !self.machine.set_cut(index, true) {
                    draft.effects.push(Effect::Cut(index, true));
                }
            }
        }
        for (id, sessions) in groups {
            let Some(group) = self.machine.groups.get_mut(id.0) else { continue };
            if group.sessions > *sessions {
                continue;
            }
            let Some(owner) = group.owner.take() else { continue };
            let members = group.members.to_vec();
            let mut late = Vec::new();
            for member in members {
                if let Some(function) = self.machine.function_mut(member)
                    && core::mem::take(&mut function.late)
                {
                    late.push(member);
                }
            }
            draft.effects.push(Effect::Freed(*id, owner, late));
        }
    }

    /// Takes from an owner's domain what firmware reserves for devices that are not with it any more. `machine` is
    /// as it will be. Nothing enters: what a member that came late needs does so when it is claimed, and may be
    /// refused then, which the end of a session or of a device may not.
    pub(super) fn narrow(
        &self,
        draft: &mut Draft,
        machine: &Machine,
        id: OwnerId,
    ) -> Result<(), Refusal> {
        let Some(owner) = machine.owner(id) else { return Ok(()) };
        let Some(domain) = owner.domain.filter(|_| !machine.firmware.reserved.is_empty()) else {
            return Ok(());
        };
        if self.domain(domain)?.trust == Trust::Suspect {
            return Ok(());
        }
        let groups = owner.groups.iter().filter_map(|group| machine.group(*group));
        let still = groups.filter(|group| group.owner == Some(id));
        let members = still.flat_map(|group| group.members.iter().copied());
        let needed = machine.reserved_of_all(members);
        let had = addresses(&self.domain(domain)?.reserved);
        let kept = needed.iter().flat_map(|piece| {
            let (first, last) = (piece.range.first().0, piece.range.last().0);
            let parts = had.within(first, last);
            parts.filter_map(|part| Piece::identity(part, piece.access()))
        });
        self.change_reserved(draft, domain, kept.collect())
    }

    /// Ends the domain of an owner; one that a failed unit may still use is kept until that is proved to have
    /// forgotten it.
    fn end_domain(&self, draft: &mut Draft, owner: OwnerId) -> Result<(), Refusal> {
        let domain = self.machine.owner(owner).and_then(|owner| owner.domain);
        if let Some(id) = domain
            && self.domain(id)?.trust != Trust::Suspect
        {
            draft.last.push(Step::DestroyTable { domain: id });
            draft.effects.push(Effect::DropDomain(id));
        }
        Ok(())
    }
}

/// One more of these.
fn count<T: PartialEq>(counts: &mut Vec<(T, u32)>, of: T) {
    match counts.iter_mut().find(|(known, _)| *known == of) {
        Some((_, count)) => *count += 1,
        None => counts.push((of, 1)),
    }
}

/// The ranges of a set that a space hands out.
pub(super) fn in_space(set: &Ranges) -> impl Iterator<Item = IovaRange> {
    set.within(0, (1 << SPACE_BITS) - 1)
        .filter_map(|(first, last)| IovaRange::inclusive(Iova(first), Iova(last)))
}
