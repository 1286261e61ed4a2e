//! The RSDP in the BIOS area (ACPI 6.5 section 5.2.5.1).

use core::ptr::{NonNull, with_exposed_provenance_mut};

use acpi::rsdp::Rsdp;
use acpi::{AcpiHandler, PhysicalMapping};

use crate::multiboot::Range;

/// Physical memory where the loader sees it: at the same address.
#[derive(Clone)]
struct IdentityMapped;

impl AcpiHandler for IdentityMapped {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let start =
            NonNull::new(with_exposed_provenance_mut(address)).unwrap_or(NonNull::dangling());
        // SAFETY: the first 4 GiB are mapped at their own addresses, throughout, and nothing is looked for at 0.
        unsafe { PhysicalMapping::new(address, start, size, size, Self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// Where the RSDP is.
pub(crate) fn find() -> Option<Range> {
    // SAFETY: a multiboot loader of a machine with a BIOS started this program.
    let found = unsafe { Rsdp::search_for_on_bios(IdentityMapped) }.ok()?;
    let start = found.physical_start() as u64;
    // Revision 2 has 36 bytes.
    let length = if found.revision() >= 2 { 36 } else { 20 };
    Some(Range { start, end: start + length })
}
