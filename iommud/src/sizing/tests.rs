//! Every number here was worked out by hand: none comes from the code under test.

use std::vec;
use std::vec::Vec;

use iommu_protocol::ids::RequesterId;

use super::tables::count;
use super::{Facts, Need, memory_need};
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::{Survey, amdvi, vtd};
use crate::policy::{Config, Mode};
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use crate::topology::firmware::{
    DeviceScope, EntryRange, Firmware, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};
use crate::topology::pci::PciFunction;
use crate::topology::testing::{bridge, endpoint};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SMALL: PageSizes = PageSizes::SIZE_4K;
const NO_1G: PageSizes = PageSizes::SIZE_4K.union(PageSizes::SIZE_2M);

#[test]
fn tables_are_counted_level_by_level() {
    let all = PageSizes::all();
    let four = [(0, 4 * GIB - 1)];
    // Root, one table for 512 GiB, four for 1 GiB each, 2048 for 2 MiB each.
    assert_eq!(count(4, SMALL, &four), 1 + 1 + 4 + 2048);
    assert_eq!(count(3, SMALL, &four), 1 + 4 + 2048);
    assert_eq!(count(4, NO_1G, &four), 1 + 1 + 4);
    assert_eq!(count(4, all, &four), 1 + 1);
    // Leaves of 1 GiB without those of 2 MiB: whole gibibytes take no tables, the rest takes pages.
    let no_2m = SMALL | PageSizes::SIZE_1G;
    assert_eq!(count(3, no_2m, &[(0, 2 * GIB + 4 * MIB - 1)]), 1 + 1 + 2);
    // The interrupt window splits the leaf of 1 GiB around it, and the one of 2 MiB whose first half it is.
    let window = [(0, 0xfedf_ffff), (0xfef0_0000, 4 * GIB - 1)];
    assert_eq!(count(3, all, &window), 1 + 1 + 1);
    assert_eq!(count(3, SMALL, &window), 1 + 4 + 2048);
    // Two pages of one table, then two of two.
    assert_eq!(count(4, all, &[(0x1000, 0x1fff), (0x3000, 0x3fff)]), 4);
    assert_eq!(count(4, all, &[(0x1000, 0x1fff), (0x20_1000, 0x20_1fff)]), 5);
    // Two ranges that touch are mapped apart: the leaf between them is not there.
    assert_eq!(count(3, NO_1G, &[(0, 0x2f_ffff), (0x30_0000, 0x5f_ffff)]), 1 + 1 + 1);
    assert_eq!(count(3, all, &[]), 1);
    // All of 64 bits: 2^7 tables of 2^57 bytes, 2^16 of 2^48, 2^25 of 2^39.
    assert_eq!(count(6, all, &[(0, u64::MAX)]), 1 + 128 + 65_536 + 33_554_432);
}

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

fn capabilities(page_sizes: PageSizes) -> UnitCapabilities {
    UnitCapabilities {
        levels: LevelSet::THREE | LevelSet::FOUR,
        page_sizes,
        coherent: false,
        forces_snoop: false,
        caches_absent: false,
        publishes: false,
        last_tag: 255,
        pass_through: true,
        physical_bits: 46,
        iova_bits: 48,
        deepens: false,
    }
}

fn survey(page_sizes: PageSizes) -> Option<Survey> {
    let capabilities = capabilities(page_sizes);
    Some(Survey { capabilities, coherence_known: true, runs: vtd::RUNS, frame_per_bus: true })
}

/// A VT-d unit with registers at `base`; the devices on `bus`, or all that no other unit names.
fn unit(base: u64, device: Option<(u8, u8)>) -> UnitDescription {
    let scope = |(bus, device): (u8, u8)| DeviceScope {
        kind: ScopeKind::Endpoint,
        start_bus: bus,
        path: vec![(device, 0)],
    };
    UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(range(base, 0x1000)),
        include_all: device.is_none(),
        scopes: device.into_iter().map(scope).collect(),
        entries: Vec::new(),
    }
}

/// A machine, and what it needs.
struct Case {
    firmware: Firmware,
    surveys: Vec<Option<Survey>>,
    ram: Vec<PhysRange>,
    functions: Vec<PciFunction>,
    config: Config,
    left: Vec<PhysRange>,
}

impl Case {
    /// One VT-d unit in front of one function on bus 0; 4 GiB or less.
    fn one(page_sizes: PageSizes, ram: Vec<PhysRange>) -> Self {
        Self {
            firmware: Firmware { units: vec![unit(0xfed9_0000, None)], ..Firmware::default() },
            surveys: vec![survey(page_sizes)],
            ram,
            functions: vec![endpoint(0, 3, 0)],
            config: Config::default(),
            left: Vec::new(),
        }
    }

