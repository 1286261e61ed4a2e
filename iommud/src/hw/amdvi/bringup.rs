//! Bringing a unit up, as far as taking entries; and turning it on. The order is the module's head.

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

/// Where a unit was told that its device table, command ring and logs are (48882 section 3.4.1). Of whoever
/// owned it last; whether it uses them is not looked at.
pub fn addresses_told(registers: &mut impl RegisterIo) -> [PhysAddr; 4] {
    [
        registers::DEVICE_TABLE_BASE,
        registers::COMMAND_BASE,
        registers::EVENT_BASE,
        registers::PPR_BASE,
    ]
    .map(|register| PhysAddr(registers.read64(register) & ADDRESS_BITS))
}

/// All that a unit runs, but for its translation.
const RINGS: Control = Control::COMMANDS.union(Control::EVENT_LOG);

/// Page requests, where the unit takes them.
const REQUESTS: Control = Control::PPR_LOG.union(Control::PPR);

/// Interrupts of the unit itself: nobody takes them.
const OWN_INTERRUPTS: Control =
    Control::EVENT_INTERRUPT.union(Control::WAIT_INTERRUPT).union(Control::PPR_INTERRUPT);

/// What shows that a ring or log runs.
const RUNNING: Status = Status::COMMANDS_RUN.union(Status::EVENTS_RUN).union(Status::PPR_RUN);

/// What a previous owner's interrupt tables need.
const INTERRUPTS: Control = Control::GUEST_APIC
    .union(Control::GUEST_APIC_MODE)
    .union(Control::X2APIC)
    .union(Control::INTERRUPTS_X2APIC)
    .union(Control::INTERRUPT_CACHE_OFF);

impl<R: RegisterIo, C: Clock, M: TableMemory> AmdUnit<R, C, M> {
    /// Brings the unit up as far as taking entries: rings and logs in place, every entry denying. A unit
    /// that is off stays off; one that is on goes on translating with its old device table.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`, `Memory`: nothing changed. `Timeout`: the rings of a unit that was on cannot
    /// be replaced; it translates as before.
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

    /// Looks at what the unit can do, and allocates the tables that it needs, which are never given back. Nothing is
    /// changed but whether it reads tables through the caches. [`AmdUnit::take_over`] is next; if that fails,
    /// [`crate::hw::Unit::revive`] may be tried later.
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

    /// Takes a unit over from whoever had it before, as far as taking entries.
    ///
    /// # Errors
    /// `Dead`, `Timeout`: what it translates is as it was.
    pub fn take_over(&mut self, memory: &mut M) -> Result<(), UnitError> {
        match self.port.control.contains(Control::ENABLE) {
            true => self.replace_rings(memory),
            false => self.arm(),
        }
    }

    /// A unit that is off: everything that firmware may have left is turned off, then bases and pointers.
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

    /// A unit that is on: rings and logs are stopped, replaced and started; IommuEn stays, and the device
    /// table of the previous owner.
    pub(super) fn replace_rings(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let old = self.port.control - OWN_INTERRUPTS;
        self.port.set_control(old - RINGS - REQUESTS);
        self.port.wait_clear(RUNNING, "rings of the previous owner to stop")?;
        self.install_rings();
        let table = self.port.read(registers::DEVICE_TABLE_BASE);
        if table == u64::MAX {
            return Err(UnitError::Dead);
        }
        // Of a unit that reads this table already they are in it.
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

    /// Turns the unit on, or over to the new device table; then makes it forget everything. The unit is on
    /// when this fails: what its device table denies, it denies.
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

    /// Makes a unit that reads the device table forget everything, if it may have anything from before.
    pub(super) fn forget_stale(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let State::Stale { entered } = &mut self.state else { return Ok(()) };
        // INVALIDATE_IOMMU_ALL covers them; but QEMU looks at an entry only when it is named. They come first:
        // what is walked after an entry was forgotten comes from the new one.
        let named: Vec<_> = entered.iter().copied().map(command::invalidate_device).collect();
        self.commands.execute(&mut self.port, memory, named)?;
        self.forget_everything(memory)
    }

    /// Makes the unit read the new device table.
    fn switch(&mut self, control: Control) {
        let old = self.port.control;
        if old.intersects(Control::TABLE_SEGMENTS) {
            // The first part of a table in parts alone: requesters of the others are denied.
            self.port.set_control(old - Control::TABLE_SEGMENTS);
        }
        if old.contains(Control::ENABLE) {
            // The store that swaps tables under a unit that is on.
            self.port.write(registers::DEVICE_TABLE_BASE, self.devices.register());
        }
        self.port.set_control(control);
        self.port.write(registers::EXCLUSION_BASE, 0);
        self.port.write(registers::EXCLUSION_LIMIT, 0);
    }

    /// Makes the unit forget everything it caches. Without INVALIDATE_IOMMU_ALL each entry and each domain
    /// is named, in this order.
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

/// Asks for coherent reads of the tables, and says whether the unit does them. Page tables are always read
/// so (SD is 0 in every entry), except by a unit that cannot.
fn make_coherent<R: RegisterIo, C: Clock>(port: &mut Port<R, C>, on: bool) -> bool {
    let wanted = match on {
        true => port.control | Control::COHERENT,
        false => Control::COHERENT,
    };
    port.set_control(wanted);
    let control = port.read(registers::CONTROL);
    Control::from_bits_retain(control).contains(Control::COHERENT)
}

/// The control bits that firmware decides.
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
