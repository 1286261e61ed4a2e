//! A directory of a hugetlbfs: where pages come from.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::fs::{fallocate, flock, fstatfs, ftruncate, openat, unlinkat};

use super::error::DirectoryError;
use super::held_pins::HeldPins;
use super::left_over::{LeftOver, left_files};
use super::page::{Page, PageSource, map};
use super::page_name::PageName;
use super::pin::{Pin, allow_many};
use crate::addr::PhysRange;
use crate::facts::Cell;
use crate::platform::frame_allocator::HUGE_PAGE;
use crate::platform::handover_page::{NOTES_LENGTH, NotesPage};
use crate::platform::linux::link::Link;

/// File system type of hugetlbfs (statfs(2), HUGETLBFS_MAGIC).
const HUGETLBFS_MAGIC: u64 = 0x958_458f6;

/// The directory as a source of pages. Its lock is held as long as this or its [`LeftOver`] exists.
#[derive(Debug)]
pub struct HugeDirectory {
    directory: OwnedFd,
    /// Number of this server: the files of one have names that begin alike.
    server: u32,
    serial: u32,
    /// The memory of the trace has its writer.
    trace_lent: bool,
    pins: HeldPins,
}

/// The file of the notes.
const NOTES: &str = "driven";

/// The file of the store of facts.
const FACTS: &str = "facts";

impl HugeDirectory {
    /// Opens `path`, making the directory when it is missing, and lists what an earlier server left. A keeper holds the
    /// pins of pages too.
    ///
    /// # Errors
    /// All but `NoPages`.
    pub fn open(path: &Path, keeper: Option<&Link>) -> Result<(Self, LeftOver), DirectoryError> {
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
        let ours = Self {
            directory: directory.try_clone().map_err(unusable)?,
            server,
            serial: 0,
            trace_lent: false,
            pins: HeldPins::of(keeper).map_err(unusable)?,
        };
        // The system gets pages back that clients put into files, before this server takes any.
        let files = left_files(&directory, found)?;
        let (notes, _) = ours.notes()?;
        let pins = HeldPins::of(keeper).map_err(unusable)?;
        Ok((ours, LeftOver::new(directory, notes, (server, pins), files)))
    }

    /// The notes of driven functions, and where they are in memory. They are made when there are none.
    ///
    /// # Errors
    /// `Unusable`, with `InvalidData` when the file holds something else; `NoPages`; `Address`.
    pub fn notes(&self) -> Result<(NotesPage, PhysRange), DirectoryError> {
        let file = self.kept_file(NOTES)?;
        let (mapping, range) = map(&file)?;
        let notes = NotesPage::new(mapping, Some(file));
        Ok((notes.ok_or_else(|| unusable_notes(io::ErrorKind::InvalidData.into()))?, range))
    }

    /// A file of one page that all servers use. It is made when there is none.
    fn kept_file(&self, name: &str) -> Result<OwnedFd, DirectoryError> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| DirectoryError::Unusable(name.into(), error.into()))?;
        // A server that died before this left a file of no length.
        fallocate(&file, FallocateFlags::empty(), 0, HUGE_PAGE)
            .map_err(|_| DirectoryError::NoPages { taken: 0 })?;
        Ok(file)
    }

    /// The part of the page of notes that takes the trace. It is lent once, and empty from then on: it must have one
    /// writer. The page of notes leaves it alone.
    ///
    /// # Errors
    /// As [`HugeDirectory::notes`].
    pub fn trace_memory(&mut self) -> Result<&'static mut [[u64; 8]], DirectoryError> {
        if std::mem::replace(&mut self.trace_lent, true) {
            return Ok(&mut []);
        }
        let (mapping, _) = map(&self.kept_file(NOTES)?)?;
        Ok(mapping.leak_records(NOTES_LENGTH).unwrap_or_default())
    }

    /// The memory of the store of facts, and where it is. It stays mapped. To be called once: a store has one writer.
    ///
    /// # Errors
    /// As [`HugeDirectory::notes`].
    pub fn facts_memory(&self) -> Result<(&'static mut [Cell], PhysRange), DirectoryError> {
        let (mapping, range) = map(&self.kept_file(FACTS)?)?;
        let words = mapping.leak_records(0).unwrap_or_default().as_flattened_mut();
        let (cells, _) = words.as_chunks_mut();
        Ok((cells, range))
    }

    /// Number of the server that runs.
    #[must_use]
    pub const fn server(&self) -> u32 {
        self.server
    }

    fn create(&mut self) -> Result<(OwnedFd, String), io::Error> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        loop {
            let name = PageName { server: self.server, serial: self.serial }.to_string();
            // Each page that is released takes a number. After 2^32 of them those of pages that are still there are
            // skipped: there are far fewer.
            self.serial = self.serial.wrapping_add(1);
            match openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file, name)),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
            Ok((mapping, range, pin)) => {
                self.pins.hold(&name, &pin);
                Ok(Page::new(range.first(), mapping, name).pinned(pin))
            }
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

