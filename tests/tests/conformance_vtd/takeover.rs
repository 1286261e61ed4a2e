//! Taking over units that firmware or a previous owner left running. At no instant does a device reach memory that
//! was not granted.

use iommud::hw::{Clock, RegisterIo, Unit};
use iommud_tests::conformance::takeover::{
    FOREIGN, OLD, SHARED, TABLES, only_new_faults_are_told, take_over, watch,
};
use iommud_tests::conformance::{Bench, SOURCES, UnderTest, run};
use iommud_tests::machine::{Machine, Reach, Through, Trouble, Watch};
use iommud_tests::vtd::firmware::Firmware;
use iommud_tests::vtd::{Config, Vtd};

use iommud_tests::conformance::vtd::{Subject, matrix};

/// The previous owner's domain id. The new owner uses the same id for another domain.
const OLD_DOMAIN: u16 = 1;

struct Left {
    machine: Machine,
    unit: usize,
    firmware: Firmware,
}

/// A unit with a previous owner: translation on, `SOURCES[0]` and `SOURCES[2]` in a domain that maps `SHARED` and
/// `OLD` one to one, their translations cached.
fn left(subject: &Subject, queue: bool) -> Left {
    let machine = Machine::default();
    let unit = subject.add(&machine);
    let levels = subject.config.levels[0];
    let mut firmware = Firmware::new(&machine, unit, TABLES);
    let table = firmware.frame();
    firmware.map(table, levels, SHARED, SHARED);
    firmware.map(table, levels, OLD, OLD);
    for source in [SOURCES[0], SOURCES[2]] {
        firmware.attach(source.0, OLD_DOMAIN, table, levels);
    }
    firmware.set_root();
    if queue {
        firmware.start_queue();
    }
    firmware.translate();
    for source in SOURCES {
        for iova in [SHARED, OLD, FOREIGN] {
            let _ = machine.probe(unit, source.0, iova, true);
        }
    }
    machine.assert_clean();
    Left { machine, unit, firmware }
}

impl Left {
    fn watch(&self) {
        watch(&self.machine, self.unit);
    }

    fn taken_over(self, subject: &Subject) -> Bench<Subject> {
        take_over(subject, self.machine, self.unit, OLD_DOMAIN).0
    }
}

#[test]
fn translation_stays_on_while_a_unit_is_taken_over() {
    for subject in matrix() {
        for queue in [false, true] {
            let left = left(&subject, queue);
            left.watch();
            left.taken_over(&subject);
        }
    }
}

#[test]
fn a_queue_that_still_works_is_drained() {
    for subject in matrix() {
        let mut left = left(&subject, true);
        let queue = left.firmware.frame() - 4096;
        for at in 0..40 {
            left.firmware.put(queue + 16 * at, 0x2 | 1 << 4);
        }
        left.machine.registers(left.unit).write64(0x88, 40 * 16);
        left.watch();
        left.taken_over(&subject);
    }
}

#[test]
fn a_queue_with_an_error_is_replaced() {
    for subject in matrix() {
        let mut left = left(&subject, true);
        let queue = left.firmware.frame() - 4096;
        // Type 15 does not exist.
        left.firmware.put(queue, 0xf);
        left.machine.registers(left.unit).write64(0x88, 16);
        left.machine.pass_time(1_000_000);
        assert_eq!(left.machine.registers(left.unit).read32(0x34) & 0x10, 0x10, "IQE");
        left.watch();
        left.machine.set_relax(1_000_000);
        left.taken_over(&subject);
    }
}

#[test]
fn a_queue_that_hangs_fails_in_bounded_time_or_is_replaced() {
    for subject in matrix() {
        let mut left = left(&subject, true);
        let queue = left.firmware.frame() - 4096;
        left.firmware.put(queue, 0x2 | 1 << 4);
        left.machine.trouble(left.unit, Trouble::StallQueueAfter(0));
        left.machine.registers(left.unit).write64(0x88, 16);
        left.machine.set_relax(1_000_000);
        left.watch();
        let mut tables = left.machine.tables();
        let unit = subject.bring_up(&left.machine, left.unit, &mut tables);
        if let Ok(mut unit) = unit {
            assert!(unit.enable(&mut tables).is_err(), "the new queue hangs too");
        }
        assert!(left.machine.now() < 20_000_000_000);
        left.machine.assert_clean();
    }
}

#[test]
fn old_faults_are_cleared_and_new_ones_told() {
    for subject in matrix() {
        let left = left(&subject, true);
        for at in 0..=subject.config.fault_records {
            let denied = left.machine.access(left.unit, 0x2000 + at, FOREIGN, 1, true);
            assert!(denied.is_err());
        }
        assert_eq!(left.machine.registers(left.unit).read32(0x34) & 3, 3, "PFO and PPF");
        only_new_faults_are_told(&mut left.taken_over(&subject));
    }
}

