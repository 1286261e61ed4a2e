//! The functions that compiled code expects from a C library.

use core::arch::asm;

/// Copies `length` bytes between ranges that do not overlap.
///
/// # Safety
/// The obligations of `memcpy` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller guarantees both ranges; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _)
    };
    to
}

/// Fills `length` bytes.
///
/// # Safety
/// The obligations of `memset` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller guarantees the range; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value as u8)
    };
    to
}

/// Compares `length` bytes.
///
/// # Safety
/// The obligations of `memcmp` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: the caller guarantees both ranges.
        let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Returns non-zero if any of `length` bytes differ.
///
/// # Safety
/// The obligations of `memcmp` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's obligations are the same.
    unsafe { memcmp(left, right, length) }
}

/// Required by the core library's unwind tables, which this program never uses.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
