//! Tests of the software VT-d unit itself, driven with raw registers and bits: items that stay cached until
//! invalidated, denials and their reports. Expectations come from the specification (VT-d 4.1), never from the
//! backend.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod commands;

use iommud::hw::{Clock, RegisterIo, TableMemory};
use iommud_tests::machine::{
    Denied, Eviction, Machine, Reach, Request, SoftwareUnit, Through, Use, Violation,
};
use iommud_tests::vtd::firmware::Firmware;
use iommud_tests::vtd::{Config, Vtd};

/// Requester 00:03.0.
const SOURCE: u16 = 0x0018;
const TABLES: u64 = 0x0300_0000;
const PAGE: u64 = 0x0700_0000;
const OTHER: u64 = 0x0701_0000;

struct Rig {
    machine: Machine,
    unit: usize,
    firmware: Firmware,
    table: u64,
    levels: u8,
    queue: u64,
    tail: u64,
}

/// A unit whose tables map 0x4000 to `PAGE` for `SOURCE` in domain 5; translation and queue are off.
fn cold(config: Config) -> Rig {
    let machine = Machine::default();
    let levels = config.levels[0];
    let unit = Vtd::add(&machine, config);
    let mut firmware = Firmware::new(&machine, unit, TABLES);
    let table = firmware.frame();
    firmware.map(table, levels, 0x4000, PAGE);
    firmware.attach(SOURCE, 5, table, levels);
    Rig { machine, unit, firmware, table, levels, queue: 0, tail: 0 }
}

/// The same unit with translation and queue on.
fn rig(config: Config) -> Rig {
    let mut rig = cold(config);
    rig.firmware.set_root();
    rig.queue = rig.firmware.start_queue();
    rig.firmware.translate();
    rig
}

impl Rig {
    fn probe(&self, iova: u64) -> Option<u64> {
        self.machine.probe(self.unit, SOURCE, iova, false)
    }

    fn probe_write(&self, iova: u64) -> Option<u64> {
        self.machine.probe(self.unit, SOURCE, iova, true)
    }

    fn submit(&mut self, low: u64, high: u64) {
        self.firmware.put(self.queue + self.tail, low);
        self.firmware.put(self.queue + self.tail + 8, high);
        self.tail = (self.tail + 16) % 4096;
        self.machine.registers(self.unit).write64(0x88, self.tail);
        for _ in 0..10 {
            self.machine.clock().relax();
        }
    }

    fn read32(&self, offset: u32) -> u32 {
        self.machine.registers(self.unit).read32(offset)
    }

    fn word(&self, at: u64) -> u64 {
        self.machine.with_memory(|memory| memory.cpu_load(at))
    }

    /// Returns the address of the entry at `level` on the way to iova 0.
    fn entry_at(&self, level: u8) -> u64 {
        let mut at = self.table;
        for _ in level..self.levels {
            at = self.word(at) & 0x000f_ffff_ffff_f000;
        }
        at
    }
}

#[test]
fn capability_registers_have_the_documented_fields() {
    // CAP of QEMU 7.2 with aw-bits=48 and caching-mode off, ECAP with intremap=off: MAMV 18, NFR 0, PSI, SLLPS 2M and
    // 1G, FRO 0x22, MGAW 48, SAGAW 39 and 48, ND 16 bits; IRO 0xf. This model sets ZLR, DWD, DRD and PT where QEMU's
    // version differs, so those bits are masked.
    let config = Config::qemu();
    let ignored = 1 << 22 | 1 << 54 | 1 << 55;
    assert_eq!(config.capability() & !ignored, 0x0012_008c_222f_0606);
    assert_eq!(config.extended() & !(1 << 6), 0x0000_0000_0000_0f02);
}

