//! Random reads of 4 KiB and sequential reads of 128 KiB. Two controllers are measured in turn. The result is the
//! ratio of each pair, since absolute times depend on the machine and the moment. The work of the server meanwhile is
//! reported as well.

use std::time::Instant;

use nvme::{Operation, Request};

use iommu_client::Connection;

use crate::Failure;
use crate::disk::Disk;
use crate::options::Options;
use crate::transfer::{Nothing, TRANSFER, requests};

/// Random reads of one measurement. They are few, so that other load on the machine affects both of a pair.
const READS: u64 = 64;

/// Bytes of one sequential measurement.
const SEQUENTIAL: u64 = 4 << 20;

/// The measurements: name and kind of requests.
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
            // A read of a namespace with less than one place is refused.
            let places = (namespace.blocks * block / 4096).max(1);
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
            disk.run(reads, &mut Nothing)?;
            READS
        }
        Kind::Sequential => {
            let length = SEQUENTIAL.min(namespace.blocks * block);
            let reads = requests(namespace, Operation::Read, 0, length);
            disk.run(reads, &mut Nothing)?;
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

/// Work of the server for all clients so far: calls answered, changes made. `None` if this process may not read it.
fn server_work(connection: &Connection) -> Option<[u64; 2]> {
    let metrics = connection.text("metrics").ok()?;
    let value = |name: &str| {
        let find = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(find)
    };
    Some([value("calls")?, value("plans")?])
}

/// Prints the work of the server meanwhile. A transfer should cost none.
fn tell_work(connection: &Connection, name: &str, before: Option<[u64; 2]>) {
    match (before, server_work(connection)) {
        (Some([calls, plans]), Some([later_calls, later_plans])) => println!(
            "server: {name}: {} calls, {} changes",
            later_calls - calls,
            later_plans - plans
        ),
        _ => println!("server: {name}: not known"),
    }
}

/// Measures one controller.
pub(crate) fn alone(
    connection: &Connection,
    disk: &mut Disk,
    options: &Options,
) -> Result<(), Failure> {
    for (name, kind) in KINDS {
        measure(disk, kind, 0)?;
        let before = server_work(connection);
        let rates: Result<Vec<f64>, _> =
            (0..options.rounds).map(|round| measure(disk, kind, round)).collect();
        tell_work(connection, name, before);
        println!("bench: {name}: {:.0} a second", median(rates?));
    }
    Ok(())
}

/// Measures two controllers in turn. Each begins every second pair, and both read the same places.
pub(crate) fn pairs(
    connection: &Connection,
    first: &mut Disk,
    second: &mut Disk,
    options: &Options,
) -> Result<(), Failure> {
    for (name, kind) in KINDS {
        // The first measurement of each fills pools and caches.
        measure(first, kind, 0)?;
        measure(second, kind, 0)?;
        let before = server_work(connection);
        let (mut ratios, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
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
        tell_work(connection, name, before);
        ratios.sort_by(f64::total_cmp);
        let part = |numerator: usize| ratios.get(ratios.len() * numerator / 4).copied();
        let [low, middle, high] = [part(1), part(2), part(3)].map(|ratio| ratio.unwrap_or(0.0));
        let (rounds, a, b) = (options.rounds, median(a), median(b));
        println!(
            "bench: {name}: {a:.0} against {b:.0} a second, ratio {middle:.3} (median of {rounds} pairs, half of them {low:.3} to {high:.3})",
        );
        if options.json {
            println!(
                "json: {{\"what\":\"{name}\",\"first\":{a:.0},\"second\":{b:.0},\"pairs\":{rounds},\"ratio\":{middle:.4},\"quarter\":{low:.4},\"three_quarters\":{high:.4}}}"
            );
        }
    }
    Ok(())
}
