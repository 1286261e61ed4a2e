//! Row 9: 64 driver processes at once, against a server that only answers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iommu_protocol::frame::{HEADER_SIZE, Kind, MAX_FRAME, OPEN_WRITE, ROOT, Reply, Request};
use iommu_protocol::wire::{
    Allocate, AllocateResult, Empty, Map, MapResult, Operation, ReplyHeader, Unmap, Wire,
};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::platform::linux::memory::{DirectoryError, HugeBuffers, Page, PageSource, Taken};
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, Mapping, Sharing};
use iommud::server::{Server, Startup, TableState, UnitStart};
use iommud_tests::stack::request;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::machine::{Counting, TABLES, config, firmware, function};
use crate::report::Line;
use crate::timing::{median, ratio};

/// Driver processes.
pub const CLIENTS: u16 = 64;

/// Rounds, ours and the null handler in turn.
const TURNS: usize = 5;

/// From the start of the processes to the beginning of the measurement: all of them call by then. From there to
/// its end.
const SETTLE: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(3);

/// A round that takes longer has gone wrong.
const LONGEST: Duration = Duration::from_secs(60);

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

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos()
}

/// What one round came to.
struct Round {
    /// Calls of all clients in the window.
    calls: f64,
    /// Of all calls, in nanoseconds.
    median: f64,
    p99: f64,
    /// The busiest client's calls over the idlest one's.
    spread: f64,
}

/// Starts this program with a socket as its input; the other end, and the process.
pub fn spawn(arguments: &[&str]) -> (OwnedFd, Child) {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.expect("sockets");
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(arguments).stdin(Stdio::from(theirs)).stdout(Stdio::piped());
    (ours, command.spawn().expect("a client"))
}

/// Starts the clients, lets `serve` serve them until it is told to stop, and adds up.
fn round(serve: impl FnOnce(Vec<OwnedFd>, Instant)) -> Round {
    let begin = now() + SETTLE.as_nanos();
    let client =
        |number: u16| spawn(&["client", &(number * 8 + 8).to_string(), &begin.to_string()]);
    let (ends, children): (Vec<OwnedFd>, Vec<Child>) = (0..CLIENTS).map(client).unzip();
    serve(ends, Instant::now() + LONGEST);
    let (mut counts, mut times) = (Vec::new(), Vec::new());
    for mut child in children {
        let mut lines = BufReader::new(child.stdout.take().expect("output")).lines();
        let line = lines.next().expect("a result").expect("a line");
        let mut numbers = line.split(' ').map(|word| word.parse::<f64>().expect("a number"));
        counts.push(numbers.next().expect("a count"));
        times.extend(numbers);
        child.wait().expect("ended");
    }
    times.sort_by(f64::total_cmp);
    counts.sort_by(f64::total_cmp);
    Round {
        calls: counts.iter().sum(),
        median: median(&times),
        p99: times[times.len() * 99 / 100],
        spread: counts[counts.len() - 1] / counts[0],
    }
}

/// The server's loop.
pub type Loop = Transport<Counting, HugeBuffers<Pages>>;

/// The server behind these sockets.
pub fn start(sockets: Vec<OwnedFd>) -> Loop {
    let taken = Taken::take(Pages::default(), 4 * u64::from(CLIENTS) / 2 * HUGE_PAGE);
    let Taken { tables, buffers, ranges } = taken.unwrap_or_else(|error| panic!("{error:?}"));
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
    });
    let mut transport = Transport::new(server, WireLog::off()).expect("epoll");
    for socket in sockets {
        transport.adopt_as(socket, 0).expect("adopted");
    }
    transport
}

/// The server behind these sockets, until all are closed.
pub fn ours(sockets: Vec<OwnedFd>, end: Instant) {
    let mut transport = start(sockets);
    while transport.clients() > 0 && Instant::now() < end {
        transport.turn(Some(Duration::from_millis(5))).expect("served");
    }
}

/// The longest reply that the clients ask for.
const LONGEST_REPLY: usize = ReplyHeader::SIZE + AllocateResult::SIZE;

/// Answers every frame with as many zeros as a reply has. It waits, receives and sends as the server does, and does
/// nothing else.
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

    /// Waits until something is found, and answers one frame of each client that has one.
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
            // A client that is done has hung up.
            let _ = send(socket, frame, SendFlags::NOSIGNAL);
        }
    }
}

/// The null handler behind these sockets, until all are closed.
fn null(sockets: Vec<OwnedFd>, end: Instant) {
    let mut handler = Null::new(sockets);
    while handler.left > 0 && Instant::now() < end {
        handler.turn();
    }
}

