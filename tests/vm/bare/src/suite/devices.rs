//! Checks with other devices and other locations.

use alloc::format;

use iommu_protocol::fault::FaultAccess::Write;
use iommud::hw::Entry;

use super::lab::{ARENA, Lab, OTHER, READ_WRITE, page, range};
use super::{Outcome, ensure};
use crate::nvme::Nvme;
use crate::{cpu, pci, phys};

/// Writes to the interrupt window are interrupts and are never translated (VT-d 4.1 section 3.14).
pub fn interrupts(lab: &mut Lab) -> Outcome {
    let vector = cpu::FIRST_VECTOR + 3;
    pci::enable_msi(lab.edu[0].id, cpu::MSI_ADDRESS, cpu::msi_data(vector));
    lab.edu[0].raise_interrupt();
    let count = cpu::interrupts(vector);
    ensure!(count == 1, "{count} interrupts of a blocked device");
    lab.expect_no_fault()?;
    Ok(format!("vector {vector:#x}"))
}

pub fn behind_port(lab: &mut Lab) -> Outcome {
    let (near, far) = (lab.edu[0].id, lab.edu[2].id);
    ensure!(far.bus() != 0 && far.devfn() == 0, "the third edu device is at {far:?}");
    let mut space = lab.space(11)?;
    lab.map(&mut space, page(0x60_0000), ARENA, READ_WRITE)?;
    // The first context table of its bus: the root entry appears while the unit translates.
    lab.attach(far, &space)?;
    phys::fill(ARENA, 4096, super::lab::pattern(2));
    lab.edu[2].load_from(0x60_0000);
    ensure!(lab.arrives(2, 0x60_0000, ARENA)?, "the page is not reached");
    ensure!(!lab.arrives(0, 0x60_0000, ARENA)?, "another device reaches the page");
    lab.expect_fault(near, 0x60_0000, Write, 2)?;
    lab.edu[2].write_memory(0x61_0000, 64);
    lab.expect_fault(far, 0x61_0000, Write, 5)?;
    lab.detach(far, &space)?;
    ensure!(!lab.arrives(2, 0x60_0000, ARENA)?, "the page is still reached");
    lab.expect_fault(far, 0x60_0000, Write, 2)?;
    lab.destroy(space);
    Ok(format!("{far:?}"))
}

pub fn nvme(lab: &mut Lab) -> Outcome {
    const QUEUES: u64 = 0x70_0000;
    const DATA: u64 = 0x71_0000;
    let id = Nvme::find().ok_or("no nvme controller")?;
    let mut space = lab.space(12)?;
    let queues = ARENA + (2 << 20);
    lab.map(&mut space, range(QUEUES, 8192), queues, READ_WRITE)?;
    lab.map(&mut space, page(DATA), OTHER, READ_WRITE)?;
    lab.attach(id, &space)?;
    let mut nvme = Nvme::start(id, queues, QUEUES).ok_or("the controller does not start")?;
    phys::fill(OTHER, 4096, 0);
    let status = nvme.identify(DATA).ok_or("no completion")?;
    ensure!(status == 0, "status {status:#x}");
    // Bytes 23:4 of the identification are the serial number, which xtask sets.
    ensure!(phys::read32(OTHER + 4) == u32::from_le_bytes(*b"bare"), "no identification came");
    lab.expect_no_fault()?;

    lab.unmap(&mut space, page(DATA))?;
    phys::fill(OTHER, 4096, 0);
    let status = nvme.identify(DATA).ok_or("no completion")?;
    ensure!(phys::is_filled(OTHER, 4096, 0), "the page is still reached");
    lab.expect_fault(nvme.id, DATA, Write, 5)?;
    lab.write_entry(id, Entry::Blocked)?;
    lab.invalidate_entry(id, Some(space.tag))?;
    lab.destroy(space);
    Ok(format!("{id:?}; denied, its status is {status:#x}"))
}