#[test]
fn a_translation_stays_until_it_is_invalidated() {
    let mut rig = rig(Config::default());
    assert_eq!(rig.probe(0x4000), Some(PAGE));
    rig.firmware.map(rig.table, rig.levels, 0x4000, OTHER);
    assert_eq!(rig.probe(0x4123), Some(PAGE + 0x123), "stale");
    // An invalidation of another domain changes nothing: domain-selective, did 6.
    rig.submit(0x2 | 2 << 4 | 6 << 16, 0);
    assert_eq!(rig.probe(0x4000), Some(PAGE), "stale");
    // Page-selective, did 5, of the neighbouring page.
    rig.submit(0x2 | 3 << 4 | 5 << 16, 0x5000);
    assert_eq!(rig.probe(0x4000), Some(PAGE), "stale");
    // Page-selective, did 5, IH, address mask 1: 0x4000 and 0x5000.
    rig.submit(0x2 | 3 << 4 | 5 << 16, 0x4000 | 1 << 6 | 1);
    assert_eq!(rig.probe(0x4000), Some(OTHER));
}

#[test]
fn an_unlinked_table_stays_until_its_invalidation_without_the_leaf_hint() {
    let mut rig = rig(Config::default());
    rig.firmware.map(rig.table, rig.levels, 0x9000, OTHER);
    assert_eq!(rig.probe(0x4000), Some(PAGE));
    // Removes the level-2 entry for addresses below 2 MiB. A walk of another page below it still succeeds through the
    // cached entry.
    rig.firmware.put(rig.entry_at(2), 0);
    rig.submit(0x2 | 3 << 4 | 5 << 16, 0x8000 | 1 << 6 | 3);
    assert_eq!(rig.probe(0x9000), Some(OTHER), "IH keeps tables cached");
    rig.submit(0x2 | 3 << 4 | 5 << 16, 0x8000 | 3);
    assert_eq!(rig.probe(0x9000), None);
    assert_eq!(rig.probe(0x4000), Some(PAGE), "the leaf of another page was not covered");
}

#[test]
fn a_context_stays_until_invalidated_under_the_domain_it_was_cached_with() {
    let mut rig = rig(Config::default());
    assert_eq!(rig.probe(0x4000), Some(PAGE));
    let entry = rig.firmware.context_entry(SOURCE);
    rig.firmware.put(entry, 0);
    assert_eq!(rig.probe(0x4000), Some(PAGE), "stale");
    let device = |did: u64| 0x1 | 3 << 4 | did << 16 | u64::from(SOURCE) << 32;
    rig.submit(device(6), 0);
    assert_eq!(rig.probe(0x4000), Some(PAGE), "another domain id");
    rig.submit(device(5), 0);
    assert_eq!(rig.probe(0x4000), None);
    // The leaf is still cached for other requesters in domain 5.
    rig.firmware.attach(SOURCE + 1, 5, rig.table, rig.levels);
    rig.firmware.map(rig.table, rig.levels, 0x4000, OTHER);
    assert_eq!(rig.machine.probe(rig.unit, SOURCE + 1, 0x4000, false), Some(PAGE));
}

#[test]
fn caching_mode_keeps_absent_entries() {
    let mut rig = rig(Config { caching_mode: true, ..Config::default() });
    assert_eq!(rig.probe(0x8000), None);
    rig.firmware.map(rig.table, rig.levels, 0x8000, OTHER);
    assert_eq!(rig.probe(0x8000), None, "stale");
    rig.submit(0x2 | 3 << 4 | 5 << 16, 0x8000);
    assert_eq!(rig.probe(0x8000), Some(OTHER));
    // An absent context entry is cached under domain id 0.
    assert_eq!(rig.machine.probe(rig.unit, 0x20, 0x4000, false), None);
    rig.firmware.attach(0x20, 5, rig.table, rig.levels);
    assert_eq!(rig.machine.probe(rig.unit, 0x20, 0x4000, false), None, "stale");
    rig.submit(0x1 | 3 << 4 | 5 << 16 | 0x20 << 32, 0);
    assert_eq!(rig.machine.probe(rig.unit, 0x20, 0x4000, false), None, "cached under id 0");
    rig.submit(0x1 | 3 << 4 | 0x20 << 32, 0);
    assert_eq!(rig.machine.probe(rig.unit, 0x20, 0x4000, false), Some(PAGE));
}

