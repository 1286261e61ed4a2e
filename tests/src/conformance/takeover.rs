//! Units that a previous owner left running: the watches on every take-over, and its result. Each vendor's own tests
//! set up the state that an owner leaves.

use iommud::hw::{Entry, HardwareFault, Unit};

use super::{Bench, Domain, RequesterId, SOURCES, TARGET, UnderTest, run};
use crate::machine::{Machine, Use, Watch};

/// Memory of the previous owner's tables.
pub const TABLES: u64 = 0x0300_0000;
/// Memory that the previous owner and the new policy both grant `SOURCES[0]`, one to one (a reserved region).
pub const SHARED: u64 = 0x0700_0000;
/// Memory that only the previous owner granted, to `SOURCES[0]` and `SOURCES[2]`.
pub const OLD: u64 = 0x0710_0000;
/// Memory that was never granted.
pub const FOREIGN: u64 = 0x0720_0000;

/// Watches accesses after every step. `SHARED` must pass, `OLD` may pass until the take-over is complete, all others
/// must be denied.
pub fn watch(machine: &Machine, unit: usize) {
    let of = |source: RequesterId, iova, granted: &[u64], must_pass| Watch {
        unit,
        source: source.0,
        iova,
        write: true,
        granted: granted.iter().map(|page| (*page, 0x1000)).collect(),
        must_pass,
    };
    machine.watch(of(SOURCES[0], SHARED, &[SHARED], true));
    machine.watch(of(SOURCES[0], OLD, &[OLD], false));
    machine.watch(of(SOURCES[2], OLD, &[OLD], false));
    for source in SOURCES {
        for iova in [FOREIGN, TARGET, TABLES, 0] {
            machine.watch(of(source, iova, &[], false));
        }
    }
}

/// Brings up the unit, grants `SHARED` to `SOURCES[0]` in the domain of this tag, enables, and checks the result.
pub fn take_over<T: UnderTest>(
    subject: &T,
    machine: Machine,
    unit: usize,
    tag: u16,
) -> (Bench<T>, Domain<T>) {
    let mut bench = Bench::take(subject, machine, unit);
    let mut domain = bench.domain(tag);
    bench.map(&mut domain, SHARED, SHARED, 0x1000);
    bench.attach(SOURCES[0], &domain);
    for source in [SOURCES[1], SOURCES[2]] {
        bench.unit.write_entry(&mut bench.tables, source, Entry::Blocked).unwrap();
        bench.unit.invalidate_entry(&mut bench.tables, source, None).unwrap();
    }
    bench.unit.enable(&mut bench.tables).unwrap();
    bench.machine.assert_clean();
    bench.machine.clear_watches();
    bench.expect(SOURCES[0], &[run(SHARED, SHARED, 0x1000)]);
    bench.expect(SOURCES[1], &[]);
    bench.expect(SOURCES[2], &[]);
    let content = bench.machine.table_content(unit);
    bench.machine.with_memory(|memory| {
        let theirs = |frame: &u64| memory.purpose(*frame) == Some(Use::Firmware);
        assert!(!content.iter().any(|(frame, _)| theirs(frame)), "a table of theirs is read");
    });
    (bench, domain)
}

/// After a take-over the previous owner's faults are dropped, and the next new fault is reported.
pub fn only_new_faults_are_told<T: UnderTest>(bench: &mut Bench<T>) {
    let take = |bench: &mut Bench<T>| {
        let mut sources = Vec::new();
        let mut sink = |fault: HardwareFault| sources.push(fault.source);
        let lost = bench.unit.take_faults(&mut bench.tables, 300, &mut sink).unwrap();
        (sources, lost)
    };
    assert_eq!(take(bench), (Vec::new(), 0), "the previous owner's");
    bench.machine.access(bench.number, SOURCES[0].0, OLD, 1, true).unwrap_err();
    assert_eq!(take(bench), (vec![SOURCES[0]], 0));
    bench.machine.assert_clean();
}
