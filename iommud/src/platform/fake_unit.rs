//! A fake unit for tests over huge pages. It accepts every command, and its devices do what the test sets.

use std::cell::Cell;
use std::rc::Rc;

use iommu_protocol::ids::RequesterId;

use super::units::{Family, Surroundings};
use super::{HugeTables, Registers};
use crate::addr::IovaRange;
use crate::hw::vtd::SecondStage;
use crate::hw::{Entry, HardwareFault, Survey, Unit, UnitError};
use crate::topology::capabilities::{DomainTag, LevelSet, PageSizes, UnitCapabilities};
use crate::topology::firmware::{Firmware, UnitDescription};
use crate::topology::pci::ConfigSpace;

/// The fake unit.
#[derive(Clone)]
pub(super) struct FakeUnit {
    /// Called by each invalidation of pages. Stands for the accesses that devices still make before it completes.
    pub(super) devices: Rc<dyn Fn()>,
    /// When set, invalidations fail.
    pub(super) dead: Rc<Cell<bool>>,
}

impl FakeUnit {
    /// A unit whose devices do nothing.
    pub(super) fn new() -> Self {
        Self { devices: Rc::new(|| ()), dead: Rc::default() }
    }
}

impl Unit for FakeUnit {
    type Memory = HugeTables;
    type Format = SecondStage;

    fn capabilities(&self) -> UnitCapabilities {
        UnitCapabilities {
            levels: LevelSet::FOUR,
            page_sizes: PageSizes::all(),
            coherent: true,
            forces_snoop: true,
            caches_absent: false,
            publishes: false,
            last_tag: 100,
            pass_through: true,
            physical_bits: 46,
            iova_bits: 48,
            deepens: false,
        }
    }

    fn write_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Entry,
    ) -> Result<(), UnitError> {
        Ok(())
    }

    fn suppress_faults(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: bool,
    ) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        Ok(())
    }

    fn publish_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
    ) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
        _: bool,
    ) -> Result<(), UnitError> {
        (self.devices)();
        if self.dead.get() { Err(UnitError::Dead) } else { Ok(()) }
    }

    fn enable(&mut self, _: &mut HugeTables) -> Result<(), UnitError> {
        Ok(())
    }

    fn revive(&mut self, _: &mut HugeTables) -> Result<(), UnitError> {
        Ok(())
    }

    fn take_faults(
        &mut self,
        _: &mut HugeTables,
        _: usize,
        _: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        Ok(0)
    }

    fn describe(&mut self, _: &mut dyn core::fmt::Write) -> core::fmt::Result {
        Ok(())
    }
}

impl Family for FakeUnit {
    fn survey<S: ConfigSpace>(
        _: Registers,
        _: &Firmware,
        _: &mut S,
        _: &UnitDescription,
    ) -> Result<Survey, UnitError> {
        Err(UnitError::Dead)
    }

    fn prepare_unit<S: ConfigSpace>(
        _: Registers,
        _: &mut Surroundings<'_, S>,
        _: &UnitDescription,
    ) -> Result<Self, UnitError> {
        Ok(Self::new())
    }

    fn take_over_unit(&mut self, _: &mut HugeTables) -> Result<(), UnitError> {
        Ok(())
    }
}