#[test]
fn a_store_is_seen_when_its_line_is_cleaned_and_the_write_buffer_flushed() {
    let config = Config { coherent: false, write_buffer: true, ..Config::default() };
    let machine = Machine::default();
    let unit = Vtd::add(&machine, config);
    let mut tables = machine.tables();
    let frame = tables.allocate().unwrap();
    let seen =
        |machine: &Machine| machine.with_memory(|memory| memory.walk_load(unit, frame.0 + 64));
    tables.store(frame, 8, 7);
    assert_eq!(seen(&machine), 0, "in the cache");
    tables.clean(frame, 0, 8);
    assert_eq!(seen(&machine), 0, "another line was cleaned");
    tables.clean(frame, 15, 1);
    assert_eq!(seen(&machine), 0, "in the write buffer");
    // WBF: bit 27 of GCMD.
    machine.registers(unit).write32(0x18, 1 << 27);
    assert_ne!(machine.registers(unit).read32(0x1c) & 1 << 27, 0);
    machine.pass_time(10_000);
    assert_eq!(machine.registers(unit).read32(0x1c) & 1 << 27, 0);
    assert_eq!(seen(&machine), 7);
}

#[test]
fn random_eviction_writes_lines_without_a_clean() {
    let machine = Machine::default();
    Vtd::add(&machine, Config::qemu());
    machine.with_memory(|memory| memory.set_eviction(Eviction::Random(0x1234_5678)));
    let mut tables = machine.tables();
    let frame = tables.allocate().unwrap();
    (0..512).step_by(8).for_each(|index| tables.store(frame, index, 1));
    let seen = (0..64)
        .filter(|line| machine.with_memory(|memory| memory.memory_load(frame.0 + 64 * line)) == 1);
    assert!((16..48).contains(&seen.count()));
}

/// Each reason for denying an access in legacy mode, with its code from the specification.
#[test]
fn every_reason_has_its_code() {
    let mut rig = rig(Config { snoop_control: false, ..Config::default() });
    let entry = rig.firmware.context_entry(SOURCE);
    let (low, high) = (rig.word(entry), rig.word(entry + 8));
    let root_entry = rig.firmware.root();
    let root = rig.word(root_entry);
    let leaf = rig.entry_at(1) + 4 * 8;
    let nowhere = 0x0000_3fff_ffff_f000;
    // Address of the word to change, its value, an access, and the reason.
    let cases: &[(u64, u64, bool, u64, u16)] = &[
        (root_entry, 0, false, 0x4000, 0x1),
        (entry, 0, false, 0x4000, 0x2),
        (entry + 8, high & !7, false, 0x4000, 0x3),
        (entry, low | 3 << 2, false, 0x4000, 0x3),
        (leaf, PAGE | 3, false, 1 << 48, 0x4),
        (leaf, PAGE | 1, true, 0x4000, 0x5),
        (leaf, 0, true, 0x4000, 0x5),
        (leaf, PAGE | 2, false, 0x4000, 0x6),
        (leaf, 0, false, 0x4000, 0x6),
        (entry, nowhere | 1, false, 0x4000, 0x7),
        (root_entry, nowhere | 1, false, 0x4000, 0x9),
        (root_entry, root | 2, false, 0x4000, 0xa),
        (root_entry + 8, 1, false, 0x4000, 0xa),
        (entry, low | 1 << 4, false, 0x4000, 0xb),
        (entry + 8, high | 1 << 24, false, 0x4000, 0xb),
        (leaf, PAGE | 3 | 1 << 7, false, 0x4000, 0xc),
        (leaf, PAGE | 3 | 1 << 11, false, 0x4000, 0xc),
        (leaf, 1 << 50 | 3, false, 0x4000, 0xc),
    ];
    for &(at, value, write, iova, reason) in cases {
        let old = rig.word(at);
        rig.firmware.put(at, value);
        rig.submit(0x1 | 1 << 4, 0);
        rig.submit(0x2 | 1 << 4, 0);
        let denied = rig.machine.access(rig.unit, SOURCE, iova, 1, write);
        assert_eq!(denied, Err(Denied { reason, iova }), "{at:#x} = {value:#x}");
        rig.firmware.put(at, old);
    }
    rig.submit(0x1 | 1 << 4, 0);
    rig.submit(0x2 | 1 << 4, 0);
    assert_eq!(rig.probe(0x4000), Some(PAGE));
    // 0x8: the root table itself cannot be read.
    rig.machine.registers(rig.unit).write64(0x20, nowhere);
    rig.firmware.command(1 << 30, true);
    rig.submit(0x1 | 1 << 4, 0);
    let denied = rig.machine.access(rig.unit, SOURCE, 0x4000, 1, false);
    assert_eq!(denied, Err(Denied { reason: 0x8, iova: 0x4000 }));
}

