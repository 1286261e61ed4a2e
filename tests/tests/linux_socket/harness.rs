//! The real server without units behind its real socket loop, on a machine of anonymous files.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iommu_client::Connection;
use iommu_client::platform::linux::Socket;
use iommu_protocol::frame::{MAX_FRAME, Reply, Request};
use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::Access;
use iommud::addr::{IovaRange, PhysAddr};
use iommud::hw::page_table::{PteFormat, PteSlot};
use iommud::hw::{Entry, HardwareFault, Unit, UnitError};
use iommud::platform::linux::memory::{DirectoryError, HugeBuffers, Page, PageSource, Taken};
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables, Mapping, Order, Sharing};
use iommud::policy::Config;
use iommud::server::{Budget, Server, Startup, TableState};
use iommud::topology::capabilities::{DomainTag, UnitCapabilities};
use iommud::topology::firmware::Firmware;
use iommud::topology::pci::{FunctionKind, PciFunction};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// Physical address of the first page of memory.
pub(crate) const MEMORY: u64 = 0x4_0000_0000 / 16;

/// Pages of the machine.
pub(crate) const PAGES: u64 = 32;

/// Names of the devices of the machine.
pub(crate) const DEVICES: [&str; 3] = ["0000--00--04.0", "0000--00--05.0", "0000--00--06.0"];

/// Memory in anonymous files, at invented addresses.
#[derive(Default)]
pub(crate) struct Pages {
    files: BTreeMap<String, OwnedFd>,
    serial: u32,
    taken: u64,
}

impl Pages {
    fn page(&mut self, phys: u64) -> Page {
        self.serial += 1;
        let file = memfd_create("page", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, HUGE_PAGE).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap();
        let name = self.serial.to_string();
        self.files.insert(name.clone(), file);
        Page::new(PhysAddr(phys), mapping, name)
    }
}

impl PageSource for Pages {
    fn take(&mut self) -> Result<Page, DirectoryError> {
        self.taken += 1;
        Ok(self.page(MEMORY + (self.taken - 1) * HUGE_PAGE))
    }

    fn renew(&mut self, page: Page) -> Option<Page> {
        ftruncate(self.files.remove(page.name())?, 0).ok()?;
        Some(self.page(page.range()?.first().0))
    }

    fn discard(&mut self, page: Page) {
        self.files.remove(page.name());
    }

    fn write_back(&self, _: &Page, _: usize) {}

    fn share(&self, page: &Page) -> Option<OwnedFd> {
        self.files.get(page.name())?.try_clone().ok()
    }
}

/// This machine has no unit.
pub(crate) enum NoUnit {}

/// The page table format of a missing unit.
pub(crate) struct NoFormat;

impl PteFormat for NoFormat {
    fn leaf(_: PhysAddr, _: Access, _: u8) -> u64 {
        0
    }
    fn table(_: PhysAddr, _: u8) -> u64 {
        0
    }
    fn decode(_: u64, _: u8) -> PteSlot {
        PteSlot::Empty
    }
}

type Done = Result<(), UnitError>;

impl Unit for NoUnit {
    type Memory = HugeTables;
    type Format = NoFormat;

    fn capabilities(&self) -> UnitCapabilities {
        match *self {}
    }
    fn write_entry(&mut self, _: &mut HugeTables, _: RequesterId, _: Entry) -> Done {
        match *self {}
    }
    fn suppress_faults(&mut self, _: &mut HugeTables, _: RequesterId, _: bool) -> Done {
        match *self {}
    }
    fn invalidate_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Option<DomainTag>,
    ) -> Done {
        match *self {}
    }
    fn publish_pages(&mut self, _: &mut HugeTables, _: DomainTag, _: IovaRange) -> Done {
        match *self {}
    }
    fn invalidate_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
        _: bool,
    ) -> Done {
        match *self {}
    }
    fn enable(&mut self, _: &mut HugeTables) -> Done {
        match *self {}
    }
    fn take_faults(
        &mut self,
        _: &mut HugeTables,
        _: usize,
        _: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        match *self {}
    }
    fn describe(&mut self, _: &mut dyn std::fmt::Write) -> std::fmt::Result {
        match *self {}
    }
}

pub(crate) type Loop = Transport<NoUnit, HugeBuffers<Pages>>;

