//! Reads, timed. Two controllers are measured in turn. The result is the ratio of each pair, since absolute times depend
//! on the machine and the moment. The work of the server meanwhile is reported as well.

use std::time::Instant;

use iommu_client::Connection;
use nvme::{Confine, Data, Operation, Request, Trouble, Work};

use crate::Failure;
use crate::disk::Disk;
use crate::options::{Options, Table};
use crate::transfer::{Nothing, requests};

/// Random reads of one measurement. They are few, so that other load on the machine affects both of a pair.
const READS: u32 = 64;

/// Bytes of one sequential measurement.
const SEQUENTIAL: u64 = 4 << 20;

/// Bytes of a page, by which a unit confines.
const PAGE: u64 = 4096;

/// What is measured.
struct Kind {
    name: String,
    /// Bytes of one read.
    size: u64,
    random: bool,
    /// A read that does not fill its pages is copied out, so that what the controller wrote behind it is dropped.
    copied: bool,
}

impl Kind {
    fn new(name: impl Into<String>, size: u64, random: bool) -> Self {
        Self { name: name.into(), size, random, copied: false }
    }

    /// The measurements that the options ask for.
    fn all(options: &Options) -> Vec<Self> {
        match options.size {
            None => vec![
                Self::new("4 KiB random reads", 4096, true),
                Self::new("128 KiB sequential reads", 128 << 10, false),
            ],
            Some(size) => vec![Self::new(format!("random reads of {size} bytes"), size, true)],
        }
    }
}

/// The program's copy of what was read.
struct Copied(Vec<u8>);

impl Work for Copied {
    type Error = Failure;

    fn prepare(&mut self, _: &Request, _: &mut Data) -> Result<(), Failure> {
        Ok(())
    }

    fn finish(&mut self, _: &Request, data: &Data) -> Result<(), Failure> {
        self.0.resize(usize::try_from(data.length()).unwrap_or(0), 0);
        Ok(data.read(0, &mut self.0)?)
    }

    fn trouble(&mut self, trouble: &Trouble) {
        Nothing.trouble(trouble);
    }
}

/// The reads of one measurement, each with its length.
fn reads(disk: &Disk, kind: &Kind, round: usize) -> Result<Vec<(Request, u64)>, Failure> {
    let namespace = disk.namespace(None)?;
    let (block, size) = (namespace.block_size, kind.size.max(namespace.block_size));
    let blocks = size / block;
    if !kind.random {
        let length = SEQUENTIAL.min(namespace.blocks * block);
        return Ok(requests(namespace, Operation::Read, 0, length, size).collect());
    }
    // A read of a namespace with less than one place is refused.
    let places = (namespace.blocks / blocks).max(1);
    let mut seed = 0x1234_5678_9abc_def1 ^ round as u64;
    let read = |_| {
        // xorshift64 (Marsaglia 2003).
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let (namespace, first) = (namespace.id, seed % places * blocks);
        (Request { namespace, operation: Operation::Read, first, blocks }, blocks * block)
    };
    Ok((0..READS).map(read).collect())
}

