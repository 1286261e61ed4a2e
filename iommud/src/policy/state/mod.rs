//! The state of policy: units, functions, groups, owners, sessions, domains, buffers.
//!
//! ```text
//! unit      parsed --UnitReady--> enabled --UnitFailed--> failed
//!              |                     ^-------UnitReady-------+
//!              +------------------------UnitFailed----------^
//! group     free --Claim--> claimed <--Attach, Detach--> attached --last Close--> free  (see `machine`)
//! session   open --Attach--> attached --Detach--> open --Close--> gone
//!              +-- FunctionRemoved --> orphan (refuses all but Close) --Close--> gone
//! buffer    in slots of sessions, held by handles --last of both--> released
//!                                                 +--> quarantined, if a failed unit may reach it --Proved--> released
//! mapping   --decided: inserted--> live --decided: removed--> gone; commit frees its addresses
//! ```

pub(in crate::policy) mod domain;
pub(in crate::policy) mod excluded;
mod left_behind;
pub(in crate::policy) mod machine;
pub(in crate::policy) mod mappings;
pub(in crate::policy) mod memory;
pub(in crate::policy) mod objects;
pub(in crate::policy) mod pool;
mod shares;
pub(in crate::policy) mod tags;
pub(in crate::policy) mod tally;
pub(in crate::policy) mod unmapped;

use alloc::collections::{BTreeMap, BTreeSet};

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;

use crate::addr::{INTERRUPT_WINDOW, PhysRange};
use crate::policy::collections::ranges::{Ranges, insert_pages};
use crate::policy::collections::slab::Slab;
use crate::policy::config::Config;
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, ClientId, DomainId, Key, SessionId};
use crate::policy::step::Binding;
use crate::topology::firmware::Firmware;

use domain::{Domain, Trust};
use machine::Machine;
use mappings::Mapping;
use memory::MemoryMap;
use objects::{Account, Buffer, Session, SlotRecord};
use pool::Pool;
use tags::Tags;
use tally::{Tallies, Tally};

/// 4 GiB: policy `compat` maps at least everything below.
const FOUR_GIB: u64 = 1 << 32;

/// The whole state of policy.
#[derive(Clone, Debug)]
pub(in crate::policy) struct State {
    pub(in crate::policy) machine: Machine,
    /// I/O virtual addresses that no client is given.
    pub(in crate::policy) excluded: Ranges,
    /// Memory that policy `compat` maps when no part of it is taken.
    pub(in crate::policy) base: Ranges,
    /// Memory that policy `compat` maps now.
    pub(in crate::policy) compat: Ranges,
    pub(in crate::policy) tags: Tags,
    pub(in crate::policy) domains: Slab<Domain>,
    pub(in crate::policy) sessions: Slab<Session>,
    pub(in crate::policy) buffers: Slab<Buffer>,
    pub(in crate::policy) slots: Slab<SlotRecord>,
    pub(in crate::policy) memory: MemoryMap,
    pub(in crate::policy) accounts: Slab<Account>,
    pub(in crate::policy) clients: BTreeMap<ClientId, u32>,
    /// Memory for buffers.
    pub(in crate::policy) pool: Pool,
    /// What sessions that ended have mapped and unmapped.
    pub(in crate::policy) tallies: Tallies,
    /// Work that ends of life left undone.
    pub(in crate::policy) owed: BTreeSet<Owed>,
    /// Milliseconds since the server started, as far as it was told. It says when a range was unmapped.
    pub(in crate::policy) time: u32,
}

impl State {
    /// The state of a machine whose units are not up and whose functions are not known; see
    /// [`crate::policy::Registry::new`].
    pub(in crate::policy) fn new(
        config: Config,
        firmware: Firmware,
        ram: &[PhysRange],
        own: &[PhysRange],
    ) -> Self {
        let mut forbidden = Ranges::default();
        let registers = firmware.units.iter().filter_map(|unit| unit.registers.ok());
        for range in own.iter().copied().chain(registers).chain([INTERRUPT_WINDOW.identity()]) {
            insert_pages(&mut forbidden, range);
        }
        let top = ram.iter().map(|range| range.last().0 | 0xfff).max().unwrap_or(0);
        let mut base = Ranges::default();
        base.insert(0, top.max(FOUR_GIB - 1));
        for region in &firmware.reserved {
            insert_pages(&mut base, region.range);
        }
        for (first, last) in forbidden.iter() {
            base.remove(first, last);
        }
        Self {
            machine: Machine::new(config, firmware, forbidden),
            excluded: excluded::addresses(ram),
            compat: base.clone(),
            base,
            tags: Tags::new(),
            domains: Slab::small(),
            sessions: Slab::distinct(),
            buffers: Slab::distinct(),
            slots: Slab::small(),
            memory: MemoryMap::default(),
            // The tables of a client that is gone may be kept, and stay charged to its number. So no other client
            // gets it.
            accounts: Slab::distinct(),
            clients: BTreeMap::new(),
            pool: Pool::default(),
            tallies: Tallies::default(),
            owed: BTreeSet::new(),
            time: 0,
        }
    }

