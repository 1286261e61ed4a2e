//! Compares literal bytes with the unit's memory.
//!
//! - Device table entries: 48882 section 2.2.2.1, figure "Device Table Entry"; Linux DTE_FLAG_V, DTE_FLAG_TV,
//!   DEV_ENTRY_MODE_SHIFT (9), DTE_FLAG_IR (61), DTE_FLAG_IW (62), domain in bits 15:0 of the second word,
//!   DEV_ENTRY_NO_PAGE_FAULT (98).
//! - Page table entries: section 2.2.3; Linux IOMMU_PTE_PR (0), PM_LEVEL_ENC (11:9), IOMMU_PTE_FC (60), IOMMU_PTE_IR
//!   (61), IOMMU_PTE_IW (62).
//! - Commands: section 2.4; Linux CMD_COMPL_WAIT 1, CMD_INV_DEV_ENTRY 2, CMD_INV_IOMMU_PAGES 3, CMD_INV_ALL 8.

use iommud::hw::{Entry, RegisterIo, Unit};
use iommud::topology::capabilities::DomainTag;
use iommud_tests::amdvi::Amdvi;
use iommud_tests::conformance::amdvi::{Subject, matrix};
use iommud_tests::conformance::{Bench, SOURCES, TARGET};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn bench() -> Bench<Subject> {
    Bench::start(&matrix().remove(0))
}

/// Reads the 32 bytes of the entry of `SOURCES[2]` in memory.
fn stored(bench: &mut Bench<Subject>) -> Vec<u8> {
    let table = bench.machine.registers(bench.number).read64(0) & ADDRESS;
    let at = table + 0x500 * 32;
    bench.machine.with_memory(|memory| memory.clean(at));
    bytes(bench, at, 32)
}

/// Suppresses or restores the faults of `SOURCES[2]`, and reads its entry.
fn silenced(bench: &mut Bench<Subject>, silent: bool) -> Vec<u8> {
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], silent).unwrap();
    stored(bench)
}

fn bytes(bench: &Bench<Subject>, at: u64, count: u64) -> Vec<u8> {
    let words = (at..at + count).step_by(8);
    bench.machine.with_memory(|memory| {
        words.flat_map(|word| memory.memory_load(word).to_le_bytes()).collect()
    })
}

/// Writes the entry of `SOURCES[2]` and reads its 32 bytes. It is cleaned first, because the unit snoops.
fn entry(bench: &mut Bench<Subject>, entry: Entry) -> Vec<u8> {
    bench.unit.write_entry(&mut bench.tables, SOURCES[2], entry).unwrap();
    stored(bench)
}

#[test]
fn device_table_entries() {
    let mut bench = bench();
    let root = iommud::addr::PhysAddr(0x000a_bcde_f012_3000);
    let translate = Entry::Translate { tag: DomainTag(0x1234), root, levels: 4 };
    let mut expected = vec![0x03, 0x38, 0x12, 0xf0, 0xde, 0xbc, 0x0a, 0x60, 0x34, 0x12];
    expected.resize(32, 0);
    assert_eq!(entry(&mut bench, translate), expected);

    // Only SE (97) and SA (98) change (48882 2.2.2.1; Linux has SA as DEV_ENTRY_SA, Xen as dte->sa).
    entry(&mut bench, translate);
    expected[12] = 0x06;
    assert_eq!(silenced(&mut bench, true), expected);
    expected[12] = 0;
    assert_eq!(silenced(&mut bench, false), expected);

    let six = Entry::Translate { tag: DomainTag(0xffff), root, levels: 6 };
    let mut expected = vec![0x03, 0x3c, 0x12, 0xf0, 0xde, 0xbc, 0x0a, 0x60, 0xff, 0xff];
    expected.resize(32, 0);
    assert_eq!(entry(&mut bench, six), expected);

    let through = Entry::PassThrough { tag: DomainTag(9) };
    let mut expected = vec![0x03, 0, 0, 0, 0, 0, 0, 0x60, 9];
    expected.resize(32, 0);
    assert_eq!(entry(&mut bench, through), expected);

    // V, TV, mode 3, a table without pages, no permissions.
    let blocked = entry(&mut bench, Entry::Blocked);
    assert_eq!((blocked[0], blocked[1] & 0x0f, blocked[7]), (0x03, 0x06, 0));
    assert_eq!(blocked[8..], [0; 24]);
    let nothing = u64::from_le_bytes(blocked[..8].try_into().unwrap()) & ADDRESS;
    assert_eq!(bytes(&bench, nothing, 4096), vec![0; 4096]);

    // SE (97) and SA (98).
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], true).unwrap();
    let denied = stored(&mut bench);
    assert_eq!(denied[..8], blocked[..8]);
    let mut expected = vec![0, 0, 0, 0, 0x06];
    expected.resize(24, 0);
    assert_eq!(denied[8..], expected);
}

