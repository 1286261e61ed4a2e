//! A unit that reads the device table at every access, so it sees each store separately.

use iommud::hw::Unit;
use iommud_tests::amdvi::Config;
use iommud_tests::conformance::amdvi::{Subject, matrix};
use iommud_tests::conformance::{Bench, SOURCES, TARGET, run};
use iommud_tests::machine::Watch;

const IOVA: u64 = 0x20_0000;
/// Memory of the second domain.
const SECOND: u64 = TARGET + 0x10_0000;

fn subjects() -> Vec<Subject> {
    let base = matrix().remove(0);
    let of = |coherent| Config { caches_devices: false, coherent, ..base.config.clone() };
    vec![
        Subject { config: of(true), ..base.clone() },
        Subject { config: of(false), ..base.clone() },
    ]
}

/// A device moves to another domain while it never stops trying. If a root were used for a moment under the other
/// domain's tag, translations of one domain would be cached under the other. Then its neighbour could reach memory of
/// the second domain, or the device itself memory of the first after the move.
#[test]
fn a_half_written_entry_taints_neither_domain() {
    for subject in subjects() {
        let mut bench = Bench::start(&subject);
        let (mut old, mut new) = (bench.domain(1), bench.domain(2));
        bench.map(&mut old, IOVA, TARGET, 0x1000);
        bench.map(&mut old, IOVA + 0x8000, TARGET + 0x8000, 0x1000);
        bench.map(&mut new, IOVA, SECOND, 0x1000);
        bench.map(&mut new, IOVA + 0x4000, SECOND + 0x4000, 0x1000);
        bench.attach(SOURCES[0], &old);
        bench.attach(SOURCES[1], &old);
        let watch = |source: usize, offset, granted: &[u64], must_pass| {
            bench.machine.watch(Watch {
                unit: bench.number,
                source: SOURCES[source].0,
                iova: IOVA + offset,
                write: true,
                granted: granted.iter().map(|page| (*page, 0x1000)).collect(),
                must_pass,
            });
        };
        watch(0, 0x4000, &[SECOND + 0x4000], false);
        watch(0, 0x8000, &[TARGET + 0x8000], false);
        watch(0, 0, &[TARGET, SECOND], false);
        watch(1, 0x4000, &[], false);
        watch(1, 0, &[TARGET], true);
        bench.unit.write_entry(&mut bench.tables, SOURCES[0], new.entry()).unwrap();
        bench.machine.assert_clean();
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(old.tag)).unwrap();
        bench.machine.clear_watches();
        let first = [run(IOVA, TARGET, 0x1000), run(IOVA + 0x8000, TARGET + 0x8000, 0x1000)];
        let second = [run(IOVA, SECOND, 0x1000), run(IOVA + 0x4000, SECOND + 0x4000, 0x1000)];
        bench.expect(SOURCES[0], &second);
        bench.expect(SOURCES[1], &first);
    }
}

/// A page table grows under a device. No store denies the device's mappings or opens any other memory.
#[test]
fn a_deeper_table_shows_in_one_store() {
    for subject in subjects() {
        let mut bench = Bench::start(&subject);
        let mut domain = bench.domain_of(1, 3);
        bench.map(&mut domain, IOVA, TARGET, 0x1000);
        bench.attach(SOURCES[0], &domain);
        let beyond = 1 << 39;
        for (iova, granted, must_pass) in
            [(IOVA, vec![(TARGET, 0x1000)], true), (beyond, Vec::new(), false)]
        {
            let (unit, source) = (bench.number, SOURCES[0].0);
            bench.machine.watch(Watch { unit, source, iova, write: true, granted, must_pass });
        }
        for levels in [4, 6] {
            domain.pages.grow(&mut bench.tables, levels).unwrap();
            bench.unit.write_entry(&mut bench.tables, SOURCES[0], domain.entry()).unwrap();
            let tag = Some(domain.tag);
            bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag).unwrap();
        }
        bench.machine.clear_watches();
        bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x1000)]);
    }
}