    pub(in crate::policy) fn domain(&self, domain: DomainId) -> Result<&Domain, Refusal> {
        self.domains.get(domain.0).ok_or(Refusal::BadHandle)
    }

    /// A session that is open.
    pub(in crate::policy) fn session(&self, session: SessionId) -> Result<&Session, Refusal> {
        self.sessions.get(session.0).ok_or(Refusal::BadHandle)
    }

    /// A session whose device is present, and which no failed unit affects.
    pub(in crate::policy) fn usable(&self, session: SessionId) -> Result<&Session, Refusal> {
        let session = self.session(session)?;
        self.machine.check_session(session)?;
        if let Some(domain) = session.domain
            && self.domain(domain)?.trust != Trust::Sound
        {
            return Err(Refusal::UnitFailed);
        }
        Ok(session)
    }

    pub(in crate::policy) fn buffer(&self, buffer: BufferId) -> Result<&Buffer, Refusal> {
        self.buffers.get(buffer.0).ok_or(Refusal::BadHandle)
    }

    /// A session's record of a slot, and the record's number.
    pub(in crate::policy) fn slot(
        &self,
        session: &Session,
        slot: Slot,
    ) -> Result<(u32, &SlotRecord), Refusal> {
        let number = session.slot(slot)?;
        Ok((number, self.slots.get(number).ok_or(Refusal::BadHandle)?))
    }

    /// The slot of a buffer in a session.
    pub(in crate::policy) fn slot_of(&self, session: SessionId, buffer: BufferId) -> Option<Slot> {
        let slots = self.sessions.get(session.0)?.slots.iter().flatten();
        let known = slots.filter_map(|slot| self.slots.get(*slot));
        known.into_iter().find(|slot| slot.buffer == buffer).map(|slot| slot.number)
    }

    /// Sets the binding of an entry, and counts it in the domains.
    pub(in crate::policy) fn set_binding(&mut self, key: Key, now: Option<Binding>) {
        let Some(source) = self.machine.sources.get_mut(key) else { return };
        let was = core::mem::replace(&mut source.binding, now);
        for (binding, more) in [(was, false), (now, true)] {
            if let Some(Binding::Domain(domain)) = binding
                && let Some(domain) = self.domains.get_mut(domain.0)
            {
                domain.count_entry(key.0, more);
            }
        }
    }

    /// Records that a buffer has its memory, or no longer has it.
    pub(in crate::policy) fn note_memory(&mut self, number: u32, more: bool) {
        let Some(buffer) = self.buffers.get(number) else { return };
        for segment in buffer.memory.segments() {
            if more {
                self.memory.insert(segment, BufferId(number));
            } else {
                self.memory.remove(segment);
            }
        }
    }

    /// Counts a mapping that the session of a slot made, or one that it ended.
    pub(in crate::policy) fn tally(&mut self, slot: u32, bytes: u64, more: bool) {
        if let Some(tally) = self.tally_of(slot) {
            if more { tally.map(bytes) } else { tally.unmap(bytes) }
        }
    }

    /// Undoes [`State::tally`].
    pub(in crate::policy) fn undo_tally(&mut self, slot: u32, bytes: u64, more: bool) {
        if let Some(tally) = self.tally_of(slot) {
            tally.undo(bytes, more);
        }
    }

    fn tally_of(&mut self, slot: u32) -> Option<&mut Tally> {
        let session = self.slots.get(slot)?.session;
        self.sessions.get_mut(session.0).map(|session| &mut session.tally)
    }

    /// Frees the addresses of a removed mapping. Those of a grant go back to the range reserved for its buffer.
    pub(in crate::policy) fn free_addresses(
        &mut self,
        domain: DomainId,
        slot: u32,
        mapping: &Mapping,
    ) {
        if mapping.grant {
            // When the slot record is gone, its whole reserved range is freed instead.
            if let Some(SlotRecord { granted: Some(grants), .. }) = self.slots.get_mut(slot) {
                grants.set(mapping.offset, mapping.range.length(), false);
            }
        } else if let Some(domain) = self.domains.get_mut(domain.0) {
            domain.space.free(mapping.range);
        }
    }

    /// Charges mappings to the client of a slot, or takes the charge back.
    pub(in crate::policy) fn charge_slot(&mut self, slot: u32, mappings: u32, more: bool) {
        let session = self.slots.get(slot).and_then(|slot| self.sessions.get(slot.session.0));
        if let Some(account) = session.and_then(|session| self.accounts.get_mut(session.client)) {
            account.charge(mappings, more);
        }
    }
}
