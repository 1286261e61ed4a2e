//! Units left translating by a previous owner.

use alloc::format;

use iommu_protocol::fault::FaultAccess::Write;
use iommud::hw::Unit;
use iommud::hw::vtd::VtdUnit;

use super::lab::{ARENA, HOST_BITS, Lab, OTHER, READ_WRITE, entry, page, words};
use super::{Outcome, ensure};
use crate::cpu;
use crate::owner::Owner;
use crate::seams::Time;

/// A second server takes over the first one's unit, and a working device is never disturbed.
pub fn own(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let mut old = lab.space(13)?;
    lab.map(&mut old, page(0x80_0000), ARENA, READ_WRITE)?;
    lab.attach(source, &old)?;
    take_over(lab, 0x80_0000, ARENA)?;
    lab.destroy(old);
    Ok("no write of GCMD left TE clear".into())
}

/// The same as [`own`], with tables that iommud did not write.
pub fn stranger(lab: &mut Lab) -> Outcome {
    let mut owner = Owner::new(lab.base);
    owner.translate(lab.edu[0].id, 0x90_0000, ARENA);
    ensure!(lab.arrives(0, 0x90_0000, ARENA)?, "the stranger's page is not reached");
    take_over(lab, 0x90_0000, ARENA)?;
    Ok("no write of GCMD left TE clear".into())
}

/// Takes the unit over. The first device reaches `phys` at `iova` through the old tables until the new ones are in
/// force. Afterwards only the new tables apply.
fn take_over(lab: &mut Lab, iova: u64, phys: u64) -> Result<(), alloc::string::String> {
    let source = lab.edu[0].id;
    ensure!(lab.arrives(0, iova, phys)?, "the old page is not reached");
    lab.registers.take_counts();
    lab.unit = VtdUnit::bring_up(lab.registers.clone(), Time, &mut lab.memory, HOST_BITS)
        .map_err(words)?;
    ensure!(Owner::translates(lab.base), "translation is off after bring-up");
    ensure!(lab.arrives(0, iova, phys)?, "the old page is lost after bring-up");
    let mut space = lab.space(14)?;
    lab.map(&mut space, page(iova + 4096), OTHER, READ_WRITE)?;
    lab.write_entry(source, entry(&space))?;
    lab.invalidate_entry(source, None)?;
    ensure!(lab.arrives(0, iova, phys)?, "the old page is lost before enable");
    ensure!(!lab.arrives(0, iova + 4096, OTHER)?, "the new page is reached before enable");
    lab.expect_fault(source, iova + 4096, Write, 5)?;
    lab.unit.enable(&mut lab.memory).map_err(words)?;
    ensure!(lab.arrives(0, iova + 4096, OTHER)?, "the new page is not reached");
    ensure!(!lab.arrives(0, iova, phys)?, "the old page is still reached");
    lab.expect_fault(source, iova, Write, 5)?;
    let counts = lab.registers.take_counts();
    ensure!(counts.translation_off == 0, "{} writes of GCMD without TE", counts.translation_off);
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok(())
}

/// Checks the hardware's completion interrupt. iommud itself waits only by status words.
pub fn completion(base: u64) -> Outcome {
    let vector = cpu::FIRST_VECTOR + 4;
    let mut owner = Owner::new(base);
    let complete = owner.wait_by_interrupt(vector);
    ensure!(complete, "ICS.IWC is clear");
    let count = cpu::interrupts(vector);
    ensure!(count == 1, "{count} interrupts");
    Ok(format!("vector {vector:#x}"))
}
