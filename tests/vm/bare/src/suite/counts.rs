//! The cost of operations: exact register accesses, and instructions, which are the same in every run.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iommud::hw::Unit;

use super::lab::{ARENA, BIG, Lab, READ_WRITE, Space, page, range, words};
use super::{Outcome, ensure};
use crate::seams::Accesses;
use crate::{cpu, println};

/// Rounds before a measurement, in which tables are created.
const WARM_UP: usize = 4;

pub fn accesses(base: u64, caching: bool) -> Outcome {
    let mut lab = Lab::new(base, caching)?;
    lab.unit.enable(&mut lab.memory).map_err(words)?;
    let mut space = lab.small_page_space(20)?;
    // Keeps the tables of the addresses below in use.
    lab.map(&mut space, page(0x40_0000), ARENA, READ_WRITE)?;
    let source = lab.edu[0].id;
    lab.attach(source, &space)?;

    let (map, unmap) = pair(&mut lab, &mut space, 1)?;
    pair(&mut lab, &mut space, 16)?;
    pair(&mut lab, &mut space, 512)?;
    big(&mut lab)?;
    // Without caching mode hardware never caches absent entries, so nothing needs an invalidation.
    let tail = Accesses { reads: map.reads, writes: 1, descriptors: 2, ..Accesses::default() };
    let expected = if caching { tail } else { Accesses::default() };
    ensure!(map == expected, "map: {map:?}");
    ensure!(unmap.writes == 1 && unmap.descriptors == 2, "unmap: {unmap:?}");
    Ok(format!(
        "map {} writes {} reads, unmap {} and {}",
        map.writes, map.reads, unmap.writes, unmap.reads
    ))
}

/// Maps and unmaps `pages` adjacent pages of 4 KiB, in one call each, and counts.
fn pair(lab: &mut Lab, space: &mut Space, pages: u64) -> Result<(Accesses, Accesses), String> {
    let at = range(0x40_1000, pages * 4096);
    let (mut map_counts, mut unmap_counts) = (Vec::new(), Vec::new());
    let mut accesses = (Accesses::default(), Accesses::default());
    for round in 0..WARM_UP + 1 {
        lab.registers.take_counts();
        let start = cpu::instructions();
        lab.map(space, at, BIG, READ_WRITE)?;
        let middle = cpu::instructions();
        accesses.0 = lab.registers.take_counts();
        let before = cpu::instructions();
        lab.unmap(space, at)?;
        let end = cpu::instructions();
        accesses.1 = lab.registers.take_counts();
        if round >= WARM_UP {
            map_counts.push(middle - start);
            unmap_counts.push(end - before);
        }
    }
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    println!("@@count {} instructions to map {pages} x 4 KiB", sum(&map_counts));
    println!("@@count {} instructions to unmap {pages} x 4 KiB", sum(&unmap_counts));
    println!("@@count {} register writes to unmap {pages} x 4 KiB", accesses.1.writes);
    Ok(accesses)
}

/// The same with 2 MiB pages.
fn big(lab: &mut Lab) -> Result<(), String> {
    let mut space = lab.space(21)?;
    lab.map(&mut space, page(0x40_0000), ARENA, READ_WRITE)?;
    let at = range(0x60_0000, 2 << 20);
    for round in 0..WARM_UP + 1 {
        let start = cpu::instructions();
        lab.map(&mut space, at, BIG, READ_WRITE)?;
        let middle = cpu::instructions();
        lab.unmap(&mut space, at)?;
        let end = cpu::instructions();
        if round >= WARM_UP {
            println!("@@count {} instructions to map 2 MiB", middle - start);
            println!("@@count {} instructions to unmap 2 MiB", end - middle);
        }
    }
    lab.destroy(space);
    Ok(())
}
