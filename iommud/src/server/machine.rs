//! Bringing the machine up, and running events on it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use iommu_protocol::Refusal;

use crate::addr::{Iova, PhysRange};
use crate::engine::{Engine, StepFailure};
use crate::hw::{BufferMemory, HardwareFault, Unit, UnitError};
use crate::policy::{
    ChangePlan, Config, Decided, Event, Outcome, Plan, Refused, Registry, UnitIndex,
};
use crate::server::budget::Budget;
use crate::server::decode::Scratch;
use crate::server::driven_devices::Driven;
use crate::server::endings::Endings;
use crate::server::faults::Faults;
use crate::server::handles::Handles;
use crate::server::pending_claims::PendingClaims;
use crate::server::rescan::Survey;
use crate::server::storm::Storms;
use crate::server::tags::Found;
use crate::server::unit_recovery::Recovery;
use crate::server::unit_status::{Machine, UnitState, UnitStatus};
use crate::server::{Counts, Server};
use crate::topology::firmware::{Firmware, UnitDefect};
use crate::topology::pci::PciFunction;

/// Fault records taken from one unit in one [`Server::tick`]: bounds the work between two requests.
pub(super) const FAULTS_A_TICK: usize = 16;

/// Everything the server is started with.
pub struct Startup<U: Unit, B: BufferMemory> {
    /// The policy.
    pub config: Config,
    /// The firmware's table, or why there is none.
    pub table: TableState,
    /// What the table says; empty without one.
    pub firmware: Firmware,
    /// One for each unit of `firmware`, in its order. Every unit is brought up before the first one
    /// translates.
    pub units: Vec<UnitStart<U>>,
    /// Every function of the machine.
    pub functions: Vec<PciFunction>,
    /// Memory of the machine.
    pub ram: Vec<PhysRange>,
    /// Memory of the server, which no device may reach.
    pub own: Vec<PhysRange>,
    /// Memory of an earlier server, which units may use until they translate with new tables. No device may
    /// reach it until [`Server::memory_returned`].
    pub left: Vec<PhysRange>,
    /// Where tables live.
    pub memory: U::Memory,
    /// Where buffers live.
    pub buffers: B,
    /// How much of both there is, and who needs it.
    pub budget: Budget,
}

