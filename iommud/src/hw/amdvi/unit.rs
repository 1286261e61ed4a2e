//! An AMD-Vi unit as the server drives it.

use alloc::collections::BTreeSet;
use core::fmt::Write;
use core::marker::PhantomData;

use iommu_protocol::ids::RequesterId;

use super::command::{Commands, pages, whole_domain};
use super::device::DeviceTable;
use super::format::AmdFormat;
use super::log::{FRAMES as LOG_FRAMES, Log};
use super::port::Port;
use super::spec::capability::Features;
use super::spec::command;
use super::spec::registers::{self, Control, Status};
use super::{command as ring, device, event};
use crate::addr::IovaRange;
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::{Entry, HardwareFault, Unit, UnitError};
use crate::hw::waits::Invalidations;
use crate::topology::capabilities::{DomainTag, LevelSet, UnitCapabilities};

/// The response to every page request: "invalid request" (PCI Express Base 6.0, page request response codes).
const REFUSED: u8 = 1;

/// Whether the unit reads this object's device table.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// The unit does not read it. There is nothing to invalidate yet, and `enable` will invalidate everything.
    Off {
        /// Requesters whose entries were written.
        entered: BTreeSet<u16>,
    },
    /// The unit reads it, but may still cache older entries; [`Unit::enable`] is under way or failed.
    Stale {
        /// Requesters whose entries were written, and not yet named to the unit in a command.
        entered: BTreeSet<u16>,
    },
    /// The unit reads it.
    On,
}

/// Runs of frames that bring-up allocates: device table, a page table without pages, command ring, its status word,
/// event log. Units that log page requests take one more run for that log.
pub const RUNS: &[usize] = &[device::FRAMES, 1, ring::FRAMES, 1, LOG_FRAMES, LOG_FRAMES];

/// One AMD-Vi unit. Made by [`AmdUnit::bring_up`]. It can be cloned only if its registers can be, which those of a
/// real machine cannot.
#[derive(Clone)]
pub struct AmdUnit<R, C, M> {
    pub(super) function: RequesterId,
    pub(super) capabilities: UnitCapabilities,
    pub(super) features: Features,
    pub(super) port: Port<R, C>,
    pub(super) devices: DeviceTable,
    pub(super) commands: Commands,
    pub(super) events: Log,
    pub(super) requests: Option<Log>,
    /// The control register as it is while the unit runs.
    pub(super) running: Control,
    pub(super) state: State,
    /// The unit was translating when it was brought up.
    pub(super) found_translating: bool,
    pub(super) memory: PhantomData<fn() -> M>,
}

impl<R: RegisterIo, C: Clock, M: TableMemory> AmdUnit<R, C, M> {
    /// Executes commands and waits, unless the unit caches nothing yet.
    fn run(&mut self, memory: &mut M, commands: &[[u64; 2]]) -> Result<(), UnitError> {
        match self.state {
            State::Off { .. } => Ok(()),
            State::Stale { .. } | State::On => {
                self.commands.round(&mut self.port, memory, commands)
            }
        }
    }

    fn check(&self, entry: Entry) -> Result<(), UnitError> {
        let Entry::Translate { root, levels, .. } = entry else { return Ok(()) };
        let depth =
            1u8.checked_shl(levels.into()).map_or(LevelSet::empty(), LevelSet::from_bits_retain);
        if depth.is_empty() || !self.capabilities.levels.contains(depth) {
            return Err(UnitError::Unsupported { what: "page table of this depth" });
        }
        if root.0 & !super::spec::ADDRESS_BITS != 0 {
            return Err(UnitError::Unsupported { what: "page table at this address" });
        }
        Ok(())
    }

    /// Reads page requests, at most `limit` of them, and refuses each.
    fn refuse_requests(
        &mut self,
        memory: &mut M,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        let Some(log) = &mut self.requests else { return Ok(0) };
        let mut answers = alloc::vec::Vec::new();
        let lost = log.take(&mut self.port, memory, &mut |entry| {
            if answers.len() >= limit {
                return false;
            }
            if let Some(request) = event::page_request(entry) {
                let (source, process) = (request.source.0, request.process);
                answers.push(command::complete_request(source, process, request.tag, REFUSED));
                sink(request.fault);
            }
            true
        })?;
        self.commands.execute(&mut self.port, memory, answers)?;
        Ok(lost)
    }
}

