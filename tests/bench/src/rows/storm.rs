//! Row 12: the cost that a device with endless faults causes others.

use std::time::{Duration, Instant};

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::{Empty, Operation, ReplyHeader};
use iommud::addr::{Iova, PhysAddr, PhysRange};
use iommud::hw::HardwareFault;
use iommud::policy::ClientId;
use iommud::server::{Budget, Caller, Handle, Server, Startup, TableState, UnitStart};
use iommud_tests::stack::request;

use crate::machine::{Buffers, Counting, Shared, config, firmware, function, tables};
use crate::report::Line;
use crate::timing::{ROUNDS, median, nanos, ratio};

/// Attachments in each round.
const ATTACHMENTS: usize = 2_000;

/// The largest number of faults that arrive at once: an attachment is shorter than the interval between two. Faults
/// that would have arrived while this process waited for a processor are left out.
const AT_ONCE: f64 = 1.0;

/// Interval between the server's idle ticks.
const TICK: Duration = Duration::from_millis(10);

/// The faulting device, and the working one.
const ROGUE: u16 = 0x20;
const WORKER: u16 = 0x28;

struct Bench {
    server: Server<Counting, Buffers>,
    rogue: Handle,
    worker: Handle,
    shared: Shared,
    payload: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let unit = Counting::default();
        let shared = unit.shared.clone();
        let mut server = Server::start(Startup {
            config: config(),
            table: TableState::Parsed("DMAR"),
            firmware: firmware(),
            units: vec![UnitStart::Ready(unit)],
            functions: vec![function(ROGUE), function(WORKER)],
            ram: PhysRange::new(PhysAddr(0), 1 << 32).into_iter().collect(),
            own: Vec::new(),
            left: Vec::new(),
            memory: tables(2),
            buffers: Buffers::default(),
            budget: Budget::default(),
        });
        let mut claim = |number| {
            let path = format!("devices/{}", function(number).address);
            let caller = Caller { client: ClientId(u32::from(number)), uid: 0 };
            server.open(caller, None, &path, true).expect("claimed")
        };
        let (rogue, worker) = (claim(ROGUE), claim(WORKER));
        let mut bench = Self { server, rogue, worker, shared, payload: vec![0; 256] };
        bench.call(rogue, Operation::Attach);
        bench
    }

    /// Ends the storm and has the rogue's faults reported again.
    fn calm(&mut self) {
        self.shared.faults.borrow_mut().clear();
        self.call(self.rogue, Operation::Detach);
        self.call(self.rogue, Operation::Attach);
        self.server.tick();
        self.server.tick();
        self.shared.taken.set(0);
    }

    fn call(&mut self, handle: Handle, operation: Operation) {
        let bytes = request(operation, &Empty::default());
        self.payload[..bytes.len()].copy_from_slice(&bytes);
        self.server.call(handle, &mut self.payload, bytes.len()).expect("answered");
        let reply =
            <ReplyHeader as iommu_protocol::wire::Wire>::decode(&self.payload).expect("a reply");
        assert_eq!(reply.refusal, 0, "{operation:?}");
    }

    /// Returns the 99th percentile of attachments, in nanoseconds, while `rate` faults arrive each second.
    fn attachments(&mut self, rate: f64) -> f64 {
        let mut times = Vec::with_capacity(ATTACHMENTS);
        let mut last = Instant::now();
        let (mut due, mut idle) = (0.0, Instant::now());
        for _ in 0..ATTACHMENTS {
            due = f64::min(due + last.elapsed().as_secs_f64() * rate, AT_ONCE);
            last = Instant::now();
            if idle.elapsed() > TICK {
                self.server.tick();
                idle = Instant::now();
            }
            self.arrive(due as usize);
            due -= due.floor();
            let start = Instant::now();
            self.call(self.worker, Operation::Attach);
            times.push(start.elapsed().as_secs_f64() * 1e9);
            self.call(self.worker, Operation::Detach);
        }
        times.sort_by(f64::total_cmp);
        times[ATTACHMENTS * 99 / 100]
    }

    /// Puts the rogue's faults into the unit, up to its number of records. A silenced source leaves none.
    fn arrive(&mut self, count: usize) {
        if self.shared.silenced.get() {
            return;
        }
        let fault = HardwareFault {
            source: RequesterId(ROGUE),
            address: Some(Iova(0x1000)),
            access: FaultAccess::Write,
            reason: 5,
            words: "a write that was not allowed",
        };
        let mut faults = self.shared.faults.borrow_mut();
        let room = 256_usize.saturating_sub(faults.len());
        faults.extend(std::iter::repeat_n(fault, count.min(room)));
    }
}

pub fn run() {
    let (mut quiet, mut storm, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut bench = Bench::new();
    for round in 0..=ROUNDS {
        bench.calm();
        let least = bench.attachments(0.0);
        let most = bench.attachments(100_000.0);
        if round > 0 {
            quiet.push(least);
            storm.push(most);
            after.push(bench.shared.silenced.get().then(|| bench.shared.silenced_after.get()));
        }
    }
    let against = ratio(&storm, &quiet);
    Line::note(12, "attach of another device, p99, 100,000 faults a second", nanos(median(&storm)))
        .peer(format!("quiet {}", nanos(median(&quiet))), against)
        .target("<= 2x quiet", against <= 2.0)
        .print();
    let all: Option<Vec<u64>> = after.iter().copied().collect();
    let most = all.and_then(|all| all.into_iter().max());
    let silent = after.iter().flatten().count();
    let measured = match most {
        Some(most) => format!("silenced after {most} faults, at most"),
        None => format!("silenced in {silent} of {ROUNDS} storms"),
    };
    Line::note(12, format!("the source of {ROUNDS} storms"), measured)
        .target("silenced after <= 16 faults", most.is_some_and(|most| most <= 16))
        .print();
}
