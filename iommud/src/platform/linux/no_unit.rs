//! A unit that cannot exist: until a backend is linked in, every unit of the table is reported as failed.

use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::Access;

use crate::addr::{IovaRange, PhysAddr};
use crate::hw::radix::{PteFormat, PteSlot};
use crate::hw::{Entry, HardwareFault, Unit, UnitError};
use crate::platform::HugeTables;
use crate::topology::capabilities::{DomainTag, UnitCapabilities};

/// There is none.
pub(super) enum NoUnit {}

/// Its format.
pub(super) struct NoFormat;

impl PteFormat for NoFormat {
    fn leaf(_: PhysAddr, _: Access, _: u8) -> u64 {
        0
    }
    fn table(_: PhysAddr, _: u8) -> u64 {
        0
    }
    fn decode(_: u64, _: u8) -> PteSlot {
        PteSlot::Empty
    }
}

type Done = Result<(), UnitError>;

impl Unit for NoUnit {
    type Memory = HugeTables;
    type Format = NoFormat;

    fn capabilities(&self) -> UnitCapabilities {
        match *self {}
    }
    fn write_entry(&mut self, _: &mut HugeTables, _: RequesterId, _: Entry) -> Done {
        match *self {}
    }
    fn invalidate_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Option<DomainTag>,
    ) -> Done {
        match *self {}
    }
    fn publish_pages(&mut self, _: &mut HugeTables, _: DomainTag, _: IovaRange) -> Done {
        match *self {}
    }
    fn invalidate_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
        _: bool,
    ) -> Done {
        match *self {}
    }
    fn enable(&mut self, _: &mut HugeTables) -> Done {
        match *self {}
    }
    fn take_faults(
        &mut self,
        _: &mut HugeTables,
        _: usize,
        _: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        match *self {}
    }
    fn describe(&mut self, _: &mut dyn std::fmt::Write) -> std::fmt::Result {
        match *self {}
    }
}
