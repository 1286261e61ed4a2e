//! Row 9 without competing processes: 64 clients and the server in one thread. Measures the server's part of the
//! time.

use std::ops::Range;
use std::os::fd::OwnedFd;

use iommu_protocol::wire::{
    Allocate, AllocateResult, Empty, Map, MapResult, Operation, Unmap, Wire,
};
use rustix::net::RecvFlags;

use crate::report::Line;
use crate::rows::frames::{LONGEST, call, connection, open, put, take};
use crate::rows::servers::{CLIENTS, Null, start};
use crate::timing::{ROUNDS, cpu, median, nanos, ratio};

/// Pairs of calls of each client in a round.
const PAIRS: usize = 100;

/// Clients, each with a session and a buffer, and their server.
struct Lab<'a> {
    clients: Vec<OwnedFd>,
    clock: fn() -> f64,
    turn: Box<dyn FnMut() + 'a>,
    maps: Vec<Vec<u8>>,
    /// Nanoseconds spent in turns of the server.
    spent: f64,
}

impl<'a> Lab<'a> {
    fn new(clock: fn() -> f64, serve: impl FnOnce(Vec<OwnedFd>) -> Box<dyn FnMut() + 'a>) -> Self {
        let (ours, clients) = (0..CLIENTS).map(|_| connection()).unzip();
        let turn = serve(ours);
        let mut lab = Self { clients, clock, turn, maps: Vec::new(), spent: 0.0 };
        lab.ask(0..CLIENTS, &open);
        lab.ask(0..CLIENTS, &|_| call(Operation::Attach, &Empty::default()));
        let allocate = Allocate { length: 4096, access: 3, ..Allocate::default() };
        let made = lab.ask(0..CLIENTS, &|_| call(Operation::Allocate, &allocate));
        let slots = made.iter().map(|bytes| AllocateResult::decode(bytes).expect("a buffer").slot);
        let map = |slot| Map { slot, access: 3, length: 4096, ..Map::default() };
        lab.maps = slots.map(|slot| call(Operation::Map, &map(slot))).collect();
        lab
    }

    /// Sends one frame from each of these clients. Returns the bodies of the replies.
    fn ask(&mut self, of: Range<u16>, frame: &dyn Fn(u16) -> Vec<u8>) -> Vec<Vec<u8>> {
        let clients = &self.clients[usize::from(of.start)..usize::from(of.end)];
        for (client, number) in clients.iter().zip(of) {
            put(client, &frame(number));
        }
        let before = (self.clock)();
        (self.turn)();
        self.spent += (self.clock)() - before;
        let mut room = [0; LONGEST];
        let mut body = |client| take(client, &mut room, RecvFlags::DONTWAIT).to_vec();
        clients.iter().map(&mut body).collect()
    }

    /// Maps and unmaps a page for each of these clients.
    fn pair(&mut self, of: Range<u16>) {
        let maps = std::mem::take(&mut self.maps);
        let mapped = self.ask(of.clone(), &|n| maps[usize::from(n)].clone());
        self.maps = maps;
        let first = of.start;
        self.ask(of, &|n| {
            let bytes = &mapped[usize::from(n - first)];
            let MapResult { iova } = MapResult::decode(bytes).expect("an address");
            call(Operation::Unmap, &Unmap { iova, length: 4096 })
        });
    }

    /// Returns nanoseconds for each frame, with all clients at once or one at a time.
    fn run(&mut self, alone: bool) -> f64 {
        self.spent = 0.0;
        for _ in 0..PAIRS {
            if alone {
                (0..CLIENTS).for_each(|client| self.pair(client..client + 1));
            } else {
                self.pair(0..CLIENTS);
            }
        }
        self.spent / (2 * PAIRS * usize::from(CLIENTS)) as f64
    }
}

fn ours<'a>(clock: fn() -> f64) -> Lab<'a> {
    Lab::new(clock, |sockets| {
        let mut transport = start(sockets);
        Box::new(move || {
            transport.turn(None).expect("served");
        })
    })
}

/// Work for a profiler.
pub fn profile() {
    ours(|| 0.0).run(false);
}

pub fn run() {
    let mut null = Lab::new(cpu, |sockets| {
        let mut handler = Null::new(sockets);
        Box::new(move || handler.turn())
    });
    let mut ours = ours(cpu);
    for (alone, what) in [(false, "all at once"), (true, "one at a time")] {
        let (mut server, mut nothing) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let times = (ours.run(alone), null.run(alone));
            if round > 0 {
                server.push(times.0);
                nothing.push(times.1);
            }
        }
        let against = ratio(&server, &nothing);
        let time = nanos(median(&server));
        Line::note(
            9,
            format!("{CLIENTS} clients, one thread, {what}: the server's part of a call"),
            time,
        )
        .peer(format!("null handler {}", nanos(median(&nothing))), against)
        .print();
    }
}
