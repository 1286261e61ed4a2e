//! I/O virtual addresses: the largest cost of a pair in instructions, and the return of all memory.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iommud::addr::IovaRange;
use iommud::policy::iova::{Space, Wanted};

use super::{Outcome, ensure};
use crate::{cpu, heap, println};

/// Ranges alive at the same time, and pairs counted.
const LIVE: usize = 20_000;
const PAIRS: usize = 20_000;

/// Most instructions to free one range and allocate another.
const WORST: u64 = 1500;

/// Pages of a range. Most have one page, like most transfers.
const SIZES: [u64; 8] = [1, 1, 1, 2, 1, 4, 8, 3];

/// Pseudorandom numbers, the same in every run (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % end
    }

    fn take(&mut self, space: &mut Space) -> Result<IovaRange, String> {
        let length = SIZES[self.below(SIZES.len())] * 4096;
        let wanted = Wanted { length, alignment: 0, boundary: 0, above_4g: true };
        space.allocate(wanted).ok_or_else(|| "no addresses".into())
    }
}

pub fn worst() -> Outcome {
    let before = heap::in_use();
    let (mut space, mut random) = (Space::new(), Random(0x1234_5678_9abc_def1));
    let fresh = heap::in_use();
    let mut live = Vec::with_capacity(2 * LIVE);
    for _ in 0..2 * LIVE {
        live.push(random.take(&mut space)?);
    }
    // Frees every second one, so that the free space is fragmented.
    for at in (1..live.len()).rev() {
        live.swap(at, random.below(at + 1));
    }
    live.drain(LIVE..).for_each(|range| space.free(range));
    let (mut sum, mut worst) = (0, 0);
    for _ in 0..PAIRS {
        let at = random.below(LIVE);
        let start = cpu::instructions();
        space.free(live[at]);
        live[at] = random.take(&mut space)?;
        let spent = cpu::instructions() - start;
        sum += spent;
        worst = worst.max(spent);
    }
    let mean = sum / PAIRS as u64;
    println!(
        "@@count {mean} instructions to give addresses back and take others, of {LIVE} ranges"
    );
    println!("@@count {worst} instructions of the slowest of {PAIRS} such pairs");
    ensure!(worst <= WORST, "{worst} instructions for a pair, more than {WORST}");
    live.drain(..).for_each(|range| space.free(range));
    drop(live);
    space.shrink();
    let left = heap::in_use() - before;
    ensure!(left <= fresh - before, "{left} bytes of heap left, {} of a new space", fresh - before);
    Ok(format!("{mean}, at worst {worst} instructions a pair; {left} bytes of heap left"))
}
