//! Entries of requesters, and the memory that each one reaches.

use iommu_protocol::RequesterId;
use iommud::hw::{Entry, Unit};

use super::{Bench, SOURCES, TARGET, UnderTest, depths, run};
use crate::machine::{Through, Watch};

const IOVA: u64 = 0x20_0000;

/// After enabling, a requester without an entry reaches no memory, on any bus.
pub fn nothing_passes_without_an_entry<T: UnderTest>(subject: &T) {
    let bench = Bench::start(subject);
    assert_eq!(bench.machine.sources(bench.number, Through::TablesAndCaches), Vec::<u16>::new());
    for source in [0x0000, 0x0018, 0x00ff, 0x0500, 0xffff] {
        for iova in [0, 0x1000, TARGET, 0xfee0_0000, 0xffff_f000, 1 << 38] {
            assert_eq!(bench.probe(RequesterId(source), iova, true), None);
            assert_eq!(bench.probe(RequesterId(source), iova, false), None);
        }
    }
    bench.machine.assert_clean();
}

/// An entry admits its own requester to its domain, and no other requester.
pub fn an_entry_is_one_requesters<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let (mut first, mut second) = (bench.domain(1), bench.domain(2));
    bench.map(&mut first, IOVA, TARGET, 0x3000);
    bench.map(&mut second, IOVA, TARGET + 0x10_0000, 0x1000);
    bench.attach(SOURCES[0], &first);
    bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x3000)]);
    bench.expect(SOURCES[1], &[]);
    bench.expect(SOURCES[2], &[]);
    bench.attach(SOURCES[1], &second);
    bench.attach(SOURCES[2], &first);
    bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x3000)]);
    bench.expect(SOURCES[1], &[run(IOVA, TARGET + 0x10_0000, 0x1000)]);
    bench.expect(SOURCES[2], &[run(IOVA, TARGET, 0x3000)]);
    bench.detach(SOURCES[0], &first);
    bench.expect(SOURCES[0], &[]);
    bench.expect(SOURCES[1], &[run(IOVA, TARGET + 0x10_0000, 0x1000)]);
    bench.expect(SOURCES[2], &[run(IOVA, TARGET, 0x3000)]);
}

/// A requester keeps trying while it moves to another domain. Until it is blocked it reaches only the old domain's
/// memory. From then on it reaches only the new domain's.
pub fn a_move_never_opens_anything<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let (mut old, mut new) = (bench.domain(1), bench.domain(2));
    // Maps one address in both domains and one address in each domain alone.
    bench.map(&mut old, IOVA, TARGET, 0x2000);
    bench.map(&mut new, IOVA, TARGET + 0x10_0000, 0x1000);
    bench.map(&mut new, IOVA + 0x4000, TARGET + 0x20_0000, 0x1000);
    bench.attach(SOURCES[0], &old);
    let watch = |bench: &Bench<T>, granted: &[(u64, u64)]| {
        bench.machine.clear_watches();
        for iova in [IOVA, IOVA + 0x1000, IOVA + 0x4000] {
            bench.machine.watch(Watch {
                unit: bench.number,
                source: SOURCES[0].0,
                iova,
                write: true,
                granted: granted.to_vec(),
                must_pass: false,
            });
        }
    };
    let (before, after) = ((TARGET, 0x2000), (TARGET + 0x10_0000, 0x20_0000));
    watch(&bench, &[before]);
    bench.touch(SOURCES[0], IOVA, 0x5000);
    bench.detach(SOURCES[0], &old);
    watch(&bench, &[after]);
    bench.attach(SOURCES[0], &new);
    bench.machine.clear_watches();
    bench.expect(
        SOURCES[0],
        &[run(IOVA, TARGET + 0x10_0000, 0x1000), run(IOVA + 0x4000, TARGET + 0x20_0000, 0x1000)],
    );
    old.pages.destroy(&mut bench.tables);
    bench.machine.assert_clean();
}

/// An overwrite of a translating entry passes through an entry that denies, so that hardware never reads a mixture of
/// both. After the invalidation the old domain's memory is unreachable.
pub fn overwriting_an_entry_never_mixes<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let (mut old, mut new) = (bench.domain(1), bench.domain(2));
    bench.map(&mut old, IOVA, TARGET, 0x1000);
    bench.map(&mut new, IOVA, TARGET + 0x10_0000, 0x1000);
    bench.attach(SOURCES[0], &old);
    bench.machine.watch(Watch {
        unit: bench.number,
        source: SOURCES[0].0,
        iova: IOVA,
        write: false,
        granted: vec![(TARGET, 0x1000), (TARGET + 0x10_0000, 0x1000)],
        must_pass: false,
    });
    bench.unit.write_entry(&mut bench.tables, SOURCES[0], new.entry()).expect("entry");
    bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(old.tag)).expect("invalidate");
    bench.machine.clear_watches();
    bench.expect(SOURCES[0], &[run(IOVA, TARGET + 0x10_0000, 0x1000)]);
}

