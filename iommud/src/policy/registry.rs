//! The registry: all that is known of units, functions, groups, domains, buffers and sessions.
//!
//! ```text
//! unit      parsed --UnitReady--> enabled --UnitFailed--> failed
//!              |                     ^-------UnitReady-------+
//!              +------------------------UnitFailed----------^
//! group     free --Claim--> claimed <--Attach, Detach--> attached --last Close--> free  (see `machine`)
//! session   open --Attach--> attached --Detach--> open --Close--> gone
//!              +-- FunctionRemoved --> orphan (refuses all but Close) --Close--> gone
//! buffer    known to sessions, held by handles --last of both--> released
//!                                              +--> quarantined, when a unit failed that may reach it --Proved--> released
//! mapping   (decided: entered) --commit--> live --(decided: taken out)--commit--> gone
//! ```
//!
//! `decide` looks, and marks only what a second request in the same event must see: addresses taken, mappings
//! entered, charged and taken out, members attached. `commit` makes all other changes, `abort` takes the marks back.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::{INTERRUPT_WINDOW, PhysRange};
use crate::policy::collections::ranges::Ranges;
use crate::policy::collections::slab::Slab;
use crate::policy::config::Config;
use crate::policy::draft::Draft;
use crate::policy::event::{Event, Outcome, Owed, Refused};
use crate::policy::excluded::closed;
use crate::policy::ids::{ClientId, DomainId};
use crate::policy::plan::Plan;
use crate::policy::state::machine::Machine;
use crate::policy::state::memory::MemoryMap;
use crate::policy::state::objects::{Account, Buffer, Domain, Session, SlotRecord, insert_pages};
use crate::policy::state::pool::Pool;
use crate::policy::state::tags::Tags;
use crate::policy::step::Charge;
use crate::topology::firmware::Firmware;

/// 4 GiB: policy `compat` maps at least all below.
const FOUR_GIB: u64 = 1 << 32;

/// The state of everything, and what may become of it.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) machine: Machine,
    /// I/O virtual addresses that no client is given.
    pub(super) closed: Ranges,
    /// Memory that policy `compat` maps when none of it is taken.
    pub(super) base: Ranges,
    /// Memory that policy `compat` maps now.
    pub(super) compat: Ranges,
    pub(super) tags: Tags,
    pub(super) domains: Slab<Domain>,
    pub(super) sessions: Slab<Session>,
    pub(super) buffers: Slab<Buffer>,
    pub(super) slots: Slab<SlotRecord>,
    pub(super) memory: MemoryMap,
    pub(super) accounts: Slab<Account>,
    pub(super) clients: BTreeMap<ClientId, u32>,
    /// Memory for buffers.
    pub(super) pool: Pool,
    /// What ends of life have left to be done.
    pub(super) owed: BTreeSet<Owed>,
    spare: Spare,
}

/// The lists of the last plan, empty, kept for their capacity.
#[derive(Default)]
struct Spare(Option<Box<Draft>>);

/// A copy has none: between plans there is nothing in them.
impl Clone for Spare {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl core::fmt::Debug for Spare {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("..")
    }
}

