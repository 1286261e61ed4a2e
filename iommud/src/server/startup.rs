//! Start: every unit is brought up, and every function put under policy, before the first unit translates.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use iommu_protocol::Refusal;

use crate::addr::PhysRange;
use crate::engine::Engine;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{Config, Event, Registry, UnitIndex, reserved_parts};
use crate::server::budget::Budget;
use crate::server::decode::Scratch;
use crate::server::driven_devices::Driven;
use crate::server::endings::Endings;
use crate::server::facts::Facts;
use crate::server::faults::Faults;
use crate::server::faults::storms::Storms;
use crate::server::growth::Growth;
use crate::server::handles::Handles;
use crate::server::pending_claims::PendingClaims;
use crate::server::processes::Processes;
use crate::server::rescan::Survey;
use crate::server::tags::Found;
use crate::server::unit_recovery::Recovery;
use crate::server::unit_status::{Machine, TableState, UnitStart, UnitState, UnitStatus};
use crate::server::{Counts, Server};
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;
use crate::trace::{Fact, Recorder};

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
    /// reach it until [`Server::memory_returned`]; what firmware reserves of it for a device, none may reach at all.
    pub left: Vec<PhysRange>,
    /// Where tables live.
    pub memory: U::Memory,
    /// Where buffers live.
    pub buffers: B,
    /// How much of both there is, and who needs it.
    pub budget: Budget,
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
        Self::start_recorded(startup, driven, Recorder::default())
    }

    /// As [`Server::start_after`], and records every event, if `trace` does. It has the snapshot of this machine.
    pub fn start_recorded(startup: Startup<U, B>, driven: Driven, trace: Recorder) -> Self {
        let quotas = startup.config.quotas;
        let Startup { config, table, firmware, units, functions, ram, mut own, left, .. } = startup;
        let Startup { memory, buffers, budget, .. } = startup;
        let anomalies = firmware.anomalies.clone();
        let descriptions = firmware.units.clone();
        let withheld = reserved_parts(&firmware.reserved, &left);
        own.extend(&withheld);
        let registry = Registry::new(config, firmware, &ram, &own);
        let found = Found::new(&units, driven.tags());
        let recovery = Recovery::hopeless(&units);
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
            machine: Machine { table, anomalies, units, budget, withheld },
            driven,
            waiting: PendingClaims::default(),
            counts: Counts::default(),
            scratch: Scratch::default(),
            storms: Storms::default(),
            endings: Endings::default(),
            recovery,
            survey: Survey::default(),
            growth: Growth::default(),
            processes: Processes::default(),
            trace,
            facts: Facts::default(),
        };
        server.set_buffer_pool();
        server.begin_tags(found);
        for range in left {
            server.run_to_the_end(Event::MemoryTaken(range));
        }
        server.bring_up(&functions);
        server.set_aside();
        server.share_out();
        server
    }

    /// Promises each group that may be claimed its share of table memory. To be called when groups may have changed.
    pub(super) fn share_out(&mut self) {
        self.engine.promise(self.registry.claimable());
    }

    fn bring_up(&mut self, functions: &[PciFunction]) {
        self.registry.expect_functions(functions.len());
        for function in functions {
            // No unit translates yet: entering a function takes no memory.
            if let Err(refusal) = self.run_event(&Event::FunctionAdded(*function)) {
                log::error!("{}: {refusal}", function.address);
            }
        }
        for function in self.driven.iter() {
            self.trace.fact(&Fact::CutOff(function));
            if self.registry.cut_off(function) {
                log::warn!("{function}: driven when an earlier server ended: blocked");
            }
        }
        for index in 0..self.machine.units.len() {
            let Ok(number) = u32::try_from(index) else { break };
            let unit = UnitIndex(number);
            self.record_installed(unit);
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
        match self.run_event(&Event::UnitReady(unit, capabilities)) {
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
        self.lose(unit);
        self.run_to_the_end(Event::UnitFailed(unit));
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
