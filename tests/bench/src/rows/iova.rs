//! Row 4: I/O virtual addresses are freed and allocated while many are in use.

use std::cell::RefCell;
use std::time::Instant;

use buddy_system_allocator::FrameAllocator;
use iommud::addr::{Iova, IovaRange};
use iommud::policy::iova::{Space, Wanted};
use offset_allocator::{Allocation, Allocator};

use crate::report::Line;
use crate::timing::{Random, median, nanos, ratio, rounds};

/// Pages of a range. Most have one page, like most transfers.
const SIZES: [u32; 8] = [1, 1, 1, 2, 1, 4, 8, 3];

/// Pairs in each round.
const PAIRS: usize = 100_000;

/// Ranges freed before the same number is allocated.
const BURST: usize = 1024;

/// Pages that contain all ranges.
const PAGES: u32 = 1 << 27;

trait Addresses {
    type Range: Copy;
    fn take(&mut self, pages: u32) -> Self::Range;
    fn give(&mut self, range: Self::Range, pages: u32);
}

impl Addresses for Space {
    type Range = u64;
    fn take(&mut self, pages: u32) -> u64 {
        let length = u64::from(pages) * 4096;
        let wanted = Wanted { length, alignment: 0, boundary: 0, above_4g: true };
        self.allocate(wanted).expect("addresses").first().0
    }
    fn give(&mut self, first: u64, pages: u32) {
        self.free(IovaRange::new(Iova(first), u64::from(pages) * 4096).expect("a range"));
    }
}

impl Addresses for Allocator<u32> {
    type Range = Allocation<u32>;
    fn take(&mut self, pages: u32) -> Allocation<u32> {
        self.allocate(pages).expect("addresses")
    }
    fn give(&mut self, range: Allocation<u32>, _: u32) {
        self.free(range);
    }
}

impl Addresses for FrameAllocator<33> {
    type Range = usize;
    fn take(&mut self, pages: u32) -> usize {
        self.alloc(pages as usize).expect("addresses")
    }
    fn give(&mut self, first: usize, pages: u32) {
        self.dealloc(first, pages as usize);
    }
}

/// No allocator: measures the cost of the loop itself.
struct Harness(u64);

impl Addresses for Harness {
    type Range = u64;
    fn take(&mut self, pages: u32) -> u64 {
        self.0 = self.0.wrapping_add(u64::from(pages));
        self.0
    }
    fn give(&mut self, first: u64, _: u32) {
        self.0 ^= first;
    }
}

/// An allocator with ranges in use. Their list is shuffled and processed in order. Choosing ranges at random would
/// add cache misses of the list, not of the allocator.
struct Loaded<A: Addresses> {
    addresses: A,
    live: Vec<(A::Range, u32)>,
    next: usize,
    random: Random,
}

impl<A: Addresses> Loaded<A> {
    /// Allocates twice `count` ranges, then frees every second one.
    fn new(mut addresses: A, count: usize) -> Self {
        let mut random = Random(count as u64);
        let mut taken: Vec<_> = (0..2 * count)
            .map(|_| {
                let pages = SIZES[random.below(SIZES.len())];
                (addresses.take(pages), pages)
            })
            .collect();
        for at in (1..taken.len()).rev() {
            taken.swap(at, random.below(at + 1));
        }
        for (range, pages) in taken.drain(count..) {
            addresses.give(range, pages);
        }
        Self { addresses, live: taken, next: 0, random }
    }

    /// Frees one range and allocates another, of any size.
    fn pair(&mut self) {
        let at = self.next;
        self.next = if at + 1 < self.live.len() { at + 1 } else { 0 };
        let (range, pages) = self.live[at];
        self.addresses.give(range, pages);
        let pages = SIZES[self.random.below(SIZES.len())];
        self.live[at] = (self.addresses.take(pages), pages);
    }

