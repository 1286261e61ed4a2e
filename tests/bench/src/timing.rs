//! Rounds in which contestants take turns, so that a disturbance of the machine affects all of them. Processor time
//! of this thread is counted: on a busy machine long rounds are interrupted, short ones are not.

use rustix::time::{ClockId, clock_gettime};

/// Rounds of every measurement.
pub const ROUNDS: usize = 9;

/// Processor time of this thread so far, in nanoseconds.
pub fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// A contestant: does its work once and returns the number of units of work.
pub type Work<'a> = &'a mut dyn FnMut() -> u64;

/// Returns nanoseconds for each unit of work, by contestant, then by round. One round before them is not counted.
pub fn rounds<const N: usize>(mut work: [Work<'_>; N]) -> [Vec<f64>; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=ROUNDS {
        for (work, times) in work.iter_mut().zip(&mut times) {
            let start = cpu();
            let units = work();
            let nanos = cpu() - start;
            if round > 0 {
                times.push(nanos / units as f64);
            }
        }
    }
    times
}

/// Returns the median.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the median of the rounds' ratios.
pub fn ratio(ours: &[f64], peer: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| ours / peer).collect();
    median(&ratios)
}

/// Formats a time.
pub fn nanos(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2} ns"),
        value if value < 10_000.0 => format!("{value:.0} ns"),
        value if value < 1e7 => format!("{:.1} us", value / 1e3),
        value => format!("{:.1} ms", value / 1e6),
    }
}

/// Pseudorandom numbers, the same in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}
