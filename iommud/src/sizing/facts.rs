//! The facts from which the need of memory is computed.

use crate::addr::PhysRange;
use crate::hw::Survey;
use crate::policy::Config;
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;

/// The facts about a machine before memory is taken.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The firmware's table.
    pub firmware: &'a Firmware,
    /// One for each unit of the table; `None` when its registers cannot be read.
    pub surveys: &'a [Option<Survey>],
    /// The memory map.
    pub ram: &'a [PhysRange],
    /// Every function.
    pub functions: &'a [PciFunction],
    /// Policy of unclaimed devices.
    pub config: &'a Config,
    /// Memory that earlier servers left, which `compat` maps again when it is given back.
    pub left: &'a [PhysRange],
}
