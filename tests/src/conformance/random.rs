//! Long random runs: three requesters, four domains, any order of changes, devices that never stop trying. After
//! every change each requester's reach is compared with a list of its grants.

use std::collections::BTreeMap;

use super::{Bench, Domain, SOURCES, TARGET, UnderTest, run};
use crate::machine::{Eviction, Reach, join};

const PAGE: u64 = 4096;

/// xorshift64* (Vigna 2016): the same run for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// The mappings of a domain: I/O virtual address to physical address and length.
type Granted = BTreeMap<u64, (u64, u64)>;

fn expected(granted: &Granted) -> Vec<Reach> {
    let mut runs = Vec::new();
    for (iova, (physical, length)) in granted {
        // Page by page, like the listing of the unit's tables.
        for at in (0..*length).step_by(4096) {
            join(&mut runs, run(iova + at, physical + at, PAGE));
        }
    }
    runs
}

/// Returns an address within 12 pages of a table boundary: 0, a multiple of 2 MiB, or a multiple of 1 GiB.
fn place(random: &mut Random) -> u64 {
    let near = [0, 2 << 20, 1 << 30, 3 << 30, (2 << 20) * 17];
    let base = near[usize::try_from(random.below(5)).unwrap()];
    (base + random.below(24) * PAGE).saturating_sub(12 * PAGE)
}

fn length(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 512 * PAGE,
        1 => 600 * PAGE,
        2 => (1 + random.below(40)) * PAGE,
        _ => (1 + random.below(4)) * PAGE,
    }
}

/// Makes one run of `steps` changes.
///
/// # Panics
/// When a requester reaches anything beyond its domain's grants.
pub fn run_of<T: UnderTest>(subject: &T, seed: u64, steps: usize) {
    let mut random = Random(seed | 1);
    let mut bench = Bench::start(subject);
    if !bench.capabilities().coherent {
        bench.machine.with_memory(|memory| memory.set_eviction(Eviction::Random(seed | 1)));
    }
    let mut domains: Vec<(Domain<T>, Granted)> =
        (1..=4).map(|tag| (bench.domain(tag), Granted::new())).collect();
    let mut attached: [Option<usize>; 3] = [None; 3];
    for step in 0..steps {
        let which = usize::try_from(random.below(4)).unwrap();
        let source = usize::try_from(random.below(3)).unwrap();
        match random.below(8) {
            0 => match attached[source].take() {
                Some(old) => bench.detach(SOURCES[source], &domains[old].0),
                None => {
                    bench.attach(SOURCES[source], &domains[which].0);
                    attached[source] = Some(which);
                }
            },
            1..=4 => map(&mut bench, &mut domains[which], &mut random),
            _ => unmap(&mut bench, &mut domains[which], &mut random),
        }
        // Devices try granted and other addresses.
        for source in SOURCES {
            for _ in 0..4 {
                let _ = bench.probe(source, place(&mut random), random.below(2) == 0);
            }
        }
        for (at, source) in SOURCES.into_iter().enumerate() {
            let granted = attached[at].map_or(Vec::new(), |of| expected(&domains[of].1));
            let reach =
                bench.machine.reach(bench.number, source.0, crate::machine::Through::Tables);
            assert_eq!(reach, granted, "{} seed {seed} step {step} {source:?}", subject.name());
            check_cached(&bench, at, &granted, seed, step);
        }
        bench.machine.assert_clean();
    }
}

/// Checks that the caches add nothing beyond the grants.
fn check_cached<T: UnderTest>(
    bench: &Bench<T>,
    source: usize,
    granted: &[Reach],
    seed: u64,
    step: usize,
) {
    let through = crate::machine::Through::TablesAndCaches;
    for reach in bench.machine.reach(bench.number, SOURCES[source].0, through) {
        let inside = granted.iter().any(|run| {
            run.iova <= reach.iova
                && reach.last <= run.last
                && run.physical + (reach.iova - run.iova) == reach.physical
        });
        assert!(inside, "seed {seed} step {step} {:?}: {reach:x?}", SOURCES[source]);
    }
}

fn map<T: UnderTest>(
    bench: &mut Bench<T>,
    (domain, granted): &mut (Domain<T>, Granted),
    random: &mut Random,
) {
    let (iova, length) = (place(random), length(random));
    let overlaps = granted
        .range(..iova + length)
        .next_back()
        .is_some_and(|(start, (_, length))| start + length > iova);
    // One time in three the physical address is aligned like the I/O virtual address, so that large pages occur.
    let physical = match random.below(3) {
        0 => TARGET + iova % (2 << 20) + (2 << 20) * random.below(64),
        _ => TARGET + PAGE * random.below(1 << 15),
    };
    if !overlaps {
        bench.map(domain, iova, physical, length);
        granted.insert(iova, (physical, length));
    }
}

fn unmap<T: UnderTest>(
    bench: &mut Bench<T>,
    (domain, granted): &mut (Domain<T>, Granted),
    random: &mut Random,
) {
    let count = u64::try_from(granted.len()).unwrap();
    if count == 0 {
        return;
    }
    let at = usize::try_from(random.below(count)).unwrap();
    let (iova, (_, length)) = granted.iter().nth(at).map(|(k, v)| (*k, *v)).unwrap();
    for source in SOURCES {
        bench.touch(source, iova, length.min(8 * PAGE));
    }
    bench.unmap(domain, iova, length);
    granted.remove(&iova);
}