fn unusable_notes(error: io::Error) -> DirectoryError {
    DirectoryError::Unusable(NOTES.into(), error)
}

impl PageSource for HugeDirectory {
    fn take(&mut self) -> Result<Page, DirectoryError> {
        let (file, name) =
            self.create().map_err(|error| DirectoryError::Unusable(PathBuf::new(), error))?;
        self.fill(&file, name)
    }

    /// Cuts the old file to nothing, which takes the page from every mapping of it, and takes a page for a
    /// new file at once. The kernel hands out the huge page that was given back last; when it does not
    /// (somebody else took it in between, or a client holds a reference of its own), the page is lost.
    fn renew(&mut self, mut page: Page) -> Option<Page> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let phys = page.phys;
        let created = self.create();
        // What a client may have put in the place of the page goes first, the page itself last.
        let cut = openat(&self.directory, page.name(), flags, Mode::empty())
            .and_then(|old| ftruncate(&old, 0));
        if let Err(error) = cut {
            log::warn!("{}: not cut, its clients keep the memory: {error}", page.name());
        }
        // Before the name goes: the next server knows a page by its file.
        page.unpin();
        self.pins.drop(page.name());
        self.unlink(page.name());
        drop(page);
        let (file, name) = created.ok()?;
        match self.fill(&file, name) {
            Ok(page) if page.phys == phys => Some(page),
            Ok(other) => {
                self.discard(other);
                None
            }
            Err(_) => None,
        }
    }

    fn discard(&mut self, mut page: Page) {
        page.unpin();
        self.pins.drop(page.name());
        self.unlink(page.name());
    }

    fn share(&self, page: &Page) -> Option<OwnedFd> {
        openat(&self.directory, page.name(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
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

/// Files that a server made, with the server's number.
fn list(path: &Path) -> io::Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name == NOTES || name == FACTS {
            continue;
        }
        match name.to_str().and_then(|name| Some((name.to_owned(), PageName::parse(name)?.server)))
        {
            Some(file) => found.push(file),
            None => log::warn!("{}: not a file of iommud: {}", path.display(), name.display()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;
    use crate::platform::frame_allocator::HUGE_PAGE_LENGTH;
    use crate::platform::mapping::{Mapping, Sharing};
    use std::os::fd::AsFd;

    #[test]
    fn only_the_files_of_one_server_are_removed() {
        let path = std::env::temp_dir().join(format!("iommud-files-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let names = ["00000001-00000000", "00000002-00000000", "00000002-00000001", NOTES, FACTS];
        names.iter().for_each(|name| fs::write(path.join(name), "").unwrap());
        remove_files(&path, 2).unwrap();
        let left = [names[0], NOTES, FACTS].map(|name| path.join(name).exists());
        let gone = [names[1], names[2]].map(|name| path.join(name).exists());
        fs::remove_dir_all(&path).unwrap();
        assert_eq!((left, gone), ([true; 3], [false; 2]));
    }

    /// Whoever has a descriptor of a buffer's file loses the memory when the buffer is released, whether the server gets
    /// the memory back or not. Here it does not: no other file is given a page at that address, or none can be made.
    #[test]
    fn a_released_page_is_cut_from_whoever_has_its_file() {
        for serial in [0, u32::MAX - 1] {
            let path = std::env::temp_dir().join(format!("iommud-cut-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            let directory = OwnedFd::from(fs::File::open(&path).unwrap());
            let pins = HeldPins::of(None).unwrap();
            let mut source =
                HugeDirectory { directory, server: 7, serial, trace_lent: false, pins };
            let (file, name) = source.create().unwrap();
            ftruncate(&file, HUGE_PAGE).unwrap();
            let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap();
            let page = Page::new(PhysAddr(0x20_0000), mapping, name.clone());
            let client = fs::File::from(source.share(&page).unwrap());
            assert_eq!(client.metadata().unwrap().len(), HUGE_PAGE);
            let renewed = source.renew(page);
            let left = (client.metadata().unwrap().len(), path.join(&name).exists());
            let is_lost = renewed.is_none();
            drop(renewed);
            fs::remove_dir_all(&path).unwrap();
            assert_eq!((left, is_lost), ((0, false), true), "serial {serial}");
        }
    }

    #[test]
    fn a_directory_that_is_not_huge_is_refused() {
        let path = std::env::temp_dir().join(format!("iommud-huge-{}", std::process::id()));
        let refused = HugeDirectory::open(&path, None);
        fs::remove_dir(&path).unwrap();
        assert!(matches!(refused, Err(DirectoryError::NotHuge(_))));
    }
}
