//! Compares the backend's writes with bytes taken from the specification (VT-d 4.1 chapters 6 and 9).

use iommud::hw::{Entry, Unit};
use iommud_tests::conformance::{Bench, SOURCES, TARGET};
use iommud_tests::vtd::{Config, Vtd};

use iommud_tests::conformance::vtd::Subject;

fn server() -> Subject {
    Subject { name: "server", config: Config::default() }
}

fn word(bench: &Bench<Subject>, address: u64) -> u64 {
    bench.machine.with_memory(|memory| memory.cpu_load(address))
}

/// Returns the descriptors executed while `act` runs, both words of each.
fn descriptors(bench: &mut Bench<Subject>, act: impl FnOnce(&mut Bench<Subject>)) -> Vec<[u64; 2]> {
    use iommud::hw::RegisterIo;
    let mut registers = bench.machine.registers(bench.number);
    // IQA: base in bits 63:12; IQH and IQT: byte offsets.
    let base = registers.read64(0x90) & !0xfff;
    let start = registers.read64(0x80);
    act(bench);
    let end = registers.read64(0x88);
    assert_eq!(registers.read64(0x80), end, "all were executed");
    (start..end)
        .step_by(16)
        .map(|at| [word(bench, base + at), word(bench, base + at + 8)])
        .collect()
}

/// Clears the status data and the address of a wait, which the backend may choose.
fn without_choice([low, high]: [u64; 2]) -> [u64; 2] {
    if low & 0xf == 5 { [low & 0xffff_ffff, high & 3] } else { [low, high] }
}

#[test]
fn root_and_context_entries() {
    use iommud::hw::RegisterIo;
    let mut bench = Bench::start(&server());
    let root = bench.machine.registers(bench.number).read64(0x20);
    assert_eq!(root & 0xfff, 0, "legacy mode");
    let domain = bench.domain_of(0x1234, 4);
    bench.attach(SOURCES[2], &domain);
    // Requester 05:00.0: root entry 5, 16 bytes each: P, the table's address, and a zero word.
    let entry = word(&bench, root + 5 * 16);
    assert_eq!((entry & 0xfff, word(&bench, root + 5 * 16 + 8)), (1, 0));
    let table = entry & !0xfff;
    // Context entry 0: P, TT 00, second-level table; AW 2 (4 levels), domain id 0x1234.
    let page_table = domain.pages.root().0;
    assert_eq!([word(&bench, table), word(&bench, table + 8)], [page_table | 1, 0x0012_3402]);
    // FPD, bit 1 (9.3; QEMU's VTD_CONTEXT_ENTRY_FPD is 2), and nothing else.
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], true).unwrap();
    assert_eq!([word(&bench, table), word(&bench, table + 8)], [page_table | 3, 0x0012_3402]);
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], false).unwrap();
    assert_eq!([word(&bench, table), word(&bench, table + 8)], [page_table | 1, 0x0012_3402]);
    let deep = bench.domain_of(0x0007, 5);
    bench.detach(SOURCES[2], &domain);
    assert_eq!(word(&bench, table) & 3, 0, "blocked: P and FPD clear");
    bench.attach(SOURCES[2], &deep);
    let page_table = deep.pages.root().0;
    assert_eq!([word(&bench, table), word(&bench, table + 8)], [page_table | 1, 0x0000_0703]);
    bench.detach(SOURCES[2], &deep);
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[2], true).unwrap();
    assert_eq!(word(&bench, table) & 3, 2, "silenced: P clear, FPD set");
    // Requester 00:03.1: root entry 0, context entry 0x19; TT 10, AW of the deepest table (5 levels).
    let tag = iommud::topology::capabilities::DomainTag(9);
    bench.unit.write_entry(&mut bench.tables, SOURCES[1], Entry::PassThrough { tag }).unwrap();
    let table = word(&bench, root) & !0xfff;
    let at = table + 0x19 * 16;
    assert_eq!([word(&bench, at), word(&bench, at + 8)], [0x9, 0x0903]);
}

/// Leaves of each size have SNP (bit 11) where the unit has snoop control (ECAP.SC), and keep it when they are split.
/// Entries that point to tables never have it (section 9.8; Linux DMA_PTE_SNP is 1 << 11).
#[test]
fn second_level_entries() {
    for (snoop_control, snp) in [(true, 0x800), (false, 0)] {
        let config = Config { snoop_control, ..Config::default() };
        second_level_entries_of(&Subject { name: "server", config }, snp);
    }
}

