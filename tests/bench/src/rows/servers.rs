//! The servers for frames: iommud behind its sockets, and a null handler.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use iommu_protocol::frame::{HEADER_SIZE, MAX_FRAME, Reply, Request};
use iommu_protocol::wire::{AllocateResult, ReplyHeader, Wire};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::platform::linux::memory::{DirectoryError, HugeBuffers, Page, PageSource, Taken};
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, Mapping, Order, Sharing};
use iommud::server::{Budget, Server, Startup, TableState, UnitStart};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::machine::{Counting, TABLES, config, firmware, function};

/// Drivers for which the server has devices.
pub const CLIENTS: u16 = 64;

/// Pages in anonymous files.
#[derive(Default)]
pub struct Pages {
    files: BTreeMap<String, OwnedFd>,
    taken: u64,
}

impl PageSource for Pages {
    fn take(&mut self) -> Result<Page, DirectoryError> {
        let phys = PhysAddr(TABLES + self.taken * HUGE_PAGE);
        self.taken += 1;
        let file = memfd_create("page", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, HUGE_PAGE).expect("memory");
        let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared);
        let name = self.taken.to_string();
        self.files.insert(name.clone(), file);
        Ok(Page::new(phys, mapping.expect("mapping"), name))
    }
    fn renew(&mut self, page: Page) -> Option<Page> {
        Some(page)
    }
    fn discard(&mut self, page: Page) {
        self.files.remove(page.name());
    }
    fn share(&self, page: &Page) -> Option<OwnedFd> {
        self.files.get(page.name())?.try_clone().ok()
    }
}

/// The server's event loop.
pub type Loop = Transport<Counting, HugeBuffers<Pages>>;

/// Starts the server behind these sockets.
pub fn start(sockets: Vec<OwnedFd>) -> Loop {
    // Two pages for each driver, a quarter of them for tables.
    let tables = u64::from(CLIENTS) / 2 * HUGE_PAGE;
    let taken = Taken::take(Pages::default(), &Order::exactly(tables, 3 * tables));
    let Taken { tables, buffers, ranges, .. } = taken.unwrap_or_else(|error| panic!("{error:?}"));
    let server: Server<Counting, HugeBuffers<Pages>> = Server::start(Startup {
        config: config(),
        table: TableState::Parsed("DMAR"),
        firmware: firmware(),
        units: vec![UnitStart::Ready(Counting::default())],
        functions: (0..CLIENTS).map(|number| function(number * 8 + 8)).collect(),
        ram: PhysRange::new(PhysAddr(0), 1 << 32).into_iter().collect(),
        own: ranges,
        left: Vec::new(),
        memory: tables,
        buffers,
        budget: Budget::default(),
    });
    let mut transport = Transport::new(server, WireLog::off()).expect("epoll");
    for socket in sockets {
        transport.adopt_as(socket, 0).expect("adopted");
    }
    transport
}

/// Serves these sockets until all are closed, at most until `end`.
pub fn serve(sockets: Vec<OwnedFd>, end: Instant) {
    let mut transport = start(sockets);
    while transport.clients() > 0 && Instant::now() < end {
        transport.turn(Some(Duration::from_millis(5))).expect("served");
    }
}

/// The longest reply that the clients request.
const LONGEST_REPLY: usize = ReplyHeader::SIZE + AllocateResult::SIZE;

/// Replies to every frame with as many zeros as a real reply has. It waits, receives and sends like the server, and
/// does nothing else.
pub struct Null {
    epoll: OwnedFd,
    sockets: Vec<Option<OwnedFd>>,
    events: Vec<Event>,
    room: Vec<u8>,
    left: usize,
}

impl Null {
    pub fn new(sockets: Vec<OwnedFd>) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
        for (number, socket) in (0..).zip(&sockets) {
            let data = EventData::new_u64(number);
            epoll::add(&epoll, socket, data, EventFlags::IN).expect("waited for");
        }
        let (left, room) = (sockets.len(), vec![0; MAX_FRAME]);
        let sockets = sockets.into_iter().map(Some).collect();
        Self { epoll, sockets, events: Vec::with_capacity(left), room, left }
    }

    /// Waits for frames, and replies to one frame of each client that sent one.
    pub fn turn(&mut self) {
        self.events.clear();
        let found = epoll::wait(&self.epoll, spare_capacity(&mut self.events), None);
        found.map(drop).expect("waited");
        for event in &self.events {
            let place = &mut self.sockets[event.data.u64() as usize];
            let socket = place.as_ref().expect("open while it is waited for");
            let Ok((_, length @ 1..)) = recv(socket, &mut self.room[..], RecvFlags::DONTWAIT)
            else {
                *place = None;
                self.left -= 1;
                continue;
            };
            let (asked, _) = Request::decode(&self.room[..length]).expect("a frame");
            let bytes = asked.argument.min(LONGEST_REPLY as u64) as usize;
            let header = Reply { tag: asked.tag, result: bytes as i64, handle: 0 }.encode();
            let frame = &mut self.room[..HEADER_SIZE + bytes];
            frame[..HEADER_SIZE].copy_from_slice(&header);
            frame[HEADER_SIZE..].fill(0);
            // A client that has finished has closed its end.
            let _ = send(socket, frame, SendFlags::NOSIGNAL);
        }
    }
}

/// Replies on these sockets until all are closed, at most until `end`.
pub fn answer(sockets: Vec<OwnedFd>, end: Instant) {
    let mut handler = Null::new(sockets);
    while handler.left > 0 && Instant::now() < end {
        handler.turn();
    }
}
