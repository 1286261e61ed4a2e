//! Hardware that stops, and memory that runs out: operations fail in bounded time and open nothing on the way.

use iommu_protocol::wire::Access;
use iommud::addr::PhysAddr;
use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::{Entry, TableMemory, Unit, UnitError};

use super::{Bench, SOURCES, TARGET, UnderTest, range, run};
use crate::machine::{Through, Trouble};

/// The longest allowed wait, in nanoseconds.
const PATIENCE: u64 = 10_000_000_000;

fn is_timeout(error: UnitError) -> bool {
    matches!(error, UnitError::Timeout { .. } | UnitError::Queue { .. })
}

/// Runs `act` and checks that it ends in bounded time.
fn bounded<T: UnderTest, R>(bench: &mut Bench<T>, act: impl FnOnce(&mut Bench<T>) -> R) -> R {
    bench.machine.set_relax(1_000_000);
    let start = bench.machine.now();
    let result = act(bench);
    let spent = bench.machine.now() - start;
    assert!(spent < PATIENCE, "{spent} ns");
    bench.machine.set_relax(1_000);
    result
}

/// A queue stalls at each descriptor of an operation. The operation fails in bounded time, or succeeds only with
/// proven invalidations.
pub fn a_stopped_queue_is_an_error<T: UnderTest>(subject: &T) {
    for after in 0..4 {
        let mut bench = Bench::start(subject);
        let mut domain = bench.domain(1);
        bench.map(&mut domain, 0x5000, TARGET, 0x1000);
        bench.attach(SOURCES[0], &domain);
        bench.touch(SOURCES[0], 0x5000, 0x1000);
        bench.machine.trouble(bench.number, Trouble::StallQueueAfter(after));
        let mut detached = Detached::new();
        domain.pages.unmap(&mut bench.tables, range(0x5000, 0x1000), &mut detached).expect("unmap");
        let freed = detached.tables_freed();
        let done = bounded(&mut bench, |bench| {
            bench.unit.invalidate_pages(&mut bench.tables, domain.tag, range(0x5000, 0x1000), freed)
        });
        match done {
            Ok(()) => {
                assert_eq!(bench.probe(SOURCES[0], 0x5000, false), None, "stalled after {after}");
                assert!(after >= 2, "stalled after {after}");
            }
            Err(error) => assert!(is_timeout(error), "{error:?}"),
        }
        let done = bounded(&mut bench, |bench| {
            bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked)?;
            bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(domain.tag))
        });
        if done.is_ok() {
            assert_eq!(bench.probe(SOURCES[0], 0x5000, false), None, "stalled after {after}");
        }
        // The tables are dropped, not freed: the unit may still walk them.
        bench.machine.assert_clean();
    }
}

/// A unit whose commands never complete fails to be brought up or enabled, in bounded time.
pub fn a_command_that_never_ends_is_an_error<T: UnderTest>(subject: &T) {
    let machine = crate::machine::Machine::default();
    let number = subject.add(&machine);
    machine.trouble(number, Trouble::StallCommands);
    machine.set_relax(1_000_000);
    let mut tables = machine.tables();
    let unit = subject.bring_up(&machine, number, &mut tables);
    let error = match unit {
        Err(error) => error,
        Ok(mut unit) => unit.enable(&mut tables).expect_err("nothing completes"),
    };
    assert!(is_timeout(error), "{error:?}");
    assert!(machine.now() < PATIENCE, "{}", machine.now());
    machine.assert_clean();
}

/// A missing unit: all its registers read as ones.
pub fn a_dead_unit_is_not_brought_up<T: UnderTest>(subject: &T) {
    let machine = crate::machine::Machine::default();
    let number = subject.add(&machine);
    machine.trouble(number, Trouble::Dead);
    machine.set_relax(1_000_000);
    let mut tables = machine.tables();
    let error = subject.bring_up(&machine, number, &mut tables).err();
    assert_eq!(error, Some(UnitError::Dead));
    assert_eq!(machine.table_frames(), 0, "nothing is kept for a unit that is not there");
    machine.assert_clean();
}

/// A unit dies in operation. Each operation reports it in bounded time.
pub fn a_unit_that_dies_is_an_error<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench.machine.trouble(bench.number, Trouble::Dead);
    let error = bounded(&mut bench, |bench| {
        bench.unit.invalidate_pages(&mut bench.tables, domain.tag, range(0x5000, 0x1000), false)
    });
    assert!(error.is_err());
    let error = bounded(&mut bench, |bench| {
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(domain.tag))
    });
    assert!(error.is_err());
    let mut records = 0;
    let error = bounded(&mut bench, |bench| {
        bench.unit.take_faults(&mut bench.tables, 16, &mut |_| records += 1)
    });
    assert_eq!((error, records), (Err(UnitError::Dead), 0), "all ones are no fault records");
    bench.machine.assert_clean();
}

