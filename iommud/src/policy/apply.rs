//! What commit and abort do to the registry, change by change.

use alloc::vec::Vec;

use crate::policy::claims::in_space;
use crate::policy::collections::ranges::{Piece, addresses};
use crate::policy::draft::{Claimant, Effect};
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, Key, SessionId};
use crate::policy::registry::Registry;
use crate::policy::state::mappings::Mapping;
use crate::policy::state::objects::{Account, Buffer, Owner, Purpose, Session, SlotRecord, Trust};
use crate::policy::step::Binding;

impl Registry {
    /// Makes a change that was decided.
    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Map(domain, mapping) => self.apply_map(domain, mapping),
            Effect::Direct { slot, more, .. } => self.count_mapping(slot, more),
            Effect::AddFunction(function) => drop(self.machine.add(function)),
            Effect::Machine(machine) => self.machine = *machine,
            Effect::Orphan(session) => {
                if let Some(session) = self.sessions.get_mut(session.0) {
                    session.function = None;
                }
            }
            Effect::Bind { key, was, now } => self.apply_bind(key, was, now),
            Effect::Silenced(key, silent) => self.machine.sources.suppress_faults(key, silent),
            Effect::Domain(domain) => {
                self.tags.set(domain.tag, true);
                self.domains.insert(*domain);
            }
            Effect::DropDomain(domain) => {
                if let Some(domain) = self.domains.remove(domain.0) {
                    self.tags.set(domain.tag, false);
                }
            }
            Effect::Flushed(unit, true) => self.tags.flushed(unit),
            Effect::Flushed(unit, false) => self.tags.failed(unit),
            Effect::Taint(domain) => {
                if let Some(domain) = self.domains.get_mut(domain.0) {
                    domain.trust = Trust::Suspect;
                }
            }
            Effect::Retire(domain) => {
                if let Some(domain) = self.domains.get_mut(domain.0) {
                    domain.trust = Trust::Retired;
                }
            }
            Effect::Proved(buffer) => {
                if let Some(buffer) = self.buffers.get_mut(buffer.0) {
                    buffer.unproved = false;
                }
            }
            Effect::Deepen(domain, levels) => {
                if let Some(domain) = self.domains.get_mut(domain.0) {
                    domain.shape.format.levels = levels;
                }
            }
            Effect::Reserved(domain, pieces) => self.apply_reserved(domain, pieces),
            Effect::Shared(shared, domain) => {
                self.machine.shared.insert(shared, domain);
            }
            Effect::Compat(ranges, mapped) => {
                for (first, last) in ranges {
                    if mapped {
                        self.compat.insert(first, last);
                    } else {
                        self.compat.remove(first, last);
                    }
                }
            }
            Effect::Claim(session, claimant) => self.apply_claim(*session, claimant),
            Effect::Close(session) => self.apply_close(session),
            Effect::Buffer(buffer, record) => self.apply_buffer(*buffer, *record),
            Effect::Import(record) => {
                if let Some(buffer) = self.buffers.get_mut(record.buffer.0) {
                    buffer.slots += 1;
                }
                self.enter_slot(*record);
            }
            Effect::DropSlot(slot) => self.drop_slot(slot, true),
            Effect::Hold(buffer, more) => {
                if let Some(buffer) = self.buffers.get_mut(buffer.0) {
                    buffer.holds = if more { buffer.holds + 1 } else { buffer.holds - 1 };
                }
            }
            Effect::Release(buffer) => self.apply_release(buffer),
            Effect::Owe(what, true) => {
                self.owed.insert(what);
            }
            Effect::Owe(what, false) => {
                self.owed.remove(&what);
            }
            Effect::Space(..) | Effect::Attached(..) | Effect::Cut(..) | Effect::Freed(..) => {}
        }
    }

    /// Takes back, last first, what was marked when the plan was drawn up.
    pub(super) fn take_back(&mut self, effects: &mut Vec<Effect>) {
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Map(domain, Mapping { range, .. }) | Effect::Space(domain, range) => {
                    if let Some(domain) = self.domains.get_mut(domain.0) {
                        domain.space.free(range);
                    }
                }
                Effect::Direct { slot, offset, length, more } => {
                    if let Some(record) = self.slots.get_mut(slot) {
                        // Known to be there, or to have been: it cannot be refused.
                        let _ = record.count_direct(offset, length, !more);
                    }
                }
                Effect::Attached(function, attached) => {
                    self.machine.set_attached(function, !attached);
                }
                Effect::Cut(function, cut) => {
                    self.machine.set_cut(function, !cut);
                }
                Effect::Freed(group, owner, late) => {
                    if let Some(group) = self.machine.groups.get_mut(group.0) {
                        group.owner = Some(owner);
                    }
                    for member in late {
                        if let Some(function) = self.machine.function_mut(member) {
                            function.late = true;
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Marks as unproved what the changes would have mapped, and what the entries they would have changed point
    /// to; a buffer that they would have entered is entered, known to nobody.
    pub(super) fn keep_unproved(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.iter() {
            if let Effect::Map(_, mapping) = effect
                && let Some(slot) = self.slots.get(mapping.slot)
                && let Some(buffer) = self.buffers.get_mut(slot.buffer.0)
            {
                buffer.unproved = true;
            }
            if let Effect::Bind { now: Binding::Domain(domain), .. } = effect
                && let Some(domain) = self.domains.get_mut(domain.0)
                && domain.purpose == Purpose::Client
            {
                domain.trust = Trust::Suspect;
            }
        }
        // The rest of the changes is taken back by abort.
        let at = effects.iter().position(|effect| matches!(effect, Effect::Buffer(..)));
        if let Some(at) = at
            && let Effect::Buffer(mut buffer, _) = effects.remove(at)
        {
            buffer.slots = 0;
            buffer.unproved = true;
            // The steps that took it out of policy `compat` were undone.
            buffer.taken.clear();
            self.insert_buffer(*buffer, false);
        }
    }

    fn apply_bind(&mut self, key: Key, was: Binding, now: Binding) {
        for (binding, more) in [(was, false), (now, true)] {
            if let Binding::Domain(domain) = binding
                && let Some(domain) = self.domains.get_mut(domain.0)
            {
                domain.count_entry(key.0, more);
            }
        }
        if let Some(source) = self.machine.sources.get_mut(key) {
            source.binding = now;
        }
    }

    /// Gives back the addresses that are no longer reserved; new ones were taken when the plan was drawn up.
    fn apply_reserved(&mut self, id: DomainId, pieces: Vec<Piece>) {
        let Some(domain) = self.domains.get_mut(id.0) else { return };
        if domain.purpose == Purpose::Client {
            let mut gone = addresses(&domain.reserved);
            for (first, last) in addresses(&pieces).iter() {
                gone.remove(first, last);
            }
            for (first, last) in self.closed.iter() {
                gone.remove(first, last);
            }
            for range in in_space(&gone) {
                domain.space.free(range);
            }
        }
        domain.reserved = pieces;
    }

    fn apply_claim(&mut self, session: Session, claimant: Claimant) {
        let (group, owner, function) = (session.group, session.owner, session.function);
        match claimant {
            Claimant::New(client) => {
                self.enter_account(client, session.client);
                let owner = Owner {
                    client: session.client,
                    domain: session.domain,
                    sessions: 0,
                    groups: alloc::vec![group],
                };
                self.machine.owners.insert(owner);
                if let Some(account) = self.accounts.get_mut(session.client) {
                    account.domains += 1;
                }
            }
            Claimant::Join(owner) => {
                if let Some(owner) = self.machine.owners.get_mut(owner.0) {
                    owner.groups.push(group);
                }
            }
            Claimant::Member(_) => {}
        }
        if let Some(owner) = self.machine.owners.get_mut(owner.0) {
            owner.sessions += 1;
            owner.domain = owner.domain.or(session.domain);
        }
        if let Some(group) = self.machine.groups.get_mut(group.0) {
            group.owner = Some(owner);
            group.sessions += 1;
        }
        if let Some(account) = self.accounts.get_mut(session.client) {
            account.sessions += 1;
        }
        let number = self.sessions.insert(session).map(SessionId);
        if let Some(function) = function.and_then(|index| self.machine.function_mut(index)) {
            function.session = number;
        }
    }

    fn enter_account(&mut self, client: ClientId, account: u32) {
        if self.clients.contains_key(&client) {
            return;
        }
        self.accounts.insert(Account::new(client));
        self.clients.insert(client, account);
    }

    fn apply_close(&mut self, id: SessionId) {
        let slots = self.sessions.get(id.0).map_or_else(Vec::new, |session| session.slots.clone());
        for slot in slots.into_iter().flatten() {
            let stuck = self.slots.get(slot).is_some_and(|slot| self.is_stuck(id, slot.buffer));
            let buffer = self.slots.get(slot).map(|slot| slot.buffer.0);
            if stuck && let Some(buffer) = buffer {
                self.leave_mapped(id, BufferId(buffer));
            }
            self.drop_slot(slot, !stuck);
        }
        let Some(session) = self.sessions.remove(id.0) else { return };
        if let Some(function) = session.function.and_then(|f| self.machine.function_mut(f)) {
            function.session = None;
        }
        if let Some(account) = self.accounts.get_mut(session.client) {
            account.sessions -= 1;
        }
        if session.function.is_some() {
            self.leave_group(session.group, &session);
        }
        if let Some(owner) = self.machine.owners.get_mut(session.owner.0) {
            owner.sessions -= 1;
            if owner.sessions == 0 {
                self.machine.owners.remove(session.owner.0);
                if let Some(account) = self.accounts.get_mut(session.client) {
                    account.domains -= 1;
                }
            }
        }
        self.settle_account(session.client);
    }

    /// A session ends and leaves a buffer mapped in its domain, which a unit that failed may use.
    fn leave_mapped(&mut self, session: SessionId, id: BufferId) {
        if let Some(buffer) = self.buffers.get_mut(id.0) {
            buffer.unproved = true;
        }
        let domain = self.sessions.get(session.0).and_then(|session| session.domain);
        if let Some(domain) = domain.and_then(|domain| self.domains.get_mut(domain.0)) {
            domain.left.push(id);
        }
    }

    fn leave_group(&mut self, id: GroupId, session: &Session) {
        let Some(group) = self.machine.groups.get_mut(id.0) else { return };
        group.sessions -= 1;
        if group.sessions > 0 {
            return;
        }
        let falls = core::mem::take(&mut group.stale) || group.members.is_empty();
        if let Some(owner) = self.machine.owners.get_mut(session.owner.0) {
            owner.groups.retain(|other| *other != id);
        }
        if falls {
            self.machine.fall_apart(id);
        }
    }

    /// An account with nothing on it is closed.
    fn settle_account(&mut self, number: u32) {
        if let Some(account) = self.accounts.get(number).filter(|account| account.is_idle()) {
            self.clients.remove(&account.client);
            self.accounts.remove(number);
        }
    }

    fn apply_buffer(&mut self, buffer: Buffer, record: SlotRecord) {
        self.insert_buffer(buffer, true);
        // What is mapped without a unit from the start; with one, the mapping is a change of its own.
        let direct = !record.direct.is_empty();
        if let Some(slot) = self.enter_slot(record)
            && direct
        {
            self.count_mapping(slot, true);
        }
    }

    fn insert_buffer(&mut self, mut buffer: Buffer, charged: bool) {
        buffer.charged = charged;
        let id = BufferId(self.buffers.upcoming(0).unwrap_or(u32::MAX));
        for segment in buffer.memory.segments() {
            self.memory.insert(segment, id);
        }
        if charged && let Some(account) = self.accounts.get_mut(buffer.client) {
            account.memory += buffer.length;
            account.taken += self.pool.of(buffer.length);
        }
        self.buffers.insert(buffer);
    }

    /// Enters a slot record in its session.
    fn enter_slot(&mut self, record: SlotRecord) -> Option<u32> {
        let at = record.number.0 as usize;
        let session = record.session;
        let number = self.slots.insert(record)?;
        let session = self.sessions.get_mut(session.0)?;
        if session.slots.len() <= at {
            session.slots.resize(at + 1, None);
        }
        *session.slots.get_mut(at)? = Some(number);
        self.accounts.get_mut(session.client)?.buffers += 1;
        Some(number)
    }

    /// Removes a slot record. Its mappings are forgotten; their addresses are free again unless they are
    /// `stuck` in a domain that a failed unit may still use.
    fn drop_slot(&mut self, number: u32, free: bool) {
        let Some(mut record) = self.slots.remove(number) else { return };
        let Some(session) = self.sessions.get_mut(record.session.0) else { return };
        if let Some(slot) = session.slots.get_mut(record.number.0 as usize) {
            *slot = None;
        }
        while session.slots.last() == Some(&None) {
            session.slots.pop();
        }
        let direct: u32 = record.direct.values().fold(0, |sum, n| sum.saturating_add(*n));
        if let Some(account) = self.accounts.get_mut(session.client) {
            account.buffers -= 1;
            account.mappings -= record.mappings.charged + direct;
        }
        let domain = session.domain.and_then(|domain| self.domains.get_mut(domain.0));
        if let Some(domain) = domain.filter(|domain| free && domain.trust != Trust::Suspect) {
            let all: Vec<_> = domain.mappings.list(&record.mappings).collect();
            for (index, mapping) in all {
                domain.mappings.remove(index, &mut record.mappings);
                if !mapping.grant {
                    domain.space.free(mapping.range);
                }
            }
            if let Some(grants) = &record.granted {
                domain.space.free(grants.range);
            }
            domain.mappings.tidy();
        }
        if let Some(buffer) = self.buffers.get_mut(record.buffer.0) {
            buffer.slots -= 1;
        }
    }

    fn apply_release(&mut self, id: BufferId) {
        let Some(buffer) = self.buffers.remove(id.0) else { return };
        for segment in buffer.memory.segments() {
            self.memory.remove(segment);
        }
        if buffer.charged
            && let Some(account) = self.accounts.get_mut(buffer.client)
        {
            account.memory -= buffer.length;
            account.taken -= self.pool.of(buffer.length);
        }
        self.settle_account(buffer.client);
    }

    fn apply_map(&mut self, domain: DomainId, mapping: Mapping) {
        if let Some(domain) = self.domains.get_mut(domain.0)
            && let Some(slot) = self.slots.get_mut(mapping.slot)
        {
            domain.mappings.insert(mapping, &mut slot.mappings);
        }
        self.count_mapping(mapping.slot, true);
    }

    /// Charges a mapping to the client of a slot, or takes the charge back.
    fn count_mapping(&mut self, slot: u32, more: bool) {
        let session = self.slots.get(slot).and_then(|slot| self.sessions.get(slot.session.0));
        if let Some(account) = session.and_then(|session| self.accounts.get_mut(session.client)) {
            account.mappings = if more { account.mappings + 1 } else { account.mappings - 1 };
        }
    }
}
