//! Allocations, imports, and what becomes of a buffer.

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags};

use crate::addr::PhysRange;
use crate::policy::tests::scenarios::{PAGE, two_units};
use crate::policy::tests::world::*;
use crate::policy::{AllocateRequest, Config, Event, Import, Registry, SessionId, UnitIndex};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::firmware::Firmware;
use crate::topology::testing::{address, endpoint};

/// Memory of the server, in pages.
fn at(page: u64, pages: u64) -> PhysRange {
    phys(OWN + page * PAGE, pages * PAGE)
}

/// Changes a request.
type Edit<'a> = &'a dyn Fn(&mut AllocateRequest);

/// Allocates a buffer of these segments, with a changed request; returns its first address.
fn tried(
    bench: &mut Bench,
    session: SessionId,
    segments: &[PhysRange],
    edit: Edit<'_>,
) -> Result<u64, Refusal> {
    let mut event = bench.allocation(session, segments, AllocateFlags::empty());
    edit(&mut event.1);
    bench.allocated(&event).map(|(_, iova, _)| iova).map_err(|refused| refused.refusal)
}

#[test]
fn requests_for_buffers_are_checked() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    let refused: [(Edit<'_>, Refusal); 10] = [
        (&|r| r.access = Access::empty(), Refusal::BadAccess),
        (&|r| r.access = Access::from_bits_retain(4), Refusal::BadAccess),
        (&|r| r.access = Access::from_bits_retain(5), Refusal::BadAccess),
        (&|r| r.alignment = 512, Refusal::Alignment),
        (&|r| r.alignment = 3 * PAGE, Refusal::Alignment),
        (&|r| r.alignment = PAGE + 1, Refusal::Alignment),
        (&|r| r.boundary = PAGE, Refusal::Range),
        (&|r| r.boundary = 3 * PAGE, Refusal::Range),
        (&|r| r.length = 3 * PAGE, Refusal::Range),
        (&|r| r.buffer.0 += 1, Refusal::BadHandle),
    ];
    for (number, (edit, expected)) in refused.into_iter().enumerate() {
        assert_eq!(tried(&mut bench, session, &[at(0, 2)], edit), Err(expected), "{number}");
    }
    let allowed: [Edit<'_>; 5] = [
        &|r| r.access = Access::READ,
        &|r| r.alignment = PAGE,
        &|r| r.alignment = 2 * PAGE,
        &|r| r.boundary = 2 * PAGE,
        &|r| r.boundary = 4 * PAGE,
    ];
    for (number, edit) in (0..).zip(allowed) {
        let memory = [at(2 * number, 2)];
        assert!(tried(&mut bench, session, &memory, edit).is_ok(), "{number}");
    }
}

#[test]
fn memory_of_buffers_is_whole_pages_that_no_other_buffer_has() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.buffer(session, 2);
    let halves = [phys(OWN + 8 * PAGE, PAGE + 2048), phys(OWN + 16 * PAGE + 2048, 2048)];
    for (segments, expected) in [
        (&halves[..], Refusal::Alignment),
        (&[halves[1], halves[0]], Refusal::Alignment),
        (&[at(4, 1), at(4, 1)], Refusal::Busy),
        (&[at(4, 2), at(5, 1)], Refusal::Busy),
        (&[at(1, 1)], Refusal::Busy),
        (&[at(4, 1), at(0, 1)], Refusal::Busy),
    ] {
        assert_eq!(tried(&mut bench, session, segments, &|_| ()), Err(expected), "{segments:?}");
    }
    tried(&mut bench, session, &[at(3, 1), at(2, 1)], &|_| ()).unwrap();
}

/// Tables of the unit hold addresses of 46 bits.
#[test]
fn memory_of_buffers_is_within_reach_of_the_unit() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    let last = phys((1 << 46) - PAGE, PAGE);
    let beyond = phys(1 << 46, PAGE);
    for segments in [&[beyond][..], &[phys((1 << 46) - PAGE, 2 * PAGE)], &[at(0, 1), beyond]] {
        let refused = tried(&mut bench, session, segments, &|_| ());
        assert_eq!(refused, Err(Refusal::NoMemory), "{segments:?}");
    }
    tried(&mut bench, session, &[last], &|_| ()).unwrap();
}

