//! The machine of a trace in software.

use iommud::acpi::{parse_dmar, parse_ivrs};
use iommud::addr::PhysRange;
use iommud::policy::Registry;
use iommud::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use iommud::topology::firmware::{Firmware, UnitDescription, UnitKind};
use iommud::trace::{Snapshot, TableBytes};
use iommud_model::backend::{UnderTest, amdvi, vtd};
use iommud_model::machine::{Layout, Machine};

/// Policy, and the hardware in software that it decides about.
pub(super) struct Replica {
    pub(super) registry: Registry,
    pub(super) machine: Machine,
}

/// Bytes of memory for tables in the software machine.
const TABLES: u64 = 256 << 20;

/// Alignment of that memory, in bytes.
const ALIGNMENT: u64 = 1 << 30;

/// A backend whose software units can be made like those of a trace.
pub(super) trait Modelled: UnderTest + Sized {
    /// A unit with these capabilities. One that is not alike shows when it is brought up.
    fn like(found: &UnitCapabilities, description: &UnitDescription) -> Option<Self>;
}

impl Modelled for vtd::Subject {
    fn like(found: &UnitCapabilities, _: &UnitDescription) -> Option<Self> {
        let all = [(LevelSet::THREE, 3), (LevelSet::FOUR, 4), (LevelSet::FIVE, 5)];
        let levels = all.into_iter().filter(|(set, _)| found.levels.contains(*set));
        let levels: Vec<u8> = levels.map(|(_, level)| level).collect();
        let bits = u8::try_from((u32::from(found.last_tag) + 1).ilog2()).ok()?;
        let possible = !levels.is_empty()
            && (4..=16).contains(&bits)
            && bits.is_multiple_of(2)
            && (1..=64).contains(&found.iova_bits)
            && (32..=52).contains(&found.physical_bits);
        let config = iommud_model::vtd::Config {
            levels,
            guest_width: u32::from(found.iova_bits),
            host_width: u32::from(found.physical_bits),
            large_2m: found.page_sizes.contains(PageSizes::SIZE_2M),
            large_1g: found.page_sizes.contains(PageSizes::SIZE_1G),
            caching_mode: found.caches_absent,
            write_buffer: found.publishes && !found.caches_absent,
            coherent: found.coherent,
            domain_bits: bits,
            pass_through: found.pass_through,
            snoop_control: found.forces_snoop,
            command_time: 0,
            descriptor_time: 0,
            ..iommud_model::vtd::Config::default()
        };
        possible.then_some(Self { name: "replay", config })
    }
}

impl Modelled for amdvi::Subject {
    fn like(found: &UnitCapabilities, description: &UnitDescription) -> Option<Self> {
        let UnitKind::AmdVi { flags, .. } = description.kind else { return None };
        let levels = match found.levels {
            levels if levels.contains(LevelSet::SIX) => 6,
            levels if levels.contains(LevelSet::FIVE) => 5,
            _ => 4,
        };
        let possible =
            (1..=64).contains(&found.iova_bits) && (32..=52).contains(&found.physical_bits);
        let config = iommud_model::amdvi::Config {
            levels,
            guest_width: u32::from(found.iova_bits),
            host_width: u32::from(found.physical_bits),
            caches_absent: found.caches_absent,
            coherent: found.coherent,
            command_time: 0,
            switch_time: 0,
            entry_time: 0,
            ..iommud_model::amdvi::Config::default()
        };
        possible.then_some(Self { name: "replay", config, entries: Vec::new(), flags })
    }
}

/// What the firmware's table says.
///
/// # Errors
/// The table cannot be read.
pub(super) fn firmware(table: &TableBytes) -> Result<Firmware, String> {
    match table {
        TableBytes::None => Ok(Firmware::default()),
        TableBytes::Dmar(bytes) => parse_dmar(bytes).map_err(|error| error.to_string()),
        TableBytes::Ivrs(bytes) => parse_ivrs(bytes).map_err(|error| error.to_string()),
    }
}

/// A machine with the memory of a snapshot, and other memory for tables, which units of `bits` bits reach.
///
/// # Errors
/// No place is left for tables.
pub(super) fn machine(snapshot: &Snapshot, bits: u8) -> Result<Machine, String> {
    let used = || snapshot.ram.iter().chain(&snapshot.own);
    let behind = used().map(|range| range.last().0).max().unwrap_or(0);
    let end = 1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX);
    let first = behind.checked_add(1).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
    let first = first.filter(|first| first.checked_add(TABLES).is_some_and(|last| last <= end));
    let first = first.ok_or("no address is left for tables behind the memory")?;
    let tables = (first, TABLES);
    let pair = |range: &PhysRange| (range.first().0, range.length());
    let ram = used().map(pair).chain([tables]).collect();
    Ok(Machine::new(Layout { ram, tables, buffers: (first, 0), segment: 4096 }))
}
