//! Memory that is kept for a unit which is not up yet.

use alloc::vec::Vec;

use super::hal::TableMemory;
use crate::addr::{PAGE_SIZE, PhysAddr};

/// Runs of frames that nobody uses. Given back, they have room for the runs that a unit takes.
#[derive(Clone, Debug)]
pub struct SetAside {
    /// First frame, and number of frames.
    runs: Vec<(PhysAddr, usize)>,
}

impl SetAside {
    /// Takes what a unit needs that allocates `runs`, in frames, the longest one first. `None`, and nothing is taken,
    /// when there is not enough.
    pub fn take<M: TableMemory>(memory: &mut M, runs: &[usize]) -> Option<Self> {
        let mut taken = Self { runs: Vec::new() };
        for count in kept(runs) {
            match memory.allocate_run(count) {
                Ok(first) => taken.runs.push((first, count)),
                Err(_) => {
                    taken.give_back(memory);
                    return None;
                }
            }
        }
        Some(taken)
    }

    /// Gives all of it back, for whoever allocates next.
    pub fn give_back<M: TableMemory>(self, memory: &mut M) {
        for (first, count) in self.runs {
            // Nobody wrote to them.
            frames(first, count).for_each(|frame| memory.free(frame, true));
        }
    }

    /// How many frames it is.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.runs.iter().map(|(_, count)| count).sum()
    }
}

fn frames(first: PhysAddr, count: usize) -> impl Iterator<Item = PhysAddr> {
    (0..count).scan(first, |next, _| {
        let frame = *next;
        *next = PhysAddr(frame.0.saturating_add(PAGE_SIZE));
        Some(frame)
    })
}

/// The runs to keep: the longest one, and for all others together as many of the second length as hold them. A short run
/// that is allocated before a longer one takes the lowest frames that are free, and so breaks up one of them at most.
fn kept(runs: &[usize]) -> impl Iterator<Item = usize> + use<> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable();
    let longest = sorted.pop();
    let second = sorted.last().copied().unwrap_or(1);
    let others = sorted.iter().sum::<usize>().div_ceil(second.max(1));
    longest.into_iter().chain(core::iter::repeat_n(second, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_share_one_of_the_second_length() {
        let kept = |runs: &[usize]| kept(runs).collect::<Vec<_>>();
        assert_eq!(kept(&[512, 1, 1, 1, 16, 16]), [512, 16, 16, 16]);
        assert_eq!(kept(&[1, 1, 1]), [1, 1, 1]);
        assert!(kept(&[]).is_empty());
    }
}
