//! Failed units that are revived. They keep their tables, translate throughout, and drop everything cached.

use iommud::addr::PhysAddr;
use iommud::hw::page_table::Detached;
use iommud::hw::{Entry, Unit, UnitError};

use super::{Bench, SOURCES, TARGET, UnderTest, range, run};
use crate::machine::{Machine, Trouble};

/// Addresses with an unproven invalidation may not be reused before the unit is revived. This check reuses them after
/// the revival and looks for stale translations.
pub fn a_stuck_queue_is_started_again<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(5);
    bench.map(&mut domain, 0x5000, TARGET, 0x2000);
    for source in [SOURCES[0], SOURCES[2]] {
        bench.attach(source, &domain);
    }
    // Touches only after both attaches: publishing the second entry may drop everything cached.
    for source in [SOURCES[0], SOURCES[2]] {
        bench.touch(source, 0x5000, 0x2000);
    }
    bench.machine.trouble(bench.number, Trouble::StallQueueAfter(0));
    bench.machine.set_relax(10_000_000);
    let mut detached = Detached::new();
    domain.pages.unmap(&mut bench.tables, range(0x5000, 0x1000), &mut detached).expect("unmap");
    bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).expect("entry");
    let lost = bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(domain.tag));
    assert!(matches!(lost, Err(UnitError::Timeout { .. } | UnitError::Queue { .. })), "{lost:?}");
    let cached = bench.probe(SOURCES[0], 0x6000, false);
    assert_eq!(
        cached,
        Some(TARGET + 0x1000),
        "cached and not forgotten: this test shows something"
    );
    bench.machine.trouble(bench.number, Trouble::None);
    bench.machine.set_relax(1_000);
    let frames = bench.machine.table_frames();
    bench.unit.revive(&mut bench.tables).expect("revive");
    assert_eq!(bench.machine.table_frames(), frames, "no memory");
    assert!(bench.machine.translates(bench.number), "never off");
    bench.expect(SOURCES[0], &[]);
    bench.expect(SOURCES[2], &[run(0x6000, TARGET + 0x1000, 0x1000)]);
    // The unit works normally, before and after it is enabled again.
    bench.detach(SOURCES[2], &domain);
    bench.expect(SOURCES[2], &[]);
    bench.unit.enable(&mut bench.tables).expect("enable");
    bench.attach(SOURCES[0], &domain);
    bench.expect(SOURCES[0], &[run(0x6000, TARGET + 0x1000, 0x1000)]);
    bench.unmap(&mut domain, 0x6000, 0x1000);
    bench.expect(SOURCES[0], &[]);
    bench.machine.assert_clean();
}

/// Failed attempts to revive take little time and no memory, and open nothing.
pub fn a_unit_that_stays_stuck_costs_no_memory<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(5);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    let frames = bench.machine.table_frames();
    bench.machine.trouble(bench.number, Trouble::StallQueueAfter(0));
    bench.machine.set_relax(1_000_000);
    for _ in 0..5 {
        let start = bench.machine.now();
        let error = bench.unit.revive(&mut bench.tables);
        assert!(error.is_err(), "{error:?}");
        let spent = bench.machine.now() - start;
        assert!(spent < 250_000_000, "everybody waits meanwhile: {spent} ns");
        assert!(bench.machine.translates(bench.number));
    }
    assert_eq!(bench.machine.table_frames(), frames);
    bench.machine.trouble(bench.number, Trouble::None);
    bench.machine.set_relax(1_000);
    bench.unit.revive(&mut bench.tables).expect("revive");
    bench.unit.enable(&mut bench.tables).expect("enable");
    bench.expect(SOURCES[0], &[run(0x5000, TARGET, 0x1000)]);
    bench.machine.trouble(bench.number, Trouble::Dead);
    assert_eq!(bench.unit.revive(&mut bench.tables), Err(UnitError::Dead));
    bench.machine.assert_clean();
}

/// A unit fails at its first take-over, either switched off or translating for a previous owner. It is revived later.
pub fn a_unit_that_never_came_up_comes_up<T: UnderTest>(subject: &T) {
    for inherited in [false, true] {
        let machine = Machine::default();
        let number = subject.add(&machine);
        if inherited {
            let firmware = machine.layout().buffers.0;
            subject.inherit(&machine, number, firmware, &[(SOURCES[0], vec![firmware + 0x8_0000])]);
        }
        machine.trouble(number, Trouble::StallCommands);
        machine.set_relax(10_000_000);
        let mut tables = machine.tables();
        let mut unit = subject.prepare(&machine, number, &mut tables).expect("its memory");
        let stuck = subject.take_over(&mut unit, &mut tables);
        machine.trouble(number, Trouble::None);
        machine.set_relax(1_000);
        if stuck.is_ok() {
            // This unit's take-over needs no command that could stall.
            continue;
        }
        assert_eq!(machine.translates(number), inherited);
        unit.revive(&mut tables).expect("revive");
        unit.enable(&mut tables).expect("enable");
        assert!(machine.translates(number));
        let mut bench: Bench<T> = Bench { machine, number, tables, unit };
        bench.expect(SOURCES[0], &[]);
        let mut domain = bench.domain(5);
        bench.map(&mut domain, 0x5000, PhysAddr(TARGET).0, 0x1000);
        bench.attach(SOURCES[0], &domain);
        bench.expect(SOURCES[0], &[run(0x5000, TARGET, 0x1000)]);
        bench.machine.assert_clean();
    }
}
