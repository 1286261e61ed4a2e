//! Checks of requests about mappings, whether a unit confines the device or not.

use iommu_protocol::status::Refusal;

use crate::addr::PAGE_SIZE;
use crate::policy::event::MapRequest;

/// Refuses unless a request has an access and names whole pages of a buffer of `size` bytes.
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
