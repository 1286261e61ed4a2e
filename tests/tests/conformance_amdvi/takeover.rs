//! Taking over a running unit: at no step does a device lose its kept mappings, or reach memory that was not granted.

use iommu_protocol::RequesterId;
use iommud::hw::{Entry, RegisterIo, Unit, UnitError};
use iommud_tests::amdvi::firmware::Firmware;
use iommud_tests::conformance::amdvi::{Subject, matrix};
use iommud_tests::conformance::takeover::{
    FOREIGN, OLD, SHARED, TABLES, only_new_faults_are_told, take_over, watch,
};
use iommud_tests::conformance::{Bench, SOURCES, UnderTest, run};
use iommud_tests::machine::{Machine, Trouble};

fn left(subject: &Subject) -> (Machine, usize) {
    let machine = Machine::default();
    let unit = subject.add(&machine);
    let reaches = [(SOURCES[0], vec![SHARED, OLD]), (SOURCES[2], vec![OLD])];
    subject.inherit(&machine, unit, TABLES, &reaches);
    (machine, unit)
}

fn taken_over(subject: &Subject, machine: Machine, unit: usize) -> Bench<Subject> {
    take_over(subject, machine, unit, 7).0
}

#[test]
fn translation_stays_on_while_a_unit_is_taken_over() {
    for subject in matrix() {
        println!("subject: {}", subject.name);
        let (machine, unit) = left(&subject);
        watch(&machine, unit);
        taken_over(&subject, machine, unit);
    }
}

#[test]
fn a_ring_with_an_error_is_replaced() {
    for subject in &matrix()[..3] {
        let machine = Machine::default();
        let unit = subject.add(&machine);
        let mut firmware = Firmware::new(&machine, unit, TABLES);
        firmware.deny_all();
        let table = firmware.frame();
        firmware.map(table, 4, SHARED, SHARED);
        firmware.attach(SOURCES[0].0, 7, table, 4);
        // Operation 15 does not exist.
        firmware.put(firmware.ring(), 0xf << 60);
        firmware.start(0);
        machine.registers(unit).write64(0x2008, 16);
        machine.pass_time(1_000_000);
        assert_eq!(machine.registers(unit).read64(0x2020) & 0x10, 0, "stopped");
        watch(&machine, unit);
        taken_over(subject, machine, unit);
    }
}

#[test]
fn events_of_the_previous_owner_are_not_ours() {
    for subject in matrix() {
        let (machine, unit) = left(&subject);
        // More events than its log of 256 entries holds.
        for _ in 0..300 {
            machine.access(unit, SOURCES[1].0, FOREIGN, 1, true).unwrap_err();
        }
        machine.pass_time(1_000_000);
        assert_eq!(machine.registers(unit).read64(0x2020) & 1, 1, "overflow");
        only_new_faults_are_told(&mut taken_over(&subject, machine, unit));
    }
}

#[test]
fn a_unit_whose_rings_do_not_stop_is_left_as_it_is() {
    for subject in matrix() {
        let (machine, unit) = left(&subject);
        let device_table = machine.registers(unit).read64(0);
        machine.trouble(unit, Trouble::StallCommands);
        machine.set_relax(1_000_000);
        watch(&machine, unit);
        let mut tables = machine.tables();
        let taken = subject.bring_up(&machine, unit, &mut tables);
        assert!(matches!(taken.err(), Some(UnitError::Timeout { .. })));
        assert_eq!(machine.registers(unit).read64(0), device_table);
        assert!(machine.now() < 10_000_000_000, "bounded");
        machine.assert_clean();
    }
}

#[test]
fn a_take_over_without_memory_changes_nothing() {
    for subject in &matrix()[..1] {
        for k in 0..10 {
            let (machine, unit) = left(subject);
            watch(&machine, unit);
            let writes = machine.register_accesses().1;
            let mut tables = machine.tables();
            machine.fail_table_allocations(k, 1);
            let taken = subject.bring_up(&machine, unit, &mut tables);
            machine.assert_clean();
            if taken.is_ok() {
                assert!(k > 3);
                break;
            }
            assert!(machine.register_accesses().1 <= writes + 1, "all but the coherence");
        }
    }
}

/// The exclusion range of the previous owner (QEMU has none) applies until the new device table is in force.
/// Afterwards it passes nothing.
#[test]
fn an_exclusion_range_ends_with_its_owner() {
    for subject in matrix() {
        let (machine, unit) = left(&subject);
        let mut registers = machine.registers(unit);
        // Limit, then base: enabled for all devices (bits 0 and 1).
        registers.write64(0x28, FOREIGN);
        registers.write64(0x20, FOREIGN | 3);
        assert_eq!(machine.probe(unit, SOURCES[1].0, FOREIGN, true), Some(FOREIGN));
        let bench = taken_over(&subject, machine, unit);
        for source in SOURCES {
            assert_eq!(bench.probe(source, FOREIGN, true), None);
        }
    }
}

