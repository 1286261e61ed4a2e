//! Runs plans on units; undoes the steps of a plan that fails.
//!
//! ```text
//! run        step 0, step 1, .. step k fails
//! undo                          step k-1, .. step 0   each by its inverse, then invalidated in the unit
//! conclude   after a run without a failure: the last steps, which free memory
//! ```
//!
//! After a failure every word of every table is as before the plan. The exception is a unit that cannot be
//! invalidated: its entry stays denied, nothing it might walk is freed, and the failure reports this (`lost`,
//! `unproved`).

mod budget;
mod kept;
mod reserve;
mod step;
mod undo;
mod walkers;

pub use budget::{GUARANTEE, Shares};
use kept::KeptTables;
use walkers::Walkers;

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::IovaRange;
use crate::hw::TableMemory;
use crate::hw::page_table::{Detached, Footprint, MapError, PageTable};
use crate::hw::{
    BufferMemory, HardwareFault, Invalidations, MemoryError, SetAside, Unit, UnitError,
};
use crate::policy::{DomainId, Orders, Payer, UnitIndex};
use crate::topology::capabilities::{DomainTag, UnitCapabilities};

/// The units of the machine and the page tables of all domains.
pub struct Engine<U: Unit> {
    units: Vec<Option<U>>,
    tables: Vec<Option<Table<U>>>,
    memory: U::Memory,
    /// Groups that may be claimed: see [`Engine::promise`].
    groups: usize,
    /// Memory reserved for units that are not up.
    reserve: BTreeMap<UnitIndex, SetAside>,
    kept: KeptTables<Table<U>>,
    /// Entries that the running plan has moved away from a domain.
    leaving: Vec<(UnitIndex, DomainId)>,
}

/// The page table of a domain.
struct Table<U: Unit> {
    pages: PageTable<U::Format>,
    tag: DomainTag,
    payer: Payer,
    /// Frames that it has, including those of tables that are unlinked and not freed.
    frames: usize,
    /// Tables that `Unmap` steps of the running plan unlinked, until `ReleaseTables`.
    detached: Detached,
    /// Units that are asked before anything of it is freed in an undo.
    walkers: Walkers,
}

/// The failure of a plan. Every step that could be undone was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// Index of the step that failed.
    pub step: usize,
    /// The unit of the step.
    pub unit: Option<UnitIndex>,
    /// The error.
    pub error: UnitError,
    /// Units that can no longer be relied on: each is to become an `Event::UnitFailed`.
    pub lost: Vec<UnitIndex>,
    /// A unit may still reach memory that the plan mapped: the plan goes to `Registry::quarantine`, not `abort`.
    pub unproved: bool,
}

impl StepFailure {
    /// The refusal for the client.
    #[must_use]
    pub const fn refusal(&self) -> Refusal {
        match self.error {
            UnitError::Memory(MemoryError::Share) => Refusal::Quota,
            UnitError::Memory(_) => Refusal::NoMemory,
            UnitError::Unsupported { .. } => Refusal::Unsupported,
            UnitError::Timeout { .. } | UnitError::Queue { .. } | UnitError::Dead => {
                Refusal::UnitFailed
            }
        }
    }
}

/// A checkpoint, for tests whose units and memory can be restored.
impl<U: Unit + Clone> Clone for Engine<U>
where
    U::Memory: Clone,
{
    fn clone(&self) -> Self {
        Self {
            units: self.units.clone(),
            tables: self.tables.clone(),
            memory: self.memory.clone(),
            groups: self.groups,
            reserve: self.reserve.clone(),
            kept: self.kept.clone(),
            leaving: self.leaving.clone(),
        }
    }
}

impl<U: Unit> Clone for Table<U> {
    fn clone(&self) -> Self {
        Self {
            pages: self.pages.clone(),
            detached: self.detached.clone(),
            walkers: self.walkers.clone(),
            ..*self
        }
    }
}

impl<U: Unit> Table<U> {
    fn destroy(self, memory: &mut U::Memory) {
        let Self { pages, mut detached, .. } = self;
        PageTable::<U::Format>::release(memory, &mut detached);
        pages.destroy(memory);
    }
}

/// The failure of a step: its unit, and the error.
struct Fault {
    unit: Option<UnitIndex>,
    error: UnitError,
}

impl Fault {
    const fn of(unit: UnitIndex, error: UnitError) -> Self {
        Self { unit: Some(unit), error }
    }
}

impl From<MapError> for Fault {
    fn from(error: MapError) -> Self {
        let error = match error {
            MapError::Memory(error) => UnitError::Memory(error),
            MapError::Overlap(_) => UnitError::Unsupported { what: "a range that is mapped" },
            MapError::OutOfReach { .. } => UnitError::Unsupported { what: "an address this high" },
            MapError::Levels(_) => UnitError::Unsupported { what: "a table this deep" },
            MapError::Unaligned { .. } => UnitError::Unsupported { what: "part of a page" },
            MapError::NoAccess => UnitError::Unsupported { what: "a mapping without access" },
        };
        Self { unit: None, error }
    }
}

/// Whether a unit with this error can no longer be relied on.
const fn is_fatal(error: &UnitError) -> bool {
    matches!(error, UnitError::Timeout { .. } | UnitError::Queue { .. } | UnitError::Dead)
}