fn second_level_entries_of(subject: &Subject, snp: u64) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain_of(1, 4);
    // 0x80_4060_5000: entries 1, 1, 3, 5 from the top.
    bench.map(&mut domain, 0x80_4060_5000, TARGET + 0x7000, 0x1000);
    let mut table = domain.pages.root().0;
    for index in [1, 1, 3] {
        let entry = word(&bench, table + 8 * index);
        assert_eq!(entry & 0xfff, 3, "read and write, nothing else");
        table = entry & !0xfff;
    }
    assert_eq!(word(&bench, table + 8 * 5), 0x1_0000_7003 | snp);
    // 2 MiB: PS (bit 7) at level 2. 1 GiB: PS at level 3.
    bench.map(&mut domain, 0x20_0000, TARGET + 0x20_0000, 0x20_0000);
    bench.map(&mut domain, 0x4000_0000, TARGET, 0x4000_0000);
    let level3 = word(&bench, domain.pages.root().0) & !0xfff;
    assert_eq!(word(&bench, level3 + 8), 0x1_0000_0083 | snp);
    let level2 = word(&bench, level3) & !0xfff;
    assert_eq!(word(&bench, level2 + 8), 0x1_0020_0083 | snp);
    let read = iommu_protocol::wire::Access::READ;
    bench.map_as(&mut domain, 0x40_0000, TARGET, 0x1000, read);
    let level1 = word(&bench, level2 + 16) & !0xfff;
    assert_eq!(word(&bench, level1), 0x1_0000_0001 | snp);
    // Maps one page, then several at once, in an existing table. Then cuts a page out of the 2 MiB.
    bench.map(&mut domain, 0x40_1000, TARGET + 0x1000, 0x1000);
    bench.map(&mut domain, 0x40_2000, TARGET + 0x2000, 0x2000);
    for page in 1..4 {
        assert_eq!(word(&bench, level1 + 8 * page), (0x1_0000_0003 + (page << 12)) | snp);
    }
    bench.unmap(&mut domain, 0x20_3000, 0x1000);
    assert_eq!(word(&bench, level2 + 8) & 0xfff, 3, "a table, without SNP");
    let cut = word(&bench, level2 + 8) & !0xfff;
    assert_eq!(word(&bench, cut + 8 * 2), 0x1_0020_2003 | snp);
    assert_eq!(word(&bench, cut + 8 * 3), 0);
    assert_eq!(word(&bench, cut + 8 * 511), 0x1_003f_f003 | snp);
    let range = iommud_tests::conformance::range(0x50_0000, 0x2000);
    let pages = [TARGET + 0x9000, TARGET].map(iommud::addr::PhysAddr);
    domain.pages.map_list(&mut bench.tables, range, &pages, read).unwrap();
    assert_eq!(word(&bench, level1 + 8 * 256), 0x1_0000_9001 | snp);
    assert_eq!(word(&bench, level1 + 8 * 257), 0x1_0000_0001 | snp);
}

#[test]
fn invalidation_descriptors() {
    let mut bench = Bench::start(&server());
    let mut domain = bench.domain(0x1234);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.map(&mut domain, 0x6000, TARGET, 0x1000);
    bench.attach(SOURCES[2], &domain);
    // A wait: type 5, SW, no IF, address in bits 63:2 of the second word.
    let wait = [0x25, 0];
    // Page-selective (3 << 4), DW, DR, domain id; address, IH because only a leaf was removed, AM 0.
    let seen = descriptors(&mut bench, |bench| bench.unmap(&mut domain, 0x5000, 0x1000));
    let seen: Vec<_> = seen.into_iter().map(without_choice).collect();
    assert_eq!(seen, [[0x1234_00f2, 0x5040], wait]);
    // The last page's table is removed with it: IH clear.
    let seen = descriptors(&mut bench, |bench| bench.unmap(&mut domain, 0x6000, 0x1000));
    let seen: Vec<_> = seen.into_iter().map(without_choice).collect();
    assert_eq!(seen, [[0x1234_00f2, 0x6000], wait]);
    // Seven pages from 0x9000 take eight pages from 0x8000: AM 3.
    bench.map(&mut domain, 0x1000, TARGET, 0x1000);
    bench.map(&mut domain, 0x9000, TARGET, 0x7000);
    let seen = descriptors(&mut bench, |bench| bench.unmap(&mut domain, 0x9000, 0x7000));
    let seen: Vec<_> = seen.into_iter().map(without_choice).collect();
    assert_eq!(seen, [[0x1234_00f2, 0x8000 | 0x40 | 3], wait]);
    // The range exceeds MAMV (9): domain-selective (2 << 4).
    bench.map(&mut domain, 0x20_0000, TARGET, 0x40_1000);
    let seen = descriptors(&mut bench, |bench| bench.unmap(&mut domain, 0x20_0000, 0x40_1000));
    let seen: Vec<_> = seen.into_iter().map(without_choice).collect();
    assert_eq!(seen, [[0x1234_00e2, 0], wait]);
    // Device-selective context (type 1, 3 << 4, domain id, source id 0x0500), then the domain's IOTLB.
    let seen = descriptors(&mut bench, |bench| bench.detach(SOURCES[2], &domain));
    let seen: Vec<_> = seen.into_iter().map(without_choice).collect();
    assert_eq!(seen, [[0x0000_0500_1234_0031, 0], [0x1234_00e2, 0], wait]);
}

#[test]
fn counts_are_those_of_the_descriptors() {
    let mut bench = Bench::start(&server());
    let before = bench.machine.with_unit(bench.number, |unit: &mut Vtd, _| unit.counts());
    let mut domain = bench.domain(3);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench.unmap(&mut domain, 0x5000, 0x1000);
    bench.detach(SOURCES[0], &domain);
    let after = bench.machine.with_unit(bench.number, |unit: &mut Vtd, _| unit.counts());
    assert_eq!(after.contexts - before.contexts, 1, "an absent entry is not cached");
    assert_eq!(after.pages - before.pages, 2);
    assert_eq!(after.waits - before.waits, 2);
}
