//! Tests of the software machine itself: it must detect each kind of violation.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use iommu_protocol::ids::PciAddress;
use iommud::addr::PhysAddr;
use iommud::hw::{BufferMemory, Clock, Constraints, MemoryError, Nanos, RegisterIo, TableMemory};
use iommud::topology::pci::FunctionKind;
use iommud::topology::walk::{Roots, walk};
use iommud_tests::machine::{Layout, Machine, Violation, Watch};
use iommud_tests::vtd::firmware::Firmware;
use iommud_tests::vtd::{Config, Vtd};

const SOURCE: u16 = 0x0018;

/// Lets a device reach the page at `physical` as iova 0x4000.
fn confined(machine: &Machine, physical: u64) -> (usize, Firmware, u64) {
    let unit = Vtd::add(machine, Config::default());
    let mut firmware = Firmware::new(machine, unit, 0x0300_0000);
    let table = firmware.frame();
    firmware.map(table, 4, 0x4000, physical);
    firmware.attach(SOURCE, 5, table, 4);
    firmware.set_root();
    firmware.translate();
    (unit, firmware, table)
}

#[test]
fn a_buffer_given_back_while_a_device_reaches_it_is_seen() {
    for cached in [false, true] {
        let machine = Machine::default();
        let mut buffers = machine.buffers();
        let memory = buffers.allocate(7, 0x1000, Constraints::default()).unwrap();
        let (unit, mut firmware, table) = confined(&machine, memory[0].first().0);
        if cached {
            // The tables do not map it any more, but the unit has it cached.
            assert!(machine.probe(unit, SOURCE, 0x4000, true).is_some());
            firmware.map(table, 4, 0x4000, 0x0700_0000);
        }
        buffers.release(7);
        let seen = machine.take_violations();
        assert!(matches!(seen[..], [Violation::FreedInUse { .. }]), "{cached}: {seen:?}");
    }
}

#[test]
fn a_buffer_comes_back_empty_and_at_once() {
    let machine = Machine::default();
    let mut buffers = machine.buffers();
    let first = buffers.allocate(1, 0x6000, Constraints::default()).unwrap();
    assert_eq!(first.iter().map(|range| range.length()).sum::<u64>(), 0x6000);
    assert!(first.len() > 1, "it comes in pieces");
    let share = buffers.share(1).unwrap();
    machine.share_write(&share, 0x3ffe, b"across");
    assert_eq!(machine.share_read(&share, 0x3ffe, 6), b"across");
    buffers.release(1);
    buffers.release(1);
    assert_eq!(buffers.share(1), None);
    let second = buffers.allocate(2, 0x6000, Constraints::default()).unwrap();
    let overlap = second.iter().filter(|range| first.iter().any(|old| old.overlaps(**range)));
    assert_eq!(overlap.count(), second.len(), "the same memory");
    let share = buffers.share(2).unwrap();
    assert!(machine.share_read(&share, 0, 0x6000).iter().all(|byte| *byte == 0));
    let one = Constraints { contiguous: true, alignment: 0x10_0000, ..Constraints::default() };
    let one = buffers.allocate(3, 0x6000, one).unwrap();
    assert_eq!((one.len(), one[0].first().0 % 0x10_0000), (1, 0));
    assert_eq!(buffers.allocate(4, 1 << 40, Constraints::default()), Err(MemoryError::Exhausted));
    machine.fail_buffer_allocations(1, 1);
    assert!(buffers.allocate(5, 0x1000, Constraints::default()).is_ok());
    assert!(buffers.allocate(6, 0x1000, Constraints::default()).is_err());
    assert!(buffers.allocate(6, 0x1000, Constraints::default()).is_ok());
}

#[test]
fn a_device_in_the_tables_is_seen() {
    let machine = Machine::default();
    let mut tables = machine.tables();
    let frame = tables.allocate().unwrap();
    let (unit, ..) = confined(&machine, frame.0);
    machine.device_write(unit, SOURCE, 0x4008, &[1]).unwrap();
    let expected =
        Violation::DeviceInTables { source: SOURCE, iova: 0x4008, physical: frame.0 + 8 };
    assert_eq!(machine.take_violations(), [expected]);
}

