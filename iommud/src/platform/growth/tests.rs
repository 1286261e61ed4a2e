//! A server over huge pages that grows.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use iommu_protocol::ids::PciAddress;

use super::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::{Constraints, TableMemory};
use crate::platform::fake_unit::FakeUnit;
use crate::platform::linux::memory::testing::FakePages;
use crate::platform::linux::memory::{HugeBuffers, MorePages};
use crate::platform::{HUGE_PAGE, HugeTables};
use crate::policy::{ClientId, Config};
use crate::server::{Caller, Handle, Startup, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::{FunctionKind, PciFunction};

type TestServer = Server<FakeUnit, HugeBuffers<FakePages>>;

/// The system's pages, which devices under `compat` reach until they are taken.
const PAGES: [u64; 8] = [
    0x3000_0000,
    0x3020_0000,
    0x3040_0000,
    0x3060_0000,
    0x3080_0000,
    0x30a0_0000,
    0x30c0_0000,
    0x30e0_0000,
];

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// The firmware's table of a machine with one unit.
fn firmware() -> Firmware {
    let unit = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(range(0xfed9_0000, 4096)),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    Firmware { units: vec![unit], ..Firmware::default() }
}

fn function() -> PciFunction {
    PciFunction {
        address: PciAddress::new(0, 0, 4, 0).unwrap(),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00ff_0000,
        kind: FunctionKind::RootComplexEndpoint,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    }
}

/// A server with one device under `compat`, a page of tables, and as many of buffers; its system has these pages left.
fn server(unit: FakeUnit, mut system: FakePages, buffers: u64) -> TestServer {
    const TABLES: u64 = 0x2000_0000;
    const BUFFERS: u64 = 0x2800_0000;
    let tables = system.page(TABLES);
    let mut own = vec![range(TABLES, HUGE_PAGE)];
    let pages: Vec<_> = (0..buffers).map(|at| system.page(BUFFERS + at * HUGE_PAGE)).collect();
    own.extend(pages.iter().filter_map(|page| page.range()));
    let budget = Budget {
        table_frames_total: 512,
        buffer_bytes_total: buffers * HUGE_PAGE,
        ..Budget::default()
    };
    let startup = Startup {
        config: Config::default(),
        table: TableState::Parsed("DMAR"),
        firmware: firmware(),
        units: vec![UnitStart::Ready(unit)],
        functions: vec![function()],
        ram: vec![range(0, 1 << 30)],
        own,
        left: Vec::new(),
        memory: HugeTables::new([(PhysAddr(TABLES), tables.into_mapping())]),
        buffers: HugeBuffers::new(system, pages),
        budget,
    };
    Server::start(startup)
}

fn order(tables: u64, buffers: u64) -> Order {
    let mut order = Order::exactly(HUGE_PAGE, HUGE_PAGE);
    (order.tables.most, order.buffers.most) = (tables * HUGE_PAGE, buffers * HUGE_PAGE);
    order
}

/// Takes table memory until it is short.
fn use_tables(server: &mut TestServer) {
    while !server.lacks_tables() {
        server.table_memory().allocate().unwrap();
    }
}

fn claim(server: &mut TestServer) -> Handle {
    let who = Caller { client: ClientId(1), uid: 0 };
    server.open(who, None, "devices/0000--00--04.0", true).unwrap()
}

/// Asks for a buffer; whether it is had. Allocate (4): length, alignment, boundary, access and flags.
fn allocate(server: &mut TestServer, session: Handle, length: u64) -> bool {
    let mut bytes = vec![1, 0, 4, 0, 48, 0, 0, 0];
    bytes.extend([0, length, 4096, 0, 3].map(u64::to_le_bytes).concat());
    assert_eq!(bytes.len(), 48);
    server.call(session, &mut bytes, 48).unwrap();
    bytes[16..18] == [0, 0]
}

fn pages() -> MorePages {
    MorePages::leaving(0, || Some(1000))
}

/// What devices under `compat` do: they write to every page that the system has given since they began.
#[derive(Clone, Default)]
struct Devices {
    files: Rc<RefCell<BTreeMap<String, OwnedFd>>>,
    begun: Rc<RefCell<Option<BTreeSet<String>>>>,
    writes: Rc<Cell<u32>>,
}

impl Devices {
    fn write(&self) {
        let begun = self.begun.borrow();
        let Some(others) = begun.as_ref() else { return };
        for (_, file) in self.files.borrow().iter().filter(|(name, _)| !others.contains(*name)) {
            for offset in (128..HUGE_PAGE).step_by(4096) {
                rustix::io::pwrite(file.as_fd(), &[0xdb; 64], offset).unwrap();
            }
            self.writes.set(self.writes.get() + 1);
        }
    }
}

/// A server whose devices write to pages of the system's until units have forgotten them.
fn hostile(buffers: u64) -> (TestServer, Devices) {
    let system = FakePages::at(&PAGES);
    let devices = Devices { files: system.files.clone(), ..Devices::default() };
    let writers = devices.clone();
    let unit = FakeUnit { devices: Rc::new(move || writers.write()), ..FakeUnit::new() };
    let server = server(unit, system, buffers);
    *devices.begun.borrow_mut() = Some(devices.files.borrow().keys().cloned().collect());
    (server, devices)
}

/// The page is removed from `compat`, units forget it, and then it is cleared: what a device wrote until the last instant
/// is in no table.
#[test]
fn nothing_that_a_device_wrote_is_in_a_new_table() {
    let (mut server, devices) = hostile(1);
    use_tables(&mut server);
    assert!(Growth::new(&order(2, 1)).grow(&mut server, &mut pages(), Nanos(0)));
    assert!(devices.writes.get() > 0, "until the invalidation");
    let tables = server.table_memory();
    let frames: Vec<_> = std::iter::from_fn(|| tables.allocate_unclean().ok()).collect();
    let new: Vec<_> = frames.iter().filter(|frame| frame.0 >= PAGES[0]).collect();
    assert_eq!(new.len(), 512);
    assert!(new.iter().all(|frame| (0..512).all(|word| tables.load(**frame, word) == 0)));
}

#[test]
fn nothing_that_a_device_wrote_is_in_a_new_buffer() {
    let (mut server, devices) = hostile(1);
    let first = server.buffer_memory().allocate(9, HUGE_PAGE, Constraints::default()).unwrap();
    assert!(first.iter().all(|range| range.first().0 < PAGES[0]));
    let session = claim(&mut server);
    assert!(!allocate(&mut server, session, 2 * HUGE_PAGE), "more than there is");
    assert!(Growth::new(&order(1, 2)).grow(&mut server, &mut pages(), Nanos(0)));
    assert!(devices.writes.get() > 0);
    let page = server.buffer_memory().allocate(10, HUGE_PAGE, Constraints::default()).unwrap();
    assert_eq!(page, [range(PAGES[0], HUGE_PAGE)]);
    let file = server.buffer_memory().share(10).unwrap().remove(0);
    let mut bytes = vec![1; 1 << 21];
    rustix::io::pread(&file, &mut bytes[..], 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// One page a tick, while it is short, up to the limit; the totals are what was taken.
#[test]
fn it_ends_at_the_limit() {
    let (mut server, _) = hostile(1);
    let mut growth = Growth::new(&order(3, 4));
    let session = claim(&mut server);
    assert!(!allocate(&mut server, session, 64 * HUGE_PAGE), "more than there will ever be");
    let mut grown = 0;
    for tick in 0..100 {
        use_tables(&mut server);
        grown += u32::from(growth.grow(&mut server, &mut pages(), Nanos(tick)));
    }
    assert_eq!(grown, 2 + 3);
    let budget = server.budget();
    assert_eq!((budget.table_frames_total, budget.buffer_bytes_total), (3 * 512, 4 * HUGE_PAGE));
    assert_eq!(server.table_memory().bytes(), 3 * HUGE_PAGE);
    assert_eq!(server.buffer_memory().pool().capacity, 4 * HUGE_PAGE);
}

/// An amount that the command line says is not exceeded.
#[test]
fn what_was_said_is_what_is_taken() {
    let (mut server, _) = hostile(1);
    use_tables(&mut server);
    let order = Order::exactly(HUGE_PAGE, HUGE_PAGE);
    assert!(!Growth::new(&order).grow(&mut server, &mut pages(), Nanos(0)));
    assert_eq!(server.budget().table_frames_total, 512);
}

#[test]
fn nothing_is_taken_while_there_is_enough() {
    let (mut server, devices) = hostile(4);
    let mut growth = Growth::new(&order(9, 9));
    assert!(!growth.grow(&mut server, &mut pages(), Nanos(0)));
    let session = claim(&mut server);
    assert!(allocate(&mut server, session, HUGE_PAGE));
    assert!(!growth.grow(&mut server, &mut pages(), Nanos(0)), "a quarter is in use");
    let other = server.buffer_memory().allocate(9, HUGE_PAGE, Constraints::default());
    assert!(other.is_ok() && devices.writes.get() == 0);
}

/// A buffer that was refused is had once there is more memory, and then no more is taken for it.
#[test]
fn a_buffer_that_was_refused_is_had_later() {
    let (mut server, _) = hostile(4);
    let session = claim(&mut server);
    let mut growth = Growth::new(&order(1, 64));
    assert!(!allocate(&mut server, session, 2 * HUGE_PAGE), "a share is a page and a part");
    let mut pages = pages();
    let grown = (0..).take_while(|tick| growth.grow(&mut server, &mut pages, Nanos(*tick))).count();
    assert!(allocate(&mut server, session, 2 * HUGE_PAGE), "after {grown} pages");
    assert!((1..5).contains(&grown), "{grown}");
}

/// What policy refuses because the unit does not answer is the system's again, and the server is as it was.
#[test]
fn a_page_that_devices_go_on_reaching_is_given_back() {
    let dead = Rc::new(Cell::new(false));
    let unit = FakeUnit { dead: dead.clone(), ..FakeUnit::new() };
    let system = FakePages::at(&PAGES);
    let files = system.files.clone();
    let mut server = server(unit, system, 1);
    use_tables(&mut server);
    let (before, free) = (files.borrow().len(), server.table_memory().frames_free());
    dead.set(true);
    let mut growth = Growth::new(&order(9, 9));
    assert!(!growth.grow(&mut server, &mut pages(), Nanos(0)));
    assert_eq!((files.borrow().len(), server.budget().table_frames_total), (before, 512));
    assert_eq!(server.table_memory().bytes(), HUGE_PAGE);
    assert!(server.table_memory().frames_free() <= free);
    assert!(!growth.grow(&mut server, &mut pages(), Nanos(FIRST_PAUSE.0 - 1)), "a pause");
}

/// The next server finds as many pages as it wants, whatever this one takes.
#[test]
fn the_next_server_s_pages_are_left() {
    let (mut server, _) = hostile(1);
    use_tables(&mut server);
    let mut growth = Growth::new(&order(9, 9));
    let now = Nanos(0);
    for (kept, free, taken) in [(8, None, false), (8, Some(8), false), (8, Some(9), true)] {
        let free = match free {
            None => || None,
            Some(8) => || Some(8),
            Some(_) => || Some(9),
        };
        growth.due = now;
        let grown = growth.grow(&mut server, &mut MorePages::leaving(kept, free), now);
        assert_eq!(grown, taken);
    }
}

/// Somebody else takes a page that is released: shares are parts of what is left, and the next lack replaces it, though
/// the system has no more than the next server takes. It has as much as at start then, and nothing above that.
#[test]
fn a_page_that_is_lost_is_not_promised_and_is_replaced() {
    let mut system = FakePages::at(&PAGES);
    system.lossy = true;
    let mut server = server(FakeUnit::new(), system, 2);
    let session = claim(&mut server);
    assert!(allocate(&mut server, session, HUGE_PAGE));
    server.close(session);
    server.tick();
    assert_eq!(server.budget().buffer_bytes_total, HUGE_PAGE);
    let session = claim(&mut server);
    assert!(!allocate(&mut server, session, 2 * HUGE_PAGE), "it is not there");
    let (mut growth, mut pages) = (Growth::new(&order(1, 2)), MorePages::leaving(9, || Some(9)));
    assert!(growth.grow(&mut server, &mut pages, Nanos(0)));
    assert_eq!(server.budget().buffer_bytes_total, 2 * HUGE_PAGE);
    let all = server.buffer_memory().allocate(9, 2 * HUGE_PAGE, Constraints::default());
    assert!(all.is_ok());
    let mut growth = Growth::new(&order(1, 3));
    assert!(!growth.grow(&mut server, &mut pages, Nanos(0)), "the next server's");
}

/// A source that notes when it is asked, and has nothing before a time.
struct Poor {
    asked: Vec<u64>,
    until: u64,
    now: u64,
}

impl MoreMemory<FakeUnit, HugeBuffers<FakePages>> for Poor {
    const TABLES: u64 = HUGE_PAGE;
    const BUFFERS: u64 = HUGE_PAGE;

    fn tables(&mut self, _: &mut TestServer) -> Result<(), String> {
        self.asked.push(self.now);
        if self.now < self.until { Err("none".to_owned()) } else { Ok(()) }
    }

    fn buffers(&mut self, _: &mut TestServer) -> Result<(), String> {
        Err("none".to_owned())
    }
}

#[test]
fn pauses_double_up_to_a_minute_and_begin_anew() {
    const SECOND: u64 = 1_000_000_000;
    let (mut server, _) = hostile(1);
    use_tables(&mut server);
    let mut growth = Growth::new(&order(9, 9));
    let mut poor = Poor { asked: Vec::new(), until: 200, now: 0 };
    for now in 0..300 {
        poor.now = now;
        if growth.grow(&mut server, &mut poor, Nanos(now * SECOND)) {
            poor.until = 1000;
        }
    }
    let expected = [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 244, 245, 247, 251, 259, 275];
    assert_eq!(poor.asked, expected);
}