/// The firmware's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// The machine has none.
    Absent,
    /// It has one that cannot be read: signature and reason.
    Failed(&'static str, String),
    /// It was read: signature.
    Parsed(&'static str),
}

/// How bringing up a unit went.
pub enum UnitStart<U> {
    /// It takes entries and waits to be enabled.
    Ready(U),
    /// It did not do what it was told, and may later.
    Stuck(U, UnitError),
    /// It did not come up.
    Failed(UnitError),
    /// The firmware's table does not describe it well enough to try.
    Unusable(UnitDefect),
    /// Policy leaves it alone.
    Off,
}

/// An event that was not carried out.
pub(super) struct Failed {
    /// Why.
    pub(super) refused: Refused,
    /// Memory that the event brought may still be reached: it must not be given back.
    pub(super) quarantined: bool,
}

impl core::fmt::Display for TableState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Failed(signature, reason) => write!(f, "{signature} failed({reason})"),
            Self::Parsed(signature) => write!(f, "{signature} parsed"),
        }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Puts every function under its group's policy and then turns translation on, unit by unit. When this
    /// returns the scheme may be announced.
    pub fn start(startup: Startup<U, B>) -> Self {
        Self::start_after(startup, Driven::default())
    }

    /// As [`Server::start`], after an earlier server: functions that it left driven are blocked, whatever
    /// policy says, until an owner attaches and detaches them.
    pub fn start_after(startup: Startup<U, B>, driven: Driven) -> Self {
        let quotas = startup.config.quotas;
        let Startup { config, table, firmware, units, functions, ram, own, left, .. } = startup;
        let Startup { memory, buffers, budget, .. } = startup;
        let anomalies = firmware.anomalies.clone();
        let descriptions = firmware.units.clone();
        let registry = Registry::new(config, firmware, &ram, &own);
        let found = Found::new(&units, driven.tags());
        let hopeless = Recovery::hopeless(&units);
        let (engine, states) = sort_out(units, memory, &budget);
        let units = descriptions
            .into_iter()
            .zip(states)
            .map(|(description, state)| UnitStatus {
                description,
                state,
                tells: false,
                translated: false,
            })
            .collect();
        let mut server = Self {
            registry,
            engine,
            buffers,
            handles: Handles::new(quotas.handles),
            faults: Faults::new(quotas.faults),
            machine: Machine { table, anomalies, units, budget },
            driven,
            waiting: PendingClaims::default(),
            counts: Counts::default(),
            scratch: Scratch::default(),
            storms: Storms::default(),
            endings: Endings::default(),
            recovery: Recovery::default(),
            survey: Survey::default(),
        };
        server.recovery.expect(hopeless);
        let pool = server.buffers.pool();
        server.registry.set_buffer_pool(pool.capacity, pool.granule);
        server.begin_tags(found);
        for range in left {
            server.run_to_the_end(Event::MemoryTaken(range));
        }
        server.bring_up(&functions);
        server.share_out();
        server
    }

    /// Promises each group that may be claimed its share of table memory.
    pub(super) fn share_out(&mut self) {
        self.engine.promise(self.registry.groups().count());
    }

    fn bring_up(&mut self, functions: &[PciFunction]) {
        self.registry.expect_functions(functions.len());
        for function in functions {
            // No unit translates yet: entering a function takes no memory.
            if let Err(refusal) = self.run(&Event::FunctionAdded(*function)) {
                log::error!("{}: {refusal}", function.address);
            }
        }
        for function in self.driven.iter() {
            if self.registry.cut_off(function) {
                log::warn!("{function}: driven when an earlier server ended: blocked");
            }
        }
        for index in 0..self.machine.units.len() {
            let Ok(number) = u32::try_from(index) else { break };
            let unit = UnitIndex(number);
            match self.machine.units.get(index).map(|status| &status.state) {
                Some(UnitState::Failed(_)) => {
                    self.run_to_the_end(Event::UnitFailed(unit));
                }
                _ => self.enable(unit),
            }
        }
    }

    /// Turns a unit on that was installed; one that was not stays as it is.
    pub(super) fn enable(&mut self, unit: UnitIndex) {
        let Some(capabilities) = self.engine.capabilities(unit) else { return };
        match self.run(&Event::UnitReady(unit, capabilities)) {
            Ok(_) => {
                self.note_tags();
                let came_back = self.machine.has_failed(unit);
                self.machine.set(unit, UnitState::Enabled);
                self.waiting.change();
                if came_back {
                    self.came_back(unit);
                }
            }
            Err(refusal) => self.not_enabled(unit, refusal),
        }
    }

    fn not_enabled(&mut self, unit: UnitIndex, refusal: Refusal) {
        if !self.machine.has_failed(unit) {
            let reason = self.machine.shortage(unit).filter(|_| refusal == Refusal::NoMemory);
            self.fail(unit, reason.unwrap_or_else(|| refusal.to_string()));
        }
    }

    pub(super) fn fail(&mut self, unit: UnitIndex, reason: String) {
        // What comes of a unit that has failed is no news: the first reason is the one that tells.
        if !self.machine.has_failed(unit) {
            self.machine.set(unit, UnitState::Failed(reason));
            self.waiting.change();
        }
        self.run_to_the_end(Event::UnitFailed(unit));
    }

    /// Runs one event from decision to commit or abort.
    ///
    /// # Errors
    /// Policy's refusal; or what the failure of a step means to the client. Either way the state is as
    /// before, except that a unit that failed is marked so.
    pub(super) fn run(&mut self, event: &Event) -> Result<Outcome, Refusal> {
        self.run_marked(event).map_err(|failed| failed.refused.refusal)
    }

    /// As [`Server::run`], for those who must know what exactly was refused.
    pub(super) fn run_marked(&mut self, event: &Event) -> Result<Outcome, Failed> {
        self.run_as(event, Registry::decide)
    }

    /// As [`Server::run_marked`], with a decision of one's own.
    pub(super) fn run_as(
        &mut self,
        event: &Event,
        decide: fn(&mut Registry, &Event) -> Result<Plan, Refused>,
    ) -> Result<Outcome, Failed> {
        let refused = |refused| Failed { refused, quarantined: false };
        self.note_before(event).map_err(|refusal| refused(refusal.into()))?;
        let outcome = match decide(&mut self.registry, event).map_err(refused) {
            Ok(plan) => self.finish(plan),
            Err(failed) => Err(failed),
        };
        self.settle_after(event);
        outcome
    }

    /// Runs a plan, and commits or aborts it.
    fn finish(&mut self, plan: Plan) -> Result<Outcome, Failed> {
        self.counts.plans += 1;
        self.note_tags_of(&plan);
        match self.engine.run(&plan, &mut self.buffers) {
            Ok(()) => Ok(self.registry.commit(plan)),
            Err(failure) => Err(self.give_up(plan, &failure)),
        }
    }

    /// Runs one map, unmap, grant or revoke from decision to commit or abort: what [`Server::run`] does with a
    /// batch of one. Returns the address, 0 for an unmap.
    ///
    /// # Errors
    /// As [`Server::run`].
    #[inline(always)]
    pub(super) fn run_change(
        &mut self,
        decide: impl FnOnce(&mut Registry, &mut ChangePlan) -> Result<Decided, Refusal>,
    ) -> Result<Iova, Refused> {
        let mut plan = ChangePlan::default();
        if let Decided::Plan(whole) = decide(&mut self.registry, &mut plan)? {
            return self.run_whole(whole);
        }
        self.counts.plans += 1;
        let iova = plan.iova();
        match self.engine.run_change(&plan, &mut self.buffers) {
            Ok(()) => {
                self.registry.commit_change(plan);
                Ok(iova)
            }
            Err(failure) => Err(self.give_up_change(plan, &failure).refused),
        }
    }

    /// As `run_change`, for a change that takes a list of steps.
    #[cold]
    fn run_whole(&mut self, plan: Plan) -> Result<Iova, Refused> {
        match self.finish(plan) {
            Ok(Outcome::Single(iova)) => Ok(iova),
            Ok(_) => Err(Refusal::BadOperation.into()),
            Err(failed) => Err(failed.refused),
        }
    }

    /// Aborts a plan that the engine could not carry out.
    #[cold]
    fn give_up(&mut self, plan: Plan, failure: &StepFailure) -> Failed {
        if failure.unproved {
            self.registry.quarantine(plan);
        } else {
            self.registry.abort(plan);
        }
        self.given_up(failure)
    }

    /// As `give_up`, for a plan of one change.
    #[cold]
    fn give_up_change(&mut self, plan: ChangePlan, failure: &StepFailure) -> Failed {
        if failure.unproved {
            self.registry.quarantine_change(plan);
        } else {
            self.registry.abort_change(plan);
        }
        self.given_up(failure)
    }

    /// What the failure of a plan that was aborted means.
    fn given_up(&mut self, failure: &StepFailure) -> Failed {
        self.counts.plans_undone += 1;
        for unit in &failure.lost {
            self.fail(*unit, failure.error.to_string());
        }
        Failed { refused: failure.refusal().into(), quarantined: failure.unproved }
    }

    /// Makes every unit that translates send a message when it has fault records. A platform that can be sent
    /// messages calls this, and [`Server::fault_interrupt`] when one comes. True when every unit will tell:
    /// the others are to be asked by [`Server::tick`], as before.
    pub fn tell_faults(&mut self, address: u64, data: u32) -> bool {
        let mut all = true;
        self.recovery.tell_by((address, data));
        for index in 0..self.machine.units.len() {
            let (Ok(number), Some(status)) =
                (u32::try_from(index), self.machine.units.get_mut(index))
            else {
                break;
            };
            if status.state != UnitState::Enabled {
                continue;
            }
            match self.engine.tell_faults(UnitIndex(number), address, data) {
                Ok(()) => status.tells = true,
                Err(error) => {
                    log::info!("unit {index}: asked for faults: {error}");
                    all = false;
                }
            }
        }
        all
    }

    /// As [`Server::tick`], because a unit sent its message.
    pub fn fault_interrupt(&mut self) -> u64 {
        self.counts.fault_interrupts += 1;
        self.tick()
    }

    pub(super) fn route(&mut self, unit: usize, fault: &HardwareFault) {
        let segment = self.machine.units.get(unit).map_or(0, |status| status.description.segment);
        let owner =
            u32::try_from(unit).ok().and_then(|unit| self.owner_of(UnitIndex(unit), fault.source));
        self.faults.record(segment, fault, owner);
        if let Some(session) = owner {
            self.handles.session_readable(session);
        }
    }
}

/// Splits the units that are up from what is known of all of them.
fn sort_out<U: Unit>(
    units: Vec<UnitStart<U>>,
    memory: U::Memory,
    budget: &Budget,
) -> (Engine<U>, Vec<UnitState>) {
    let mut engine = Engine::new(memory);
    let states = units
        .into_iter()
        .zip(0..)
        .enumerate()
        .map(|(number, (unit, index))| match unit {
            UnitStart::Ready(unit) => {
                engine.install(UnitIndex(index), unit);
                UnitState::Parsed
            }
            UnitStart::Stuck(unit, error) => {
                engine.install(UnitIndex(index), unit);
                UnitState::Failed(error.to_string())
            }
            UnitStart::Failed(error) => UnitState::Failed(budget.reason(number, &error)),
            UnitStart::Unusable(defect) => UnitState::Failed(defect.to_string()),
            UnitStart::Off => UnitState::Parsed,
        })
        .collect();
    (engine, states)
}
