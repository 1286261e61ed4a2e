//! A directory of a hugetlbfs: where pages come from, and where those of an earlier server are found.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::fs::{fallocate, flock, fstatfs, ftruncate, openat, unlinkat};

use super::pagemap::{PagemapError, physical_address};
use super::{HUGE_PAGE, HUGE_PAGE_LENGTH, Page, PageSource};
use crate::addr::PhysRange;
use crate::platform::mapping::{Mapping, Sharing};

/// File system type of hugetlbfs (statfs(2), HUGETLBFS_MAGIC).
const HUGETLBFS_MAGIC: u64 = 0x958_458f6;

/// Why memory cannot be had from the directory.
#[derive(Debug)]
pub enum DirectoryError {
    /// The directory cannot be made, opened, read or locked.
    Unusable(PathBuf, io::Error),
    /// Another server uses it.
    InUse(PathBuf),
    /// It does not lie in a hugetlbfs with pages of 2 MiB.
    NotHuge(PathBuf),
    /// The system has no huge page left.
    NoPages {
        /// How many were taken before.
        taken: u32,
    },
    /// The physical address of a page cannot be had.
    Address(PagemapError),
}

impl std::fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unusable(path, error) => write!(f, "{}: {error}", path.display()),
            Self::InUse(path) => write!(f, "{}: another iommud uses it", path.display()),
            Self::NotHuge(path) => {
                write!(f, "{}: not on a hugetlbfs with pages of 2 MiB", path.display())
            }
            Self::NoPages { taken } => {
                write!(f, "no huge page left after {taken}; raise /proc/sys/vm/nr_hugepages")
            }
            Self::Address(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DirectoryError {}

/// The directory as a source of pages. Its lock is held as long as this or its [`LeftOver`] exists.
#[derive(Debug)]
pub struct HugeDirectory {
    directory: OwnedFd,
    /// Number of this server: the files of one have names that begin alike.
    server: u32,
    serial: u32,
}

/// Pages that an earlier server left. Units may still translate through them.
#[derive(Debug)]
pub struct LeftOver {
    directory: OwnedFd,
    names: Vec<String>,
    ranges: Vec<PhysRange>,
}

impl HugeDirectory {
    /// Opens `path`, making the directory when it is missing, and lists what an earlier server left.
    ///
    /// # Errors
    /// All but `NoPages`.
    pub fn open(path: &Path) -> Result<(Self, LeftOver), DirectoryError> {
        let unusable = |error: io::Error| DirectoryError::Unusable(path.to_owned(), error);
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unusable(error));
            }
            _ => {}
        }
        let directory = OwnedFd::from(fs::File::open(path).map_err(unusable)?);
        let system = fstatfs(&directory).map_err(|error| unusable(error.into()))?;
        if u64::try_from(system.f_type) != Ok(HUGETLBFS_MAGIC)
            || u64::try_from(system.f_bsize) != Ok(HUGE_PAGE)
        {
            return Err(DirectoryError::NotHuge(path.to_owned()));
        }
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DirectoryError::InUse(path.to_owned()));
            }
            Err(error) => return Err(unusable(error.into())),
            Ok(()) => {}
        }
        let found = list(path).map_err(unusable)?;
        let server = found.iter().map(|(_, server)| server + 1).max().unwrap_or(0);
        let names = found.into_iter().map(|(name, _)| name).collect();
        let ours = Self { directory: directory.try_clone().map_err(unusable)?, server, serial: 0 };
        Ok((ours, LeftOver::find(directory, names)?))
    }

    fn create(&mut self) -> Result<(OwnedFd, String), io::Error> {
        let name = format!("{:08x}-{:08x}", self.server, self.serial);
        self.serial = self.serial.checked_add(1).ok_or(io::ErrorKind::QuotaExceeded)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((file, name))
    }

    /// Puts memory behind a new file.
    fn fill(&self, file: &OwnedFd, name: String) -> Result<Page, DirectoryError> {
        let filled = fallocate(file, FallocateFlags::empty(), 0, HUGE_PAGE)
            .map_err(|_| DirectoryError::NoPages { taken: self.serial.saturating_sub(1) })
            .and_then(|()| map(file));
        match filled {
            Ok((mapping, range)) => Ok(Page::new(range.first(), mapping, name)),
            Err(error) => {
                self.unlink(&name);
                Err(error)
            }
        }
    }

    /// A file that cannot be removed now is one of those that the next server finds and removes.
    fn unlink(&self, name: &str) {
        if let Err(error) = unlinkat(&self.directory, name, AtFlags::empty()) {
            log::warn!("a huge page stays taken: {name}: {error}");
        }
    }
}