impl Registry {
    /// A registry of a machine whose units are not up and whose functions are not known yet.
    ///
    /// `ram` is the memory of the machine, `own` what the server keeps for itself from the start: tables,
    /// queues, pools of buffers. No domain of policy maps `own`.
    #[must_use]
    pub fn new(config: Config, firmware: Firmware, ram: &[PhysRange], own: &[PhysRange]) -> Self {
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
            closed: closed(ram),
            compat: base.clone(),
            base,
            tags: Tags::new(),
            domains: Slab::small(),
            sessions: Slab::distinct(),
            buffers: Slab::distinct(),
            slots: Slab::small(),
            memory: MemoryMap::default(),
            accounts: Slab::small(),
            clients: BTreeMap::new(),
            pool: Pool::default(),
            owed: BTreeSet::new(),
            spare: Spare::default(),
        }
    }

    /// Decides what comes of an event. Until the plan is consumed, no other event may be decided.
    ///
    /// # Errors
    /// What the event is refused for; nothing has changed.
    pub fn decide(&mut self, event: &Event) -> Result<Plan, Refused> {
        self.decide_with(event, false)
    }

    /// As [`Registry::decide`], for an end of life for which there was no memory: the plan takes none. Whatever would
    /// have been under a domain of policy that does not exist is blocked, and [`Registry::owed`].
    ///
    /// # Errors
    /// As [`Registry::decide`]; not for lack of memory.
    pub fn decide_frugally(&mut self, event: &Event) -> Result<Plan, Refused> {
        self.decide_with(event, true)
    }

    fn decide_with(&mut self, event: &Event, frugal: bool) -> Result<Plan, Refused> {
        let mut draft = self.new_draft();
        draft.frugal = frugal;
        draft.charge = self.charge(event);
        match self.draft(event, &mut draft) {
            Ok(outcome) => {
                draft.finish();
                draft.outcome = outcome;
                Ok(Plan { draft })
            }
            Err(refused) => {
                self.refuse(draft);
                Err(refused)
            }
        }
    }

    /// Which frames the plan of an event may take.
    fn charge(&self, event: &Event) -> Charge {
        let session = match event {
            Event::Batch(session, _)
            | Event::MapList(session, _)
            | Event::Attach(session)
            | Event::Detach(session)
            | Event::Allocate(session, _)
            | Event::Import(session, _)
            | Event::ImportShared(session, _) => *session,
            Event::Claim { client, .. } => return Charge::Account(self.account_of(*client)),
            Event::Storm(..) | Event::MemoryTaken(_) => return Charge::Server,
            Event::FunctionAdded(_) if self.owners_known() => return Charge::Server,
            _ => return Charge::Unlimited,
        };
        let session = self.sessions.get(session.0);
        session.map_or(Charge::Server, |session| Charge::Account(session.client))
    }

    /// The account of a client, or the one that it would have.
    fn account_of(&self, client: ClientId) -> u32 {
        let known = self.clients.get(&client).copied();
        known.or_else(|| self.accounts.upcoming(0)).unwrap_or(u32::MAX)
    }

    fn owners_known(&self) -> bool {
        self.machine.owners.len() > 0
    }

    #[inline(always)]
    fn new_draft(&mut self) -> Box<Draft> {
        self.spare.0.take().unwrap_or_default()
    }

    #[cold]
    fn refuse(&mut self, mut draft: Box<Draft>) {
        self.take_back(&mut draft.effects);
        self.take_back_changes(&mut draft.changes);
        self.recycle(draft);
    }

    fn draft(&mut self, event: &Event, draft: &mut Draft) -> Result<Outcome, Refused> {
        match event {
            Event::Batch(session, items) => return self.batch(draft, *session, items),
            Event::MapList(session, list) => return self.map_list(draft, *session, list),
            Event::UnitReady(unit, capabilities) => self.unit_ready(draft, *unit, capabilities)?,
            Event::UnitFailed(unit) => self.unit_failed(draft, *unit)?,
            Event::Proved => self.proved(draft)?,
            Event::FunctionAdded(function) => self.function_added(draft, function)?,
            Event::FunctionRemoved(address) => self.function_removed(draft, *address)?,
            Event::Storm(unit, source) => self.storm(draft, (*unit, *source))?,
            Event::MemoryTaken(range) => self.memory_taken(draft, *range)?,
            Event::MemoryReturned(range) => self.memory_returned(draft, *range)?,
            Event::Claim { client, address, parent } => {
                return Ok(self.claim(draft, *client, *address, *parent)?);
            }
            Event::Attach(session) => self.attach(draft, *session)?,
            Event::Detach(session) => self.detach(draft, *session)?,
            Event::Allocate(session, request) => {
                return Ok(self.allocate(draft, *session, request)?);
            }
            Event::Release(session, slot) => self.release(draft, *session, *slot)?,
            Event::Import(session, buffer) => {
                return Ok(self.import(draft, *session, *buffer, false)?);
            }
            Event::ImportShared(session, buffer) => {
                return Ok(self.import(draft, *session, *buffer, true)?);
            }
            Event::Hold(session, slot) => return Ok(self.hold(draft, *session, *slot)?),
            Event::Drop(buffer) => self.drop_hold(draft, *buffer)?,
            Event::Close(session) => self.close(draft, &[*session])?,
            Event::Shutdown => {
                let all: Vec<_> = self.sessions.iter().map(|(number, _)| number).collect();
                let all: Vec<_> = all.into_iter().map(crate::policy::SessionId).collect();
                self.close(draft, &all)?;
            }
            Event::Settle(owed) => self.settle_owed(draft, *owed)?,
        }
        Ok(Outcome::Done)
    }

    /// Takes note that every step of the plan was carried out.
    pub fn commit(&mut self, mut plan: Plan) -> Outcome {
        self.settle_changes(&plan.draft.changes);
        if !plan.draft.effects.is_empty() {
            for effect in plan.draft.effects.drain(..) {
                self.apply(effect);
            }
        }
        let outcome = core::mem::take(&mut plan.draft.outcome);
        self.recycle(plan.draft);
        outcome
    }

    /// Takes note that the plan was not carried out and its steps were undone: everything is as before
    /// [`Registry::decide`].
    pub fn abort(&mut self, mut plan: Plan) {
        self.take_back(&mut plan.draft.effects);
        self.take_back_changes(&mut plan.draft.changes);
        plan.draft.outcome = Outcome::Done;
        self.recycle(plan.draft);
    }

    /// As [`Registry::abort`], when undoing could not be proved (`StepFailure::unproved`): memory that the
    /// plan entered into a domain may still be reached by a device. It goes to quarantine; the memory of a
    /// refused [`Event::Allocate`] must not be given back either.
    pub fn quarantine(&mut self, mut plan: Plan) {
        self.keep_changes_unproved(&plan.draft.changes);
        self.keep_unproved(&mut plan.draft.effects);
        self.abort(plan);
    }

    #[inline]
    fn recycle(&mut self, mut draft: Box<Draft>) {
        draft.clear();
        // There is one plan at a time: its place is empty.
        if self.spare.0.is_none() {
            self.spare.0 = Some(draft);
        }
    }

    pub(super) fn domain(&self, domain: DomainId) -> Result<&Domain, Refusal> {
        self.domains.get(domain.0).ok_or(Refusal::BadHandle)
    }
}
