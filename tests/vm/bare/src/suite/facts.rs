//! What it costs to keep the facts of an event for the next server.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use iommu_protocol::wire::{Allocate, AllocateResult, Map, MapResult, Operation, Unmap};
use iommud::trace::Recorder;

use super::server::{PAGES, Served, encoded, scattered};
use super::{Outcome, ensure};
use crate::firmware::StartInfo;
use crate::println;

/// Most instructions to keep the facts of a map and an unmap of 4 KiB, each a request of its own. 150 are wanted. Each of
/// the two commits writes its cell three times: to a list while the journal is read, to the record, to its place.
const PAIR: u64 = 430;

/// Most instructions to keep the facts of a map and an unmap of a page as one of [`PAGES`] items of a batch.
const BATCHED: u64 = 250;

/// Rounds before a measurement.
const WARM_UP: usize = 4;

/// Cells of the store.
const CELLS: usize = 1 << 14;

/// The first address of a batch.
const AT: u64 = 0x0600_0000;

/// The instructions of the same requests on a server that keeps facts, and on one that does not.
pub fn costs(info: &StartInfo, base: u64) -> Outcome {
    let off = measured(info, base, false)?;
    let on = measured(info, base, true)?;
    let pages = u64::from(PAGES);
    let pair = on.0.saturating_sub(off.0);
    let batched = on.1.saturating_sub(off.1) / pages;
    println!("@@count {pair} instructions to keep the facts of a map and an unmap");
    println!(
        "@@count {batched} instructions to keep the facts of a page of a batch, mapped and unmapped"
    );
    ensure!(pair <= PAIR, "{pair} instructions for the facts of a pair, more than {PAIR}");
    ensure!(batched <= BATCHED, "{batched} instructions for those of a page, more than {BATCHED}");
    Ok(format!("{pair} a pair of {}, {batched} a page of a batch", off.0))
}

/// The instructions of a map and an unmap of 4 KiB, and of all pages in two batches.
fn measured(info: &StartInfo, base: u64, keeps: bool) -> Result<(u64, u64), String> {
    let mut served = Served::start_recorded(info, base, Recorder::default())?;
    if keeps {
        served.keep_facts(Box::new(vec![[0; 4]; CELLS].leak()));
    }
    served.claim()?;
    let request = Allocate { length: u64::from(PAGES) * 4096, access: 3, ..Allocate::default() };
    served.call(Operation::Allocate, &encoded(&request)?)?;
    let slot = served.result::<AllocateResult>()?.slot;
    let map = encoded(&Map { slot, access: 3, length: 4096, ..Map::default() })?;
    let (maps, unmaps) =
        (scattered(Operation::Map, slot, AT)?, scattered(Operation::Unmap, 0, AT)?);
    let (mut pair, mut batch) = (0, 0);
    for _ in 0..=WARM_UP {
        pair = served.call(Operation::Map, &map)?;
        let MapResult { iova } = served.result()?;
        pair += served.call(Operation::Unmap, &encoded(&Unmap { iova, length: 4096 })?)?;
        batch = served.call(Operation::Batch, &maps)?;
        batch += served.call(Operation::Batch, &unmaps)?;
    }
    let kept = served.text("metrics")?;
    let expected = if keeps { "facts_kept 3" } else { "facts_kept 0" };
    ensure!(kept.lines().any(|line| line == expected), "no \"{expected}\" in: {kept}");
    Ok((pair, batch))
}