#[test]
fn caches_filled_before_translation_was_off_are_emptied() {
    for subject in matrix() {
        let left = left(&subject, true);
        // The previous owner turned translation off, which this machine reports as a violation.
        left.firmware.command(1 << 31, false);
        assert_eq!(left.machine.take_violations().len(), 1);
        left.taken_over(&subject);
    }
}

#[test]
fn protected_memory_is_released_at_the_end() {
    for subject in matrix().into_iter().filter(|subject| subject.config.protected) {
        let machine = Machine::default();
        let unit = subject.add(&machine);
        let mut registers = machine.registers(unit);
        // Everything below 4 GiB is protected: PLMBASE, PLMLIMIT, EPM of PMEN.
        registers.write32(0x68, 0);
        registers.write32(0x6c, 0xffe0_0000);
        registers.write32(0x64, 1 << 31);
        machine.pass_time(1_000_000);
        assert_eq!(registers.read32(0x64), 0x8000_0001);
        assert_eq!(machine.probe(unit, SOURCES[0].0, SHARED, true), None);
        // While protection is on, DMA is denied. Nothing passes before the tables are in force.
        for iova in [FOREIGN, OLD] {
            machine.watch(Watch {
                unit,
                source: SOURCES[0].0,
                iova,
                write: true,
                granted: Vec::new(),
                must_pass: false,
            });
        }
        let mut bench = Bench::take(&subject, machine, unit);
        let mut domain = bench.domain(1);
        bench.map(&mut domain, SHARED, SHARED, 0x1000);
        bench.attach(SOURCES[0], &domain);
        bench.unit.enable(&mut bench.tables).unwrap();
        bench.expect(SOURCES[0], &[run(SHARED, SHARED, 0x1000)]);
        assert_eq!(registers.read32(0x64) & 1, 0, "PRS");
    }
}

#[test]
fn a_take_over_that_fails_leaves_the_old_tables_in_force() {
    for subject in matrix() {
        for k in 0..4 {
            let left = left(&subject, true);
            left.watch();
            let mut tables = left.machine.tables();
            left.machine.fail_table_allocations(k, 1);
            let unit = subject.bring_up(&left.machine, left.unit, &mut tables);
            left.machine.clear_watches();
            let page = |iova| Reach { last: iova + 0xfff, ..run(iova, iova, 0x1000) };
            let reach = left.machine.reach(left.unit, SOURCES[0].0, Through::Tables);
            assert_eq!(reach, [page(SHARED), page(OLD)]);
            left.machine.assert_clean();
            if unit.is_ok() {
                assert!(k > 0);
                break;
            }
        }
    }
}

#[test]
fn a_cold_unit_translates_only_what_was_granted_from_the_first_instant() {
    for subject in matrix() {
        let machine = Machine::default();
        let number = subject.add(&machine);
        let mut bench = Bench::take(&subject, machine, number);
        let mut domain = bench.domain(1);
        bench.map(&mut domain, SHARED, SHARED, 0x1000);
        bench.attach(SOURCES[0], &domain);
        // Before enabling everything passes, as since power-on. Right afterwards only the grant passes.
        let off = bench.machine.reach(bench.number, SOURCES[1].0, Through::Tables);
        assert_eq!(off.len(), 1, "translation is off: {off:x?}");
        assert_eq!(bench.probe(SOURCES[1], FOREIGN, true), Some(FOREIGN));
        bench.unit.enable(&mut bench.tables).unwrap();
        bench.expect(SOURCES[0], &[run(SHARED, SHARED, 0x1000)]);
        bench.expect(SOURCES[1], &[]);
    }
}

#[test]
fn an_unusable_unit_is_refused_untouched() {
    let base = Config::default;
    for config in
        [Config { queue: false, ..base() }, Config { levels: vec![2], guest_width: 30, ..base() }]
    {
        let machine = Machine::default();
        let unit = Vtd::add(&machine, config);
        let mut tables = machine.tables();
        let result = iommud::hw::vtd::VtdUnit::bring_up(
            machine.registers(unit),
            machine.clock(),
            &mut tables,
            46,
        );
        assert!(matches!(result, Err(iommud::hw::UnitError::Unsupported { .. })));
        assert_eq!(machine.register_accesses().1, 0, "nothing was written");
        assert_eq!(machine.table_frames(), 0);
        machine.clock().relax();
        machine.assert_clean();
    }
}
