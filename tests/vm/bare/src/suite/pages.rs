//! Pages and page tables from the unit's point of view.

use alloc::format;

use iommu_protocol::fault::FaultAccess::Write;
use iommud::hw::TableMemory;

use super::lab::{ARENA, BIG, Lab, OTHER, READ_WRITE, page, range};
use super::{Outcome, ensure};

pub fn stale(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let mut space = lab.space(8)?;
    // A neighbour keeps the tables in use, so that only leaves are removed.
    lab.map(&mut space, range(0x50_0000, 8192), ARENA, READ_WRITE)?;
    lab.attach(source, &space)?;
    ensure!(lab.arrives(0, 0x50_0000, ARENA)?, "the page is not reached");
    let detached = lab.unmap_only(&mut space, page(0x50_0000))?;
    ensure!(lab.arrives(0, 0x50_0000, ARENA)?, "QEMU forgot the page by itself: nothing is tested");
    lab.finish_unmap(&space, detached)?;
    ensure!(!lab.arrives(0, 0x50_0000, ARENA)?, "the page is still reached");
    lab.expect_fault(source, 0x50_0000, Write, 5)?;
    ensure!(lab.arrives(0, 0x50_1000, ARENA + 4096)?, "the neighbour is lost");
    // The address is reused for other memory, and the unit finds the new page.
    lab.map(&mut space, page(0x50_0000), OTHER, READ_WRITE)?;
    ensure!(lab.arrives(0, 0x50_0000, OTHER)?, "the new page is not reached");
    lab.expect_no_fault()?;
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok("passed before, denied after".into())
}

/// Unmaps pages 5 to 10 of a run. One invalidation must cover an aligned power of two around them.
pub fn stale_range(lab: &mut Lab) -> Outcome {
    const FIRST: u64 = 0x50_5000;
    const COUNT: u64 = 6;
    let source = lab.edu[0].id;
    let mut space = lab.space(15)?;
    lab.map(&mut space, range(FIRST - 4096, (COUNT + 2) * 4096), ARENA, READ_WRITE)?;
    lab.attach(source, &space)?;
    for index in 0..COUNT + 2 {
        let offset = index * 4096;
        ensure!(
            lab.arrives(0, FIRST - 4096 + offset, ARENA + offset)?,
            "page {index} is not reached"
        );
    }
    lab.unmap(&mut space, range(FIRST, COUNT * 4096))?;
    for index in 0..COUNT {
        let iova = FIRST + index * 4096;
        ensure!(!lab.arrives(0, iova, ARENA + (index + 1) * 4096)?, "page {index} is reached");
        lab.expect_fault(source, iova, Write, 5)?;
    }
    ensure!(lab.arrives(0, FIRST - 4096, ARENA)?, "the page before is lost");
    let after = (COUNT + 1) * 4096;
    ensure!(lab.arrives(0, FIRST - 4096 + after, ARENA + after)?, "the page behind is lost");
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok(format!("{COUNT} pages from {FIRST:#x}"))
}

pub fn superpage(lab: &mut Lab) -> Outcome {
    const SIZE: u64 = 2 << 20;
    let source = lab.edu[0].id;
    let mut space = lab.space(9)?;
    let iova = 0x4000_0000;
    let frames = lab.memory.frames_in_use();
    lab.map(&mut space, range(iova, SIZE), BIG, READ_WRITE)?;
    // Tables at levels 3 and 2 but none of 4 KiB entries. The entry has R, W and PS (VT-d 4.1 section 9.8).
    ensure!(lab.memory.frames_in_use() == frames + 1, "{} frames", lab.memory.frames_in_use());
    let level_2 = lab.memory.load(space.table.root(), 1) & !0xfff;
    let leaf = lab.memory.load(iommud::addr::PhysAddr(level_2), 0);
    ensure!(leaf == BIG | 0x83, "the entry is {leaf:#x}");
    lab.attach(source, &space)?;
    for offset in [0, 0x1000, SIZE / 2, SIZE - 4096] {
        ensure!(lab.arrives(0, iova + offset, BIG + offset)?, "offset {offset:#x} is not reached");
    }
    lab.unmap(&mut space, page(iova + SIZE / 2))?;
    ensure!(!lab.arrives(0, iova + SIZE / 2, BIG + SIZE / 2)?, "the hole is reached");
    lab.expect_fault(source, iova + SIZE / 2, Write, 5)?;
    for offset in [0, SIZE / 2 - 4096, SIZE / 2 + 4096, SIZE - 4096] {
        ensure!(lab.arrives(0, iova + offset, BIG + offset)?, "offset {offset:#x} was lost");
    }
    lab.expect_no_fault()?;
    lab.detach(source, &space)?;
    lab.destroy(space);
    Ok(format!("entry {leaf:#x}"))
}

pub fn freed(lab: &mut Lab) -> Outcome {
    let source = lab.edu[0].id;
    let frames = lab.memory.frames_in_use();
    let mut space = lab.small_page_space(10)?;
    let iova = 0x4020_0000;
    lab.map(&mut space, range(iova, 4 << 20), BIG, READ_WRITE)?;
    let mapped = lab.memory.frames_in_use();
    ensure!(mapped == frames + 4, "{} frames for 4 MiB of 4 KiB pages", mapped - frames);
    lab.attach(source, &space)?;
    ensure!(lab.arrives(0, iova, BIG)?, "the page is not reached");
    let detached = lab.unmap_only(&mut space, range(iova, 4 << 20))?;
    ensure!(detached.tables_freed(), "no table was unlinked");
    ensure!(lab.memory.frames_in_use() == mapped, "a frame was freed before the invalidation");
    ensure!(lab.arrives(0, iova, BIG)?, "QEMU forgot the page by itself: nothing is tested");
    lab.finish_unmap(&space, detached)?;
    ensure!(lab.memory.frames_in_use() == frames + 1, "{} frames", lab.memory.frames_in_use());
    ensure!(!lab.arrives(0, iova, BIG)?, "the page is still reached");
    lab.expect_fault(source, iova, Write, 5)?;
    lab.detach(source, &space)?;
    lab.destroy(space);
    ensure!(lab.memory.frames_in_use() == frames, "{} frames", lab.memory.frames_in_use());
    Ok(format!("{frames} frames before and after"))
}
