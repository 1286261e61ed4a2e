//! The handover page: notes of a server for the next one. The page survives the death of a server, but not a restart
//! of the machine. It is a huge page of a file (Linux) or a page that a keeper keeps mapped (Redox). It names the
//! driven functions (see [`crate::server::Notes`]), the servers whose tables a unit may use, and the tags that units
//! may hold.
//!
//! ```text
//! word 0     "iommudn1"
//! word 1..   0, or bit 63 | segment << 16 | requester id, or bit 62 | number of a server, or bit 61 | tags
//! ```
//!
//! One word names the tags ([`TagRecord::to_bits`]) and is written in one store. So after the death of a server the
//! page holds either the old tags or the new ones.

use std::os::fd::OwnedFd;

use iommu_protocol::ids::{PciAddress, RequesterId};

use super::frame_allocator::HUGE_PAGE_LENGTH;
use super::mapping::Mapping;
use crate::server::Notes;
use crate::topology::tags::TagRecord;

/// The first word of a page with notes.
const MARK: u64 = u64::from_le_bytes(*b"iommudn1");

/// Bytes of notes. The trace of the server is in the rest of a huge page.
pub(super) const NOTES_LENGTH: usize = HUGE_PAGE_LENGTH / 2;

/// A word that names a function.
const NAMED: u64 = 1 << 63;

/// A word that names a server.
const SERVER: u64 = 1 << 62;

/// A word that names tags.
const TAGS: u64 = 1 << 61;

/// The mapped handover page.
#[derive(Debug)]
pub struct NotesPage {
    mapping: Mapping,
    /// Keeps the file open while the page is in use.
    _file: Option<OwnedFd>,
}

impl NotesPage {
    /// Reads the page in `mapping`, which has at most 2 MiB. Notes are in its first MiB. A page of zeros becomes a page
    /// without notes. `None` when the page contains other data.
    #[must_use]
    pub fn new(mut mapping: Mapping, file: Option<OwnedFd>) -> Option<Self> {
        match mapping.read64(0)? {
            0 => mapping.write64(0, MARK),
            MARK => {}
            _ => return None,
        }
        Some(Self { mapping, _file: file })
    }

    /// Every noted function.
    pub fn noted(&self) -> impl Iterator<Item = PciAddress> + '_ {
        self.words().filter_map(|(_, word)| function_of(word))
    }

    /// The number of every noted server.
    pub fn servers(&self) -> impl Iterator<Item = u32> + '_ {
        let server = |word: u64| u32::try_from(word & !SERVER).ok();
        self.words().filter(|(_, word)| word >> 62 == 1).filter_map(move |(_, word)| server(word))
    }

    /// Notes whether a unit may use tables of this server. False when the page has no room.
    pub fn set_server(&mut self, server: u32, rooted: bool) -> bool {
        self.set_word(SERVER | u64::from(server), rooted)
    }

    /// The tags that units may hold. `None` when no server noted any.
    #[must_use]
    pub fn tags(&self) -> Option<TagRecord> {
        self.words().find(|(_, word)| word >> 61 == 1).map(|(_, word)| TagRecord::from_bits(word))
    }

    fn words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        (8..NOTES_LENGTH)
            .step_by(8)
            .map_while(|offset| Some((offset, self.mapping.read64(offset)?)))
    }

    fn find(&self, word: u64) -> Option<usize> {
        self.words().find(|(_, found)| *found == word).map(|(offset, _)| offset)
    }

    fn set_word(&mut self, word: u64, there: bool) -> bool {
        match (self.find(word), there) {
            (Some(_), true) | (None, false) => true,
            (Some(offset), false) => {
                self.mapping.write64(offset, 0);
                true
            }
            (None, true) => {
                let free = self.find(0);
                if let Some(offset) = free {
                    self.mapping.write64(offset, word);
                }
                free.is_some()
            }
        }
    }
}

impl Notes for NotesPage {
    fn set(&mut self, function: PciAddress, driven: bool) -> bool {
        self.set_word(word_of(function), driven)
    }

    fn set_tags(&mut self, tags: TagRecord) {
        let place = self.words().find(|(_, word)| word >> 61 == 1).map(|(offset, _)| offset);
        if let Some(offset) = place.or_else(|| self.find(0)) {
            self.mapping.write64(offset, TAGS | tags.to_bits());
        }
    }
}