/// Interrupt fields of a device table entry: IV, IntTabLen, IG, the table's root, IntCtl, in word 2 (48882 section
/// 2.2.2.1; Xen struct amd_iommu_dte iv, int_tab_len, ig, it_root, int_ctl; Linux DTE_IRQ_REMAP_ENABLE,
/// DTE_INTTABLEN, DTE_IRQ_PHYS_ADDR_MASK, DTE_IRQ_REMAP_INTCTL). Remapped by a table of 512 entries.
const INTERRUPTS: [u64; 3] =
    [0x2000_000a_bcde_f093, 0x2000_0000_1234_5613, 0x1000_0000_0765_4321 & !0x3e];

/// Reads words 2 and 3 of an entry the way the unit reads them.
fn upper_half(machine: &Machine, unit: usize, source: RequesterId) -> [u64; 2] {
    let table = machine.registers(unit).read64(0) & 0x000f_ffff_ffff_f000;
    let at = table + 32 * u64::from(source.0);
    machine.with_memory(|memory| [16, 24].map(|word| memory.walk_load(unit, at + word)))
}

/// Interrupt fields of the previous owner are copied to the new table where they are readable. They stay, whatever
/// happens to the rest of the entry. Other entries get none.
#[test]
fn interrupt_fields_of_the_previous_owner_are_kept() {
    for subject in matrix() {
        println!("subject: {}", subject.name);
        let machine = Machine::default();
        machine.show_others_tables();
        let unit = subject.add(&machine);
        let mut firmware = Firmware::new(&machine, unit, TABLES);
        firmware.deny_all();
        let table = firmware.frame();
        firmware.map(table, 4, SHARED, SHARED);
        firmware.attach(SOURCES[0].0, 7, table, 4);
        for (source, word) in SOURCES.into_iter().zip(INTERRUPTS) {
            firmware.third_word(source.0, word);
        }
        firmware.start(0);
        let check = |machine: &Machine, what: &str| {
            for (source, word) in SOURCES.into_iter().zip(INTERRUPTS) {
                let found = upper_half(machine, unit, source);
                assert_eq!(found, [word, 0], "{source:?} {what}");
            }
            for source in [0, 0x17, 0x1a, 0x0501, 0xffff] {
                assert_eq!(upper_half(machine, unit, RequesterId(source)), [0, 0], "{what}");
            }
        };
        check(&machine, "before");
        let mut bench = Bench::take(&subject, machine, unit);
        bench.unit.enable(&mut bench.tables).unwrap();
        check(&bench.machine, "after the take-over");
        let mut domain = bench.domain(7);
        bench.map(&mut domain, SHARED, SHARED, 0x1000);
        for source in SOURCES {
            bench.attach(source, &domain);
        }
        check(&bench.machine, "attached");
        bench.expect(SOURCES[0], &[run(SHARED, SHARED, 0x1000)]);
        bench.detach(SOURCES[0], &domain);
        bench.unit.suppress_faults(&mut bench.tables, SOURCES[1], true).unwrap();
        let tag = iommud::topology::capabilities::DomainTag(9);
        bench.unit.write_entry(&mut bench.tables, SOURCES[2], Entry::PassThrough { tag }).unwrap();
        check(&bench.machine, "blocked, silenced, passing");
    }
}

/// A kernel beside the server may program interrupt remapping into the table in force. The server keeps it, because
/// it never writes words 2 and 3.
#[test]
fn interrupt_fields_set_meanwhile_are_kept() {
    for subject in matrix() {
        let mut bench = Bench::start(&subject);
        let mut domain = bench.domain(7);
        bench.map(&mut domain, SHARED, SHARED, 0x1000);
        let table = bench.machine.registers(bench.number).read64(0) & 0x000f_ffff_ffff_f000;
        let at = table + 32 * u64::from(SOURCES[1].0);
        bench.machine.with_memory(|memory| {
            memory.cpu_store(at + 16, INTERRUPTS[1]);
            memory.clean(at + 16);
        });
        let check = |bench: &Bench<Subject>| {
            let found = upper_half(&bench.machine, bench.number, SOURCES[1]);
            assert_eq!(found, [INTERRUPTS[1], 0], "{}", subject.name);
        };
        bench.attach(SOURCES[1], &domain);
        check(&bench);
        bench.detach(SOURCES[1], &domain);
        check(&bench);
        bench.unit.suppress_faults(&mut bench.tables, SOURCES[1], true).unwrap();
        check(&bench);
    }
}
