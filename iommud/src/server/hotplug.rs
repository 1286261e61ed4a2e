//! Units, functions and memory that come and go while the server runs.

use alloc::string::ToString;
use alloc::vec::Vec;

use iommu_protocol::{PciAddress, Refusal};

use crate::addr::PhysRange;
use crate::hw::{BufferMemory, Unit, UnitError};
use crate::policy::{Event, UnitIndex};
use crate::server::{Server, UnitState};
use crate::topology::pci::PciFunction;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The memory of tables.
    pub fn table_memory(&mut self) -> &mut U::Memory {
        self.engine.memory_mut()
    }

    /// The memory in which a unit is brought up, with the frames that were reserved for it. The next call is the
    /// result: [`Server::unit_arrived`], [`Server::unit_stuck`] or [`Server::unit_not_arrived`].
    pub fn bring_up_memory(&mut self, unit: UnitIndex) -> &mut U::Memory {
        self.engine.open_reserve(unit)
    }

    /// Adds a unit that firmware describes and that was not up at start. It was [`UnitStart::Off`], and devices
    /// behind it are refused `NotReady` until now, or [`UnitStart::Failed`]. Puts the functions behind it under
    /// policy and turns it on.
    ///
    /// [`UnitStart::Failed`]: crate::server::UnitStart::Failed
    /// [`UnitStart::Off`]: crate::server::UnitStart::Off
    pub fn unit_arrived(&mut self, unit: UnitIndex, hardware: U) {
        self.found_later(unit, hardware.found_translating());
        self.install(unit, hardware);
        self.enable(unit);
        // Claims that wait come before later ones.
        self.try_waiting();
    }

    /// Like [`Server::unit_arrived`], for a unit that did not carry out a command: it is tried again later.
    pub fn unit_stuck(&mut self, unit: UnitIndex, hardware: U, error: &UnitError) {
        self.install(unit, hardware);
        self.fail(unit, error.to_string());
        self.try_waiting();
    }

    /// Records that an expected unit did not come up: its devices are refused `UnitFailed` until it does.
    pub fn unit_not_arrived(&mut self, unit: UnitIndex, error: &UnitError) {
        self.recovery.not_arrived(unit, error);
        self.set_aside();
        self.fail(unit, error.to_string());
        self.try_waiting();
    }

    /// Puts a new function under policy.
    ///
    /// # Errors
    /// A function is known there already, or its entry cannot be written: then the unit still denies it.
    pub fn function_arrived(&mut self, function: PciFunction) -> Result<(), Refusal> {
        self.run_event(&Event::FunctionAdded(function))?;
        // If another device was driven at this address, its note is removed.
        self.settle(function.address);
        self.share_out();
        Ok(())
    }

    /// Puts new functions under policy, each after the bridges above it. Returns those that were refused. One plan has
    /// all of them, or each half of those that cannot be added together: a plan for each would copy the state for each.
    pub(super) fn functions_arrived(
        &mut self,
        functions: &[PciFunction],
    ) -> Vec<(PciAddress, Refusal)> {
        let mut refused = Vec::new();
        let mut left = alloc::vec![functions];
        while let Some(some) = left.pop().filter(|some| !some.is_empty()) {
            match (self.run_event(&Event::FunctionsAdded(some.to_vec())), some) {
                (Ok(()), _) => some.iter().for_each(|function| self.settle(function.address)),
                (Err(refusal), [one]) => refused.push((one.address, refusal)),
                (Err(_), _) => {
                    let (first, second) = some.split_at(some.len() / 2);
                    left.extend([second, first]);
                }
            }
        }
        self.share_out();
        refused
    }

    /// Cuts off a function that is gone. Its sessions stay open, and all their requests are refused.
    pub fn function_gone(&mut self, address: PciAddress) {
        self.cut_off(Event::FunctionRemoved(address));
    }

    /// Like [`Server::function_gone`], for several of them.
    pub(super) fn functions_gone(&mut self, gone: Vec<PciAddress>) {
        if !gone.is_empty() {
            self.cut_off(Event::FunctionsRemoved(gone));
        }
    }

    fn cut_off(&mut self, removal: Event) {
        self.run_to_the_end(removal);
        self.share_out();
        self.waiting.change();
        self.survey.change();
    }

    /// Lets domains of policy map memory that was withheld from them at start ([`Startup::left`]) and that no unit
    /// uses any more. True when they do: then the system may use it again. Otherwise there was no memory for tables.
    /// This is tried again in [`Server::tick`], and a later call returns the result.
    ///
    /// [`Startup::left`]: crate::server::Startup::left
    pub fn memory_returned(&mut self, range: PhysRange) -> bool {
        let event = Event::MemoryReturned(range);
        if self.endings.forget(&event) {
            self.run_once_more(event)
        } else {
            self.run_to_the_end(event)
        }
    }

    /// Whether every unit of the firmware's table translates through tables of this server. A unit of whose registers the
    /// table says nonsense was never driven by a server, and does not count.
    #[must_use]
    pub fn all_units_enabled(&self) -> bool {
        let mut units =
            self.machine.units().iter().filter(|unit| unit.description.registers.is_ok());
        units.all(|unit| unit.state == UnitState::Enabled)
    }
}