#[test]
fn watches_see_what_passes_and_what_is_denied() {
    let machine = Machine::default();
    let (unit, ..) = confined(&machine, 0x0700_0000);
    let watch = |iova, granted: &[(u64, u64)], must_pass| {
        machine.clear_watches();
        let granted = granted.to_vec();
        machine.watch(Watch { unit, source: SOURCE, iova, write: true, granted, must_pass });
        machine.clock().relax();
        machine.take_violations()
    };
    assert_eq!(watch(0x4000, &[(0x0700_0000, 0x1000)], true), []);
    assert_eq!(watch(0x5000, &[], false), []);
    assert!(matches!(watch(0x4000, &[], false)[..], [Violation::Passed { .. }]));
    assert!(matches!(watch(0x4000, &[(0x0800_0000, 8)], false)[..], [Violation::Passed { .. }]));
    assert!(matches!(watch(0x5000, &[], true)[..], [Violation::Denied { reason: 5, .. }]));
}

#[test]
fn tables_are_zero_recycled_at_once_and_may_run_out() {
    let machine = Machine::new(Layout { tables: (0x1000_0000, 0x8000), ..Layout::default() });
    let mut tables = machine.tables();
    let first = tables.allocate().unwrap();
    tables.store(first, 511, 7);
    *tables.live(first) = 3;
    tables.free(first, false);
    let again = tables.allocate().unwrap();
    assert_eq!((again, tables.load(again, 511), *tables.live(again)), (first, 0, 0));
    tables.store(again, 0, 1);
    tables.free(again, true);
    let seen = machine.take_violations();
    assert!(matches!(seen[..], [Violation::FreedNotZero { word: 0, value: 1, .. }]), "{seen:?}");
    let run = tables.allocate_run(4).unwrap();
    assert_eq!(run.0 % 0x4000, 0);
    assert_eq!(tables.frames_in_use(), 4);
    let mut left = 0;
    while tables.allocate().is_ok() {
        left += 1;
    }
    assert_eq!(left, 4, "8 frames, 4 in the run");
    assert_eq!(tables.allocate_run(1), Err(MemoryError::Exhausted));
    assert_eq!(tables.load(PhysAddr(0x1000_0008), 0), 0);
    tables.store(PhysAddr(0x0500_0000), 0, 1);
    assert_eq!(machine.take_violations().len(), 2, "misaligned, and no table");
}

#[test]
fn time_passes_when_it_is_looked_at() {
    let machine = Machine::default();
    let unit = Vtd::add(&machine, Config::default());
    let mut clock = machine.clock();
    let start = clock.now();
    clock.relax();
    assert_eq!(clock.now(), Nanos(start.0 + 1_010));
    machine.set_relax(5_000_000);
    clock.relax();
    assert_eq!(clock.now(), Nanos(start.0 + 5_001_020));
    let mut registers = machine.registers(unit);
    assert_eq!(registers.read32(0x5000), u32::MAX, "outside");
    registers.write32(0x5000, 0);
    machine.assert_clean();
}

#[test]
fn the_walk_of_configuration_space_finds_what_was_put_there() {
    let machine = Machine::default();
    let mut bus = machine.pci();
    let at = |bus, device, function| PciAddress::new(0, bus, device, function).unwrap();
    bus.endpoint(at(0, 3, 0), 0x1234, 0x11e8, 0x00_ff00);
    bus.express(at(0, 3, 0), 9);
    bus.endpoint(at(0, 4, 0), 0x1b36, 0x000c, 0);
    bus.express(at(0, 4, 0), 4);
    bus.bridge(at(0, 4, 0), 1, 1);
    bus.acs(at(0, 4, 0), 0x5f, 0x1d);
    bus.endpoint(at(1, 0, 0), 0x8086, 0x10d3, 0x02_0000);
    bus.express(at(1, 0, 0), 0);
    bus.multifunction(at(1, 0, 0));
    bus.endpoint(at(1, 0, 2), 0x8086, 0x10d4, 0x02_0000);
    bus.express(at(1, 0, 2), 0);
    bus.endpoint(at(0, 5, 0), 0x8086, 0x100e, 0x02_0000);
    bus.remove(at(0, 5, 0));
    let found = walk(&mut bus, Roots::Known(&[(0, 0)]));
    let addresses: Vec<PciAddress> = found.iter().map(|function| function.address).collect();
    assert_eq!(addresses, [at(0, 3, 0), at(0, 4, 0), at(1, 0, 0), at(1, 0, 2)]);
    assert_eq!(found[0].kind, FunctionKind::RootComplexEndpoint);
    assert!(matches!(found[1].kind, FunctionKind::RootPort(buses) if buses.secondary == 1));
    assert_eq!((found[1].acs, found[1].acs_capability), (Some(0x1d), 0x5f));
    assert_eq!((found[2].vendor, found[2].device, found[2].class), (0x8086, 0x10d3, 0x02_0000));
    assert!(found[2].multifunction && machine.config_reads() > 0);
}
