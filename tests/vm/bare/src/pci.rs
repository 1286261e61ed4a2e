//! PCI configuration space, through the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0 section 3.2.2.3.2).

use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use crate::cpu::{in32, out32};

/// Reads 32 bits at `offset`, a multiple of 4 below 256.
pub fn read(function: RequesterId, offset: u8) -> u32 {
    select(function, offset);
    in32(0xcfc)
}

/// Writes 32 bits at `offset`, a multiple of 4 below 256.
pub fn write(function: RequesterId, offset: u8, value: u32) {
    select(function, offset);
    out32(0xcfc, value);
}

fn select(function: RequesterId, offset: u8) {
    out32(0xcf8, 1 << 31 | u32::from(function.0) << 8 | u32::from(offset & 0xfc));
}

/// Finds every function with this vendor and device id on any bus, in order.
pub fn find(vendor: u16, device: u16) -> Vec<RequesterId> {
    let wanted = u32::from(vendor) | u32::from(device) << 16;
    // Missing buses read as all ones. QEMU numbers the buses in use from 0.
    (0..4 << 8).map(RequesterId).filter(|id| read(*id, 0) == wanted).collect()
}

/// Enables memory decoding and DMA of a function.
pub fn enable(function: RequesterId) {
    // The upper half is the status register, whose bits are cleared by writing 1.
    write(function, 4, read(function, 4) & 0xffff | 0b110);
}

/// The address of memory BAR `index`, 32 or 64 bits wide.
pub fn bar(function: RequesterId, index: u8) -> u64 {
    let offset = 0x10 + index * 4;
    let low = read(function, offset);
    let high = if low & 0b110 == 0b100 { read(function, offset + 4) } else { 0 };
    u64::from(low & !0xf) | u64::from(high) << 32
}

/// Returns the offset of a capability.
pub fn capability(function: RequesterId, id: u8) -> Option<u8> {
    let mut at = read(function, 0x34).to_le_bytes()[0];
    while at != 0 {
        let [this, next, ..] = read(function, at).to_le_bytes();
        if this == id {
            return Some(at);
        }
        at = next;
    }
    None
}

/// Sends the function's single message-signalled interrupt to `address` with `data` (PCI Local Bus 3.0 section
/// 6.8.1).
pub fn enable_msi(function: RequesterId, address: u64, data: u32) {
    let at = capability(function, 5).expect("no MSI capability");
    let wide = read(function, at) & 1 << 23 != 0;
    write(function, at + 4, u32::try_from(address & 0xffff_ffff).unwrap_or(0));
    if wide {
        write(function, at + 8, u32::try_from(address >> 32).unwrap_or(0));
    }
    write(function, at + if wide { 12 } else { 8 }, data);
    write(function, at, read(function, at) & !(7 << 20) | 1 << 16);
}