/// A driver process: standard input is its socket.
pub fn client(number: u16, begin: u128) {
    let stdin = std::io::stdin();
    let mut tag = 0;
    let mut room = vec![0; MAX_FRAME];
    let mut ask = |kind: Kind, handle: u32, argument: u64, payload: &[u8]| -> (i64, Vec<u8>) {
        tag += 1;
        let header = Request { kind: kind as u16, handle, tag, argument }.encode();
        send(stdin.as_fd(), &[&header[..], payload].concat(), SendFlags::NOSIGNAL).expect("sent");
        let (_, length) = recv(stdin.as_fd(), &mut room[..], RecvFlags::empty()).expect("received");
        let (reply, payload) = Reply::decode(&room[..length]).expect("a reply");
        assert_eq!(reply.tag, tag);
        (reply.result, payload.to_vec())
    };
    let path = format!("devices/{}", function(number).address);
    let (handle, _) = ask(Kind::Open, ROOT, OPEN_WRITE, path.as_bytes());
    let handle = u32::try_from(handle).expect("opened");
    let mut call = |operation: Operation, body: &[u8]| {
        let bytes = [&request(operation, &Empty::default())[..8], &[0; 8], body].concat();
        let mut bytes = bytes;
        let length = (bytes.len() as u32).to_le_bytes();
        bytes[4..8].copy_from_slice(&length);
        let (result, payload) = ask(Kind::Call, handle, 64, &bytes);
        assert!(result >= 0, "{operation:?}: {result}");
        assert_eq!(ReplyHeader::decode(&payload).expect("a reply").refusal, 0, "{operation:?}");
        payload[ReplyHeader::SIZE..].to_vec()
    };
    let body = |structure: &dyn Fn(&mut [u8]), size| {
        let mut bytes = vec![0; size];
        structure(&mut bytes);
        bytes
    };
    call(Operation::Attach, &[0; 8]);
    let allocate = Allocate { length: 4096, access: 3, ..Allocate::default() };
    let result = call(
        Operation::Allocate,
        &body(&|bytes| allocate.encode(bytes).expect("fits"), Allocate::SIZE),
    );
    let slot = AllocateResult::decode(&result).expect("a buffer").slot;
    let map = Map { slot, access: 3, length: 4096, ..Map::default() };
    let map = body(&|bytes| map.encode(bytes).expect("fits"), Map::SIZE);
    let (mut count, mut times, mut ready) = (0_u64, Vec::new(), false);
    let end = begin + WINDOW.as_nanos();
    loop {
        let start = Instant::now();
        let result = call(Operation::Map, &map);
        let mapped = start.elapsed();
        let MapResult { iova } = MapResult::decode(&result).expect("an address");
        let unmap = Unmap { iova, length: 4096 };
        let start = Instant::now();
        call(Operation::Unmap, &body(&|bytes| unmap.encode(bytes).expect("fits"), Unmap::SIZE));
        let unmapped = start.elapsed();
        match now() {
            time if time > end => break,
            time if time > begin => {
                assert!(ready, "not all drivers were ready in time");
                count += 2;
                times.extend([mapped, unmapped]);
            }
            _ => ready = true,
        }
    }
    let times: Vec<String> = times.iter().map(|time| time.as_nanos().to_string()).collect();
    println!("{count} {}", times.join(" "));
}

pub fn run() {
    let (mut server, mut nothing) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        server.push(round(ours));
        nothing.push(round(null));
    }
    let pick = |rounds: &[Round], of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
    let per_second = |rounds: &[Round]| median(&pick(rounds, |r| r.calls)) / WINDOW.as_secs_f64();
    let against = ratio(&pick(&server, |r| r.calls), &pick(&nothing, |r| r.calls));
    Line::note(
        9,
        "64 processes, map and unmap calls a second",
        format!("{:.0}", per_second(&server)),
    )
    .peer(format!("null handler {:.0}", per_second(&nothing)), against)
    .target(">= 0.9x", against >= 0.9)
    .print();
    let tail = median(&pick(&server, |r| r.p99 / r.median));
    Line::note(9, "the same: p99 over median of a call", format!("{tail:.1}x"))
        .peer("null handler", tail / median(&pick(&nothing, |r| r.p99 / r.median)))
        .target("<= 3x", tail <= 3.0)
        .print();
    let spread = median(&pick(&server, |r| r.spread));
    Line::note(9, "the same: best client over worst", format!("{spread:.2}x"))
        .peer("null handler", spread / median(&pick(&nothing, |r| r.spread)))
        .target("<= 1.1x", spread <= 1.1)
        .print();
}
