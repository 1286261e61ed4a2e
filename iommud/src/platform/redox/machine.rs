//! Reads the machine: the firmware's table, the functions, the ranges of memory.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;

use super::boot_timing::Phases;
use super::pci::{PciAccess, roots};
use super::{acpi_tables, memory};
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::machine_facts::MachineFacts;
use crate::platform::units;
use crate::topology::pci::ConfigSpace;
use crate::topology::walk::{Roots, walk};
use crate::topology::windows;

const GIB: u64 = 1 << 30;

/// The machine, read before the server changes anything.
pub(super) struct Machine {
    pub(super) facts: MachineFacts,
    /// Segments and buses where walks of configuration space begin.
    pub(super) roots: Vec<(u16, u8)>,
    pub(super) space: PciAccess,
}

impl Machine {
    /// Reads the machine from the schemes of the kernel, acpid and pcid.
    ///
    /// # Errors
    /// An error of the memory scheme or of pcid.
    pub(super) fn read(phases: &mut Phases) -> io::Result<Self> {
        let mut space = PciAccess::open()?;
        let roots = roots()?;
        let functions = walk(&mut space, Roots::Known(&roots));
        phases.end("functions");
        let (table, firmware) = units::firmware(acpi_tables::read);
        phases.end("table");
        let devices = windows::lowest(&mut space, &functions);
        let facts = MachineFacts { ram: ram(devices)?, functions, table, firmware };
        Ok(Self { facts, roots, space })
    }
}

/// The ranges that may be memory. No scheme reports them, so the function assumes the layout of a PC. There memory
/// lies below 640 KiB, and from 1 MiB to the lowest register of `devices`. The rest begins at 4 GiB, where registers
/// end.
fn ram(devices: Option<u64>) -> io::Result<Vec<PhysRange>> {
    let (total, _) = memory::amounts()?;
    let end = total.saturating_add(4 * GIB).next_multiple_of(GIB);
    let parts = match devices {
        Some(devices) => vec![(0, 640 << 10), (1 << 20, devices), (4 * GIB, end)],
        None => vec![(0, end)],
    };
    let range = |(first, end): (u64, u64)| PhysRange::new(PhysAddr(first), end - first);
    Ok(parts.into_iter().filter_map(range).collect())
}

/// Configuration space, shared by discovery and by bringing up late units. One thread does both, one after the other.
#[derive(Clone)]
pub(super) struct SharedSpace(Rc<RefCell<PciAccess>>);

impl SharedSpace {
    pub(super) fn new(space: PciAccess) -> Self {
        Self(Rc::new(RefCell::new(space)))
    }
}

impl ConfigSpace for SharedSpace {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        self.0.try_borrow_mut().map_or(u32::MAX, |mut space| space.read(address, offset))
    }
}