/// A unit of 40 bits comes up after a client got memory beyond.
#[test]
fn imported_buffers_are_within_reach_of_the_unit() {
    let mut bench = Bench::cold(Config::default(), two_units());
    for device in [3, 4] {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    bench.run(&ready(0)).unwrap();
    let first = bench.claim(1, address(0, 3, 0));
    let buffers = [phys((1 << 40) - PAGE, PAGE), phys(1 << 40, PAGE)].map(|memory| {
        let event = bench.allocation(first, &[memory], AllocateFlags::empty());
        bench.allocated(&event).unwrap().2
    });
    let narrow = UnitCapabilities { physical_bits: 40, ..capabilities() };
    bench.run(&Event::UnitReady(UnitIndex(1), narrow)).unwrap();
    let second = bench.claim(1, address(0, 4, 0));
    assert_eq!(bench.refused(&Import(second, buffers[1])), Refusal::NoMemory);
    bench.run(&Import(second, buffers[0])).unwrap();
}

/// An allocation counts as one mapping, confined or not, unless it only reserves addresses.
#[test]
fn buffers_that_are_mapped_count_as_one_mapping() {
    for (firmware, flags, mappings) in [
        (one_unit(), AllocateFlags::empty(), 1),
        (one_unit(), AllocateFlags::UNMAPPED, 0),
        (Firmware::default(), AllocateFlags::empty(), 1),
        (Firmware::default(), AllocateFlags::UNMAPPED, 0),
    ] {
        let mut bench = Bench::new(Config::default(), firmware, &[endpoint(0, 4, 0)]);
        let session = bench.claim(1, address(0, 4, 0));
        let (slot, ..) = bench.allocate(session, 2 * PAGE, flags).unwrap();
        let view = |registry: &Registry| registry.session(session).unwrap().mappings_left;
        assert_eq!(bench.registry.counts().mappings, mappings);
        assert_eq!(view(&bench.registry) as usize, (1 << 16) - mappings);
        bench.run(&Event::Release(session, slot)).unwrap();
        assert_eq!(view(&bench.registry), 1 << 16);
    }
}

/// Without a unit the memory's own address must do.
#[test]
fn buffers_of_devices_without_a_unit_are_where_their_memory_is() {
    const LAST_LOW: u64 = (1 << 32) - PAGE;
    let mut bench = Bench::new(Config::default(), Firmware::default(), &[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    let none = AllocateFlags::empty();
    // `OWN` is a multiple of 1 MiB.
    for (memory, alignment, boundary, flags, fits) in [
        (at(0, 2), 0, 0, none, true),
        (at(2, 2), 0, 2 * PAGE, none, true),
        (at(5, 2), 0, 2 * PAGE, none, false),
        (at(15, 2), 0, 16 * PAGE, none, false),
        (at(14, 2), 0, 16 * PAGE, none, true),
        (at(17, 16), 0, 16 * PAGE, none, false),
        (at(32, 1), 32 * PAGE, 0, none, true),
        (at(48, 1), 32 * PAGE, 0, none, false),
        (at(65, 1), 2 * PAGE, PAGE, none, false),
        (phys(LAST_LOW, PAGE), 0, 0, none, true),
        (phys(1 << 32, PAGE), 0, 0, none, false),
        (phys(1 << 32, PAGE), 0, 0, AllocateFlags::ABOVE_4G, true),
    ] {
        let found = tried(&mut bench, session, &[memory], &|request| {
            (request.alignment, request.boundary, request.flags) = (alignment, boundary, flags);
        });
        let expected = if fits { Ok(memory.first().0) } else { Err(Refusal::NoMemory) };
        assert_eq!(found, expected, "{memory:?}, {alignment:#x}, {boundary:#x}");
    }
    let two = [at(80, 1), at(82, 1)];
    assert_eq!(tried(&mut bench, session, &two, &|_| ()), Err(Refusal::NoMemory));
}

/// Nothing of a buffer was mapped: the failed unit cannot reach it, and it is released at once.
#[test]
fn release_behind_a_failed_unit_keeps_only_what_was_mapped() {
    let mut bench = Bench::compat(&[endpoint(0, 4, 0)]);
    let session = bench.claim(1, address(0, 4, 0));
    bench.run(&Event::Attach(session)).unwrap();
    bench.buffer(session, 3);
    let (_, _, free) = bench.allocate(session, PAGE, AllocateFlags::UNMAPPED).unwrap();
    bench.run(&Event::UnitFailed(UnitIndex(0))).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    assert_eq!(bench.world.released, [free]);
    let counts = bench.registry.counts();
    assert_eq!((counts.quarantined, counts.quarantined_bytes), (1, 3 * PAGE));
}
