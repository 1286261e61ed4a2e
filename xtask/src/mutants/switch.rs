//! Switches the mutants of this crate. Stands in the copy that `cargo xtask mutants` compiles, and nowhere else.

extern crate std;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

/// The environment is not read yet.
const UNKNOWN: u32 = u32::MAX;
/// No mutant is active, and the places that are reached are written down.
const RECORDING: u32 = u32::MAX - 1;

static ACTIVE: AtomicU32 = AtomicU32::new(UNKNOWN);

/// A bit for each mutant whose place was reached.
static SEEN: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

static RECORD: OnceLock<Option<File>> = OnceLock::new();

/// Returns whether this mutant is active. None is, in what the compiler computes.
#[inline]
pub const fn on(number: u32) -> bool {
    core::intrinsics::const_eval_select((number,), never, asked)
}

const fn never(_: u32) -> bool {
    false
}

#[inline]
fn asked(number: u32) -> bool {
    let active = ACTIVE.load(Ordering::Relaxed);
    if active < RECORDING { active == number } else { first_or_recorded(number) }
}

#[cold]
fn first_or_recorded(number: u32) -> bool {
    if ACTIVE.load(Ordering::Relaxed) == UNKNOWN {
        ACTIVE.store(begin(), Ordering::Relaxed);
        return asked(number);
    }
    record(number);
    false
}

/// Reads the environment.
fn begin() -> u32 {
    if let Some(path) = std::env::var_os("MUTANT_RECORD") {
        RECORD.get_or_init(|| File::options().append(true).create(true).open(path).ok());
        return RECORDING;
    }
    std::env::var("MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn record(number: u32) {
    let bit = 1 << (number % 64);
    let Some(word) = SEEN.get((number / 64) as usize) else { return };
    if word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    if let Some(Some(file)) = RECORD.get() {
        let mut file: &File = file;
        let _ = file.write_all(&number.to_le_bytes());
    }
}

/// One of two iterators.
#[derive(Clone)]
pub enum Either<L, R> {
    Left(L),
    Right(R),
}

impl<L: Iterator, R: Iterator<Item = L::Item>> Iterator for Either<L, R> {
    type Item = L::Item;

    fn next(&mut self) -> Option<L::Item> {
        match self {
            Self::Left(left) => left.next(),
            Self::Right(right) => right.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Left(left) => left.size_hint(),
            Self::Right(right) => right.size_hint(),
        }
    }
}

impl<L, R> DoubleEndedIterator for Either<L, R>
where
    L: DoubleEndedIterator,
    R: DoubleEndedIterator<Item = L::Item>,
{
    fn next_back(&mut self) -> Option<L::Item> {
        match self {
            Self::Left(left) => left.next_back(),
            Self::Right(right) => right.next_back(),
        }
    }
}

impl<L: ExactSizeIterator, R: ExactSizeIterator<Item = L::Item>> ExactSizeIterator
    for Either<L, R>
{
}