/// Table memory runs out at the k-th allocation of an entry, for every k. The entry stays as before, and the retry
/// succeeds.
pub fn an_entry_without_memory_changes_nothing<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    let before = bench.machine.table_content(bench.number);
    let frames = bench.machine.table_frames();
    let mut failures = 0;
    for k in 0..10 {
        bench.machine.fail_table_allocations(k, 1);
        let written = bench.unit.write_entry(&mut bench.tables, SOURCES[2], domain.entry());
        bench.machine.fail_table_allocations(0, 0);
        if written.is_ok() {
            break;
        }
        failures += 1;
        assert!(matches!(written, Err(UnitError::Memory(_))), "{written:?}");
        assert_eq!(bench.machine.table_content(bench.number), before);
        assert_eq!(bench.machine.table_frames(), frames);
        bench.expect(SOURCES[2], &[]);
    }
    assert!(failures < 10, "it never succeeds");
    bench.unit.invalidate_entry(&mut bench.tables, SOURCES[2], None).expect("invalidate");
    bench.expect(SOURCES[2], &[run(0x5000, TARGET, 0x1000)]);
}

/// Memory runs out at the k-th allocation of the bring-up, for every k. It returns an error and no unit, and never
/// enables translation over incomplete tables.
pub fn a_bring_up_without_memory_is_an_error<T: UnderTest>(subject: &T) {
    for k in 0..20 {
        let machine = crate::machine::Machine::default();
        let number = subject.add(&machine);
        let mut tables = machine.tables();
        machine.fail_table_allocations(k, 1);
        match subject.bring_up(&machine, number, &mut tables) {
            Ok(_) => {
                assert!(k > 0, "a unit without tables");
                machine.assert_clean();
                return;
            }
            Err(error) => assert!(matches!(error, UnitError::Memory(_)), "{k}: {error:?}"),
        }
        assert_eq!(machine.sources(number, Through::TablesAndCaches), Vec::<u16>::new());
        machine.assert_clean();
    }
    panic!("it never succeeds");
}

/// Memory runs out at the k-th allocation of a mapping, for every k. The tables are bit for bit as before, no frame
/// is lost, and no part of the mapping is reachable.
pub fn a_mapping_without_memory_changes_nothing<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    let before = bench.machine.table_content(bench.number);
    let frames = bench.tables.frames_in_use();
    // A range across two tables of every level.
    let wide = range((1 << 38) - 0x2000, 0x4000);
    for k in 0..20 {
        bench.machine.fail_table_allocations(k, 1);
        let mapped = domain.pages.map(&mut bench.tables, wide, PhysAddr(TARGET), Access::all());
        bench.machine.fail_table_allocations(0, 0);
        if mapped.is_ok() {
            assert!(k > 2, "{k}");
            bench.unit.publish_pages(&mut bench.tables, domain.tag, wide).expect("publish");
            let expected =
                [run(0x5000, TARGET, 0x1000), run(wide.first().0, TARGET, wide.length())];
            bench.expect(SOURCES[0], &expected);
            return;
        }
        assert_eq!(bench.machine.table_content(bench.number), before, "allocation {k}");
        assert_eq!(bench.tables.frames_in_use(), frames, "allocation {k}");
        bench.expect(SOURCES[0], &[run(0x5000, TARGET, 0x1000)]);
    }
    panic!("it never succeeds");
}

/// An unmap is undone because another unit of the domain failed. The tables are bit for bit as before.
pub fn an_undone_unmap_changes_nothing<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x20_0000, TARGET, 0x40_3000);
    bench.attach(SOURCES[0], &domain);
    let all = [run(0x20_0000, TARGET, 0x40_3000)];
    bench.expect(SOURCES[0], &all);
    let before = bench.machine.table_content(bench.number);
    for (iova, length) in [(0x20_0000, 0x1000), (0x40_0000, 0x20_0000), (0x20_0000, 0x40_3000)] {
        let mut detached = Detached::new();
        let unmapped = range(iova, length);
        domain.pages.unmap(&mut bench.tables, unmapped, &mut detached).expect("unmap");
        bench.touch(SOURCES[0], iova, length);
        domain.pages.relink(&mut bench.tables, &mut detached);
        // Entries that were absent for a moment may have been cached as absent.
        bench
            .unit
            .invalidate_pages(&mut bench.tables, domain.tag, unmapped, true)
            .expect("invalidate");
        PageTable::<<T::Unit as Unit>::Format>::release(&mut bench.tables, &mut detached);
        assert_eq!(bench.machine.table_content(bench.number), before);
        bench.expect(SOURCES[0], &all);
    }
}
