//! Random reads of 4 KiB and sequential ones of 128 KiB. Two controllers are measured in turn; what counts is
//! the ratio of each pair, since absolute times are those of the machine and the moment.

use std::time::Instant;

use nvme::{Operation, Request};

use crate::disk::Disk;
use crate::{Failure, TRANSFER, requests};

/// Requests under way at once.
pub(crate) const DEPTH: u16 = 32;

/// Random reads of one measurement. Short ones, so that what else the machine does meets both of a pair.
const READS: u64 = 400;

/// Bytes of one sequential measurement.
const SEQUENTIAL: u64 = 8 << 20;

/// What is measured: its name, and requests of one measurement.
const KINDS: [(&str, Kind); 2] =
    [("4 KiB random reads", Kind::Random), ("128 KiB sequential reads", Kind::Sequential)];

#[derive(Clone, Copy)]
enum Kind {
    Random,
    Sequential,
}

/// Requests a second.
fn measure(disk: &mut Disk, kind: Kind, round: usize) -> Result<f64, Failure> {
    let namespace = disk.namespace(None)?;
    let block = namespace.block_size;
    let started = Instant::now();
    let count = match kind {
        Kind::Random => {
            let places = namespace.blocks * block / 4096;
            let mut seed = 0x1234_5678_9abc_def1 ^ round as u64;
            let reads = (0..READS).map(|_| {
                // xorshift64 (Marsaglia 2003).
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let first = seed % places * 4096 / block;
                let (namespace, blocks) = (namespace.id, 4096 / block);
                (Request { namespace, operation: Operation::Read, first, blocks }, 4096)
            });
            disk.run(reads, |_, _| Ok(()), |_, _| Ok(()))?;
            READS
        }
        Kind::Sequential => {
            let length = SEQUENTIAL.min(namespace.blocks * block);
            let reads = requests(namespace, Operation::Read, 0, length);
            disk.run(reads, |_, _| Ok(()), |_, _| Ok(()))?;
            length / TRANSFER
        }
    };
    // Exact up to 2^53.
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// One controller.
pub(crate) fn alone(disk: &mut Disk, rounds: usize) -> Result<(), Failure> {
    for (name, kind) in KINDS {
        measure(disk, kind, 0)?;
        let rates: Result<Vec<f64>, _> =
            (0..rounds).map(|round| measure(disk, kind, round)).collect();
        println!("bench: {name}: {:.0} a second", median(rates?));
    }
    Ok(())
}

/// Two in turn; each begins every second pair.
pub(crate) fn pairs(first: &mut Disk, second: &mut Disk, rounds: usize) -> Result<(), Failure> {
    for (name, kind) in KINDS {
        // The first of each fills pools and caches.
        measure(first, kind, 0)?;
        measure(second, kind, 0)?;
        let (mut ratios, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let (one, other) = if round % 2 == 0 {
                let one = measure(first, kind, round)?;
                (one, measure(second, kind, round)?)
            } else {
                let other = measure(second, kind, round)?;
                (measure(first, kind, round)?, other)
            };
            a.push(one);
            b.push(other);
            ratios.push(one / other);
        }
        let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "bench: {name}: {:.0} against {:.0} a second, ratio {:.3} (median of {rounds} pairs, {lowest:.3} to {highest:.3})",
            median(a),
            median(b),
            median(ratios),
        );
    }
    Ok(())
}
