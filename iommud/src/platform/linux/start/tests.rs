//! Tests when memory of an earlier server is removed.

use std::path::PathBuf;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::UnitError;
use crate::platform::fake_unit::FakeUnit;
use crate::platform::linux::memory::testing::FakePages;
use crate::platform::{HUGE_PAGE_LENGTH, HugeTables, Mapping, Sharing};
use crate::policy::Config;
use crate::server::{Budget, Startup, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use std::os::fd::AsFd;

/// A directory with two files of server 1, as server 2 finds it.
struct Left(PathBuf);

impl Left {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("iommud-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn found(&self) -> LeftOver {
        let notes = memfd_create("notes", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&notes, HUGE_PAGE_LENGTH as u64).unwrap();
        let notes = Mapping::new(notes.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap();
        let ranges = [0x4000_0000, 0x4020_0000]
            .map(|first| PhysRange::new(PhysAddr(first), 0x20_0000).unwrap());
        LeftOver::of_files(&self.0, NotesPage::new(notes, None).unwrap(), &ranges)
    }

    fn files(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A server over one unit for each error, none of which came up.
fn server(failed: &[UnitError]) -> Server<FakeUnit, HugeBuffers<FakePages>> {
    let description = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    let units = failed.iter().map(|_| description.clone()).collect();
    Server::start(Startup {
        config: Config::default(),
        table: TableState::Parsed("DMAR"),
        firmware: Firmware { units, ..Firmware::default() },
        units: failed.iter().map(|error| UnitStart::Failed(*error)).collect(),
        functions: Vec::new(),
        ram: Vec::new(),
        own: Vec::new(),
        left: Vec::new(),
        memory: HugeTables::new([]),
        buffers: HugeBuffers::new(FakePages::default(), Vec::new()),
        budget: Budget::default(),
    })
}

#[test]
fn memory_of_an_earlier_server_stays_while_a_unit_is_not_enabled() {
    let left = Left::new("kept");
    give_back(&mut server(&[UnitError::Dead]), &mut removable(left.found(), true));
    assert_eq!(left.files(), 2, "the unit may still walk the old tables");
}

#[test]
fn memory_of_an_earlier_server_stays_while_units_may_be_unknown() {
    let left = Left::new("unknown");
    give_back(&mut server(&[]), &mut removable(left.found(), false));
    assert_eq!(left.files(), 2, "a unit that no table tells of may still walk the old tables");
}

#[test]
fn memory_of_an_earlier_server_goes_when_every_unit_is_enabled() {
    let left = Left::new("gone");
    give_back(&mut server(&[]), &mut removable(left.found(), true));
    assert_eq!(left.files(), 0);
}
