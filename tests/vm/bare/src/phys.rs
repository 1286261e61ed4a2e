//! Access to memory by physical address; the first 4 GiB are mapped one to one. This program's own image and heap
//! cannot be accessed this way, so no reference is invalidated.

use core::ptr::{addr_of, with_exposed_provenance_mut};

/// First byte after this program's image and heap; see [`crate::heap`].
pub const FREE_START: u64 = 32 << 20;

unsafe extern "C" {
    static image_end: u8;
}

fn check(address: u64, size: u64) {
    let end = address.checked_add(size).expect("address overflows");
    assert!(end <= 1 << 32, "{address:#x} is not mapped");
    assert!(address.is_multiple_of(size), "{address:#x} is not aligned");
    assert!(end <= 0x10_0000 || address >= FREE_START, "{address:#x} belongs to this program");
    assert!(addr_of!(image_end) as u64 <= crate::heap::START, "the image is too large");
}

macro_rules! readers {
    ($($read:ident $type:ty;)*) => {$(
        /// Reads a value at a multiple of its size.
        pub fn $read(address: u64) -> $type {
            check(address, size_of::<$type>() as u64);
            // SAFETY: mapped, aligned and outside of all memory that Rust uses (`check`).
            unsafe { with_exposed_provenance_mut::<$type>(address as usize).read_volatile() }
        }
    )*};
}

macro_rules! writers {
    ($($write:ident $type:ty;)*) => {$(
        /// Writes a value at a multiple of its size.
        pub fn $write(address: u64, value: $type) {
            check(address, size_of::<$type>() as u64);
            // SAFETY: mapped, aligned and outside of all memory that Rust uses (`check`).
            unsafe { with_exposed_provenance_mut::<$type>(address as usize).write_volatile(value) }
        }
    )*};
}

readers! {
    read8 u8;
    read16 u16;
    read32 u32;
    read64 u64;
}

writers! {
    write32 u32;
    write64 u64;
}

/// Writes `value` to every 64-bit word of a range.
pub fn fill(address: u64, length: u64, value: u64) {
    for at in (address..address + length).step_by(8) {
        write64(at, value);
    }
}

/// Whether every 64-bit word of a range is `value`.
pub fn is_filled(address: u64, length: u64, value: u64) -> bool {
    (address..address + length).step_by(8).all(|at| read64(at) == value)
}
