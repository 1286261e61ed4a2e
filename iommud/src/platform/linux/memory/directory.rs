//! A directory of a hugetlbfs: where pages come from, and where those of an earlier server are found.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::fs::{fallocate, flock, fstatfs, ftruncate, openat, unlinkat};

use super::error::DirectoryError;
use super::page::{Page, PageSource};
use super::pagemap::{PagemapError, physical_address};
use super::pin::{Pin, allow_many};
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::frame_allocator::{HUGE_PAGE, HUGE_PAGE_LENGTH};
use crate::platform::handover_page::NotesPage;
use crate::platform::mapping::{Mapping, Sharing};

/// File system type of hugetlbfs (statfs(2), HUGETLBFS_MAGIC).
const HUGETLBFS_MAGIC: u64 = 0x958_458f6;

/// The directory as a source of pages. Its lock is held as long as this or its [`LeftOver`] exists.
#[derive(Debug)]
pub struct HugeDirectory {
    directory: OwnedFd,
    /// Number of this server: the files of one have names that begin alike.
    server: u32,
    serial: u32,
}

/// Pages that earlier servers left. Units may still translate through them.
#[derive(Debug)]
pub struct LeftOver {
    directory: OwnedFd,
    notes: NotesPage,
    /// Number of the server that runs.
    ours: u32,
    files: Vec<File>,
}

/// A file that a server left.
#[derive(Debug, PartialEq, Eq)]
struct File {
    name: String,
    server: u32,
    /// `None` when it was cut to nothing.
    range: Option<PhysRange>,
}

/// The file of the notes.
const NOTES: &str = "driven";

impl HugeDirectory {
    /// Opens `path`, making the directory when it is missing, and lists what an earlier server left.
    ///
    /// # Errors
    /// All but `NoPages`.
    pub fn open(path: &Path) -> Result<(Self, LeftOver), DirectoryError> {
        let unusable = |error: io::Error| DirectoryError::Unusable(path.to_owned(), error);
        allow_many();
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
        let ours = Self { directory: directory.try_clone().map_err(unusable)?, server, serial: 0 };
        let (notes, _) = ours.notes()?;
        let files = files(&directory, found)?;
        Ok((ours, LeftOver { directory, notes, ours: server, files }))
    }