/// Starts a server without clients or units.
pub(crate) fn server(wire: WireLog) -> Loop {
    let Taken { tables, buffers, ranges, .. } = take();
    let server = Server::start(Startup {
        config: Config::default(),
        table: TableState::Absent,
        firmware: Firmware::default(),
        units: Vec::new(),
        functions: functions(),
        ram: Vec::new(),
        own: ranges,
        left: Vec::new(),
        memory: tables,
        buffers,
        budget: Budget::default(),
    });
    Transport::new(server, wire).unwrap()
}

/// Takes the memory of the machine.
pub(crate) fn take() -> Taken<Pages> {
    let tables = PAGES.div_ceil(4);
    let order = Order::exactly(tables * HUGE_PAGE, (PAGES - tables) * HUGE_PAGE);
    Taken::take(Pages::default(), &order).unwrap()
}

/// Returns the devices of the machine.
pub(crate) fn functions() -> Vec<PciFunction> {
    DEVICES.map(|name| function(name.parse().unwrap())).into()
}

fn function(address: PciAddress) -> PciFunction {
    PciFunction {
        address,
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

/// Returns both ends of a connection.
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Runs the loop in a thread of its own, for clients that wait for replies. Every client is user 0.
pub(crate) struct Running {
    clients: Sender<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::start_with(WireLog::off)
    }

    pub(crate) fn start_with(wire: impl FnOnce() -> WireLog + Send + 'static) -> Self {
        let (clients, arriving) = channel::<OwnedFd>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut looped = server(wire());
            while !stopped.load(Ordering::Relaxed) {
                for socket in arriving.try_iter() {
                    looped.adopt_as(socket, 0).unwrap();
                }
                looped.turn(Some(Duration::from_millis(2))).unwrap();
            }
        });
        Self { clients, stop, thread: Some(thread) }
    }

    /// Returns a new client's socket.
    pub(crate) fn socket(&self) -> OwnedFd {
        let (ours, theirs) = pair();
        self.clients.send(theirs).unwrap();
        ours
    }

    /// Connects a new client.
    pub(crate) fn connect(&self) -> Connection {
        Connection::over(Socket::over(self.socket()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the loop panicked");
    }
}

/// A client that sends and receives raw frames. The test itself runs the loop.
pub(crate) struct Raw(pub(crate) OwnedFd);

impl Raw {
    pub(crate) fn join<U: Unit>(looped: &mut Transport<U, HugeBuffers<Pages>>) -> Self {
        let (ours, theirs) = pair();
        looped.adopt_as(theirs, 0).unwrap();
        Self(ours)
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        assert_eq!(send(&self.0, bytes, SendFlags::NOSIGNAL), Ok(bytes.len()));
    }

    pub(crate) fn request(&self, kind: u16, handle: u32, argument: u64, payload: &[u8]) {
        let header = Request { kind, handle, tag: 7, argument }.encode();
        self.send(&[&header, payload].concat());
    }

    /// Receives a reply and its payload. `None` when nothing has arrived; `Some(Err)` when the connection has ended.
    pub(crate) fn receive(&self) -> Option<Result<(Reply, Vec<u8>), ()>> {
        let mut room = vec![0; MAX_FRAME];
        match recv(&self.0, &mut room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => Some(Err(())),
            Ok((length, _)) => {
                let (reply, payload) = Reply::decode(&room[..length]).unwrap();
                Some(Ok((reply, payload.to_vec())))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends one request and returns its reply, on a loop without other work.
    pub(crate) fn ask<U: Unit>(
        &self,
        looped: &mut Transport<U, HugeBuffers<Pages>>,
        kind: u16,
        handle: u32,
        argument: u64,
        payload: &[u8],
    ) -> (i64, Vec<u8>) {
        self.request(kind, handle, argument, payload);
        turn(looped);
        let (reply, payload) = self.receive().expect("no reply").expect("hung up");
        assert_eq!(reply.tag, 7);
        (reply.result, payload)
    }
}

/// Runs one turn of the loop, which must end soon.
pub(crate) fn turn<U: Unit>(looped: &mut Transport<U, HugeBuffers<Pages>>) {
    let start = Instant::now();
    looped.turn(Some(Duration::from_millis(1))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "the loop was held up");
}