impl PageSource for HugeDirectory {
    fn take(&mut self) -> Result<Page, DirectoryError> {
        let (file, name) =
            self.create().map_err(|error| DirectoryError::Unusable(PathBuf::new(), error))?;
        self.fill(&file, name)
    }

    /// Cuts the old file to nothing, which takes the page from every mapping of it, and takes a page for a
    /// new file at once. The kernel hands out the huge page that was given back last; when it does not
    /// (somebody else took it in between), the page is lost to this server.
    fn renew(&mut self, page: Page) -> Option<Page> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let old = openat(&self.directory, page.name(), flags, Mode::empty()).ok()?;
        let (file, name) = self.create().ok()?;
        let phys = page.phys;
        ftruncate(&old, 0).ok()?;
        unlinkat(&self.directory, page.name(), AtFlags::empty()).ok()?;
        drop((page, old));
        match self.fill(&file, name) {
            Ok(page) if page.phys == phys => Some(page),
            Ok(other) => {
                self.unlink(other.name());
                None
            }
            Err(_) => None,
        }
    }

    fn discard(&mut self, page: Page) {
        self.unlink(page.name());
    }

    fn share(&self, page: &Page) -> Option<OwnedFd> {
        openat(&self.directory, page.name(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

impl LeftOver {
    fn find(directory: OwnedFd, names: Vec<String>) -> Result<Self, DirectoryError> {
        let mut ranges = Vec::new();
        for name in &names {
            let unusable =
                |error: rustix::io::Errno| DirectoryError::Unusable(name.into(), error.into());
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let file = openat(&directory, name, flags, Mode::empty()).map_err(unusable)?;
            if rustix::fs::fstat(&file).map_err(unusable)?.st_size != 0 {
                ranges.push(map(&file)?.1);
            }
        }
        Ok(Self { directory, names, ranges })
    }

    /// The memory, which no device may reach as long as a unit may use it.
    #[must_use]
    pub fn ranges(&self) -> &[PhysRange] {
        &self.ranges
    }

    /// Gives the memory back to the system. The caller knows that no unit uses it any more.
    pub fn remove(self) {
        for name in &self.names {
            if let Err(error) = unlinkat(&self.directory, name, AtFlags::empty()) {
                log::warn!("memory of an earlier server stays: {name}: {error}");
            }
        }
    }
}

fn map(file: &OwnedFd) -> Result<(Mapping, PhysRange), DirectoryError> {
    let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Populated)
        .map_err(|error| DirectoryError::Unusable(PathBuf::new(), error))?;
    let first = physical_address(&mapping).map_err(DirectoryError::Address)?;
    let range =
        PhysRange::new(first, HUGE_PAGE).ok_or(DirectoryError::Address(PagemapError::Hidden))?;
    Ok((mapping, range))
}

/// Files that a server made, with the server's number.
fn list(path: &Path) -> io::Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        match name.to_str().and_then(|name| Some((name.to_owned(), parse_name(name)?))) {
            Some(file) => found.push(file),
            None => log::warn!("{}: not a file of iommud: {}", path.display(), name.display()),
        }
    }
    Ok(found)
}

/// The server's number in the name of a file: eight hexadecimal digits, a dash, eight more.
fn parse_name(name: &str) -> Option<u32> {
    let (server, serial) = name.split_once('-')?;
    let number = |text: &str| {
        let plain = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if plain { u32::from_str_radix(text, 16).ok() } else { None }
    };
    number(serial)?;
    number(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_files_are_left_alone() {
        assert_eq!(parse_name("0000002a-00000007"), Some(42));
        for bad in ["", "-", "2a-7", "0000002a-0000000g", "0000002a-00000007x", "+000002a-00000007"]
        {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_directory_that_is_not_huge_is_refused() {
        let path = std::env::temp_dir().join(format!("iommud-huge-{}", std::process::id()));
        let refused = HugeDirectory::open(&path);
        fs::remove_dir(&path).unwrap();
        assert!(matches!(refused, Err(DirectoryError::NotHuge(_))));
    }
}