    /// The notes of driven functions, and where they are in memory. They are made when there are none.
    ///
    /// # Errors
    /// `Unusable`, with `InvalidData` when the file holds something else; `NoPages`; `Address`.
    pub fn notes(&self) -> Result<(NotesPage, PhysRange), DirectoryError> {
        let unusable = |error: io::Error| DirectoryError::Unusable(NOTES.into(), error);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.directory, NOTES, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| unusable(error.into()))?;
        // A server that died before this left a file of no length.
        fallocate(&file, FallocateFlags::empty(), 0, HUGE_PAGE)
            .map_err(|_| DirectoryError::NoPages { taken: 0 })?;
        let (mapping, range) = map(&file)?;
        let notes = NotesPage::new(mapping, Some(file));
        Ok((notes.ok_or_else(|| unusable(io::ErrorKind::InvalidData.into()))?, range))
    }

    /// Number of the server that runs.
    #[must_use]
    pub const fn server(&self) -> u32 {
        self.server
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
        let pinned = filled.and_then(|(mapping, range)| {
            let pin = Pin::new(&mapping)
                .map_err(|error| DirectoryError::Unusable((&name).into(), error))?;
            Ok((mapping, range, pin))
        });
        match pinned {
            Ok((mapping, range, pin)) => Ok(Page::new(range.first(), mapping, name).pinned(pin)),
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
        // What a client may have put in the place of the page goes first, the page itself last.
        ftruncate(&old, 0).ok()?;
        unlinkat(&self.directory, page.name(), AtFlags::empty()).ok()?;
        drop(old);
        drop(page);
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
    /// Gives the memory of servers back that no unit can be using: those that died before they swapped a
    /// root table, and whose queues no unit has. `told` are the addresses in the registers of all units.
    ///
    /// A server that swapped a root table is known by its note, not by its registers: they may have its
    /// address already while the unit still uses the old table, or what it has cached of it.
    pub fn give_back_unknown(&mut self, told: &[PhysAddr]) {
        let noted = self.notes.servers().collect();
        let unknown = unknown_servers(&self.files, &noted, told);
        let (gone, kept) = std::mem::take(&mut self.files)
            .into_iter()
            .partition(|file| unknown.contains(&file.server));
        self.files = kept;
        self.unlink(&gone);
        if !gone.is_empty() {
            log::info!("{} files of servers that never drove a unit given back", gone.len());
        }
    }

    /// Notes that units may use tables of the server that runs, before the first is told.
    ///
    /// # Errors
    /// `NoPages` when there is no room for the note, which no number of servers brings about.
    pub fn note_ours(&mut self) -> Result<(), DirectoryError> {
        if self.notes.set_server(self.ours, true) {
            Ok(())
        } else {
            Err(DirectoryError::NoPages { taken: 0 })
        }
    }

    /// The memory, which no device may reach as long as a unit may use it.
    #[must_use]
    pub fn ranges(&self) -> Vec<PhysRange> {
        self.files.iter().filter_map(|file| file.range).collect()
    }

    /// Gives the memory back to the system. The caller knows that no unit uses it any more.
    pub fn remove(mut self) {
        self.unlink(&self.files);
        let others: Vec<u32> = self.notes.servers().filter(|server| *server != self.ours).collect();
        for server in others {
            self.notes.set_server(server, false);
        }
    }

    fn unlink(&self, files: &[File]) {
        for File { name, .. } in files {
            if let Err(error) = unlinkat(&self.directory, name, AtFlags::empty()) {
                log::warn!("memory of an earlier server stays: {name}: {error}");
            }
        }
    }
}

#[cfg(test)]
impl LeftOver {
    /// Server 1 left a file for each of these ranges in a directory of any file system; server 2 finds them.
    pub(in crate::platform::linux) fn of_files(
        path: &Path,
        notes: NotesPage,
        ranges: &[PhysRange],
    ) -> Self {
        let make = |(serial, range): (usize, &PhysRange)| {
            let name = format!("00000001-{serial:08x}");
            fs::write(path.join(&name), "").unwrap();
            File { name, server: 1, range: Some(*range) }
        };
        let files = ranges.iter().enumerate().map(make).collect();
        Self { directory: fs::File::open(path).unwrap().into(), notes, ours: 2, files }
    }
}

/// Removes the files of a server that never told a unit of its memory. The pages are the system's when nobody maps
/// them any more.
///
/// # Errors
/// The first that occurs; files after it stay, and the next server removes them.
pub fn remove_files(path: &Path, server: u32) -> io::Result<()> {
    let mut files = list(path)?.into_iter().filter(|(_, of)| *of == server);
    files.try_for_each(|(name, _)| fs::remove_file(path.join(name)))
}

/// The servers that left no note and none of whose pages has one of these addresses.
fn unknown_servers(files: &[File], noted: &BTreeSet<u32>, told: &[PhysAddr]) -> BTreeSet<u32> {
    let holds = |file: &File| {
        file.range.is_some_and(|range| {
            told.iter().any(|address| (range.first()..=range.last()).contains(address))
        })
    };
    let mut known = noted.clone();
    known.extend(files.iter().filter(|file| holds(file)).map(|file| file.server));
    files.iter().map(|file| file.server).filter(|server| !known.contains(server)).collect()
}

fn files(directory: &OwnedFd, names: Vec<(String, u32)>) -> Result<Vec<File>, DirectoryError> {
    let mut files = Vec::new();
    for (name, server) in names {
        let unusable =
            |error: rustix::io::Errno| DirectoryError::Unusable((&name).into(), error.into());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(directory, &name, flags, Mode::empty()).map_err(unusable)?;
        let empty = rustix::fs::fstat(&file).map_err(unusable)?.st_size == 0;
        // A file without memory behind it was left by a server that died when it took the page: mapping it
        // would take one now.
        let blocks = rustix::fs::fstat(&file).map_err(unusable)?.st_blocks;
        let range = if empty || blocks == 0 { None } else { Some(map(&file)?.1) };
        files.push(File { name, server, range });
    }
    Ok(files)
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
        if name == NOTES {
            continue;
        }
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

    /// A server that died before it told a unit anything is unknown; one page of a server that is known
    /// keeps all of it.
    #[test]
    fn servers_are_known_by_their_note_or_any_of_their_pages() {
        let file = |server: u32, serial: u32, first: Option<u64>| File {
            name: format!("{server:08x}-{serial:08x}"),
            server,
            range: first.and_then(|first| PhysRange::new(PhysAddr(first), HUGE_PAGE)),
        };
        let files = [
            file(1, 0, Some(0x20_0000)),
            file(1, 1, Some(0x80_0000)),
            file(2, 0, Some(0x40_0000)),
            file(2, 1, None),
            file(3, 0, Some(0x60_0000)),
        ];
        let unknown = |noted: &[u32], told: &[u64]| -> Vec<u32> {
            let told: Vec<_> = told.iter().copied().map(PhysAddr).collect();
            let noted = noted.iter().copied().collect();
            unknown_servers(&files, &noted, &told).into_iter().collect()
        };
        assert_eq!(unknown(&[], &[]), [1, 2, 3]);
        assert_eq!(unknown(&[], &[0x9f_f000, 0, 0x1f_f000]), [2, 3]);
        assert!(unknown(&[], &[0x20_0000, 0x40_0000, 0x7f_ffff]).is_empty());
        assert_eq!(unknown(&[2, 7], &[0x20_0000]), [3]);
    }

    #[test]
    fn only_the_files_of_one_server_are_removed() {
        let path = std::env::temp_dir().join(format!("iommud-files-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let names = ["00000001-00000000", "00000002-00000000", "00000002-00000001", NOTES];
        names.iter().for_each(|name| fs::write(path.join(name), "").unwrap());
        remove_files(&path, 2).unwrap();
        let left = [names[0], NOTES].map(|name| path.join(name).exists());
        let gone = [names[1], names[2]].map(|name| path.join(name).exists());
        fs::remove_dir_all(&path).unwrap();
        assert_eq!((left, gone), ([true; 2], [false; 2]));
    }

    /// Whoever has a descriptor of a buffer's file loses the memory when the buffer is released, whether the server gets
    /// the memory back or not. Here it does not: no other file is given a page at that address.
    #[test]
    fn a_released_page_is_cut_from_whoever_has_its_file() {
        let path = std::env::temp_dir().join(format!("iommud-cut-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let directory = OwnedFd::from(fs::File::open(&path).unwrap());
        let mut source = HugeDirectory { directory, server: 7, serial: 0 };
        let (file, name) = source.create().unwrap();
        ftruncate(&file, HUGE_PAGE).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap();
        let page = Page::new(PhysAddr(0x20_0000), mapping, name.clone());
        let client = fs::File::from(source.share(&page).unwrap());
        assert_eq!(client.metadata().unwrap().len(), HUGE_PAGE);
        let renewed = source.renew(page);
        let left = (client.metadata().unwrap().len(), path.join(&name).exists());
        drop(renewed);
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(left, (0, false));
    }

    #[test]
    fn a_directory_that_is_not_huge_is_refused() {
        let path = std::env::temp_dir().join(format!("iommud-huge-{}", std::process::id()));
        let refused = HugeDirectory::open(&path);
        fs::remove_dir(&path).unwrap();
        assert!(matches!(refused, Err(DirectoryError::NotHuge(_))));
    }
}
