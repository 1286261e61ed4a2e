//! The addresses of a transfer as a scatter-gather list (4.1.2).

use iommu_client::{DmaPool, ScatterList, Segment, SegmentLimits};

use crate::error::Error;
use crate::pointer::DataPointer;
use crate::spec::{self, DATA_BLOCK, LAST_SEGMENT};

/// Descriptors of a list that fills a page, the longest one.
const DESCRIPTORS: usize = 256;

/// Bytes of a descriptor.
const SIZE: u64 = 16;

/// Describes memory to a controller with scatter-gather lists. One range of addresses, whatever its length, is a data
/// block in the command itself. Several are data blocks in a list, and the command has the address of the list. `None`
/// if the list would not fit in a page, or a range is not of whole words of 4 bytes.
pub(crate) fn build(
    memory: &ScatterList<'_>,
    pool: &DmaPool,
) -> Result<Option<DataPointer>, Error> {
    let longest = u64::from(u32::MAX) & !3;
    let segments = memory.segments(SegmentLimits { longest, boundary: 0 });
    let segments: Vec<Segment> = segments.take(DESCRIPTORS + 1).collect();
    let words = |segment: &Segment| (segment.iova | segment.length).is_multiple_of(4);
    if segments.len() > DESCRIPTORS || !segments.iter().all(words) {
        return Ok(None);
    }
    let block = |segment: &Segment| spec::descriptor(segment.iova, segment.length, DATA_BLOCK);
    if let [one] = segments.as_slice() {
        return Ok(Some(DataPointer { words: block(one), kind: spec::SGL, lists: Vec::new() }));
    }
    let length = SIZE * u64::try_from(segments.len()).unwrap_or(0);
    let mut list = pool.take(length)?;
    for (place, segment) in (0..).step_by(16).zip(&segments) {
        list.store_at(place, block(segment).map(u64::to_le))?;
    }
    let words = spec::descriptor(list.iova(), length, LAST_SEGMENT);
    Ok(Some(DataPointer { words, kind: spec::SGL, lists: vec![list] }))
}
