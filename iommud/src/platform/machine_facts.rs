//! What a start reads of the machine.

use crate::addr::PhysRange;
use crate::server::TableState;
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;

/// What is read of the machine before anything is changed.
pub(super) struct MachineFacts {
    /// Where memory may be.
    pub(super) ram: Vec<PhysRange>,
    pub(super) functions: Vec<PciFunction>,
    pub(super) table: TableState,
    pub(super) firmware: Firmware,
}

impl MachineFacts {
    /// Whether the firmware's table describes AMD-Vi units.
    pub(super) fn is_amd(&self) -> bool {
        self.table == TableState::Parsed("IVRS")
    }

    /// Whether every unit is known. Without a readable table a unit that an earlier server drove may not be: the memory
    /// of that server stays out of reach for good.
    pub(super) const fn all_units_known(&self) -> bool {
        !matches!(self.table, TableState::Failed(..))
    }

    /// Whether there is a unit whose registers can be written.
    pub(super) fn has_unit(&self) -> bool {
        self.firmware.units.iter().any(|unit| unit.registers.is_ok())
    }
}
