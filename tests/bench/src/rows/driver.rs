//! A driver process of row 9.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use iommu_protocol::wire::{
    Allocate, AllocateResult, Empty, Map, MapResult, Operation, Unmap, Wire,
};
use rustix::net::RecvFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::rows::frames::{LONGEST, call, open, put, take};

/// The time for which all drivers call one server before they change to the other.
pub const SLICE: Duration = Duration::from_millis(300);

/// The uncounted start of a slice, in which calls of the previous slice may still run.
pub const SETTLE: Duration = Duration::from_millis(50);

/// Rounds, each with a slice for each server. One more round before them is not counted.
pub const ROUNDS: usize = 40;

/// All slices.
pub const SLICES: usize = 2 * (ROUNDS + 1);

/// Time since the machine started, the same in every process.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The server called in a slice, 0 or 1. The servers alternate in going first.
pub const fn server_of(slice: usize) -> usize {
    (slice ^ slice >> 1) & 1
}

/// A connection to one of the servers, with a session and a buffer.
struct Session<'a> {
    socket: BorrowedFd<'a>,
    map: Vec<u8>,
}

impl<'a> Session<'a> {
    fn open(socket: BorrowedFd<'a>, number: u16) -> Self {
        let mut session = Self { socket, map: Vec::new() };
        let room = &mut [0; LONGEST];
        session.ask(&open(number), room);
        session.ask(&call(Operation::Attach, &Empty::default()), room);
        let allocate = Allocate { length: 4096, access: 3, ..Allocate::default() };
        let made = session.ask(&call(Operation::Allocate, &allocate), room);
        let slot = AllocateResult::decode(made).expect("a buffer").slot;
        let map = Map { slot, access: 3, length: 4096, ..Map::default() };
        session.map = call(Operation::Map, &map);
        session
    }

    fn ask<'room>(&self, frame: &[u8], room: &'room mut [u8; LONGEST]) -> &'room [u8] {
        put(self.socket, frame);
        take(self.socket, room, RecvFlags::empty())
    }

    /// Maps and unmaps a page. Returns nanoseconds of each call.
    fn pair(&self) -> [u128; 2] {
        let room = &mut [0; LONGEST];
        let start = Instant::now();
        let mapped = self.ask(&self.map, room);
        let map = start.elapsed().as_nanos();
        let MapResult { iova } = MapResult::decode(mapped).expect("an address");
        let unmap = call(Operation::Unmap, &Unmap { iova, length: 4096 });
        let start = Instant::now();
        self.ask(&unmap, room);
        [map, start.elapsed().as_nanos()]
    }
}

/// Runs the process. Its sockets are standard input and standard output. Prints, for each slice from `begin` on, the
/// duration of each call in nanoseconds.
pub fn run(number: u16, begin: Duration) {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let sessions = [input.as_fd(), output.as_fd()].map(|socket| Session::open(socket, number));
    let ahead = begin.checked_sub(now()).expect("all drivers are ready in time");
    std::thread::sleep(ahead);
    let mut times = vec![Vec::new(); SLICES];
    let place = || {
        let since = now().saturating_sub(begin).as_nanos();
        ((since / SLICE.as_nanos()) as usize, since % SLICE.as_nanos())
    };
    loop {
        let (slice, since) = place();
        let Some(times) = times.get_mut(slice) else { break };
        let pair = sessions[server_of(slice)].pair();
        if since >= SETTLE.as_nanos() && place().0 == slice {
            times.extend(pair);
        }
    }
    for times in times {
        let times: Vec<String> = times.iter().map(u128::to_string).collect();
        eprintln!("{}", times.join(" "));
    }
}