fn word_of(function: PciAddress) -> u64 {
    NAMED | u64::from(function.segment) << 16 | u64::from(function.requester.0)
}

fn function_of(word: u64) -> Option<PciAddress> {
    let segment = u16::try_from(word >> 16 & 0xffff).ok()?;
    let requester = RequesterId(u16::try_from(word & 0xffff).ok()?);
    (word & NAMED != 0).then_some(PciAddress { segment, requester })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::platform::mapping::Sharing;
    use crate::topology::tags::{HeldTags, TagSpan};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    fn file() -> OwnedFd {
        let file = memfd_create("notes", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, HUGE_PAGE_LENGTH as u64).unwrap();
        file
    }

    fn map(file: &OwnedFd) -> Mapping {
        Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap()
    }

    fn at(segment: u16, requester: u16) -> PciAddress {
        PciAddress { segment, requester: RequesterId(requester) }
    }

    #[test]
    fn what_is_noted_is_found_by_the_next_server() {
        let file = file();
        let mut page = NotesPage::new(map(&file), None).unwrap();
        let (a, b, c) = (at(0, 0), at(0xffff, 0xffff), at(1, 0x20));
        for function in [a, b, c, a] {
            assert!(page.set(function, true));
        }
        assert!(
            page.set_server(0, true) && page.set_server(0x20, true) && page.set_server(9, true)
        );
        assert!(page.set(b, false) && page.set(b, false) && page.set_server(9, false));
        // No destructor runs: this is how SIGKILL ends a server.
        std::mem::forget(page);
        let page = NotesPage::new(map(&file), None).unwrap();
        assert_eq!(page.noted().collect::<Vec<_>>(), [a, c]);
        assert_eq!(page.servers().collect::<Vec<_>>(), [0, 0x20]);
    }

    #[test]
    fn tags_are_one_word_beside_the_other_notes() {
        let file = file();
        let mut page = NotesPage::new(map(&file), None).unwrap();
        assert_eq!(page.tags(), None);
        page.set(at(0, 7), true);
        // A record of no tags differs from no record.
        let mut record = TagRecord::default();
        page.set_tags(record);
        assert_eq!(page.tags(), Some(record));
        page.set_server(1, true);
        record.held = HeldTags::Span(TagSpan { first: 2, last: 0x1234 });
        record.strangers.insert(5);
        page.set_tags(record);
        page.set(at(0, 8), true);
        std::mem::forget(page);
        let shown = map(&file);
        let words: Vec<_> = (0..6).map(|word| shown.read64(8 * word).unwrap()).collect();
        let expected = [1 << 63 | 7, 0x2000_0020_0002_1234, 1 << 62 | 1, 1 << 63 | 8, 0];
        assert_eq!(words[1..], expected);
        let page = NotesPage::new(map(&file), None).unwrap();
        assert_eq!(page.tags(), Some(record));
        assert_eq!(page.noted().collect::<Vec<_>>(), [at(0, 7), at(0, 8)]);
        assert_eq!(page.servers().collect::<Vec<_>>(), [1]);
    }

    /// A full page gets no note of tags. The next server then assumes that units hold every tag.
    #[test]
    fn tags_that_find_no_room_are_not_noted() {
        let file = file();
        let mut mapping = map(&file);
        (8..HUGE_PAGE_LENGTH).step_by(8).for_each(|offset| mapping.write64(offset, NAMED | 7));
        let mut page = NotesPage::new(mapping, None).unwrap();
        page.set_tags(TagRecord::default());
        assert_eq!(page.tags(), None);
    }

    #[test]
    fn a_page_of_something_else_is_refused() {
        let file = file();
        map(&file).write64(0, 1);
        assert!(NotesPage::new(map(&file), None).is_none());
    }

    #[test]
    fn a_full_page_takes_no_more() {
        let file = file();
        let mut mapping = map(&file);
        (8..HUGE_PAGE_LENGTH).step_by(8).for_each(|offset| mapping.write64(offset, NAMED | 7));
        let mut page = NotesPage::new(mapping, None).unwrap();
        assert!(page.set(at(0, 7), true));
        assert!(!page.set(at(0, 8), true));
    }
}
