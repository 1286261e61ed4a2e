//! Machines of any kind come up with their computed need of memory, and use most of it.

use iommu_protocol::ids::RequesterId;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{Matcher, Mode, Rule};
use iommud::topology::firmware::ReservedRegion;
use iommud_tests::conformance::{UnderTest, amdvi, vtd};
use iommud_tests::stack::{endpoint, scope};
use iommud_tests::vtd::Config;
use proptest::prelude::*;

use super::GIB;
use super::fleet::Fleet;

/// Frames kept for later needs: requesters without a function, an empty table of each domain, and splits where the
/// server's own memory is scattered.
const KEPT: u64 = 64 + 64;

/// The shape of a machine, in numbers.
#[derive(Clone, Debug)]
struct Shape {
    /// The subject of each unit.
    units: Vec<usize>,
    /// Gibibytes from 0 on, and memory above 4 GiB.
    low: u64,
    high: Vec<(u64, u64)>,
    functions: Vec<(u8, u8)>,
    /// Regions: the function, the page, the length in pages.
    reserved: Vec<(usize, u64, u64)>,
    left: Vec<u64>,
    modes: Vec<u8>,
}

fn shapes(kinds: usize) -> impl Strategy<Value = Shape> {
    (
        prop::collection::vec(0..kinds, 1..4),
        2..4_u64,
        prop::collection::vec((4..9_u64, 1..0x3000_u64), 0..3),
        prop::collection::btree_set((0..6_u8, 0..32_u8), 1..12),
        prop::collection::vec((any::<usize>(), 0x10_0000..0x20_0000_u64, 1..600_u64), 0..4),
        prop::collection::vec(0..512_u64, 0..3),
        prop::collection::vec(0..3_u8, 1..4),
    )
        .prop_map(|(units, low, high, functions, reserved, left, modes)| Shape {
            units,
            low,
            high,
            functions: functions.into_iter().collect(),
            reserved,
            left,
            modes,
        })
}

fn region(
    fleet_functions: &[RequesterId],
    (which, page, pages): (usize, u64, u64),
) -> ReservedRegion {
    let source = fleet_functions[which % fleet_functions.len()];
    ReservedRegion {
        segment: 0,
        range: PhysRange::new(PhysAddr(page << 12), pages << 12).unwrap(),
        read: true,
        write: pages % 2 == 0,
        exclusion: false,
        scopes: vec![scope(source)],
        entries: vec![iommud::topology::firmware::EntryRange {
            first: source,
            last: source,
            alias: None,
            settings: 0,
        }],
    }
}

fn fleet<T: UnderTest + Clone>(subjects: &[T], shape: &Shape) -> Fleet<T> {
    let units = shape.units.iter().map(|unit| subjects[*unit].clone()).collect();
    let mut ram = vec![(0, shape.low * GIB)];
    for (at, pages) in &shape.high {
        let end = ram.last().map_or(0, |(start, length)| start + length);
        if at * GIB >= end {
            ram.push((at * GIB, pages << 12));
        }
    }
    let mut fleet = Fleet::new(units, &ram);
    fleet.functions =
        shape.functions.iter().map(|(bus, device)| endpoint(*bus, *device, 0)).collect();
    let sources: Vec<_> = fleet.functions.iter().map(|f| f.address.requester).collect();
    fleet.reserved = shape.reserved.iter().map(|each| region(&sources, *each)).collect();
    fleet.left = shape.left.iter().map(|page| (0x1000_0000 + page * 0x3_0000, 0x3000)).collect();
    let mode = |number: u8| [Mode::Compat, Mode::Strict, Mode::Off][usize::from(number)];
    fleet.config.default = mode(shape.modes[0]);
    let rules = fleet.functions.iter().zip(&shape.modes[1..]);
    fleet.config.rules = rules
        .map(|(function, number)| Rule {
            matcher: Matcher::Address(function.address),
            mode: mode(*number),
        })
        .collect();
    fleet
}

/// All units come up with no more than the base need. The base is at most half as much again as the frames used.
fn fits<T: UnderTest + Clone>(subjects: &[T], shape: &Shape) -> Result<(), TestCaseError> {
    let fleet = fleet(subjects, shape);
    let need = fleet.need();
    let mut running = fleet.start_with(&need, need.least_table_bytes());
    let enabled = vec!["enabled"; shape.units.len()];
    prop_assert_eq!(running.states(), enabled);
    // Returns an earlier server's memory.
    for (start, length) in &fleet.left {
        let range = PhysRange::new(PhysAddr(*start), *length).unwrap();
        running.server.memory_returned(range);
    }
    let used = running.frames();
    prop_assert!(used <= need.base_frames, "{} of {}", used, need.base_frames);
    let regions: u64 = shape.reserved.iter().map(|(.., pages)| pages / 512 + 8).sum();
    let most = used * 3 / 2 + KEPT + 2 * regions;
    prop_assert!(need.base_frames <= most, "{} of {}", used, need.base_frames);
    running.machine.assert_clean();
    Ok(())
}

/// VT-d units of all kinds, including some without superpages and some whose formats cannot share a domain.
fn vtd_kinds() -> Vec<vtd::Subject> {
    let mut all = vtd::matrix();
    all.push(super::old());
    let config = Config { large_1g: false, levels: vec![4], domain_bits: 6, ..Config::qemu() };
    all.push(vtd::Subject { name: "2 MiB, few tags", config });
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn vtd_machines_come_up_with_what_they_need(shape in shapes(vtd_kinds().len())) {
        fits(&vtd_kinds(), &shape)?;
    }

    #[test]
    fn amd_machines_come_up_with_what_they_need(shape in shapes(amdvi::matrix().len())) {
        fits(&amdvi::matrix(), &shape)?;
    }
}
