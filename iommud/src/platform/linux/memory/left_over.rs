//! What earlier servers left in the directory.

use std::collections::BTreeSet;
#[cfg(test)]
use std::fs;
use std::os::fd::OwnedFd;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, ftruncate, openat, unlinkat};

use super::error::DirectoryError;
use super::held_pins::HeldPins;
use super::page::map;
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::frame_allocator::HUGE_PAGE;
use crate::platform::handover_page::NotesPage;

/// Pages that earlier servers left. Units may still translate through them.
#[derive(Debug)]
pub struct LeftOver {
    directory: OwnedFd,
    notes: NotesPage,
    /// Number of the server that runs.
    ours: u32,
    files: Vec<LeftFile>,
    pins: HeldPins,
}

/// A file that a server left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftFile {
    name: String,
    server: u32,
    /// `None` when it was cut to nothing.
    range: Option<PhysRange>,
}

impl LeftOver {
    /// `files` of servers before the one that runs, whose number is `ours`, and which has these pins.
    pub(super) fn new(
        directory: OwnedFd,
        notes: NotesPage,
        (ours, pins): (u32, HeldPins),
        files: Vec<LeftFile>,
    ) -> Self {
        Self { directory, notes, ours, files, pins }
    }

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

    fn unlink(&self, files: &[LeftFile]) {
        let servers: BTreeSet<u32> = files.iter().map(|file| file.server).collect();
        servers.into_iter().for_each(|server| self.pins.drop_server(server));
        for LeftFile { name, .. } in files {
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
            LeftFile { name, server: 1, range: Some(*range) }
        };
        let files = ranges.iter().enumerate().map(make).collect();
        let pins = HeldPins::of(None).unwrap();
        Self { directory: fs::File::open(path).unwrap().into(), notes, ours: 2, files, pins }
    }
}

/// The servers that left no note and none of whose pages has one of these addresses.
fn unknown_servers(files: &[LeftFile], noted: &BTreeSet<u32>, told: &[PhysAddr]) -> BTreeSet<u32> {
    let holds = |file: &LeftFile| {
        file.range.is_some_and(|range| {
            told.iter().any(|address| (range.first()..=range.last()).contains(address))
        })
    };
    let mut known = noted.clone();
    known.extend(files.iter().filter(|file| holds(file)).map(|file| file.server));
    files.iter().map(|file| file.server).filter(|server| !known.contains(server)).collect()
}

/// Cuts the files of earlier servers to their pages, and finds where those are.
///
/// # Errors
/// `Unusable`; `Address`.
pub(super) fn left_files(
    directory: &OwnedFd,
    names: Vec<(String, u32)>,
) -> Result<Vec<LeftFile>, DirectoryError> {
    let file = |(name, server): (String, u32)| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let unusable =
            |error: rustix::io::Errno| DirectoryError::Unusable((&name).into(), error.into());
        let file = openat(directory, &name, flags, Mode::empty()).map_err(unusable)?;
        let range = left_range(&file)?;
        Ok(LeftFile { name, server, range })
    };
    names.into_iter().map(file).collect()
}

/// Cuts a file to its page, and finds where that is; `None` if the file has none. A client can add and remove pages at
/// any time.
fn left_range(file: &OwnedFd) -> Result<Option<PhysRange>, DirectoryError> {
    let unusable =
        |error: rustix::io::Errno| DirectoryError::Unusable(PathBuf::new(), error.into());
    ftruncate(file, HUGE_PAGE).map_err(unusable)?;
    // A file without memory behind it was cut by a client, or left by a server that died when it took the page: mapping
    // it would take one now.
    let is_empty = || fstat(file).map(|stat| stat.st_blocks == 0).map_err(unusable);
    if is_empty()? {
        return Ok(None);
    }
    match map(file) {
        Ok((_, range)) => Ok(Some(range)),
        Err(_) if is_empty()? => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, fallocate};

    /// A server that died before it told a unit anything is unknown; one page of a server that is known
    /// keeps all of it.
    #[test]
    fn servers_are_known_by_their_note_or_any_of_their_pages() {
        let file = |server: u32, serial: u32, first: Option<u64>| LeftFile {
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

    /// A client of a dead server may have put memory behind its page, and taken the page away: that memory is the system's
    /// again, and there is no page.
    #[test]
    fn a_file_that_was_left_is_cut_to_its_page() {
        let path = std::env::temp_dir().join(format!("iommud-left-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let name = "00000001-00000000";
        let file = fs::File::create(path.join(name)).unwrap();
        fallocate(&file, FallocateFlags::empty(), HUGE_PAGE, 2 * HUGE_PAGE).unwrap();
        let before = fstat(&file).unwrap().st_blocks;
        let directory = OwnedFd::from(fs::File::open(&path).unwrap());
        let found = left_files(&directory, vec![(name.to_owned(), 1)]);
        fs::remove_dir_all(&path).unwrap();
        let ranges: Vec<_> = found.unwrap().iter().map(|file| file.range).collect();
        let after = fstat(&file).unwrap();
        assert_eq!((ranges, after.st_size), (vec![None], 2 << 20));
        assert!(before > 0 && after.st_blocks == 0, "{before} blocks, then {}", after.st_blocks);
    }
}