/// A page table grows while in use. Its translations hold at every instant, through the unit's cached entry and
/// through the new one. Addresses beyond the old table are reachable once the old entry is invalidated.
pub fn a_deeper_table_denies_nothing<T: UnderTest>(subject: &T) {
    let capabilities = Bench::start(subject).capabilities();
    let all = depths(capabilities.levels);
    for (from, to) in all.iter().flat_map(|from| all.iter().map(|to| (*from, *to))) {
        if !capabilities.deepens || from >= to {
            continue;
        }
        let mut bench = Bench::start(subject);
        let mut domain = bench.domain_of(1, from);
        let old = domain.pages.root();
        bench.map(&mut domain, IOVA, TARGET, 0x2000);
        bench.attach(SOURCES[0], &domain);
        bench.touch(SOURCES[0], IOVA, 0x1000);
        let (beyond, memory) = (1 << (12 + 9 * from), TARGET + 0x10_0000);
        let watch = |bench: &Bench<T>, iova: u64, granted, must_pass| {
            let (unit, source) = (bench.number, SOURCES[0].0);
            let granted = vec![granted];
            bench.machine.watch(Watch { unit, source, iova, write: true, granted, must_pass });
        };
        watch(&bench, IOVA, (TARGET, 0x1000), true);
        watch(&bench, IOVA + 0x1000, (TARGET + 0x1000, 0x1000), true);
        watch(&bench, IOVA + 0x2000, (0, 0), false);
        watch(&bench, beyond, (memory, 0x1000), false);

        domain.pages.grow(&mut bench.tables, to).expect("grow");
        assert_eq!(domain.pages.root_at(&bench.tables, from), Some(old));
        bench.unit.write_entry(&mut bench.tables, SOURCES[0], domain.entry()).expect("entry");
        bench.map(&mut domain, beyond, memory, 0x1000);
        // The unit uses its cached entry: exactly the old addresses are reachable.
        assert_eq!(bench.probe(SOURCES[0], beyond, true), None);
        assert_eq!(bench.probe(SOURCES[0], IOVA, true), Some(TARGET));
        let tag = Some(domain.tag);
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag).expect("invalidate");
        watch(&bench, beyond, (memory, 0x1000), true);
        bench.touch(SOURCES[0], IOVA, 0x1000);
        bench.machine.clear_watches();
        bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x2000), run(beyond, memory, 0x1000)]);

        // Then shrinks the table again, as an undo does.
        watch(&bench, IOVA, (TARGET, 0x1000), true);
        bench.unmap(&mut domain, beyond, 0x1000);
        let (tag, levels) = (domain.tag, from);
        let entry = Entry::Translate { tag, root: old, levels };
        bench.unit.write_entry(&mut bench.tables, SOURCES[0], entry).expect("entry");
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(tag)).expect("invalidate");
        domain.pages.shrink(&mut bench.tables, from);
        bench.machine.clear_watches();
        assert_eq!(domain.pages.root(), old);
        bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x2000)]);
    }
}

/// A silenced requester is denied without a fault record. A blocked one is denied with a record.
pub fn a_silenced_requester_leaves_no_record<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let count = |bench: &mut Bench<T>, silent| {
        bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).expect("entry");
        bench.unit.suppress_faults(&mut bench.tables, SOURCES[0], silent).expect("silence");
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], None).expect("invalidate");
        let denied = bench.machine.access(bench.number, SOURCES[0].0, IOVA, 1, true);
        assert!(denied.is_err(), "silent: {silent}");
        let mut records = 0;
        bench.unit.take_faults(&mut bench.tables, 16, &mut |_| records += 1).expect("faults");
        records
    };
    assert_eq!(count(&mut bench, false), 1);
    assert_eq!(count(&mut bench, true), 0);
    assert_eq!(count(&mut bench, false), 1);
    bench.machine.assert_clean();
}

