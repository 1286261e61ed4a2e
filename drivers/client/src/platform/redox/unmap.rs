//! The end of a mapping.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use libredox::call::munmap;

/// Ends a mapping. A piece that cannot be ended stays.
///
/// # Safety
/// The range is a mapping that nothing refers to.
pub(in crate::platform) unsafe fn end(start: NonNull<u8>, length: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { munmap(start.as_ptr().cast(), length) };
}
