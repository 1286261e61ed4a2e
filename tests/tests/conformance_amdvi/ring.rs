//! Errors of the command ring. An operation that returns success has completed, whatever happens.

use iommud::hw::amdvi::AmdFormat;
use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::{Entry, RegisterIo, Unit, UnitError};
use iommud_tests::amdvi::Amdvi;
use iommud_tests::conformance::amdvi::{Subject, matrix};
use iommud_tests::conformance::{Bench, Domain, SOURCES, TARGET, range, run};

/// Codes of the events that stop the ring (48882 sections 2.5.6 and 2.5.7): ILLEGAL_COMMAND_ERROR,
/// COMMAND_HARDWARE_ERROR.
const STOPS: [u16; 2] = [5, 6];

/// A device with a page cached that is unmapped but not yet invalidated.
fn stale(subject: &Subject) -> (Bench<Subject>, Domain<Subject>, Detached) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench.touch(SOURCES[0], 0x5000, 0x1000);
    let mut detached = Detached::new();
    domain.pages.unmap(&mut bench.tables, range(0x5000, 0x1000), &mut detached).unwrap();
    assert_eq!(bench.probe(SOURCES[0], 0x5000, false), Some(TARGET));
    bench.machine.set_relax(100_000);
    (bench, domain, detached)
}

fn with(bench: &Bench<Subject>, act: impl FnOnce(&mut Amdvi)) {
    bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| act(unit));
}

/// Returns the codes of the unit's own events.
fn told(bench: &mut Bench<Subject>) -> Vec<u16> {
    bench.machine.pass_time(1_000_000);
    let mut codes = Vec::new();
    let mut sink = |fault: iommud::hw::HardwareFault| {
        // 00:00.2 is the unit. The memory address in its event is not reported.
        assert_eq!((fault.source.0, fault.address), (2, None));
        codes.push(fault.reason);
    };
    bench.unit.take_faults(&mut bench.tables, 16, &mut sink).unwrap();
    codes
}

#[test]
fn a_ring_that_stopped_once_is_started_again() {
    for subject in matrix() {
        for code in STOPS {
            for after in 0..2 {
                let (mut bench, mut domain, mut detached) = stale(&subject);
                with(&bench, |unit| unit.break_command(after, code));
                let range = range(0x5000, 0x1000);
                let tag = domain.tag;
                bench.unit.invalidate_pages(&mut bench.tables, tag, range, true).unwrap();
                assert_eq!(bench.probe(SOURCES[0], 0x5000, false), None, "done means gone");
                PageTable::<AmdFormat>::release(&mut bench.tables, &mut detached);
                assert_eq!(told(&mut bench), [code]);
                // The unit then works normally, around its ring.
                bench.machine.set_relax(1_000);
                bench.machine.set_audit(false);
                for round in 0..150 {
                    bench.map(&mut domain, 0x5000, TARGET + 0x1000 * round, 0x1000);
                    bench.expect(SOURCES[0], &[run(0x5000, TARGET + 0x1000 * round, 0x1000)]);
                    bench.unmap(&mut domain, 0x5000, 0x1000);
                }
                bench.detach(SOURCES[0], &domain);
                domain.pages.destroy(&mut bench.tables);
                bench.machine.assert_clean();
            }
        }
    }
}

#[test]
fn a_ring_that_stops_again_is_an_error() {
    for subject in matrix() {
        let (mut bench, domain, _detached) = stale(&subject);
        let start = bench.machine.now();
        for _ in 0..2 {
            // Every command fails, so the ring stops again as soon as it is restarted.
            with(&bench, |unit| unit.break_every_command(5));
            let pages = range(0x5000, 0x1000);
            let done = bench.unit.invalidate_pages(&mut bench.tables, domain.tag, pages, true);
            assert!(matches!(done, Err(UnitError::Queue { .. })), "{done:?}");
        }
        assert!(bench.machine.now() - start < 10_000_000_000, "bounded");
        // Blocking still works in the tables, and the unit can be used once it recovers.
        bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).unwrap();
        let tag = Some(domain.tag);
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag).unwrap_err();
        with(&bench, Amdvi::mend_commands);
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag).unwrap();
        bench.expect(SOURCES[0], &[]);
    }
}

#[test]
fn a_ring_that_hangs_is_full_at_most_once() {
    use iommud_tests::machine::Trouble;
    for subject in matrix() {
        let (mut bench, domain, _detached) = stale(&subject);
        bench.machine.set_relax(1_000_000);
        bench.machine.trouble(bench.number, Trouble::StallQueueAfter(0));
        // Makes more calls than the ring has room for. None may overwrite a waiting command.
        for _ in 0..200 {
            let pages = range(0x5000, 0x1000);
            let done = bench.unit.invalidate_pages(&mut bench.tables, domain.tag, pages, true);
            assert!(matches!(done, Err(UnitError::Timeout { .. })), "{done:?}");
        }
        let tail = bench.machine.registers(bench.number).read64(0x2008);
        bench.machine.trouble(bench.number, Trouble::None);
        (0..100).for_each(|_| bench.machine.pass_time(100_000));
        assert_eq!(bench.machine.registers(bench.number).read64(0x2000), tail, "all is fetched");
        let pages = range(0x5000, 0x1000);
        bench.unit.invalidate_pages(&mut bench.tables, domain.tag, pages, true).unwrap();
        assert_eq!(bench.probe(SOURCES[0], 0x5000, false), None);
        bench.machine.assert_clean();
    }
}
