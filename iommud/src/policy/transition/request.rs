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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;
    use iommu_protocol::ids::Slot;
    use iommu_protocol::wire::{Access, MapFlags};

    const PAGE: u64 = PAGE_SIZE;

    #[test]
    fn a_request_names_whole_pages_of_its_buffer_and_an_access() {
        let of = |offset, length, access| {
            let access = Access::from_bits_retain(access);
            let (iova, flags) = (Iova(0), MapFlags::empty());
            check(&MapRequest { slot: Slot(0), offset, length, iova, access, flags }, 4 * PAGE)
        };
        for (offset, length, access, expected) in [
            (0, PAGE, 1, Ok(())),
            (PAGE, 3 * PAGE, 2, Ok(())),
            (0, 4 * PAGE, 3, Ok(())),
            (0, PAGE, 0, Err(Refusal::BadAccess)),
            (0, PAGE, 4, Err(Refusal::BadAccess)),
            (0, PAGE, 7, Err(Refusal::BadAccess)),
            (0, 0, 1, Err(Refusal::Range)),
            (1, PAGE, 1, Err(Refusal::Alignment)),
            (0, PAGE + 1, 1, Err(Refusal::Alignment)),
            (8, PAGE + 8, 1, Err(Refusal::Alignment)),
            (2048, 2048, 1, Err(Refusal::Alignment)),
            (PAGE, 4 * PAGE, 1, Err(Refusal::Range)),
            (4 * PAGE, PAGE, 1, Err(Refusal::Range)),
            (!(PAGE - 1), PAGE, 1, Err(Refusal::Range)),
        ] {
            assert_eq!(of(offset, length, access), expected, "{offset:#x} {length:#x} {access}");
        }
    }
}