/// Requests a second.
fn measure(disk: &mut Disk, kind: &Kind, round: usize) -> Result<f64, Failure> {
    let reads = reads(disk, kind, round)?;
    let count = u32::try_from(reads.len()).unwrap_or(u32::MAX);
    let started = Instant::now();
    if kind.copied {
        disk.run(reads, &mut Copied(Vec::new()))?;
    } else {
        disk.run(reads, &mut Nothing)?;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
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

/// Prints the work of the server meanwhile. A transfer with memory of a pool should cost none. Returns the calls.
fn tell_work(connection: &Connection, name: &str, before: Option<[u64; 2]>) -> Option<u64> {
    if let (Some([calls, plans]), Some([later_calls, later_plans])) =
        (before, server_work(connection))
    {
        let (calls, plans) = (later_calls - calls, later_plans - plans);
        println!("server: {name}: {calls} calls, {plans} changes");
        Some(calls)
    } else {
        println!("server: {name}: not known");
        None
    }
}

/// Measures one controller.
pub(crate) fn alone(
    connection: &Connection,
    disk: &mut Disk,
    options: &Options,
) -> Result<(), Failure> {
    for kind in &mut Kind::all(options) {
        kind.copied = is_copied(options.confine, kind.size);
        measure(disk, kind, 0)?;
        let before = server_work(connection);
        let rates: Result<Vec<f64>, _> =
            (0..options.rounds).map(|round| measure(disk, kind, round)).collect();
        tell_work(connection, &kind.name, before);
        println!("bench: {}: {:.0} a second", kind.name, median(rates?));
    }
    Ok(())
}

/// Whether the program copies what it has read, since more than that may have been written.
const fn is_copied(confine: Confine, size: u64) -> bool {
    matches!(confine, Confine::PageExact) && !size.is_multiple_of(PAGE)
}

/// Measures two controllers in turn.
pub(crate) fn pairs(
    connection: &Connection,
    first: &mut Disk,
    second: &mut Disk,
    options: &Options,
) -> Result<(), Failure> {
    for kind in &mut Kind::all(options) {
        kind.copied = is_copied(options.confine, kind.size);
        pair(connection, first, second, options, kind)?;
    }
    Ok(())
}

/// Measures the first controller in every mode, in turn with the second, whose memory is of a pool.
pub(crate) fn table(
    connection: &Connection,
    first: &mut Disk,
    second: &mut Disk,
    options: &Options,
    table: Table,
) -> Result<(), Failure> {
    let (sizes, depths): (&[u64], &[usize]) = match table {
        Table::Short => (&[512, 4096, 128 << 10], &[1, 32]),
        Table::Whole => (&[512, 4096, 16 << 10, 128 << 10], &[1, 8, 32]),
    };
    let most = first.nvme.depth().min(second.nvme.depth());
    let cells =
        sizes.iter().flat_map(|size| depths.iter().map(|depth| (*size, (*depth).min(most))));
    for (size, depth) in cells {
        second.confine(Confine::Pool, depth, size)?;
        for confine in Confine::ALL {
            first.confine(confine, depth, size)?;
            let name = format!("confine {confine}, {size} bytes, depth {depth}");
            let mut kind = Kind::new(name, size, true);
            kind.copied = is_copied(confine, size);
            pair(connection, first, second, options, &kind)?;
        }
    }
    Ok(())
}

/// Measures pairs. Each controller begins every second one, and both read the same places.
fn pair(
    connection: &Connection,
    first: &mut Disk,
    second: &mut Disk,
    options: &Options,
    kind: &Kind,
) -> Result<(), Failure> {
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
    let calls = tell_work(connection, &kind.name, before);
    ratios.sort_by(f64::total_cmp);
    let part = |numerator: usize| ratios.get(ratios.len() * numerator / 4).copied();
    let [low, middle, high] = [part(1), part(2), part(3)].map(|ratio| ratio.unwrap_or(0.0));
    let (name, rounds, a, b) = (&kind.name, options.rounds, median(a), median(b));
    // Only the first controller's requests make calls. Exact up to 2^53.
    let each = calls.map(|calls| calls as f64 / (rounds as f64 * f64::from(READS)));
    let each = each.filter(|_| options.table.is_some());
    let suffix = each.map_or(String::new(), |each| format!("; {each:.3} calls a transfer"));
    println!(
        "bench: {name}: {a:.0} against {b:.0} a second, ratio {middle:.3} (median of {rounds} pairs, half of them {low:.3} to {high:.3}){suffix}",
    );
    if options.json {
        let calls = each.map_or(String::new(), |each| format!(",\"calls\":{each:.4}"));
        println!(
            "json: {{\"what\":\"{name}\",\"first\":{a:.0},\"second\":{b:.0},\"pairs\":{rounds},\"ratio\":{middle:.4},\"quarter\":{low:.4},\"three_quarters\":{high:.4}{calls}}}"
        );
    }
    Ok(())
}
