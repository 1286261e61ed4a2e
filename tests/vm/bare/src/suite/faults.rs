//! Fault records and the fault interrupt.

use alloc::format;

use iommu_protocol::fault::FaultAccess::{Read, Write};
use iommu_protocol::wire::Access;
use iommud::hw::Entry;

use super::lab::{ARENA, LENGTH, Lab, page, pattern};
use super::{Outcome, ensure};
use crate::{cpu, phys};

pub fn exact(lab: &mut Lab) -> Outcome {
    let source = lab.edu[1].id;
    let mut space = lab.space(7)?;
    lab.map(&mut space, page(0x40_0000), ARENA, Access::READ)?;
    lab.map(&mut space, page(0x40_1000), ARENA + 4096, Access::WRITE)?;
    lab.attach(source, &space)?;
    // The record names the page, whatever the offset (VT-d 4.1 section 11.4.7.6: FI holds bits 63:12). Reason 5h: no
    // write permission; 6h: no read permission; both also where nothing is mapped. Denied accesses come first: QEMU
    // leaves no record for an access that its IOTLB already denies.
    phys::fill(ARENA, 4096, pattern(1));
    lab.edu[1].write_memory(0x40_0080, LENGTH);
    lab.expect_fault(source, 0x40_0000, Write, 5)?;
    ensure!(phys::is_filled(ARENA, 4096, pattern(1)), "a read-only page was written");
    lab.edu[1].read_memory(0x40_0080, LENGTH);
    lab.expect_no_fault()?;
    lab.edu[1].read_memory(0x40_1ff0, 16);
    lab.expect_fault(source, 0x40_1000, Read, 6)?;
    lab.edu[1].load_from(0x40_0000);
    ensure!(lab.arrives(1, 0x40_1000, ARENA + 4096)?, "a write-only page was not written");
    lab.edu[1].read_memory(0x7fff_f000, LENGTH);
    lab.expect_fault(source, 0x7fff_f000, Read, 6)?;
    // A DMA across the end of a mapping: the part inside is written.
    phys::fill(ARENA + 4096, 4096, 0);
    phys::fill(ARENA + 8192, 4096, 0);
    lab.edu[1].load_from(0x40_0000);
    lab.edu[1].write_memory(0x40_1fe0, LENGTH);
    lab.expect_fault(source, 0x40_2000, Write, 5)?;
    ensure!(phys::read64(ARENA + 0x1ff8) == pattern(1), "the part inside is missing");
    ensure!(phys::is_filled(ARENA + 8192, 4096, 0), "the part outside arrived");
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok(format!("{source:?}"))
}

pub fn silenced(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    lab.suppress_faults(source, true)?;
    lab.invalidate_entry(source, None)?;
    ensure!(!lab.arrives(0, ARENA, ARENA)?, "the device writes");
    lab.expect_no_fault()?;
    lab.write_entry(source, Entry::Blocked)?;
    lab.invalidate_entry(source, None)?;
    ensure!(!lab.arrives(0, ARENA, ARENA)?, "the device writes");
    lab.expect_fault(source, ARENA, Write, 2)?;
    Ok(format!("{source:?}"))
}

pub fn interrupt(lab: &mut Lab) -> Outcome {
    let vector = cpu::FIRST_VECTOR + 2;
    lab.unit.program_fault_interrupt(cpu::MSI_ADDRESS, cpu::msi_data(vector));
    // Earlier faults were recorded while the interrupt was masked. QEMU keeps one interrupt pending for them.
    let first = cpu::interrupts(vector);
    ensure!(first <= 1, "{first} interrupts at once");
    let count = || cpu::interrupts(vector) - first;
    lab.arrives(0, ARENA, ARENA)?;
    ensure!(count() == 1, "{} after the first fault", count());
    // No second message is sent while a record is pending (section 7.3).
    lab.arrives(0, ARENA, ARENA)?;
    ensure!(count() == 1, "{} while one was pending", count());
    lab.faults()?;
    lab.arrives(0, ARENA, ARENA)?;
    ensure!(count() == 2, "{} after the next fault", count());
    lab.faults()?;
    lab.unit.mask_fault_interrupt(true);
    lab.arrives(0, ARENA, ARENA)?;
    ensure!(count() == 2, "{} while masked", count());
    lab.unit.mask_fault_interrupt(false);
    ensure!(count() == 3, "{} after unmasking", count());
    lab.faults()?;
    lab.unit.mask_fault_interrupt(true);
    Ok(format!("vector {vector:#x}: 3 interrupts"))
}
