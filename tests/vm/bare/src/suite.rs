//! The checks.

use alloc::format;
use alloc::string::String;

use crate::checks::CHECKS;
use crate::edu::{Edu, MAX_COUNT};
use crate::firmware::StartInfo;
use crate::{cpu, pci, phys, println};

/// What a check found: a detail, or what is wrong.
type Outcome = Result<String, String>;

/// Fails the check with a formatted reason unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition {
            return Err(format!($($argument)*));
        }
    };
}

struct Tally {
    number: usize,
    passed: usize,
}

impl Tally {
    fn check(&mut self, body: impl FnOnce() -> Outcome) {
        self.number += 1;
        let start = cpu::instructions();
        let outcome = body();
        let spent = cpu::instructions() - start;
        match outcome {
            Ok(detail) => {
                self.passed += 1;
                println!("@@ok {} | {detail} [{spent} instructions]", self.number);
            }
            Err(reason) => println!("@@fail {} | {reason}", self.number),
        }
    }
}

/// Runs every check; returns how many failed.
pub fn run(info: &StartInfo) -> usize {
    println!("@@log command line: {}", info.command_line);
    let mut tally = Tally { number: 0, passed: 0 };
    tally.check(processor);
    tally.check(copy);
    tally.check(interrupt);
    CHECKS.len() - tally.passed
}

fn processor() -> Outcome {
    let (a, b) = (cpu::instructions(), cpu::instructions());
    ensure!(
        b > a && b - a < 20,
        "the counter went from {a} to {b}: start QEMU with -icount shift=10"
    );
    Ok(format!("{} instructions between two looks at the counter", b - a))
}

const ARENA: u64 = 64 << 20;

fn copy() -> Outcome {
    let mut count = 0;
    for edu in Edu::all() {
        ensure!(edu.identification() & 0xffff == 0xed, "{:?}: {:#x}", edu.id, edu.identification());
        phys::fill(ARENA + 4096, 4096, 0);
        edu.load(ARENA, 0x0123_4567_89ab_cdef);
        edu.write_memory(ARENA + 4096, MAX_COUNT);
        ensure!(phys::is_filled(ARENA + 4096, MAX_COUNT, 0x0123_4567_89ab_cdef), "{:?}", edu.id);
        ensure!(phys::read64(ARENA + 4096 + MAX_COUNT) == 0, "{:?} wrote too far", edu.id);
        count += 1;
    }
    ensure!(count >= 2, "{count} edu devices");
    Ok(format!("{count} devices"))
}

fn interrupt() -> Outcome {
    let edu = Edu::all().next().ok_or("no edu device")?;
    let vector = cpu::FIRST_VECTOR + 1;
    pci::enable_msi(edu.id, cpu::MSI_ADDRESS, cpu::msi_data(vector));
    edu.raise_interrupt();
    let count = cpu::interrupts(vector);
    ensure!(count == 1, "{count} interrupts");
    Ok(format!("vector {vector:#x}"))
}
