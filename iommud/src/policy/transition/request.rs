//! What requests about mappings have in common, whether a unit confines the device or not.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::{Iova, PAGE_SIZE};
use crate::policy::event::{BatchRequest, MapRequest, Outcome, Refused};

/// Carries out elements in order, and says which one was refused.
pub(super) fn each(
    items: &[BatchRequest],
    mut work: impl FnMut(&BatchRequest) -> Result<Iova, Refusal>,
) -> Result<Outcome, Refused> {
    if let [one] = items {
        return Ok(Outcome::Single(work(one)?));
    }
    let mut addresses = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let item = work(item)
            .map_err(|refusal| Refused { refusal, item: u32::try_from(at).unwrap_or(u32::MAX) });
        addresses.push(item?);
    }
    Ok(Outcome::Batch(addresses))
}

/// Whether a request names a part of a buffer of `size` bytes, in whole pages, with an access.
#[inline]
pub(super) fn check(request: &MapRequest, size: u64) -> Result<(), Refusal> {
    let MapRequest { offset, length, access, .. } = *request;
    if access.is_empty() || access.bits() & !3 != 0 {
        return Err(Refusal::BadAccess);
    }
    if length == 0 {
        return Err(Refusal::Range);
    }
    if (offset | length) & (PAGE_SIZE - 1) != 0 {
        return Err(Refusal::Alignment);
    }
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Refusal::Range),
    }
}
