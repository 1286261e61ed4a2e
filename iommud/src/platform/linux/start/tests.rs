//! Tests when memory of an earlier server is removed, and of what the loop does besides serving.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use iommu_protocol::ids::PciAddress;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::UnitError;
use crate::platform::fake_unit::FakeUnit;
use crate::platform::linux::memory::testing::FakePages;
use crate::platform::{HUGE_PAGE_LENGTH, HugeTables, Mapping, Sharing};
use crate::policy::Config;
use crate::server::{Budget, Startup, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDefect, UnitDescription, UnitKind};

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

/// Where its page of tables is.
const TABLES: u64 = 0x2000_0000;

fn description() -> UnitDescription {
    UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    }
}

/// A server over one unit for each error, none of which came up.
fn server(failed: &[UnitError]) -> Server<FakeUnit, HugeBuffers<FakePages>> {
    let units = failed.iter().map(|_| description()).collect();
    server_of(units, failed.iter().map(|error| UnitStart::Failed(*error)).collect())
}

fn server_of(
    descriptions: Vec<UnitDescription>,
    units: Vec<UnitStart<FakeUnit>>,
) -> Server<FakeUnit, HugeBuffers<FakePages>> {
    let tables = FakePages::default().page(TABLES).into_mapping();
    Server::start(Startup {
        config: Config::default(),
        table: TableState::Parsed("DMAR"),
        firmware: Firmware { units: descriptions, ..Firmware::default() },
        units,
        functions: Vec::new(),
        ram: Vec::new(),
        own: Vec::new(),
        left: Vec::new(),
        memory: HugeTables::new([(PhysAddr(TABLES), tables)]),
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

/// A unit that the table describes with nonsense for registers never walked any tables.
#[test]
fn memory_of_an_earlier_server_goes_though_a_unit_is_unusable() {
    let left = Left::new("unusable");
    let defect = UnitDefect::BadAddress { address: 0 };
    let description = UnitDescription { registers: Err(defect), ..description() };
    let mut server = server_of(vec![description], vec![UnitStart::Unusable(defect)]);
    give_back(&mut server, &mut removable(left.found(), true));
    assert_eq!(left.files(), 0);
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

/// A machine without functions.
struct Nothing;

impl ConfigSpace for Nothing {
    fn read(&mut self, _: PciAddress, _: u16) -> u32 {
        u32::MAX
    }
}

thread_local! {
    /// Whether registers can be mapped.
    static ANSWERS: Cell<bool> = const { Cell::new(false) };
}

fn map(range: PhysRange) -> io::Result<Registers> {
    if !ANSWERS.get() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let file = memfd_create("registers", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, range.length())?;
    Registers::over(file.as_fd(), PhysRange::new(PhysAddr(0), range.length()).unwrap())
}

fn later(left: &Left) -> Later<Nothing> {
    let order = Order::exactly(0, 0);
    let firmware = Firmware { units: vec![description()], ..Firmware::default() };
    let units = LateUnits { firmware, space: Nothing, map };
    let more = (Growth::new(&order), MorePages::leaving(0, || Some(0)));
    Later { units, left: removable(left.found(), true), more }
}

/// A unit whose registers could not be mapped at start is tried again by the loop. Once it is up, what an earlier
/// server left is removed, because nothing walks it any more.
#[test]
fn the_loop_brings_up_a_unit_that_did_not_answer_at_start() {
    let left = Left::new("late");
    let late = later(&left);
    let mut transport = looped(server(&[UnitError::Dead]), WireLog::off(), late).unwrap();
    let began = Instant::now();
    let mut turns = |enough: &mut dyn FnMut(&mut Server<_, _>) -> bool| {
        while began.elapsed() < Duration::from_secs(60) {
            transport.turn(None).unwrap();
            if enough(transport.server()) {
                return true;
            }
        }
        false
    };
    assert!(turns(&mut |_| began.elapsed() > Duration::from_millis(100)), "ten ticks");
    assert_eq!(left.files(), 2, "the unit is not up");
    ANSWERS.set(true);
    assert!(turns(&mut |server| server.all_units_enabled()), "never tried again");
    assert!(turns(&mut |_| left.files() == 0), "what an earlier server left stays");
}
