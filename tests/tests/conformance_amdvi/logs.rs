//! The event log, the log of page requests, and the fault reasons that only AMD-Vi has.

use iommu_protocol::fault::FaultAccess;
use iommud::addr::Iova;
use iommud::hw::{HardwareFault, RegisterIo, Unit};
use iommud_tests::amdvi::Amdvi;
use iommud_tests::conformance::amdvi::{Subject, matrix};
use iommud_tests::conformance::{Bench, SOURCES, TARGET};

use iommu_protocol::wire::Access;

fn take(bench: &mut Bench<Subject>) -> (Vec<HardwareFault>, u32) {
    bench.machine.pass_time(1_000_000);
    let mut faults = Vec::new();
    let mut sink = |fault| faults.push(fault);
    let lost = bench.unit.take_faults(&mut bench.tables, 10_000, &mut sink).unwrap();
    (faults, lost)
}

/// Requests to addresses that HyperTransport reserves: INVALID_DEVICE_REQUEST, with the address.
#[test]
fn a_request_to_no_memory_is_told_apart() {
    for subject in matrix() {
        let mut bench = Bench::start(&subject);
        let domain = bench.domain(1);
        bench.attach(SOURCES[0], &domain);
        let iova = 0xfd_f800_0000;
        bench.machine.access(bench.number, SOURCES[0].0, iova, 4, true).unwrap_err();
        let (faults, lost) = take(&mut bench);
        assert_eq!((faults.len(), lost), (1, 0));
        let fault = faults[0];
        assert_eq!((fault.source, fault.reason), (SOURCES[0], 8));
        assert_eq!((fault.address, fault.access), (Some(Iova(iova)), FaultAccess::Unknown));
        bench.machine.assert_clean();
    }
}

/// An absent page, a read-only page, and an invalid device table entry are reported with different texts.
#[test]
fn words_tell_reasons_apart() {
    for subject in matrix() {
        let mut bench = Bench::start(&subject);
        let mut domain = bench.domain(1);
        bench.map_as(&mut domain, 0x5000, TARGET, 0x1000, Access::READ);
        bench.attach(SOURCES[0], &domain);
        for iova in [0x5000, 0x7000] {
            bench.machine.access(bench.number, SOURCES[0].0, iova, 4, true).unwrap_err();
        }
        // Mode 7 does not exist (48882 section 2.2.2.1). Plays an entry that other software has corrupted.
        let table = bench.machine.registers(bench.number).read64(0) & 0x000f_ffff_ffff_f000;
        let at = table + 32 * u64::from(SOURCES[2].0);
        bench.machine.with_memory(|memory| {
            memory.cpu_store(at, 0x0e03);
            memory.clean(at);
        });
        bench.unit.invalidate_entry(&mut bench.tables, SOURCES[2], None).unwrap();
        bench.machine.access(bench.number, SOURCES[2].0, 0x9000, 4, false).unwrap_err();
        let (faults, lost) = take(&mut bench);
        let told: Vec<_> = faults.iter().map(|fault| (fault.reason, fault.words)).collect();
        let entry = "device table entry has reserved bits set or an invalid mode";
        assert_eq!(told, [(2, "no permission"), (2, "page not present"), (1, entry)]);
        let accesses: Vec<_> = faults.iter().map(|fault| fault.access).collect();
        let (read, write) = (FaultAccess::Read, FaultAccess::Write);
        assert_eq!((accesses, lost), (vec![write, write, read], 0));
        bench.machine.assert_clean();
    }
}

/// Every page request is answered with "invalid request" (1) and reported, also around the log's end and after an
/// overflow.
#[test]
fn page_requests_are_refused_one_by_one() {
    for subject in matrix().into_iter().filter(|subject| subject.config.page_requests) {
        let mut bench = Bench::start(&subject);
        let now = bench.machine.now();
        let mut expected = Vec::new();
        for round in 0..3_u16 {
            for tag in 0..300 {
                bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| {
                    unit.request_page(now, SOURCES[1].0, tag, 0x7000);
                });
                expected.push((SOURCES[1].0, tag, 1));
            }
            let (faults, lost) = take(&mut bench);
            assert_eq!((faults.len(), lost), (300, 0), "round {round}");
            assert!(faults.iter().all(|fault| fault.reason == 0x101));
        }
        let answers = |bench: &Bench<Subject>| {
            bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| unit.answers().to_vec())
        };
        let mut given = answers(&bench);
        assert_eq!(given.len(), expected.len());
        given.sort_unstable();
        expected.sort_unstable();
        assert_eq!(given, expected);
        for _ in 0..5000 {
            let now = bench.machine.now();
            bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| {
                unit.request_page(now, SOURCES[1].0, 7, 0x7000);
            });
        }
        let (faults, lost) = take(&mut bench);
        assert_eq!((faults.len(), lost >= 1), (4095, true));
        let now = bench.machine.now();
        bench.machine.with_unit(bench.number, |unit: &mut Amdvi, _| {
            unit.request_page(now, SOURCES[2].0, 8, 0x7000);
        });
        assert_eq!(take(&mut bench).0.len(), 1);
        assert_eq!(answers(&bench).last(), Some(&(SOURCES[2].0, 8, 1)));
        bench.machine.assert_clean();
    }
}

/// A log pointer runs ahead of its entry. The backend waits for the entry and reports no false fault.
#[test]
fn an_entry_that_is_late_is_waited_for() {
    for subject in matrix() {
        let mut bench = Bench::start(&subject);
        bench.machine.access(bench.number, SOURCES[1].0, 0x5000, 4, true).unwrap_err();
        let mut faults = Vec::new();
        let mut sink = |fault| faults.push(fault);
        let lost = bench.unit.take_faults(&mut bench.tables, 16, &mut sink).unwrap();
        assert_eq!((faults.len(), lost), (1, 0), "{}", subject.name);
        assert_eq!(faults[0].address, Some(Iova(0x5000)));
        bench.machine.assert_clean();
    }
}