impl<R: RegisterIo, C: Clock, M: TableMemory> Unit for AmdUnit<R, C, M> {
    type Memory = M;
    type Format = AmdFormat;

    const RUNS: &'static [usize] = RUNS;

    fn capabilities(&self) -> UnitCapabilities {
        self.capabilities
    }

    fn found_translating(&self) -> bool {
        self.found_translating
    }

    fn write_entry(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), UnitError> {
        self.check(entry)?;
        self.devices.write(memory, source, entry);
        if let State::Off { entered } | State::Stale { entered } = &mut self.state {
            entered.insert(source.0);
        }
        Ok(())
    }

    fn suppress_faults(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError> {
        self.devices.suppress_faults(memory, source, silent);
        Ok(())
    }

    /// Invalidates the entry first, with a wait of its own, then the domain. A unit may execute commands in any order
    /// up to a wait, and a walk in between must not bring translations of the old domain back.
    fn invalidate_entry(
        &mut self,
        memory: &mut M,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        self.run(memory, &[command::invalidate_device(source.0)])?;
        match old {
            Some(tag) => self.run(memory, &[whole_domain(tag)]),
            None => Ok(()),
        }
    }

    fn publish_pages(
        &mut self,
        memory: &mut M,
        tag: DomainTag,
        range: IovaRange,
    ) -> Result<(), UnitError> {
        match self.capabilities.caches_absent {
            true => self.run(memory, &[pages(tag, range, true)]),
            false => Ok(()),
        }
    }

    fn invalidate_pages(
        &mut self,
        memory: &mut M,
        tag: DomainTag,
        range: IovaRange,
        tables_freed: bool,
    ) -> Result<(), UnitError> {
        self.run(memory, &[pages(tag, range, tables_freed)])
    }

    fn enable(&mut self, memory: &mut M) -> Result<(), UnitError> {
        self.turn_on(memory)
    }

    fn revive(&mut self, memory: &mut M) -> Result<(), UnitError> {
        self.start_anew(memory)
    }

    /// One DMA over a page can leave hundreds of events. Events in a row that report the same count as one fault.
    fn take_faults(
        &mut self,
        memory: &mut M,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        let function = self.function;
        let (mut last, mut taken) = (None, 0);
        let lost = self.events.take(&mut self.port, memory, &mut |entry| {
            let fault = event::fault(entry, function);
            if last.is_some_and(|last| event::tells_the_same(&last, &fault)) {
                return true;
            }
            if taken >= limit {
                return false;
            }
            taken += 1;
            last = Some(fault);
            sink(fault);
            true
        })?;
        Ok(lost + self.refuse_requests(memory, limit - taken, sink)?)
    }

    fn invalidations(&self) -> Invalidations {
        self.commands.told
    }

    fn describe(&mut self, out: &mut dyn Write) -> core::fmt::Result {
        let control = self.port.read(registers::CONTROL);
        if control == u64::MAX {
            return writeln!(out, "registers read all ones");
        }
        let control = Control::from_bits_retain(control);
        let status = Status::from_bits_retain(self.port.read(registers::STATUS));
        let word = |set: bool| if set { "on" } else { "off" };
        writeln!(out, "translation {}", word(control.contains(Control::ENABLE)))?;
        writeln!(out, "command ring {}", word(status.contains(Status::COMMANDS_RUN)))?;
        writeln!(out, "event log {}", word(status.contains(Status::EVENTS_RUN)))?;
        writeln!(out, "page request log {}", word(self.requests.is_some()))?;
        let one = self.features.contains(Features::INVALIDATE_ALL);
        writeln!(
            out,
            "invalidates everything by {}",
            if one { "one command" } else { "many commands" }
        )?;
        writeln!(out, "extended features {:#018x}", self.features.bits())?;
        writeln!(out, "control {:#018x}, status {:#06x}", control.bits(), status.bits())
    }
}
