//! Row 12: the cost that a device with endless faults causes others.

use std::time::{Duration, Instant};

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::{Empty, Operation, ReplyHeader};
use iommuctl::output::Look;
use iommuctl::server::activity::Activity;
use iommuctl::top::{self, Interval};
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

/// Attachments in each round with `iommuctl top`: for longer than [`READ`].
const WATCHED: usize = 400_000;

/// Interval between two readings of `iommuctl top`: a tenth of what it takes by default.
const READ: Duration = Duration::from_millis(100);

/// Other devices in the text, each with a driver.
const OTHERS: u16 = 198;

/// The largest number of faults that arrive at once: an attachment is shorter than the interval between two. Faults
/// that would have arrived while this process waited for a processor are left out.
const AT_ONCE: f64 = 1.0;

/// Faults a second.
const STORM: f64 = 100_000.0;

/// Interval between the server's idle ticks.
const TICK: Duration = Duration::from_millis(10);

/// The faulting device, and the working one.
const ROGUE: u16 = 0x20;
const WORKER: u16 = 0x28;

/// The first of the others.
const FIRST: u16 = 0x30;

struct Bench {
    server: Server<Counting, Buffers>,
    rogue: Handle,
    worker: Handle,
    shared: Shared,
    payload: Vec<u8>,
}

/// The others, each in a slot of its own.
fn others() -> impl Iterator<Item = u16> {
    (0..OTHERS).map(|number| FIRST + 8 * number)
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
            functions: [ROGUE, WORKER].into_iter().chain(others()).map(function).collect(),
            ram: PhysRange::new(PhysAddr(0), 1 << 32).into_iter().collect(),
            own: Vec::new(),
            left: Vec::new(),
            memory: tables(8),
            buffers: Buffers::default(),
            budget: Budget::default(),
        });
        let mut claim = |number| {
            let path = format!("devices/{}", function(number).address);
            let caller = Caller { client: ClientId(u32::from(number)), uid: 0 };
            server.open(caller, None, &path, true).expect("claimed")
        };
        let (rogue, worker) = (claim(ROGUE), claim(WORKER));
        for number in others() {
            claim(number);
        }
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

    /// Returns the 99th percentile of `count` attachments, in nanoseconds, while `rate` faults arrive each second. An
    /// attachment that is due while `top` reads waits for it.
    fn attachments(&mut self, count: usize, rate: f64, mut top: Option<&mut Top>) -> f64 {
        let mut times = Vec::with_capacity(count);
        let mut last = Instant::now();
        let (mut due, mut idle) = (0.0, Instant::now());
        for _ in 0..count {
            due = f64::min(due + last.elapsed().as_secs_f64() * rate, AT_ONCE);
            last = Instant::now();
            if idle.elapsed() > TICK {
                self.server.tick();
                idle = Instant::now();
            }
            self.arrive(due as usize);
            due -= due.floor();
            let start = Instant::now();
            if let Some(top) = &mut top {
                top.read_when_due(&mut self.server);
            }
            self.call(self.worker, Operation::Attach);
            times.push(start.elapsed().as_secs_f64() * 1e9);
            self.call(self.worker, Operation::Detach);
        }
        times.sort_by(f64::total_cmp);
        times[count * 99 / 100]
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

/// `iommuctl top`, without its terminal.
struct Top {
    last: Instant,
    before: Activity,
    /// Time that server and reader spent.
    spent: Duration,
}

impl Top {
    fn new() -> Self {
        Self { last: Instant::now(), before: Activity::default(), spent: Duration::ZERO }
    }

    fn read_when_due(&mut self, server: &mut Server<Counting, Buffers>) {
        let elapsed = self.last.elapsed();
        if elapsed < READ {
            return;
        }
        self.last = Instant::now();
        let caller = Caller { client: ClientId(0), uid: 0 };
        let handle = server.open(caller, None, "activity", false).expect("opened");
        let mut bytes = vec![0; 1 << 16];
        let length = server.read(handle, 0, &mut bytes).expect("read");
        server.close(handle);
        let now = Activity::parse(std::str::from_utf8(&bytes[..length]).expect("text"));
        let listed = u64::try_from(now.devices.len()).expect("a count");
        assert_eq!(listed + now.not_listed, u64::from(OTHERS) + 2);
        let interval = Interval::between(&self.before, &now, elapsed);
        let look = Look { colour: true, width: Some(120) };
        std::hint::black_box(top::text(&interval, look, &|_| None));
        self.before = now;
        self.spent += self.last.elapsed();
    }
}

/// What `iommuctl top` costs while a device storms.
fn watched(bench: &mut Bench) {
    let (mut quiet, mut storm, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bench.calm();
        quiet.push(bench.attachments(WATCHED, 0.0, None));
        let (mut top, start) = (Top::new(), Instant::now());
        storm.push(bench.attachments(WATCHED, STORM, Some(&mut top)));
        shares.push(100.0 * top.spent.as_secs_f64() / start.elapsed().as_secs_f64());
    }
    let share = median(&shares);
    let what = "the same storm, 200 devices, `iommuctl top` reads ten times a second: its share";
    Line::note(12, what, format!("{share:.2} % of a processor"))
        .target("<= 5 %", share <= 5.0)
        .print();
    let against = ratio(&storm, &quiet);
    Line::note(12, "attach of another device, p99, meanwhile", nanos(median(&storm)))
        .peer(format!("quiet {}", nanos(median(&quiet))), against)
        .target("<= 2x quiet", against <= 2.0)
        .print();
}

pub fn run() {
    let (mut quiet, mut storm, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut bench = Bench::new();
    for round in 0..=ROUNDS {
        bench.calm();
        let least = bench.attachments(ATTACHMENTS, 0.0, None);
        let most = bench.attachments(ATTACHMENTS, STORM, None);
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
    watched(&mut bench);
}
