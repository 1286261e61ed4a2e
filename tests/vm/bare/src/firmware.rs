//! What the firmware left: the PVH start info, and ACPI tables.

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use ::acpi::sdt::{SdtHeader, Signature};
use ::acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};

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

/// A DMA remapping table (VT-d 4.1 section 8.1); only its header is looked at.
#[repr(transparent)]
pub struct Dmar(SdtHeader);

// SAFETY: every table begins with this header.
unsafe impl AcpiTable for Dmar {
    const SIGNATURE: Signature = Signature::DMAR;

    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// An I/O virtualization reporting structure (AMD 48882 3.10 section 5.2.1); only its header is looked at.
#[repr(transparent)]
pub struct Ivrs(SdtHeader);

// SAFETY: every table begins with this header.
unsafe impl AcpiTable for Ivrs {
    const SIGNATURE: Signature = Signature::IVRS;

    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// Physical memory where the guest sees it: at the same address.
#[derive(Clone)]
struct IdentityMapped;

impl AcpiHandler for IdentityMapped {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let start = NonNull::new(with_exposed_provenance_mut(address)).expect("a table at 0");
        // SAFETY: all memory is mapped at its own address, throughout.
        unsafe { PhysicalMapping::new(address, start, size, size, Self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// The bytes of a table.
pub fn table<T: AcpiTable>(rsdp: u64) -> Option<Vec<u8>> {
    // SAFETY: the start info says that the RSDP is there.
    let tables = unsafe { AcpiTables::from_rsdp(IdentityMapped, rsdp as usize) }.ok()?;
    let found = tables.find_table::<T>().ok()?;
    Some(bytes(found.physical_start() as u64, found.region_length() as u64))
}