/// A page table grows: the entry changes from the old to the new value without another value in between. Mode is in
/// bits 11:9 and root in bits 51:12 of the first word (48882 section 2.2.2.1; Linux DEV_ENTRY_MODE_SHIFT, Xen struct
/// amd_iommu_dte paging_mode, pt_root). Xen's amd_iommu_set_root_page_table and Linux's update_dte256 change both in
/// one store of their half. V and TV stay set throughout, and INVALIDATE_DEVTAB_ENTRY follows.
#[test]
fn a_deeper_table_is_one_store_of_the_first_word() {
    let mut bench = bench();
    let mut domain = bench.domain_of(0x1234, 3);
    bench.map(&mut domain, 0x1000, TARGET, 0x1000);
    let before = entry(&mut bench, domain.entry());
    assert_eq!((before[0], before[1] & 0x0f, before[7]), (0x03, 0x06, 0x60), "mode 3");
    let old = u64::from_le_bytes(before[..8].try_into().unwrap()) & ADDRESS;
    for (levels, mode) in [(4, 0x08), (5, 0x0a), (6, 0x0c)] {
        domain.pages.grow(&mut bench.tables, levels).unwrap();
        let steps = bench.machine.steps();
        let deeper = domain.entry();
        bench.unit.write_entry(&mut bench.tables, SOURCES[2], deeper).unwrap();
        assert_eq!(bench.machine.steps() - steps, 1, "stores; the unit snoops");
        let after = entry(&mut bench, deeper);
        assert_eq!((after[0], after[1] & 0x0f, after[7]), (0x03, mode, 0x60));
        assert_eq!(after[8..], before[8..]);
        // Entry 0 of each new root points to the root below: PR, Next Level one less, IR, IW.
        let root = u64::from_le_bytes(after[..8].try_into().unwrap()) & ADDRESS;
        bench.machine.with_memory(|memory| memory.clean(root));
        let link = bytes(&bench, root, 4096);
        assert_eq!((link[0], link[1] & 0x0f, link[7]), (0x01, (levels - 1) * 2, 0x60));
        assert_eq!(link[8..], [0; 4088]);
        let below = u64::from_le_bytes(link[..8].try_into().unwrap()) & ADDRESS;
        assert_eq!(below == old, levels == 4);
    }
}

/// SE and SA (bits 97 and 98, in byte 12) are kept when the table grows. The device's reach stays, and its faults
/// stay unreported.
#[test]
fn a_silenced_entry_deepens_in_one_store_too() {
    let mut bench = bench();
    let mut domain = bench.domain_of(0x1234, 3);
    bench.map(&mut domain, 0x1000, TARGET, 0x1000);
    let before = entry(&mut bench, domain.entry());
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], true).unwrap();
    domain.pages.grow(&mut bench.tables, 4).unwrap();
    let steps = bench.machine.steps();
    bench.unit.write_entry(&mut bench.tables, SOURCES[2], domain.entry()).unwrap();
    assert_eq!(bench.machine.steps() - steps, 1, "never denied");
    let after = stored(&mut bench);
    assert_eq!((after[1] & 0x0f, before[12], after[12]), (0x08, 0, 0x06));
}

/// Checks each entry from the root at level 6 down to the page: 48882 figure "Address translation".
#[test]
fn page_tables_of_six_levels() {
    let mut bench = bench();
    let mut domain = bench.domain_of(1, 6);
    // Indexes 1, 2, 3, 4, 5, 6 from level 6 down.
    let indexes = [1_u64, 2, 3, 4, 5, 6];
    let iova = indexes.iter().fold(0, |iova, index| iova << 9 | index) << 12;
    bench.map(&mut domain, iova, TARGET + 0x7000, 0x1000);
    let mut at = domain.pages.root().0;
    for (level, index) in (1..=6_u8).rev().zip(indexes) {
        let place = at + 8 * index;
        bench.machine.with_memory(|memory| memory.clean(place));
        let entry = bytes(&bench, place, 8);
        if level == 1 {
            // PR, FC, IR, IW; next level 0.
            assert_eq!(entry, [0x01, 0x70, 0, 0, 0x01, 0, 0, 0x70]);
            break;
        }
        // PR, IR, IW; next level one less.
        let next = [0, 0x00, 0x02, 0x04, 0x06, 0x08, 0x0a][usize::from(level)];
        assert_eq!((entry[0], entry[1] & 0x0f, entry[7]), (0x01, next, 0x60), "level {level}");
        at = u64::from_le_bytes(entry.try_into().unwrap()) & ADDRESS;
    }
}

