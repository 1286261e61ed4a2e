//! Brings a unit up until it accepts entries, and turns it on. The order of the steps is at the head of [`super`].

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::marker::PhantomData;

use super::capability::Capability;
use super::command::Commands;
use super::device::DeviceTable;
use super::log::Log;
use super::port::Port;
use super::spec::ADDRESS_BITS;
use super::spec::capability::{Features, HeaderFlags};
use super::spec::command;
use super::spec::registers::{self, Control, Status};
use super::survey::{NOT_AMD_VI, capabilities, identify, supported_levels};
use super::unit::{AmdUnit, State};
use crate::addr::PhysAddr;
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::UnitError;
use crate::topology::capabilities::DomainTag;
use crate::topology::firmware::{UnitDescription, UnitKind};

/// Reads the addresses of the device table, command ring and logs that the unit's previous owner set (48882 section
/// 3.4.1). It does not check whether the unit uses them.
pub fn addresses_told(registers: &mut impl RegisterIo) -> [PhysAddr; 4] {
    [
        registers::DEVICE_TABLE_BASE,
        registers::COMMAND_BASE,
        registers::EVENT_BASE,
        registers::PPR_BASE,
    ]
    .map(|register| PhysAddr(registers.read64(register) & ADDRESS_BITS))
}

/// Control bits of the command ring and the event log, which every unit runs.
const RINGS: Control = Control::COMMANDS.union(Control::EVENT_LOG);

/// Control bits of page requests, for units that support them.
const REQUESTS: Control = Control::PPR_LOG.union(Control::PPR);

/// Control bits of the unit's own interrupts, which the server does not use.
const OWN_INTERRUPTS: Control =
    Control::EVENT_INTERRUPT.union(Control::WAIT_INTERRUPT).union(Control::PPR_INTERRUPT);

/// Status bits that show a running ring or log.
const RUNNING: Status = Status::COMMANDS_RUN.union(Status::EVENTS_RUN).union(Status::PPR_RUN);

/// Control bits on which the interrupt tables of a previous owner depend.
const INTERRUPTS: Control = Control::GUEST_APIC
    .union(Control::GUEST_APIC_MODE)
    .union(Control::X2APIC)
    .union(Control::INTERRUPTS_X2APIC)
    .union(Control::INTERRUPT_CACHE_OFF);

impl<R: RegisterIo, C: Clock, M: TableMemory> AmdUnit<R, C, M> {
    /// Brings the unit up until it accepts entries: rings and logs are in place, and every entry denies. A unit that
    /// is off stays off. A unit that is on goes on translating with its old device table.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`, `Memory`: at most the coherency of its table reads has changed. `Timeout`: the rings of a
    /// unit that was on cannot be replaced; it translates as before.
    pub fn bring_up(
        registers: R,
        clock: C,
        memory: &mut M,
        description: &UnitDescription,
        capability: Option<Capability>,
    ) -> Result<Self, UnitError> {
        let mut unit = Self::prepare(registers, clock, memory, description, capability)?;
        unit.take_over(memory)?;
        Ok(unit)
    }

    /// Reads the capabilities of the unit, and allocates its tables, which are never freed. It changes only whether
    /// the unit reads tables through the caches. Call [`AmdUnit::take_over`] next; if that fails,
    /// [`crate::hw::Unit::revive`] can be tried later.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`, `Memory`.
    pub fn prepare(
        registers: R,
        clock: C,
        memory: &mut M,
        description: &UnitDescription,
        capability: Option<Capability>,
    ) -> Result<Self, UnitError> {
        let UnitKind::AmdVi { function, flags, .. } = description.kind else {
            return Err(NOT_AMD_VI);
        };
        let (mut port, features) = identify(registers, clock, description, capability)?;
        let levels = supported_levels(features)?;
        let on = port.control.contains(Control::ENABLE);
        let coherent = make_coherent(&mut port, on);

        let devices = DeviceTable::new(memory, coherent, &description.entries)?;
        let commands = Commands::allocate(memory, coherent)?;
        let events = Log::events(memory, coherent)?;
        let requests = match features.contains(Features::PPR) {
            true => Some(Log::requests(memory, coherent)?),
            false => None,
        };
        Ok(Self {
            function,
            capabilities: capabilities(levels, coherent, capability),
            features,
            port,
            devices,
            commands,
            events,
            requests,
            running: running_control(flags, features),
            state: State::Off { entered: BTreeSet::new() },
            found_translating: on,
            memory: PhantomData,
        })
    }

    /// Takes the unit over from its previous owner, until it accepts entries.
    ///
    /// # Errors
    /// `Dead`, `Timeout`: the unit translates as before.
    pub fn take_over(&mut self, memory: &mut M) -> Result<(), UnitError> {
        match self.port.control.contains(Control::ENABLE) {
            true => self.replace_rings(memory),
            false => self.arm(),
        }
    }

    /// Prepares a unit that is off. Turns off everything that firmware may have left on, then sets bases and
    /// pointers.
    pub(super) fn arm(&mut self) -> Result<(), UnitError> {
        let control = self.running;
        self.port.set_control(Control::empty());
        self.port.wait_clear(RUNNING, "rings to stop")?;
        self.port.set_control(control & flag_bits());
        self.port.write(registers::DEVICE_TABLE_BASE, self.devices.register());
        self.install_rings();
        self.port.write(registers::EXCLUSION_BASE, 0);
        self.port.write(registers::EXCLUSION_LIMIT, 0);
        self.port.set_control(control - Control::ENABLE);
        Ok(())
    }