#[test]
fn fault_records_fill_a_ring_and_overflow() {
    let rig = rig(Config { fault_records: 2, ..Config::default() });
    let fault = |source, iova, write| {
        assert!(rig.machine.access(rig.unit, source, iova, 1, write).is_err());
    };
    let mut registers = rig.machine.registers(rig.unit);
    fault(SOURCE, 0x1_2345, true);
    // Record 0 at FRO: the page's address; F, type write, reason 5, source 0x0018.
    assert_eq!(registers.read64(0x400), 0x1_2000);
    assert_eq!(registers.read64(0x408), 0x8000_0005_0000_0018);
    // PPF, FRI 0.
    assert_eq!(rig.read32(0x34), 0x2);
    fault(0x0020, 0x7000, false);
    assert_eq!(registers.read64(0x418), 0xc000_0002_0000_0020);
    fault(SOURCE, 0x8000, false);
    assert_eq!(rig.read32(0x34), 0x3, "PFO");
    // Clears F of record 0. Without clearing PFO nothing is recorded.
    registers.write32(0x40c, 1 << 31);
    fault(SOURCE, 0x9000, false);
    assert_eq!(registers.read64(0x408) >> 63, 0);
    registers.write32(0x34, 1);
    fault(SOURCE, 0x9000, false);
    assert_eq!(registers.read64(0x408), 0xc000_0006_0000_0018);
    // FRI stays while PPF is set. Once all records are cleared, it becomes the index of the first new one.
    assert_eq!(rig.read32(0x34), 0x2);
    registers.write64(0x418, 1 << 63);
    registers.write64(0x408, 1 << 63);
    assert_eq!(rig.read32(0x34) & 3, 0);
    fault(SOURCE, 0xa000, false);
    assert_eq!(rig.read32(0x34), 0x102, "the next record has index 1");
}

#[test]
fn a_fault_of_a_context_with_fpd_is_not_recorded() {
    let mut rig = rig(Config::default());
    // P=0, FPD=1: blocked without records. P=1, FPD=1: page faults leave no record either.
    for low in [0x2, rig.table | 0x3] {
        let entry = rig.firmware.context_entry(SOURCE);
        rig.firmware.put(entry, low);
        rig.submit(0x1 | 1 << 4, 0);
        assert!(rig.machine.access(rig.unit, SOURCE, 0x9000, 1, true).is_err());
        assert_eq!(rig.read32(0x34) & 0x2, 0, "no record for {low:#x}");
    }
}

