//! Errors of the invalidation queue. An operation that returns success has completed, whatever happens.

use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::vtd::SecondStage;
use iommud::hw::{Entry, Unit, UnitError};
use iommud_tests::conformance::{Bench, Domain, SOURCES, TARGET, range, run};
use iommud_tests::vtd::Vtd;

use iommud_tests::conformance::vtd::{Subject, matrix};

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
    bench.machine.set_relax(1_000_000);
    (bench, domain, detached)
}

/// Invalidates, and returns whether that succeeded. After success the stale page must be unreachable.
fn invalidate(bench: &mut Bench<Subject>, domain: &Domain<Subject>) -> bool {
    let start = bench.machine.now();
    let range = range(0x5000, 0x1000);
    let done = bench.unit.invalidate_pages(&mut bench.tables, domain.tag, range, true);
    assert!(bench.machine.now() - start < 10_000_000_000, "bounded");
    match done {
        Ok(()) => {
            assert_eq!(bench.probe(SOURCES[0], 0x5000, false), None, "done means gone");
            true
        }
        Err(UnitError::Timeout { .. } | UnitError::Queue { .. }) => false,
        Err(other) => panic!("{other:?}"),
    }
}

/// Checks that the unit works normally after an operation succeeded.
fn goes_on(bench: &mut Bench<Subject>, mut domain: Domain<Subject>, mut detached: Detached) {
    bench.machine.set_relax(1_000);
    PageTable::<SecondStage>::release(&mut bench.tables, &mut detached);
    for round in 0..300 {
        bench.map(&mut domain, 0x5000, TARGET + 0x1000 * round, 0x1000);
        bench.expect(SOURCES[0], &[run(0x5000, TARGET + 0x1000 * round, 0x1000)]);
        bench.unmap(&mut domain, 0x5000, 0x1000);
        bench.expect(SOURCES[0], &[]);
    }
    bench.detach(SOURCES[0], &domain);
    domain.pages.destroy(&mut bench.tables);
    bench.machine.assert_clean();
}

fn with(bench: &Bench<Subject>, act: impl FnOnce(&mut Vtd)) {
    bench.machine.with_unit(bench.number, |unit: &mut Vtd, _| act(unit));
}

#[test]
fn an_aborted_wait_is_submitted_again() {
    for subject in matrix() {
        for aborted in 1..=3 {
            let (mut bench, domain, detached) = stale(&subject);
            with(&bench, |unit| unit.abort_waits(aborted));
            let done = invalidate(&mut bench, &domain);
            assert!(done || aborted > 1, "one time-out of a device is no failure of the unit");
            with(&bench, |unit| unit.abort_waits(0));
            if done {
                goes_on(&mut bench, domain, detached);
            }
            bench.machine.assert_clean();
        }
    }
}

#[test]
fn waits_that_are_always_aborted_end() {
    for subject in matrix() {
        let (mut bench, domain, _detached) = stale(&subject);
        with(&bench, |unit| unit.abort_waits(u64::MAX));
        assert!(!invalidate(&mut bench, &domain));
        bench.machine.assert_clean();
    }
}

#[test]
fn a_rejected_descriptor_is_told_or_replaced() {
    for subject in matrix() {
        for after in 0..2 {
            let (mut bench, domain, detached) = stale(&subject);
            with(&bench, |unit| unit.break_descriptor(after));
            if invalidate(&mut bench, &domain) {
                goes_on(&mut bench, domain, detached);
            } else {
                // The queue works again, or reports an error.
                let again = invalidate(&mut bench, &domain);
                if again {
                    goes_on(&mut bench, domain, detached);
                }
            }
            bench.machine.assert_clean();
        }
    }
}

#[test]
fn a_completion_error_is_cleared_and_hinders_nothing() {
    use iommud::hw::RegisterIo;
    for subject in matrix() {
        let (mut bench, domain, detached) = stale(&subject);
        with(&bench, Vtd::completion_error);
        assert!(invalidate(&mut bench, &domain), "another device's stray completion");
        goes_on(&mut bench, domain, detached);
        bench.unit.take_faults(&mut bench.tables, 16, &mut |_| ()).unwrap();
        // ICE, bit 5 of FSTS.
        let status = bench.machine.registers(bench.number).read32(0x34);
        assert_eq!(status & 0x20, 0, "{}", subject.name);
    }
}

#[test]
fn errors_in_entries_are_told_too() {
    for subject in matrix() {
        for after in 0..3 {
            let (mut bench, domain, _detached) = stale(&subject);
            with(&bench, |unit| unit.break_descriptor(after));
            bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).unwrap();
            let tag = Some(domain.tag);
            let done = bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag);
            if done.is_ok() {
                bench.expect(SOURCES[0], &[]);
            }
            bench.machine.assert_clean();
        }
    }
}
