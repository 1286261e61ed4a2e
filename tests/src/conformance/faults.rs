//! Fault records.

use iommu_protocol::RequesterId;
use iommu_protocol::fault::FaultAccess;
use iommud::addr::Iova;
use iommud::hw::{HardwareFault, Unit};

use super::{Bench, SOURCES, TARGET, UnderTest};

/// A bench with a domain that maps one page at 0x5000 for `SOURCES[0]`.
fn confined<T: UnderTest>(subject: &T) -> Bench<T> {
    let mut bench = Bench::start(subject);
    let mut domain = bench.domain(1);
    bench.map(&mut domain, 0x5000, TARGET, 0x1000);
    bench.attach(SOURCES[0], &domain);
    bench
}

fn fault<T: UnderTest>(bench: &Bench<T>, source: RequesterId, iova: u64, write: bool) {
    let denied = bench.machine.access(bench.number, source.0, iova, 4, write);
    assert!(denied.is_err(), "{source:?} {iova:#x}");
}

/// Takes all records, at most `limit` in each call.
fn take<T: UnderTest>(bench: &mut Bench<T>, limit: usize) -> (Vec<HardwareFault>, u32) {
    let (mut all, mut lost) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let before = all.len();
        let mut sink = |fault| all.push(fault);
        lost += bench.unit.take_faults(&mut bench.tables, limit, &mut sink).expect("faults");
        assert!(all.len() - before <= limit, "more than {limit} at a time");
        if all.len() == before {
            return (all, lost);
        }
    }
    panic!("faults never end");
}

/// Source, page, access and reason of a record match the denied access.
pub fn a_record_tells_what_happened<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    assert_eq!(take(&mut bench, 16), (Vec::new(), 0));
    let cases = [
        (SOURCES[0], 0x7abc, true, FaultAccess::Write),
        (SOURCES[0], 0x9123, false, FaultAccess::Read),
        (SOURCES[1], 0x5000, true, FaultAccess::Write),
        (SOURCES[2], 0x1_2345_6000, false, FaultAccess::Read),
    ];
    for (source, iova, write, access) in cases {
        fault(&bench, source, iova, write);
        let (records, lost) = take(&mut bench, 16);
        assert_eq!((records.len(), lost), (1, 0), "{records:?}");
        let record = records[0];
        assert_eq!((record.source, record.access), (source, access));
        assert_eq!(record.address.map(|Iova(at)| at & !0xfff), Some(iova & !0xfff));
        assert_ne!(record.reason, 0);
        assert!(record.words.len() > 8, "{:?}", record.words);
    }
    bench.machine.assert_clean();
}

/// Different reasons have different codes and different texts.
pub fn reasons_differ<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    let mut seen: Vec<(u16, &str)> = Vec::new();
    for (source, iova, write) in
        [(SOURCES[0], 0x7000, true), (SOURCES[0], 0x7000, false), (SOURCES[2], 0x7000, false)]
    {
        fault(&bench, source, iova, write);
        let record = take(&mut bench, 16).0[0];
        assert!(
            seen.iter().all(|(code, words)| *code != record.reason && *words != record.words),
            "{record:?} {seen:?}"
        );
        seen.push((record.reason, record.words));
    }
    bench.machine.assert_clean();
}

/// A full set of faults comes out oldest first, repeatedly around the unit's ring.
pub fn records_come_in_order_around_the_ring<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    let capacity = subject.fault_capacity();
    for round in 0..5 {
        // Rounds other than the third use about half the capacity, so that the ring starts elsewhere each time.
        let count = if round == 2 { capacity } else { capacity.div_ceil(2) };
        let sources: Vec<u16> = (0..count).map(|at| 0x0100 + u16::try_from(at).unwrap()).collect();
        for source in &sources {
            fault(&bench, RequesterId(*source), 0x8000 + 0x1000 * u64::from(*source), true);
        }
        let (records, lost) = take(&mut bench, 3);
        let told: Vec<u16> = records.iter().map(|record| record.source.0).collect();
        assert!(told == sources, "round {round}: {} of {} in order", told.len(), sources.len());
        let doubt = count == capacity && subject.full_counts_as_lost();
        assert_eq!(lost, u32::from(doubt), "round {round}");
        for record in &records {
            let expected = 0x8000 + 0x1000 * u64::from(record.source.0);
            assert_eq!(record.address.map(|Iova(at)| at & !0xfff), Some(expected));
        }
    }
    bench.machine.assert_clean();
}

/// More faults than the unit holds: the held ones come out, the loss is reported, and recording resumes afterwards.
pub fn an_overflow_is_told_and_over<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    let capacity = subject.fault_capacity();
    for round in 0..3_u16 {
        for at in 0..u16::try_from(capacity).unwrap() + 3 {
            fault(&bench, RequesterId(0x0200 + at), 0x8000, true);
        }
        let (records, lost) = take(&mut bench, 64);
        assert_eq!(records.len(), capacity, "round {round}");
        assert!(lost >= 1, "round {round}");
        for (at, record) in (0..).zip(&records) {
            assert_eq!(record.source, RequesterId(0x0200 + at));
        }
    }
    fault(&bench, SOURCES[1], 0x8000, false);
    let (records, lost) = take(&mut bench, 64);
    assert_eq!((records.len(), lost), (1, 0));
    assert_eq!(records[0].source, SOURCES[1]);
    bench.machine.assert_clean();
}

/// A limit below the number of waiting records leaves the rest for the next call.
pub fn a_limit_leaves_the_rest<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    let capacity = subject.fault_capacity();
    for at in 0..u16::try_from(capacity).unwrap() {
        fault(&bench, RequesterId(0x0200 + at), 0x8000, true);
    }
    let mut told = Vec::new();
    for at in 0..capacity {
        let mut sink = |fault: HardwareFault| told.push(fault.source.0);
        bench.unit.take_faults(&mut bench.tables, 1, &mut sink).expect("faults");
        assert_eq!(told.len(), at + 1);
    }
    let expected: Vec<u16> = (0..capacity).map(|at| 0x0200 + u16::try_from(at).unwrap()).collect();
    assert_eq!(told, expected);
    bench.machine.assert_clean();
}

/// Faults that are never taken do not hinder other operations.
pub fn untaken_faults_do_not_hinder<T: UnderTest>(subject: &T) {
    let mut bench = confined(subject);
    for at in 0..100 {
        fault(&bench, SOURCES[1], 0x8000 + 0x1000 * at, true);
    }
    let mut domain = bench.domain(2);
    bench.map(&mut domain, 0x9000, TARGET, 0x1000);
    bench.attach(SOURCES[2], &domain);
    bench.expect(SOURCES[2], &[super::run(0x9000, TARGET, 0x1000)]);
    bench.unmap(&mut domain, 0x9000, 0x1000);
    bench.expect(SOURCES[2], &[]);
}