/// Suppressing a requester's faults leaves its reach unchanged. A new entry, or an explicit request, makes its faults
/// reported again. A blocked requester stays blocked.
pub fn silencing_leaves_what_is_reached_as_it_is<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, IOVA, TARGET, 0x1000);
    let set = |bench: &mut Bench<T>, silent, tag| {
        bench.unit.suppress_faults(&mut bench.tables, SOURCES[0], silent).expect("silence");
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], tag).expect("invalidate");
    };
    let records = |bench: &mut Bench<T>| {
        let outside = bench.machine.access(bench.number, SOURCES[0].0, IOVA + 0x1000, 1, true);
        assert!(outside.is_err());
        let mut records = 0;
        bench.unit.take_faults(&mut bench.tables, 16, &mut |_| records += 1).expect("faults");
        records
    };
    set(&mut bench, true, None);
    assert_eq!(records(&mut bench), 0, "blocked");
    bench.expect(SOURCES[0], &[]);
    bench.attach(SOURCES[0], &domain);
    assert_eq!(records(&mut bench), 1, "a new entry");
    for _ in 0..2 {
        set(&mut bench, true, Some(domain.tag));
        assert_eq!(records(&mut bench), 0, "silenced");
        bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x1000)]);
        set(&mut bench, false, Some(domain.tag));
        assert_eq!(records(&mut bench), 1, "heard again");
        bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x1000)]);
    }
    bench.machine.assert_clean();
}

/// A requester is silenced while it keeps trying. From then on it leaves no record and reaches nothing.
pub fn silencing_holds_against_what_was_cached<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, IOVA, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    for iova in [IOVA, IOVA + 0x1000] {
        bench.machine.watch(Watch {
            unit: bench.number,
            source: SOURCES[0].0,
            iova,
            write: true,
            granted: vec![(TARGET, 0x1000)],
            must_pass: false,
        });
    }
    bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).expect("entry");
    bench.unit.suppress_faults(&mut bench.tables, SOURCES[0], true).expect("silence");
    bench
        .unit
        .invalidate_entry(&mut bench.tables, SOURCES[0], Some(domain.tag))
        .expect("invalidate");
    bench.machine.clear_watches();
    for iova in [IOVA, IOVA + 0x1000] {
        let denied = bench.machine.access(bench.number, SOURCES[0].0, iova, 1, true);
        assert!(denied.is_err());
    }
    let mut records = 0;
    bench.unit.take_faults(&mut bench.tables, 16, &mut |_| records += 1).expect("faults");
    assert_eq!(records, 0);
    bench.expect(SOURCES[0], &[]);
}

/// A requester in pass-through mode reaches memory untranslated; others still reach nothing.
pub fn passing_through_is_one_requesters<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let tag = iommud::topology::capabilities::DomainTag(3);
    let entry = Entry::PassThrough { tag };
    let written = bench.unit.write_entry(&mut bench.tables, SOURCES[0], entry);
    if !bench.capabilities().pass_through {
        assert!(written.is_err(), "the unit cannot let anything pass");
        bench.expect(SOURCES[0], &[]);
        return;
    }
    written.expect("entry");
    bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], None).expect("invalidate");
    assert_eq!(bench.probe(SOURCES[0], TARGET + 0x123, true), Some(TARGET + 0x123));
    bench.expect(SOURCES[1], &[]);
    bench.unit.write_entry(&mut bench.tables, SOURCES[0], Entry::Blocked).expect("entry");
    bench.unit.invalidate_entry(&mut bench.tables, SOURCES[0], Some(tag)).expect("invalidate");
    bench.expect(SOURCES[0], &[]);
}

/// Enabling twice is the same as enabling once.
pub fn enabling_is_idempotent<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, IOVA, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench.machine.watch(Watch {
        unit: bench.number,
        source: SOURCES[0].0,
        iova: IOVA,
        write: true,
        granted: vec![(TARGET, 0x1000)],
        must_pass: true,
    });
    bench.unit.enable(&mut bench.tables).expect("enable");
    bench.machine.clear_watches();
    bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x1000)]);
}

/// Entries written before enabling apply from the first instant of translation.
pub fn entries_come_before_translation<T: UnderTest>(subject: &T) {
    let mut bench = Bench::start_disabled(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, IOVA, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench.unit.write_entry(&mut bench.tables, SOURCES[1], Entry::Blocked).expect("entry");
    bench.unit.invalidate_entry(&mut bench.tables, SOURCES[1], None).expect("invalidate");
    bench.unit.enable(&mut bench.tables).expect("enable");
    bench.expect(SOURCES[0], &[run(IOVA, TARGET, 0x1000)]);
    bench.expect(SOURCES[1], &[]);
}
