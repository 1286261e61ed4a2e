//! Memory with known physical addresses, for legacy drivers.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Error, Result, ensure};

use crate::map::Mapping;

/// Bytes of a huge page on x86-64.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Mount point of hugetlbfs.
pub(crate) const HUGE_MOUNT: &str = "/dev/hugepages";

/// One mapped huge page of zeros, with its physical address.
pub(crate) struct HugePage {
    /// Its bytes.
    pub(crate) memory: Mapping,
    /// Physical address of the first byte.
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

impl HugePage {
    /// Maps the page of a file of one huge page. `None` when the file has no page: the server frees a page by
    /// truncating its file to nothing and removing it, at any time.
    ///
    /// # Errors
    /// The kernel's error for a file that still has its page.
    pub(crate) fn of_file(path: &Path) -> Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let is_whole = || Ok::<_, Error>(file.metadata()?.len() == HUGE_PAGE as u64);
        if !is_whole()? {
            return Ok(None);
        }
        // Does not read the page: if it is gone by now, a read would raise SIGBUS.
        let memory = Mapping::of_pages(&file, HUGE_PAGE)?;
        match physical_address(memory.address()) {
            Ok(physical) => Ok(Some(Self { memory, physical })),
            Err(_) if !is_whole()? => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns the physical address behind `address` in this process (Linux Documentation/admin-guide/mm/pagemap.rst: one
/// u64 for each page, bits 54:0 the frame number, bit 63 present).
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

/// The server's memory, mapped from its files, which only root can open. No device may change it.
pub(crate) struct ServerMemory {
    pages: Vec<HugePage>,
}

impl ServerMemory {
    /// Maps every file of the server's directory.
    pub(crate) fn open(directory: &str) -> Result<Self> {
        let mut pages = Vec::new();
        for entry in std::fs::read_dir(directory).with_context(|| directory.to_owned())? {
            pages.extend(HugePage::of_file(&entry?.path())?);
        }
        ensure!(!pages.is_empty(), "{directory} holds no memory");
        pages.sort_by_key(|page| page.physical);
        Ok(Self { pages })
    }

    /// Every page of the server's memory.
    pub(crate) fn pages(&self) -> &[HugePage] {
        &self.pages
    }

    /// Whether this physical address lies in the server's memory.
    pub(crate) fn contains(&self, physical: u64) -> bool {
        self.pages
            .iter()
            .any(|page| (0..HUGE_PAGE as u64).contains(&physical.wrapping_sub(page.physical)))
    }

    /// Returns the 64-bit word at a physical address.
    pub(crate) fn word(&self, physical: u64) -> Result<u64> {
        let (page, offset) = self.find(physical)?;
        page.memory.read64(offset)
    }

    fn find(&self, physical: u64) -> Result<(&HugePage, usize)> {
        self.pages
            .iter()
            .find_map(|page| {
                let offset = usize::try_from(physical.checked_sub(page.physical)?).ok()?;
                (offset < HUGE_PAGE).then_some((page, offset))
            })
            .with_context(|| format!("{physical:#x} is not the server's"))
    }

    /// Returns a copy of the page of 4096 bytes at a physical address.
    pub(crate) fn frame(&self, physical: u64) -> Result<Vec<u8>> {
        let (page, offset) = self.find(physical & !0xfff)?;
        page.memory.bytes(offset, 4096)
    }

    /// Returns the physical addresses of the huge pages that start with this word.
    pub(crate) fn starting_with(&self, word: u64) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for page in &self.pages {
            if page.memory.read64(0)? == word {
                found.push(page.physical);
            }
        }
        Ok(found)
    }
}
