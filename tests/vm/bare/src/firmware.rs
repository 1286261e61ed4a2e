//! What the firmware left: the PVH start info, and ACPI tables.

use alloc::string::String;
use alloc::vec::Vec;

use crate::phys;

/// Copies `length` bytes at any alignment.
pub fn bytes(address: u64, length: u64) -> Vec<u8> {
    (address..address + length).map(phys::read8).collect()
}

fn number<const N: usize>(address: u64) -> u64 {
    let mut out = [0; 8];
    for (to, at) in out.iter_mut().zip(address..).take(N) {
        *to = phys::read8(at);
    }
    u64::from_le_bytes(out)
}

/// The start info (Xen xen/include/public/arch-x86/hvm/start_info.h, version 1).
pub struct StartInfo {
    /// The command line.
    pub command_line: String,
    /// Address of the root system description pointer.
    pub rsdp: u64,
}

impl StartInfo {
    /// Reads it.
    pub fn read(address: u64) -> Self {
        assert_eq!(number::<4>(address), 0x336e_c578, "no PVH start info");
        assert!(number::<4>(address + 4) >= 1, "PVH start info without RSDP");
        let line = number::<8>(address + 24);
        let text = (line..).map(phys::read8).take_while(|byte| *byte != 0).map(char::from);
        Self {
            command_line: if line == 0 { String::new() } else { text.collect() },
            rsdp: number::<8>(address + 32),
        }
    }
}

/// The ACPI table with this signature (ACPI 6.5 sections 5.2.5.3, 5.2.7: RSDP and RSDT).
pub fn table(rsdp: u64, signature: &[u8; 4]) -> Option<Vec<u8>> {
    assert_eq!(bytes(rsdp, 8), b"RSD PTR ");
    let rsdt = number::<4>(rsdp + 16);
    let length = number::<4>(rsdt + 4);
    (36..length)
        .step_by(4)
        .map(|offset| number::<4>(rsdt + offset))
        .find(|table| bytes(*table, 4) == signature)
        .map(|table| bytes(table, number::<4>(table + 4)))
}
