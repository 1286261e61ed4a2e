//! Memory whose physical address is known, for drivers of the old kind.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::map::Mapping;

/// Bytes of a huge page on x86-64.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Where hugetlbfs is mounted.
pub(crate) const HUGE_MOUNT: &str = "/dev/hugepages";

/// One huge page of zeros, mapped, with its physical address.
pub(crate) struct HugePage {
    /// Its bytes.
    pub(crate) memory: Mapping,
    /// Physical address of the first.
    pub(crate) physical: u64,
}

impl HugePage {
    /// Takes a huge page under `name`, which must be unused.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = format!("{HUGE_MOUNT}/{name}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("creating {path}"))?;
        file.set_len(HUGE_PAGE as u64).with_context(|| format!("sizing {path}"))?;
        let memory = Mapping::new(&file, 0, HUGE_PAGE, true)?;
        memory.write64(0, 0)?;
        std::fs::remove_file(&path).with_context(|| format!("unlinking {path}"))?;
        let physical = physical_address(memory.address())?;
        Ok(Self { memory, physical })
    }
}

/// The physical address behind `address` in this process (Linux Documentation/admin-guide/mm/pagemap.rst:
/// one u64 a page, bits 54:0 the frame number, bit 63 present).
pub(crate) fn physical_address(address: usize) -> Result<u64> {
    let file = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let mut entry = [0; 8];
    let page = address as u64 / 4096;
    file.read_exact_at(&mut entry, page * 8).context("reading pagemap")?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry >> 63 == 1, "address {address:#x} is not present");
    let frame = entry & ((1 << 55) - 1);
    ensure!(frame != 0, "pagemap hides the frame numbers");
    Ok(frame * 4096 + address as u64 % 4096)
}
