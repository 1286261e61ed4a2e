//! Commands, protected memory, invalidation by register, pass-through.

use iommud::hw::RegisterIo;
use iommud_tests::machine::{Trouble, Violation};
use iommud_tests::vtd::firmware::Firmware;
use iommud_tests::vtd::{Config, Vtd};

use super::{OTHER, PAGE, SOURCE, cold};

#[test]
fn a_command_takes_time_and_shows_in_the_status() {
    let rig = cold(Config::default());
    let mut registers = rig.machine.registers(rig.unit);
    registers.write64(0x20, rig.firmware.root());
    // SRTP, bit 30: RTPS is clear until it is done.
    registers.write32(0x18, 1 << 30);
    assert_eq!(registers.read32(0x1c), 0);
    rig.machine.pass_time(10_000);
    assert_eq!(registers.read32(0x1c), 1 << 30);
    // SRTP is requested again while TE is under way: two commands.
    registers.write32(0x18, 1 << 31);
    registers.write32(0x18, 1 << 31 | 1 << 26);
    assert!(!rig.machine.take_violations().is_empty(), "a command was under way");
    rig.machine.pass_time(10_000);
    rig.machine.trouble(rig.unit, Trouble::Dead);
    assert_eq!(registers.read32(0x1c), u32::MAX);
    assert_eq!(registers.read64(0x08), u64::MAX);
    assert_eq!(rig.probe_write(0x4000), None);
    let _ = rig.machine.take_violations();
}

#[test]
fn a_new_root_table_is_used_when_the_caches_are_emptied_or_at_once_with_esrtps() {
    for root_flush in [false, true] {
        let mut rig = cold(Config { root_flush, ..Config::default() });
        rig.firmware.set_root();
        rig.firmware.translate();
        assert_eq!(rig.probe_write(0x4000), Some(PAGE));
        let mut second = Firmware::new(&rig.machine, rig.unit, 0x0310_0000);
        let table = second.frame();
        second.map(table, 4, 0x4000, OTHER);
        second.attach(SOURCE, 5, table, 4);
        second.set_root();
        assert_eq!(rig.probe_write(0x4000), Some(if root_flush { OTHER } else { PAGE }));
        let _ = &mut rig.firmware;
    }
}

#[test]
fn invalidation_by_register_works_while_the_queue_is_off() {
    let mut rig = cold(Config::default());
    let config = Config::default();
    rig.firmware.set_root();
    rig.firmware.translate();
    let mut registers = rig.machine.registers(rig.unit);
    let (iva, iotlb) = (config.iotlb_offset, config.iotlb_offset + 8);
    assert_eq!(rig.probe_write(0x4000), Some(PAGE));
    rig.firmware.map(rig.table, 4, 0x4000, OTHER);
    assert_eq!(rig.probe_write(0x4000), Some(PAGE));
    // IVT 63, IIRG 61:60 = 3 (page), DID 47:32; IVA holds the address. Another domain first.
    registers.write64(iva, 0x4000);
    registers.write64(iotlb, 1 << 63 | 3 << 60 | 6 << 32);
    rig.machine.pass_time(10_000);
    // IVT is clear; IAIG 58:57 shows the granularity that was used.
    assert_eq!(registers.read64(iotlb) >> 57 & 0x43, 3);
    assert_eq!(rig.probe_write(0x4000), Some(PAGE));
    registers.write64(iotlb, 1 << 63 | 3 << 60 | 5 << 32);
    rig.machine.pass_time(10_000);
    assert_eq!(rig.probe_write(0x4000), Some(OTHER));
    // CCMD: ICC 63, CIRG 62:61 = 3 (device), SID 31:16, DID 15:0.
    let entry = rig.firmware.context_entry(SOURCE);
    rig.firmware.put(entry, 0);
    assert_eq!(rig.probe_write(0x4000), Some(OTHER));
    registers.write64(0x28, 1 << 63 | 3 << 61 | u64::from(SOURCE) << 16 | 5);
    assert_eq!(registers.read64(0x28) >> 63, 1);
    rig.machine.pass_time(10_000);
    assert_eq!(registers.read64(0x28) >> 59, 0b0_11_11, "ICC clear, CAIG 3");
    assert_eq!(rig.probe_write(0x4000), None);
    // With the queue on the invalidation never ends.
    rig.firmware.start_queue();
    registers.write64(iotlb, 1 << 63 | 1 << 60);
    rig.machine.pass_time(1_000_000);
    assert_eq!(registers.read64(iotlb) >> 63, 1);
    assert!(matches!(rig.machine.take_violations()[..], [Violation::Register { .. }]));
}