    /// Takes over a unit that is on: stops, replaces and starts rings and logs. IommuEn stays set, and the device
    /// table of the previous owner stays in force.
    pub(super) fn replace_rings(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let old = self.port.control - OWN_INTERRUPTS;
        self.port.set_control(old - RINGS - REQUESTS);
        self.port.wait_clear(RUNNING, "rings of the previous owner to stop")?;
        self.install_rings();
        let table = self.port.read(registers::DEVICE_TABLE_BASE);
        if table == u64::MAX {
            return Err(UnitError::Dead);
        }
        // If the unit already reads our table, that table has the fields.
        if table != self.devices.register() && self.devices.adopt_interrupts(memory, table) {
            self.running |= old & INTERRUPTS;
        }
        let rings = self.running & (RINGS | REQUESTS);
        self.port.set_control((old - RINGS - REQUESTS) | rings);
        self.port.wait_set(Status::COMMANDS_RUN, "command ring to start")
    }

    fn install_rings(&mut self) {
        self.commands.install(&mut self.port);
        self.events.install(&mut self.port);
        if let Some(requests) = &mut self.requests {
            requests.install(&mut self.port);
        }
        let stale = Status::EVENT_OVERFLOW
            | Status::EVENT_INTERRUPT
            | Status::WAIT_INTERRUPT
            | Status::PPR_OVERFLOW
            | Status::PPR_INTERRUPT;
        self.port.write(registers::STATUS, stale.bits());
    }

    /// Turns the unit on, or switches it to the new device table. Then invalidates everything. If this fails, the
    /// unit is on all the same, and it denies as its device table says.
    pub(super) fn turn_on(&mut self, memory: &mut M) -> Result<(), UnitError> {
        if let State::Off { entered } = &mut self.state {
            let entered = core::mem::take(entered);
            self.switch(self.running);
            self.state = State::Stale { entered };
        }
        if let State::Stale { .. } = self.state {
            self.port.wait_set(Status::COMMANDS_RUN, "command ring to start")?;
            self.forget_stale(memory)?;
            self.state = State::On;
        }
        Ok(())
    }

    /// Invalidates everything on a unit that reads the device table, if it may cache anything older.
    pub(super) fn forget_stale(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let State::Stale { entered } = &mut self.state else { return Ok(()) };
        // INVALIDATE_IOMMU_ALL covers these entries, but QEMU reads an entry again only when a command names it.
        // These commands come first, so that every walk after them uses the new entries.
        let named: Vec<_> = entered.iter().copied().map(command::invalidate_device).collect();
        self.commands.execute(&mut self.port, memory, named)?;
        self.forget_everything(memory)
    }

    /// Makes the unit read the new device table.
    fn switch(&mut self, control: Control) {
        let old = self.port.control;
        if old.intersects(Control::TABLE_SEGMENTS) {
            // Only the first part of a segmented table stays in force. Requesters of the other parts are denied.
            self.port.set_control(old - Control::TABLE_SEGMENTS);
        }
        if old.contains(Control::ENABLE) {
            // This store swaps the tables of a unit that is on.
            self.port.write(registers::DEVICE_TABLE_BASE, self.devices.register());
        }
        self.port.set_control(control);
        self.port.write(registers::EXCLUSION_BASE, 0);
        self.port.write(registers::EXCLUSION_LIMIT, 0);
    }

    /// Makes the unit invalidate everything. Without INVALIDATE_IOMMU_ALL, commands name every entry and then every
    /// domain.
    fn forget_everything(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let Self { port, commands, .. } = self;
        if self.features.contains(Features::INVALIDATE_ALL) {
            return commands.round(port, memory, &[command::invalidate_all()]);
        }
        commands.execute(port, memory, (0..=u16::MAX).map(command::invalidate_device))?;
        let domains = (0..=u16::MAX).map(|tag| super::command::whole_domain(DomainTag(tag)));
        commands.execute(port, memory, domains)
    }
}

/// Requests coherent reads of the tables, and returns whether the unit does them. Page tables are always read
/// coherently (SD is 0 in every entry), except by a unit that cannot.
fn make_coherent<R: RegisterIo, C: Clock>(port: &mut Port<R, C>, on: bool) -> bool {
    let wanted = match on {
        true => port.control | Control::COHERENT,
        false => Control::COHERENT,
    };
    port.set_control(wanted);
    let control = port.read(registers::CONTROL);
    Control::from_bits_retain(control).contains(Control::COHERENT)
}

/// Control bits that firmware decides, and Coherent.
const fn flag_bits() -> Control {
    Control::HT_TUNNEL
        .union(Control::PASS_PW)
        .union(Control::RESPONSE_PASS_PW)
        .union(Control::ISOCHRONOUS)
        .union(Control::COHERENT)
}

/// The control register of the unit when it runs: no guest features, no interrupts of its own.
fn running_control(flags: u8, features: Features) -> Control {
    let flags = HeaderFlags::from_bits_retain(flags);
    let mut control = Control::ENABLE | RINGS | Control::COHERENT;
    control.set(Control::HT_TUNNEL, flags.contains(HeaderFlags::HT_TUNNEL));
    control.set(Control::PASS_PW, flags.contains(HeaderFlags::PASS_PW));
    control.set(Control::RESPONSE_PASS_PW, flags.contains(HeaderFlags::RESPONSE_PASS_PW));
    control.set(Control::ISOCHRONOUS, flags.contains(HeaderFlags::ISOCHRONOUS));
    control.set(REQUESTS, features.contains(Features::PPR));
    control
}
