//! Row 10: finding and grouping 65,536 functions.

use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{Event, Registry};
use iommud::topology::pci::ConfigSpace;
use iommud::topology::walk::{Roots, walk};

use crate::machine::{config, firmware};
use crate::report::Line;
use crate::timing::{ROUNDS, cpu, median, nanos};

/// Buses full of multi-function PCI Express endpoints with ACS, the most expensive to examine. ACS is the third
/// capability of its list.
struct Full {
    reads: u64,
}

impl ConfigSpace for Full {
    fn read(&mut self, _: PciAddress, offset: u16) -> u32 {
        self.reads += 1;
        match offset {
            0x00 => 0x11e8_1234,
            0x04 => 0x0010_0000,
            0x08 => 0x00ff_0000,
            0x0c => 0x0080_0000,
            0x34 => 0x40,
            0x40 => 0x5001,
            0x50 => 0x6005,
            0x60 => 0x0002_0010,
            0x100 => 0x1481_0001,
            0x148 => 0x0001_000d,
            0x14c => 0x001d_001d,
            _ => 0,
        }
    }
}

/// Returns nanoseconds to walk and to group, and numbers of reads, functions and groups.
fn probe(buses: u8, clock: fn() -> f64) -> (f64, f64, u64, usize, usize) {
    let mut space = Full { reads: 0 };
    let roots: Vec<_> = (0..=buses).map(|bus| (0, bus)).collect();
    let start = clock();
    let functions = walk(&mut space, Roots::Known(&roots));
    let walked = clock() - start;
    let ram = PhysRange::new(PhysAddr(0), 1 << 32).expect("a range");
    let start = clock();
    let mut registry = Registry::new(config(), firmware(), &[ram], &[]);
    registry.expect_functions(functions.len());
    for function in &functions {
        match registry.decide(&Event::FunctionAdded(*function)) {
            Ok(plan) => registry.commit(plan),
            Err(refused) => panic!("{refused:?}"),
        }
    }
    let groups = registry.groups().count();
    let grouped = clock() - start;
    (walked, grouped, space.reads, functions.len(), groups)
}

/// Work for a profiler, without reading the processor's clock.
pub fn profile() {
    probe(255, || 0.0);
}

pub fn run() {
    let mut totals = [Vec::new(), Vec::new()];
    let mut last = (0, 0, 0);
    for _ in 0..ROUNDS {
        for (buses, times) in [31, 255].into_iter().zip(&mut totals) {
            let (walked, grouped, reads, functions, groups) = probe(buses, cpu);
            times.push((walked + grouped, walked));
            last = (reads, functions, groups);
        }
    }
    let middle =
        |times: &[(f64, f64)]| median(&times.iter().map(|(all, _)| *all).collect::<Vec<_>>());
    let walks = median(&totals[1].iter().map(|(_, walked)| *walked).collect::<Vec<_>>());
    let (small, all) = (middle(&totals[0]), middle(&totals[1]));
    let (reads, functions, groups) = last;
    let per_function = reads as f64 / functions as f64;
    Line::note(
        10,
        format!(
            "probe and group {functions} functions ({groups} groups; the walk {})",
            nanos(walks)
        ),
        nanos(all),
    )
    .target("<= 15 ms", all <= 15e6)
    .print();
    Line::note(10, "configuration reads a function", format!("{per_function:.2}"))
        .target("<= 13", per_function <= 13.0)
        .print();
    let growth = all / (8.0 * small);
    Line::note(10, "time a function, 65536 against 8192", format!("{growth:.2}x"))
        .target("linear: <= 1.5x", growth <= 1.5)
        .print();
}