#[test]
fn a_malformed_descriptor_stops_the_queue_until_it_is_replaced_and_the_error_cleared() {
    let mut rig = rig(Config::default());
    // Reserved bit 8 of an IOTLB descriptor.
    rig.submit(0x2 | 1 << 4 | 1 << 8, 0);
    assert_eq!(rig.read32(0x34) & 0x10, 0x10);
    assert_eq!(rig.machine.registers(rig.unit).read64(0x80), 0, "the head stays");
    assert_eq!(rig.machine.registers(rig.unit).read64(0xb0) & 0xf, 3, "reserved field");
    rig.submit(0x2 | 1 << 4, 0);
    assert_eq!(rig.machine.registers(rig.unit).read64(0x80), 0, "nothing is fetched");
    rig.firmware.put(rig.queue, 0x2 | 1 << 4);
    rig.machine.registers(rig.unit).write32(0x34, 0x10);
    rig.machine.pass_time(10_000);
    rig.machine.pass_time(10_000);
    assert_eq!(rig.machine.registers(rig.unit).read64(0x80), 32);
    for (low, high) in [(0x0, 0), (0x1, 0), (0x2, 0), (0x8, 0), (0x2 | 3 << 4, 0x3f)] {
        let before = rig.machine.registers(rig.unit).read64(0x80);
        rig.submit(low, high);
        assert_eq!(rig.read32(0x34) & 0x10, 0x10, "{low:#x}");
        rig.firmware.put(rig.queue + before, 0x2 | 1 << 4);
        rig.firmware.put(rig.queue + before + 8, 0);
        rig.machine.registers(rig.unit).write32(0x34, 0x10);
        rig.machine.pass_time(10_000);
        assert_eq!(rig.machine.registers(rig.unit).read64(0x80), before + 16);
    }
}

#[test]
fn a_wait_writes_its_status_after_what_precedes_it_and_wraps() {
    let mut rig = rig(Config::default());
    let mut tables = rig.machine.tables();
    let status = tables.allocate().unwrap();
    for round in 1..=300_u64 {
        // SW, data in bits 63:32.
        rig.submit(0x5 | 1 << 5 | round << 32, status.0 + 8);
        assert_eq!(tables.load(status, 1), round);
    }
    rig.machine.with_unit(rig.unit, |unit: &mut Vtd, _| unit.abort_waits(1));
    rig.submit(0x5 | 1 << 5 | 999 << 32, status.0 + 8);
    assert_eq!(rig.read32(0x34) & 0x40, 0x40, "ITE");
    assert_eq!(tables.load(status, 1), 300);
    assert_eq!(rig.machine.registers(rig.unit).read64(0x80), rig.tail, "consumed");
    rig.submit(0x5 | 1 << 5 | 301 << 32, status.0 + 8);
    assert_eq!(tables.load(status, 1), 300, "nothing is fetched");
    rig.machine.registers(rig.unit).write32(0x34, 0x40);
    rig.machine.pass_time(10_000);
    assert_eq!(tables.load(status, 1), 301);
}

#[test]
fn rules_that_software_breaks_are_reported() {
    let rig = rig(Config::default());
    let mut registers = rig.machine.registers(rig.unit);
    let rule = |machine: &Machine| match machine.take_violations().as_slice() {
        [Violation::Register { rule, .. }, ..] => *rule,
        other => panic!("{other:?}"),
    };
    // Turns the queue off and flushes the write buffer in one write.
    registers.write32(0x18, 0x8800_0000);
    assert_eq!(rule(&rig.machine), "one bit may change at a time");
    rig.machine.pass_time(10_000);
    registers.write32(0x18, 0);
    assert!(rule(&rig.machine).starts_with("translation is turned off"));
    rig.machine.pass_time(10_000);
    assert_eq!(rig.machine.probe(rig.unit, 0x99, 0x1234_5678, true), Some(0x1234_5678));
    registers.write64(0x34, 0);
    assert_eq!(rule(&rig.machine), "a misaligned access");
    registers.write64(0x38, 0);
    assert_eq!(rule(&rig.machine), "a 64-bit access to a 32-bit register");
    registers.write64(0x08, 0);
    assert_eq!(rule(&rig.machine), "a write to a register that takes none");
}

