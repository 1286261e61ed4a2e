//! Checks of device entries.

use alloc::format;

use iommu_protocol::fault::FaultAccess::{Read, Write};
use iommud::hw::{Entry, Unit};
use iommud::topology::capabilities::LevelSet;

use super::lab::{ARENA, LENGTH, Lab, OTHER, READ_WRITE, entry, page, words};
use super::{Outcome, ensure};
use crate::phys;

/// GSTS_REG, and its bits TES (31) and QIES (26): VT-d 4.1 section 11.4.4.2.
const STATUS: u64 = 0x1c;
const TRANSLATION: u32 = 1 << 31;
const QUEUE: u32 = 1 << 26;

pub fn brought_up(lab: &mut Lab) -> Outcome {
    let status = phys::read32(lab.base + STATUS);
    ensure!(status & (TRANSLATION | QUEUE) == QUEUE, "GSTS is {status:#x}");
    let capabilities = lab.unit.capabilities();
    ensure!(capabilities.levels.contains(LevelSet::THREE), "{capabilities:?}");
    ensure!(!capabilities.coherent, "QEMU says that it does not snoop");
    ensure!(capabilities.caches_absent == lab.caching, "{capabilities:?}");
    for index in 0..lab.edu.len() {
        ensure!(lab.arrives(index, ARENA, ARENA)?, "device {index} lost its memory");
    }
    lab.expect_no_fault()?;
    let counts = lab.registers.take_counts();
    Ok(format!("{} register reads, {} writes", counts.reads, counts.writes))
}

pub fn enabled(lab: &mut Lab) -> Outcome {
    lab.unit.enable(&mut lab.memory).map_err(words)?;
    let status = phys::read32(lab.base + STATUS);
    ensure!(status & TRANSLATION != 0, "GSTS is {status:#x}");
    for index in 0..lab.edu.len() {
        ensure!(!lab.arrives(index, ARENA, ARENA)?, "device {index} writes");
        // VT-d 4.1 section 7.1.3, fault reason 1h: root entry not present.
        lab.expect_fault(lab.edu[index].id, ARENA, Write, 1)?;
    }
    let counts = lab.registers.take_counts();
    Ok(format!("{} register reads, {} writes", counts.reads, counts.writes))
}

pub fn blocked(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    for index in 0..2 {
        let id = lab.edu[index].id;
        lab.write_entry(id, Entry::Blocked)?;
        lab.invalidate_entry(id, None)?;
    }
    ensure!(!lab.arrives(0, ARENA, ARENA)?, "the device writes");
    // Fault reason 2h: context entry not present.
    lab.expect_fault(source, ARENA, Write, 2)?;
    // A denied read overwrites the device's buffer. Its pattern must be restored later.
    lab.edu[2].read_memory(OTHER, LENGTH);
    lab.expect_fault(lab.edu[2].id, OTHER, Read, 1)?;
    Ok(format!("{source:?}"))
}

pub fn mapped(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let mut space = lab.space(1)?;
    let iova = 0x1234_5000;
    lab.map(&mut space, page(iova), ARENA, READ_WRITE)?;
    lab.attach(source, &space)?;
    ensure!(lab.arrives(0, iova, ARENA)?, "the page is not reached");
    // Copies memory to the device, then from the device to other memory.
    lab.map(&mut space, page(iova + 4096), OTHER, READ_WRITE)?;
    phys::fill(ARENA, LENGTH, 0x1122_3344_5566_7788);
    lab.edu[0].read_memory(iova, LENGTH);
    lab.edu[0].write_memory(iova + 4096, LENGTH);
    ensure!(phys::is_filled(OTHER, LENGTH, 0x1122_3344_5566_7788), "the copy differs");
    lab.expect_no_fault()?;
    for beside in [iova - 4096, iova + 8192, ARENA] {
        lab.edu[0].write_memory(beside, LENGTH);
        lab.expect_fault(source, beside, Write, 5)?;
    }
    phys::fill(ARENA, LENGTH, super::lab::pattern(0));
    lab.edu[0].read_memory(iova, LENGTH);
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok(format!("iova {iova:#x}"))
}

pub fn stale(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let mut space = lab.space(2)?;
    lab.map(&mut space, page(0x10_0000), ARENA, READ_WRITE)?;
    lab.attach(source, &space)?;
    ensure!(lab.arrives(0, 0x10_0000, ARENA)?, "the page is not reached");
    lab.write_entry(source, Entry::Blocked)?;
    ensure!(
        lab.arrives(0, 0x10_0000, ARENA)?,
        "QEMU forgot the entry by itself: nothing is tested"
    );
    lab.invalidate_entry(source, Some(space.tag))?;
    ensure!(!lab.arrives(0, 0x10_0000, ARENA)?, "the entry is still in use");
    lab.expect_fault(source, 0x10_0000, Write, 2)?;
    lab.destroy(space);
    Ok("passed before, denied after".into())
}

pub fn moves(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let (mut a, mut b) = (lab.space(3)?, lab.space(4)?);
    lab.map(&mut a, page(0x20_0000), ARENA, READ_WRITE)?;
    lab.map(&mut b, page(0x20_1000), OTHER, READ_WRITE)?;
    lab.attach(source, &a)?;
    ensure!(lab.arrives(0, 0x20_0000, ARENA)?, "a's page is not reached in a");
    ensure!(!lab.arrives(0, 0x20_1000, OTHER)?, "b's page is reached in a");
    lab.expect_fault(source, 0x20_1000, Write, 5)?;
    // Changes directly from one domain to the other. The unit writes an absent entry in between.
    lab.write_entry(source, entry(&b))?;
    lab.invalidate_entry(source, Some(a.tag))?;
    ensure!(lab.arrives(0, 0x20_1000, OTHER)?, "b's page is not reached in b");
    ensure!(!lab.arrives(0, 0x20_0000, ARENA)?, "a's page is reached in b");
    lab.expect_fault(source, 0x20_0000, Write, 5)?;
    lab.detach(source, &b)?;
    lab.destroy(a);
    lab.destroy(b);
    Ok(format!("{source:?}"))
}

pub fn two_domains(lab: &mut Lab) -> Outcome {
    let (mut a, mut b) = (lab.space(5)?, lab.space(6)?);
    let iova = 0x30_0000;
    lab.map(&mut a, page(iova), ARENA, READ_WRITE)?;
    lab.map(&mut b, page(iova), OTHER, READ_WRITE)?;
    let (first, second) = (lab.edu[0].id, lab.edu[1].id);
    lab.attach(first, &a)?;
    lab.attach(second, &b)?;
    ensure!(lab.arrives(0, iova, ARENA)? && lab.arrives(1, iova, OTHER)?, "not reached");
    // An unmap in one domain does not affect the other.
    lab.unmap(&mut a, page(iova))?;
    ensure!(!lab.arrives(0, iova, ARENA)?, "still reached");
    lab.expect_fault(first, iova, Write, 5)?;
    ensure!(lab.arrives(1, iova, OTHER)?, "the other device lost its page");
    lab.expect_no_fault()?;
    lab.detach(first, &a)?;
    lab.detach(second, &b)?;
    lab.destroy(a);
    lab.destroy(b);
    Ok(format!("{first:?}, {second:?}"))
}