    fn need(&self) -> Need {
        memory_need(&Facts {
            firmware: &self.firmware,
            surveys: &self.surveys,
            ram: &self.ram,
            functions: &self.functions,
            config: &self.config,
            left: &self.left,
        })
    }
}

/// Root table, queue, status word; a context table; 64 for unknown requesters.
const VTD: u64 = 3 + 1 + 64;

/// An empty table that a domain may keep.
const KEPT: u64 = 1;

#[test]
fn a_machine_without_units_needs_buffers_alone() {
    let case = Case { firmware: Firmware::default(), surveys: vec![], ..Case::one(SMALL, vec![]) };
    let need = case.need();
    assert_eq!(need, Need { buffer_bytes: 8 * MIB, ..Need::default() });
    assert_eq!(need.table_bytes(), 2 * MIB);
}

/// 16 GiB on Redox, whose map ends at 20 GiB: 20 tables of 1 GiB and 10,240 of 2 MiB, some 40 MiB.
#[test]
fn without_superpages_all_memory_is_mapped_by_pages() {
    let ram = vec![range(0, 0xa_0000), range(MIB, 2 * GIB), range(4 * GIB, 16 * GIB)];
    let need = Case::one(SMALL, ram).need();
    let compat = 1 + 20 + 10_240 + KEPT;
    assert_eq!((need.base_frames, need.units), (compat + VTD, vec![compat + 3 + 1]));
    // 18 GiB and 640 KiB - 1 MiB: the 64th part is more than the most.
    assert_eq!(need.buffer_bytes, 64 * MIB);
    // 2 MiB, a domain for one function, a frame for each 16 of 16,384 pages of buffers.
    assert_eq!(need.client_frames, 512 + 32 + 1024);
    assert_eq!(need.runs, Vec::<usize>::new());
}

/// 64 GiB whose map ends at 65: one domain for all eight units.
#[test]
fn units_of_one_format_share_their_domain() {
    let mut case = Case::one(SMALL, vec![range(0, 3 * GIB), range(4 * GIB, 61 * GIB)]);
    case.firmware.units = (0..8_u8)
        .map(|n| unit(0xfed9_0000 + u64::from(n) * 4096, (n < 7).then_some((n, 3))))
        .collect();
    case.surveys = vec![survey(SMALL); 8];
    case.functions = (0..8).map(|bus| endpoint(bus, 3, 0)).collect();
    let need = case.need();
    let compat = 1 + 65 + 33_280 + KEPT;
    assert_eq!(need.base_frames, compat + 8 * (3 + 1) + 64);
    assert_eq!(need.units, vec![compat + 4; 8]);
    assert_eq!(need.client_frames, 512 + 8 * 32 + 1024);
    // 33,443 and 1,792 frames are 68.8 pages.
    assert_eq!((need.table_bytes(), need.least_table_bytes()), (138 * MIB, 132 * MIB));
}

/// The first unit's domain has large leaves, which the second does not walk; the other way round both walk pages.
#[test]
fn each_format_has_a_domain_of_its_own() {
    let mut case = Case::one(SMALL, vec![range(0, 2 * GIB)]);
    case.firmware.units = vec![unit(0xfed9_0000, Some((0, 2))), unit(0xfed9_1000, None)];
    case.functions.push(endpoint(0, 2, 0));
    case.surveys = vec![survey(PageSizes::all()), survey(SMALL)];
    // The root, a table for the fourth gibibyte, one for each of two blocks of 2 MiB: registers, window.
    let (large, small) = (1 + 1 + 2 + KEPT, 1 + 4 + 2048 + KEPT);
    // Its own memory may split the other three leaves of 1 GiB, and one of 2 MiB for a page of notes.
    let splits = 3 + 1;
    let need = case.need();
    assert_eq!(need.base_frames, large + small + splits + 2 * (3 + 1) + 64);
    assert_eq!(need.units, [large + 4, small + 4]);
    case.surveys.reverse();
    assert_eq!(case.need().base_frames, small + 2 * (3 + 1) + 64);
}