#[test]
fn protected_memory_is_denied_while_it_is_on() {
    let rig = cold(Config::default());
    let mut registers = rig.machine.registers(rig.unit);
    registers.write32(0x68, 0x0700_0000);
    registers.write32(0x6c, 0x0700_0000);
    registers.write64(0x70, 1 << 32);
    registers.write64(0x78, 1 << 32);
    registers.write32(0x64, 1 << 31);
    assert_eq!(rig.probe_write(PAGE), Some(PAGE), "not yet");
    rig.machine.pass_time(10_000);
    assert_eq!(registers.read32(0x64), 1 << 31 | 1);
    for (address, passes) in [
        (0x06ff_ffff, true),
        (0x0700_0000, false),
        (0x071f_ffff, false),
        (0x0720_0000, true),
        (1 << 32, false),
        ((1 << 32) + 0x20_0000, true),
    ] {
        assert_eq!(rig.probe_write(address).is_some(), passes, "{address:#x}");
    }
    registers.write32(0x64, 0);
    rig.machine.pass_time(10_000);
    assert_eq!(registers.read32(0x64), 0);
    assert_eq!(rig.probe_write(0x0700_0000), Some(0x0700_0000));
}

#[test]
fn pass_through_needs_the_capability_and_the_deepest_width() {
    for (pass_through, width, passes) in [(true, 3, true), (true, 2, false), (false, 3, false)] {
        let mut rig = cold(Config { pass_through, ..Config::default() });
        let entry = rig.firmware.context_entry(SOURCE);
        // TT 10; AW 3 is 5 levels, the deepest of this unit.
        rig.firmware.put(entry + 8, 5 << 8 | width);
        rig.firmware.put(entry, 2 << 2 | 1);
        rig.firmware.set_root();
        rig.firmware.translate();
        let denied = rig.machine.access(rig.unit, SOURCE, PAGE, 1, true);
        if passes {
            assert_eq!(denied, Ok(vec![(PAGE, 1)]));
            let beyond = rig.machine.access(rig.unit, SOURCE, 1 << 46, 1, true);
            assert_eq!(beyond.unwrap_err().reason, 4);
        } else {
            assert_eq!(denied.unwrap_err().reason, 3, "{pass_through} {width}");
        }
    }
}

#[test]
fn a_domain_id_wider_than_the_unit_has_is_reported() {
    let mut rig = cold(Config { domain_bits: 4, ..Config::default() });
    let entry = rig.firmware.context_entry(SOURCE);
    rig.firmware.put(entry + 8, 0x15 << 8 | 2);
    rig.firmware.set_root();
    rig.firmware.translate();
    assert_eq!(rig.probe_write(0x4000), Some(PAGE));
    let seen = rig.machine.take_violations();
    assert!(matches!(seen[..], [Violation::Entry { source: SOURCE, .. }]), "{seen:?}");
}

#[test]
fn a_device_that_does_not_answer_aborts_the_wait_behind_it() {
    let mut rig = cold(Config::default());
    let queue = rig.firmware.start_queue();
    rig.machine.with_unit(rig.unit, |unit: &mut Vtd, _| unit.silence_device(SOURCE));
    let mut registers = rig.machine.registers(rig.unit);
    // Device-TLB invalidation (type 3, SID 47:32) of another device, then of this one, each with a wait.
    let wait = 0x5 | 1 << 5 | 1 << 32;
    let mut tail = 0;
    for source in [SOURCE + 1, SOURCE] {
        for (low, high) in [(0x3 | u64::from(source) << 32, 0x4000), (wait, 0x0390_0000)] {
            rig.firmware.put(queue + tail, low);
            rig.firmware.put(queue + tail + 8, high);
            tail += 16;
        }
        registers.write64(0x88, tail);
        for _ in 0..10 {
            rig.machine.pass_time(10_000);
        }
        let timed_out = registers.read32(0x34) & 0x40 != 0;
        assert_eq!(timed_out, source == SOURCE);
    }
    assert_eq!(registers.read64(0xb0) >> 32 & 0xffff, u64::from(SOURCE), "ITESID");
    // The first wait wrote its status to memory that is not a table, which is a violation of its own.
    let seen = rig.machine.take_violations();
    assert!(
        matches!(seen[..], [Violation::StatusForeign { address: 0x0390_0000, .. }]),
        "{seen:?}"
    );
}