impl<U: Unit> Engine<U> {
    /// Creates an engine without units. All tables live in `memory`.
    #[must_use]
    pub const fn new(memory: U::Memory) -> Self {
        Self {
            units: Vec::new(),
            tables: Vec::new(),
            memory,
            groups: 0,
            reserve: BTreeMap::new(),
            kept: KeptTables::new(),
            leaving: Vec::new(),
        }
    }

    /// Adds a unit that was brought up until it accepts entries. `Event::UnitReady` comes next.
    pub fn install(&mut self, index: UnitIndex, unit: U) {
        self.open_reserve(index);
        place(&mut self.units, index.0, unit);
    }

    /// Carries out the steps of a plan that may fail, in order. [`Engine::conclude`] carries out the others.
    ///
    /// # Errors
    /// The first step that failed; the ones before it were undone.
    pub fn run<B: BufferMemory>(
        &mut self,
        orders: &Orders,
        buffers: &mut B,
    ) -> Result<(), StepFailure> {
        let before = self.memory.frames_in_use();
        let (steps, pages) = (orders.steps(), orders.pages());
        let fallible = steps.get(..orders.fallible()).unwrap_or(steps);
        for (index, step) in fallible.iter().enumerate() {
            if let Err(fault) = self.carry_out(step, pages, buffers) {
                let done = fallible.get(..index).unwrap_or_default();
                return Err(self.undo(done, index, fault));
            }
        }
        if let Err(fault) = self.afford(orders.charge(), before) {
            return Err(self.undo(fallible, fallible.len(), fault));
        }
        Ok(())
    }

    /// Carries out the last steps of a plan, which can neither fail nor be undone, after [`Engine::run`]. They free
    /// memory. So what the next server is to know of the plan is recorded before.
    pub fn conclude<B: BufferMemory>(&mut self, orders: &Orders, buffers: &mut B) {
        if !self.leaving.is_empty() {
            self.leave();
        }
        for step in orders.steps().get(orders.fallible()..).unwrap_or_default() {
            self.finish(step, buffers);
        }
    }

    /// The capabilities of a unit; `None` when it was never brought up.
    #[must_use]
    pub fn capabilities(&self, unit: UnitIndex) -> Option<UnitCapabilities> {
        Some(at(&self.units, unit.0)?.as_ref()?.capabilities())
    }

    /// Takes fault records of a unit; see [`Unit::take_faults`]. A unit that was never brought up has none.
    ///
    /// # Errors
    /// Those of [`Unit::take_faults`].
    pub fn take_faults(
        &mut self,
        unit: UnitIndex,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        match at_mut(&mut self.units, unit.0) {
            Some(Some(hardware)) => hardware.take_faults(&mut self.memory, limit, sink),
            _ => Ok(0),
        }
    }

    /// Makes a unit send an interrupt message when it has fault records.
    ///
    /// # Errors
    /// Those of [`Unit::enable_fault_interrupt`]; `Unsupported` when the unit was not installed.
    pub fn enable_fault_interrupt(
        &mut self,
        unit: UnitIndex,
        address: u64,
        data: u32,
    ) -> Result<(), UnitError> {
        match at_mut(&mut self.units, unit.0) {
            Some(Some(hardware)) => hardware.enable_fault_interrupt(address, data),
            _ => Err(UnitError::Unsupported { what: "interrupt of a unit that is not there" }),
        }
    }

    /// The invalidations that a unit was given so far. A unit that was never brought up was given none.
    #[must_use]
    pub fn invalidations(&self, unit: UnitIndex) -> Invalidations {
        let unit = at(&self.units, unit.0).and_then(Option::as_ref);
        unit.map(Unit::invalidations).unwrap_or_default()
    }

    /// Adds the leaves that translate addresses of a domain to `found`: see [`PageTable::footprint`].
    pub fn footprint(
        &self,
        domain: DomainId,
        range: IovaRange,
        tables: &mut u32,
        found: &mut Footprint,
    ) -> bool {
        let table = at(&self.tables, domain.0).and_then(Option::as_ref);
        table.is_none_or(|table| table.pages.footprint(&self.memory, range, tables, found))
    }

    /// Describes a unit's registers in words.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe(
        &mut self,
        unit: UnitIndex,
        out: &mut dyn core::fmt::Write,
    ) -> core::fmt::Result {
        match at_mut(&mut self.units, unit.0) {
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

/// Element `index`, whose number is a `u32`.
fn at<T>(list: &[T], index: u32) -> Option<&T> {
    usize::try_from(index).ok().and_then(|index| list.get(index))
}

/// Like [`at`], mutable.
fn at_mut<T>(list: &mut [T], index: u32) -> Option<&mut T> {
    usize::try_from(index).ok().and_then(|index| list.get_mut(index))
}

/// Puts `value` at `index`, in place of any other.
fn place<T>(list: &mut Vec<Option<T>>, index: u32, value: T) {
    let Ok(index) = usize::try_from(index) else { return };
    if list.len() <= index {
        list.resize_with(index + 1, || None);
    }
    if let Some(slot) = list.get_mut(index) {
        *slot = Some(value);
    }
}
