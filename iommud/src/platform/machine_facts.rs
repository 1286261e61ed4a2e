//! Facts about the machine that the server reads at start.

use crate::addr::PhysRange;
use crate::server::TableState;
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;

/// Facts about the machine, read before the server changes anything.
pub(super) struct MachineFacts {
    /// Ranges that may be memory.
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

    /// Whether the server knows every unit. False when the table could not be read. Then a unit that an earlier
    /// server drove may be unknown, so the memory of that server stays out of reach for good.
    pub(super) const fn all_units_known(&self) -> bool {
        !matches!(self.table, TableState::Failed(..))
    }

    /// Whether a unit has a valid range of registers.
    pub(super) fn has_unit(&self) -> bool {
        self.firmware.units.iter().any(|unit| unit.registers.is_ok())
    }
}
