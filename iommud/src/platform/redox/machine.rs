//! What kind of machine this is: the firmware's table, the functions, the units.

use std::io;

use super::pci::{PciAccess, roots};
use super::phases::Phases;
use super::{memory, tables};
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::units;
use crate::server::TableState;
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;
use crate::topology::walk::{Roots, walk};

const GIB: u64 = 1 << 30;

/// What is read before anything is changed.
pub(super) struct Machine {
    pub(super) ram: Vec<PhysRange>,
    pub(super) space: PciAccess,
    pub(super) functions: Vec<PciFunction>,
    pub(super) table: TableState,
    pub(super) firmware: Firmware,
}

impl Machine {
    /// Reads it from the schemes of the kernel, acpid and pcid.
    ///
    /// # Errors
    /// The memory scheme or pcid does not answer.
    pub(super) fn read(phases: &mut Phases) -> io::Result<Self> {
        let mut space = PciAccess::open()?;
        let functions = walk(&mut space, Roots::Known(&roots()?));
        phases.end("functions");
        let (table, firmware) = units::firmware(tables::read);
        phases.end("table");
        Ok(Self { ram: ram()?, space, functions, table, firmware })
    }
}

/// Everything below the end of memory. No scheme tells where memory lies; on a PC what does not fit below
/// the devices, which end at 4 GiB, begins there.
fn ram() -> io::Result<Vec<PhysRange>> {
    let (total, _) = memory::amounts()?;
    let end = total.saturating_add(4 * GIB).next_multiple_of(GIB);
    Ok(PhysRange::new(PhysAddr(0), end).into_iter().collect())
}
