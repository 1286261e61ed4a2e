//! The addresses of a transfer in the form of the controller: physical region pages (4.1.1).

use iommu_client::{DmaBlock, DmaPool, ScatterList, SegmentLimits};

use crate::error::Error;
use crate::pointer::DataPointer;
use crate::spec::PAGE;

/// Entries of a list that fills a page.
const ENTRIES: usize = 512;

/// Describes memory to the controller. One or two pages are in the command itself, more are in lists. If one page
/// does not hold all of them, the last entry of a list points to the next list.
///
/// Lists are in a pool, which stays mapped also when the memory itself is granted for each transfer. They hold
/// addresses and no data: a controller that changes one reaches no more by it.
pub(crate) fn build(memory: &ScatterList<'_>, pool: &DmaPool) -> Result<DataPointer, Error> {
    let mut pages = memory.segments(SegmentLimits { longest: 0, boundary: PAGE }).peekable();
    let first = pages.next().ok_or(Error::Memory { iova: 0, length: 0 })?;
    let mut end = first.iova.wrapping_add(first.length);
    if !first.iova.is_multiple_of(4) {
        return Err(Error::Memory { iova: first.iova, length: first.length });
    }
    let mut rest = Vec::new();
    for page in pages {
        // Only the first may begin inside a page, and only the last may end inside one.
        if !end.is_multiple_of(PAGE) || !page.iova.is_multiple_of(PAGE) {
            return Err(Error::Memory { iova: page.iova, length: page.length });
        }
        end = page.iova.wrapping_add(page.length);
        rest.push(page.iova);
    }
    let (second, lists) = match rest.as_slice() {
        [] => (0, Vec::new()),
        [second] => (*second, Vec::new()),
        entries => {
            let lists = lists(entries, pool)?;
            (lists.first().map_or(0, DmaBlock::iova), lists)
        }
    };
    Ok(DataPointer { words: [first.iova, second], kind: 0, lists })
}

/// Number of entries in the next list, when `left` are left. The last place of a full list is for the address of the
/// next one.
const fn share(left: usize) -> usize {
    if left > ENTRIES { ENTRIES - 1 } else { left }
}

fn lists(entries: &[u64], pool: &DmaPool) -> Result<Vec<DmaBlock>, Error> {
    let mut lists: Vec<DmaBlock> = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(share(rest.len()));
        // A single list may lie anywhere in a page. Its block is aligned to its size, so it does not cross the page.
        // Of several lists, all but the first must begin a page.
        let alone = lists.is_empty() && later.is_empty();
        let length = 8 * if alone { now.len() } else { ENTRIES };
        let mut list = pool.take(u64::try_from(length).unwrap_or(PAGE))?;
        for (place, entry) in (0..).step_by(8).zip(now) {
            list.store_at(place, entry.to_le())?;
        }
        if let Some(before) = lists.last_mut() {
            before.store_at(PAGE - 8, list.iova().to_le())?;
        }
        lists.push(list);
        rest = later;
    }
    Ok(lists)
}
