//! Unmaps memory.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use libredox::call::munmap;

/// Ends a mapping. One that cannot be ended stays.
///
/// # Safety
/// The range is a mapping that nothing references.
pub(in crate::platform) unsafe fn end(start: NonNull<u8>, length: usize) {
    // SAFETY: the caller promised that nothing references the mapping.
    let _ = unsafe { munmap(start.as_ptr().cast(), length) };
}