/// Checks 16 pages in 16 equal entries (48882 section 2.2.3, Next Level 7; Linux PAGE_SIZE_PTE), and the rest after
/// one is unmapped.
#[test]
fn pages_over_several_entries() {
    let mut bench = bench();
    let mut domain = bench.domain_of(1, 3);
    bench.map(&mut domain, 0x1_0000, TARGET + 0x2_0000, 0x1_0000);
    let mut at = domain.pages.root().0;
    for _ in 0..2 {
        at = bench.machine.with_memory(|memory| memory.cpu_load(at)) & ADDRESS;
    }
    let entries = |bench: &Bench<Subject>| -> Vec<Vec<u8>> {
        (0x10..0x20)
            .map(|slot| {
                bench.machine.with_memory(|memory| memory.clean(at + 8 * slot));
                bytes(bench, at + 8 * slot, 8)
            })
            .collect()
    };
    // 64 KiB at 0x1_0002_0000: bits 14:12 set, 15 clear; Next Level 7 in bits 11:9.
    assert_eq!(entries(&bench), vec![vec![0x01, 0x7e, 0x02, 0, 0x01, 0, 0, 0x70]; 16]);
    bench.unmap(&mut domain, 0x1_3000, 0x1000);
    for (page, entry) in (0_u8..).zip(entries(&bench)) {
        match page {
            3 => assert_eq!(entry, [0; 8]),
            _ => assert_eq!(entry, [0x01, page << 4, 0x02, 0, 0x01, 0, 0, 0x70]),
        }
    }
}

/// Checks the commands in the ring after the unit was enabled, and the answer to a page request.
///
/// - COMPLETION_WAIT: S in bit 0, address in bits 51:3, code 1, data in the second word (FreeBSD struct
///   amdiommu_cmd_completion_wait, Xen IOMMU_COMP_WAIT_*).
/// - INVALIDATE_IOMMU_ALL: code 8, all other bits clear.
/// - COMPLETE_PPR_REQUEST: device in bits 15:0, code 7, tag in bits 41:32 of the second word, answer in 47:44 (Linux
///   build_complete_ppr, FreeBSD compltag).
#[test]
fn waits_and_answers() {
    let mut bench = Bench::start_disabled(&matrix().remove(0));
    let ring = bench.machine.registers(bench.number).read64(8) & ADDRESS;
    let entry = |bench: &Bench<Subject>, index: u64| {
        bench.machine.with_memory(|memory| memory.clean(ring + 16 * index));
        bytes(bench, ring + 16 * index, 16)
    };
    bench.unit.enable(&mut bench.tables).unwrap();
    let all = entry(&bench, 0);
    assert_eq!(all, [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
    let wait = entry(&bench, 1);
    assert_eq!((wait[0] & 7, wait[6] & 0xf0, wait[7]), (1, 0, 0x10));
    let [to, data] = [0, 8].map(|at| u64::from_le_bytes(wait[at..at + 8].try_into().unwrap()));
    let to = to & 0x000f_ffff_ffff_fff8;
    assert_eq!(bench.machine.with_memory(|memory| memory.cpu_load(to)), data, "answered");

    let now = bench.machine.now();
    bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| {
        unit.request_page(now, 0x0500, 0x1ff, 0x7000);
    });
    bench.machine.pass_time(1_000_000);
    bench.unit.take_faults(&mut bench.tables, 16, &mut |_| {}).unwrap();
    let answer = entry(&bench, 2);
    assert_eq!(answer, [0, 5, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 0, 0xff, 0x11, 0, 0]);
}

/// Checks the ring after each operation: the command, and the wait behind it.
#[test]
fn commands() {
    let mut bench = bench();
    let base = bench.machine.registers(bench.number).read64(8) & ADDRESS;
    let ring = |bench: &mut Bench<Subject>, act: &dyn Fn(&mut Bench<Subject>)| {
        let from = bench.machine.registers(bench.number).read64(0x2008);
        act(bench);
        let to = bench.machine.registers(bench.number).read64(0x2008);
        let mut all = Vec::new();
        for at in (base + from..base + to).step_by(16) {
            bench.machine.with_memory(|memory| memory.clean(at));
            all.extend(bytes(bench, at, 16));
        }
        all
    };
    let one = |bytes: &[u8]| {
        assert_eq!(bytes.len(), 32, "a command and a wait");
        // COMPLETION_WAIT: S, bits 2:1 clear, code 1.
        assert_eq!((bytes[16] & 7, bytes[23] >> 4), (1, 1));
        bytes[..16].to_vec()
    };
    let device = one(&ring(&mut bench, &|bench| {
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[2], None).unwrap();
    }));
    assert_eq!(device, [0, 5, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0]);
    let page = one(&ring(&mut bench, &|bench| {
        let range = iommud_tests::conformance::range(0x1234_5000, 0x1000);
        bench.unit.invalidate_pages(&mut bench.tables, DomainTag(0x5678), range, false).unwrap();
    }));
    assert_eq!(page, [0, 0, 0, 0, 0x78, 0x56, 0, 0x30, 0, 0x50, 0x34, 0x12, 0, 0, 0, 0]);
    // 2 MiB at 2 MiB: bits 19:12 set, 20 clear; S and PDE.
    let large = one(&ring(&mut bench, &|bench| {
        let range = iommud_tests::conformance::range(0x20_0000, 0x20_0000);
        bench.unit.invalidate_pages(&mut bench.tables, DomainTag(1), range, true).unwrap();
    }));
    assert_eq!(large, [0, 0, 0, 0, 1, 0, 0, 0x30, 0x03, 0xf0, 0x2f, 0, 0, 0, 0, 0]);
}