/// Runs of a device table, an empty page table, a ring, a status word and two logs. All domains count twice, because
/// it is known only later which units snoop.
#[test]
fn amd_units_take_aligned_device_tables() {
    let of = |index: u16| UnitDescription {
        kind: UnitKind::AmdVi {
            function: RequesterId(2 + index * 8),
            capability: 0x40,
            flags: 0,
            features: None,
        },
        registers: Ok(range(0xfeb8_0000 + u64::from(index) * 0x4000, 0x4000)),
        include_all: false,
        entries: vec![EntryRange {
            first: RequesterId(index * 0x100),
            last: RequesterId(index * 0x100 + 0xff),
            alias: None,
            settings: 0,
        }],
        ..unit(0, None)
    };
    let mut case = Case::one(SMALL, vec![range(0, 2 * GIB)]);
    case.firmware.units = vec![of(0), of(1)];
    let capabilities = capabilities(PageSizes::all());
    let amd =
        Survey { capabilities, coherence_known: false, runs: amdvi::RUNS, frame_per_bus: false };
    case.surveys = vec![Some(amd); 2];
    case.functions = vec![endpoint(0, 3, 0), endpoint(1, 0, 0)];
    let need = case.need();
    let unit = 512 + 1 + 1 + 1 + 16 + 16;
    // The root, the fourth gibibyte, the blocks of 2 MiB of the registers and of the window.
    let compat = 1 + 1 + 2 + KEPT;
    let splits = 3 + 1;
    assert_eq!(need.base_frames, 2 * unit + 2 * (compat + splits));
    assert_eq!(need.runs, [512, 16, 16, 512, 16, 16]);
    assert_eq!(need.units, [unit + compat; 2]);
    // 32 MiB of buffers; 1,112 and 512 + 64 + 512 frames are 4.3 pages.
    assert_eq!((need.buffer_bytes, need.table_bytes()), (32 * MIB, 10 * MIB));
    assert_eq!(need.least_table_bytes(), 8 * MIB);
    // A single unit has one kind of domains. A unit that does not answer keeps its place, with the runs of its kind.
    case.surveys[1] = None;
    assert_eq!(case.need().base_frames, 2 * unit + compat + splits);
}

#[test]
fn strict_needs_no_domain_but_for_what_firmware_reserves() {
    let mut case = Case::one(PageSizes::all(), vec![range(0, 2 * GIB)]);
    case.config.default = Mode::Strict;
    assert_eq!(case.need().base_frames, VTD);
    // Under compat, too, a device has a domain of its regions after its driver died.
    case.config.default = Mode::Compat;
    let before = case.need().base_frames;
    case.firmware.reserved = vec![ReservedRegion {
        segment: 0,
        range: range(0x7000_0000, 0x3000),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![DeviceScope { kind: ScopeKind::Endpoint, start_bus: 0, path: vec![(3, 0)] }],
        entries: Vec::new(),
    }];
    // Four levels, one table each.
    assert_eq!(case.need().base_frames, before + 4 + KEPT);
}

#[test]
fn buses_behind_bridges_and_of_no_function_count() {
    let mut case = Case::one(PageSizes::all(), vec![range(0, 2 * GIB)]);
    let before = case.need();
    // Buses 1 to 9 are empty today.
    case.functions.push(bridge(0, 1, 0, 1, 9));
    let with = case.need();
    assert_eq!(with.base_frames, before.base_frames + 9);
    assert_eq!(with.client_frames, before.client_frames, "nobody drives a bridge");
    case.firmware.units[0].scopes.push(DeviceScope {
        kind: ScopeKind::Namespace(1),
        start_bus: 0xf0,
        path: vec![(0, 1)],
    });
    assert_eq!(case.need().base_frames, before.base_frames + 10);
}

/// Each range that earlier servers left splits a leaf of 1 GiB; ends that are not aligned split one of 2 MiB each.
#[test]
fn what_earlier_servers_left_splits_leaves() {
    let ram = vec![range(0, 2 * GIB), range(4 * GIB, 60 * GIB)];
    let mut case = Case::one(PageSizes::all(), ram);
    // 62 GiB: 64 MiB of buffers; 5.3 pages of tables at first. 63 whole gibibytes.
    let tables = (1 + 1 + 2 + KEPT) + VTD;
    // 32 pieces of buffers and 4 of tables (1,671 frames), a page of notes twice.
    assert_eq!(case.need().base_frames, tables + 1 + (32 + 4 + 1));
    case.left = vec![range(8 * GIB, 2 * MIB), range(9 * GIB, 0x1000)];
    // Two pieces more, and the end of a page that is not aligned.
    assert_eq!(case.need().base_frames, tables + 2 + (32 + 4 + 2 + 2));
}
