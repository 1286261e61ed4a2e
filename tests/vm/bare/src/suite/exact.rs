//! Exact counts of the whole server, the same on every machine: invalidations, sizes of leaves, and the memory that
//! mappings take and return.

use alloc::format;
use alloc::string::String;

use iommu_protocol::wire::{
    Allocate, AllocateResult, BufferRequest, Map, MapResult, Operation, Unmap,
};

use super::server::{PAGES, Served, encoded, list, scattered};
use super::{Outcome, ensure};
use crate::seams::Accesses;
use crate::{heap, println};

/// Batches mapped at the same time. Two of them fill 4 MiB, one the even pages and one the odd ones.
const BATCHES: u64 = 32;

/// First address of the first batch.
const AT: u64 = 0x0800_0000;

/// Bytes of the heap allowed for each mapping.
const BYTES: u64 = 32;

pub fn counts(served: &mut Served, caching: bool) -> Outcome {
    told(served, caching)?;
    leaves(served)?;
    let bytes = bytes(served)?;
    Ok(format!("{bytes} bytes of heap a mapping, none left"))
}

/// One invalidation and one wait for each call that unmaps, whatever its size. None for a call that maps, unless the
/// unit caches absent entries.
fn told(served: &mut Served, caching: bool) -> Result<(), String> {
    let one = Accesses { writes: 1, descriptors: 2, ..Accesses::default() };
    let maps = if caching { one } else { Accesses::default() };
    let map = Map { slot: served.slot, access: 3, length: 4096, ..Map::default() };
    served.registers.take_counts();
    served.call(Operation::Map, &encoded(&map)?)?;
    expect(served, "a map", maps)?;
    let MapResult { iova } = served.result()?;
    served.call(Operation::Unmap, &encoded(&Unmap { iova, length: 4096 })?)?;
    expect(served, "an unmap", one)?;
    served.call(Operation::Batch, &scattered(Operation::Map, served.slot, AT)?)?;
    expect(served, "a batch of maps", maps)?;
    served.call(Operation::Batch, &scattered(Operation::Unmap, 0, AT)?)?;
    expect(served, "a batch of unmaps", one)?;
    served.call(Operation::MapList, &list(served.slot)?)?;
    expect(served, "a list of pages", maps)?;
    let MapResult { iova } = served.result()?;
    let length = u64::from(PAGES) * 4096;
    served.call(Operation::Unmap, &encoded(&Unmap { iova, length })?)?;
    expect(served, "the unmap of a list", one)
}

fn expect(served: &Served, what: &str, wanted: Accesses) -> Result<(), String> {
    let seen = served.registers.take_counts();
    let seen = Accesses { reads: 0, ..seen };
    ensure!(seen == wanted, "{what}: {seen:?}, not {wanted:?}");
    Ok(())
}

fn frames(served: &mut Served) -> Result<u64, String> {
    let metrics = served.text("metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("table_frames "));
    line.and_then(|number| number.parse().ok()).ok_or_else(|| "no table_frames".into())
}

/// 8 MiB of aligned memory take four leaves of 2 MiB and no table of pages.
fn leaves(served: &mut Served) -> Result<(), String> {
    let before = frames(served)?;
    let request = Allocate { length: 8 << 20, access: 3, ..Allocate::default() };
    served.call(Operation::Allocate, &encoded(&request)?)?;
    let buffer: AllocateResult = served.result()?;
    let during = frames(served)?;
    served
        .call(Operation::Release, &encoded(&BufferRequest { slot: buffer.slot, reserved: 0 })?)?;
    let after = frames(served)?;
    println!("@@count {} table frames for 8 MiB of aligned memory", during - before);
    ensure!(during - before <= 1, "{} frames for four leaves of 2 MiB", during - before);
    ensure!(after == before, "{before} table frames before, {after} after");
    Ok(())
}

/// Returns the heap bytes used by each mapping. Memory kept for later mappings does not grow.
fn bytes(served: &mut Served) -> Result<u64, String> {
    let tables = frames(served)?;
    let before = heap::in_use();
    all(served, Operation::Map)?;
    let taken = heap::in_use().saturating_sub(before);
    all(served, Operation::Unmap)?;
    let kept = heap::in_use();
    all(served, Operation::Map)?;
    all(served, Operation::Unmap)?;
    let after = heap::in_use();
    let left = frames(served)?;
    let mappings = BATCHES * u64::from(PAGES);
    println!("@@count {taken} bytes of heap for {mappings} mappings");
    ensure!(taken <= BYTES * mappings, "{taken} bytes for {mappings} mappings");
    ensure!(kept <= before + 4096, "{} bytes kept after unmapping all", kept - before);
    ensure!(after == kept, "{kept} bytes kept after unmapping all, {after} after doing it again");
    ensure!(left == tables, "{tables} table frames before, {left} after");
    Ok(taken / mappings)
}

fn all(served: &mut Served, operation: Operation) -> Result<(), String> {
    for batch in 0..BATCHES {
        let at = AT + batch / 2 * (4 << 20) + batch % 2 * 4096;
        let request = scattered(operation, served.slot, at)?;
        served.call(Operation::Batch, &request)?;
    }
    Ok(())
}