    /// Frees many ranges, then allocates the same number: more than the allocator keeps for the next request.
    fn bursts(&mut self) -> u64 {
        let count = self.live.len().min(BURST);
        for _ in 0..PAIRS / count {
            let start = if self.next + count <= self.live.len() { self.next } else { 0 };
            for (range, pages) in &self.live[start..start + count] {
                self.addresses.give(*range, *pages);
            }
            for place in &mut self.live[start..start + count] {
                let pages = SIZES[self.random.below(SIZES.len())];
                *place = (self.addresses.take(pages), pages);
            }
            self.next = start + count;
        }
        (PAIRS / count * count) as u64
    }

    fn pairs(&mut self) -> u64 {
        for _ in 0..PAIRS {
            self.pair();
        }
        PAIRS as u64
    }
}

/// Lets the process own used memory, like a server that has run for a while. Otherwise a pair that needs memory waits
/// for the kernel to provide it. The memory stays as long as the returned piece, which is the last in the heap.
fn used_memory() -> Vec<u8> {
    let mut pieces: Vec<_> = (0..16_384).map(|_| vec![1_u8; 4096]).collect();
    pieces.pop().unwrap_or_default()
}

/// Returns the slowest pair and the 99.9th percentile. The same pairs run several times, and each counts with its
/// fastest time, so that disturbances of the machine do not count.
fn worst(count: usize) -> (f64, f64) {
    const TIMES: usize = 5;
    const OBSERVED: usize = 200_000;
    let mut least = vec![f64::MAX; OBSERVED];
    let _last = used_memory();
    for _ in 0..TIMES {
        let mut loaded = Loaded::new(Space::new(), count);
        // The first pairs only fill the processor's caches.
        (0..1000).for_each(|_| loaded.pair());
        for least in &mut least {
            let start = Instant::now();
            loaded.pair();
            *least = least.min(start.elapsed().as_secs_f64() * 1e9);
        }
    }
    least.sort_by(f64::total_cmp);
    (least[OBSERVED - 1], least[OBSERVED - 1 - OBSERVED / 1000])
}

pub fn run() {
    let mut net = Vec::new();
    for count in [10, 1_000, 100_000, 1_000_000] {
        let space = &RefCell::new(Loaded::new(Space::new(), count));
        let offset = Allocator::with_max_allocs(PAGES, 4 * 1_000_000);
        let offset = &RefCell::new(Loaded::new(offset, count));
        let mut frames = FrameAllocator::<33>::new();
        frames.add_frame(0, PAGES as usize);
        let buddy = &RefCell::new(Loaded::new(frames, count));
        let harness = &RefCell::new(Loaded::new(Harness(0), count));
        let [ours, offset, buddy, harness] = rounds([
            &mut || space.borrow_mut().pairs(),
            &mut || offset.borrow_mut().pairs(),
            &mut || buddy.borrow_mut().pairs(),
            &mut || harness.borrow_mut().pairs(),
        ]);
        let (value, least) = (median(&ours), median(&harness));
        net.push(value - least);
        let line =
            Line::note(4, format!("IOVA free + allocate, {count} live, fragmented"), nanos(value))
                .peer(
                    format!("offset-allocator {}", nanos(median(&offset))),
                    ratio(&ours, &offset),
                );
        if count == 1_000_000 { line.target("<= 150 ns", value <= 150.0) } else { line }.print();
        let [bursts] = rounds([&mut || space.borrow_mut().bursts()]);
        Line::note(
            4,
            format!("the same, {count} live, {BURST} given back, then taken"),
            nanos(median(&bursts)),
        )
        .print();
        Line::note(4, format!("the same, {count} live, another peer"), nanos(value))
            .peer(format!("buddy_system_allocator {}", nanos(median(&buddy))), ratio(&ours, &buddy))
            .print();
    }
    let growth = net[3] / net[0];
    Line::note(
        4,
        "growth from 10 to 1,000,000 live, net of the loop around",
        format!("{growth:.1}x"),
    )
    .target("<= 4x", growth <= 4.0)
    .print();
    let (slowest, thousandth) = worst(1_000_000);
    let measured = format!("{} (one in 1000: {})", nanos(slowest), nanos(thousandth));
    Line::note(4, "slowest of 200,000 pairs at 1,000,000 live", measured)
        .target("<= 1 us", slowest <= 1000.0)
        .print();
}