#[test]
fn a_frame_given_back_too_early_is_seen() {
    let machine = Machine::default();
    let unit = Vtd::add(&machine, Config::default());
    let mut firmware = Firmware::new(&machine, unit, TABLES);
    let mut tables = machine.tables();
    let root = tables.allocate().unwrap();
    firmware.attach(SOURCE, 5, root.0, 4);
    firmware.map(root.0, 4, 0x4000, PAGE);
    firmware.set_root();
    firmware.translate();
    assert_eq!(machine.probe(unit, SOURCE, 0x4000, false), Some(PAGE));
    tables.free(root, false);
    let seen = machine.take_violations();
    assert!(matches!(seen[..], [Violation::FreedInUse { address, .. }] if address == root.0));
    assert_eq!(machine.probe(unit, SOURCE, 1 << 40, false), None);
    let seen = machine.take_violations();
    assert!(matches!(seen[..], [Violation::WalkedForeign { .. }]), "{seen:?}");
    tables.free(root, false);
    assert!(matches!(machine.take_violations()[..], [Violation::FreedTwice { .. }]));
    assert_eq!(tables.load(root, 0), 0);
    assert!(matches!(machine.take_violations()[..], [Violation::NotATable { .. }]));
}

#[test]
fn reach_lists_tables_alone_or_with_what_caches_may_add() {
    let mut rig = rig(Config::default());
    rig.firmware.map(rig.table, rig.levels, 0x5000, PAGE + 0x1000);
    assert_eq!(rig.probe(0x4000), Some(PAGE));
    let run = |iova, last, physical| Reach { iova, last, physical, read: true, write: true };
    let list = |rig: &Rig, through| rig.machine.reach(rig.unit, SOURCE, through);
    assert_eq!(list(&rig, Through::Tables), [run(0x4000, 0x5fff, PAGE)]);
    rig.firmware.map(rig.table, rig.levels, 0x4000, OTHER);
    assert_eq!(
        list(&rig, Through::Tables),
        [run(0x4000, 0x4fff, OTHER), run(0x5000, 0x5fff, PAGE + 0x1000)]
    );
    assert!(list(&rig, Through::TablesAndCaches).contains(&run(0x4000, 0x4fff, PAGE)));
    let entry = rig.firmware.context_entry(SOURCE);
    rig.firmware.put(entry, 0);
    assert_eq!(list(&rig, Through::Tables), []);
    assert_eq!(rig.machine.sources(rig.unit, Through::Tables), Vec::<u16>::new());
    assert_eq!(rig.machine.sources(rig.unit, Through::TablesAndCaches), [SOURCE]);
    assert!(list(&rig, Through::TablesAndCaches).contains(&run(0x4000, 0x4fff, OTHER)));
}

#[test]
fn two_units_have_their_own_views_and_caches() {
    let machine = Machine::default();
    let mut units = Vec::new();
    for (at, start) in [(0_u64, TABLES), (1, TABLES + 0x10_0000)] {
        let unit = Vtd::add(&machine, Config::default());
        let mut firmware = Firmware::new(&machine, unit, start);
        let table = firmware.frame();
        firmware.map(table, 4, 0x4000, PAGE + at * 0x1000);
        firmware.attach(SOURCE, 5, table, 4);
        firmware.set_root();
        firmware.translate();
        units.push(unit);
    }
    assert_eq!(machine.probe(units[0], SOURCE, 0x4000, true), Some(PAGE));
    assert_eq!(machine.probe(units[1], SOURCE, 0x4000, true), Some(PAGE + 0x1000));
    // Interrupt messages are neither translated nor memory accesses.
    assert_eq!(machine.probe(units[0], SOURCE, 0xfee0_0000, true), None);
    machine.with_unit(units[0], |unit: &mut Vtd, bus| {
        let request = Request { source: SOURCE, iova: 0x4000, write: true, record: true };
        assert_eq!(unit.translate(bus, request), Ok(PAGE));
    });
    assert_eq!(machine.with_memory(|memory| memory.purpose(PAGE)), Some(Use::Ram));
}
