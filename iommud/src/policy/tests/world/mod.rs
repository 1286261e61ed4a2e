//! An executor of plans that assumes the worst: a unit has cached everything that was visible to it since its last
//! invalidation. After every single step it checks the reach of each device.

mod bench;
mod book;
mod events;
mod hardware;

use std::vec::Vec;

use crate::addr::{PhysAddr, PhysRange};
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};

pub(super) use bench::Bench;
pub(super) use events::*;
pub(super) use hardware::World;

use hardware::read_write;

pub(super) const MIB: u64 = 1 << 20;
/// Memory of the machine under test: 64 MiB, of which the server has the last 16.
pub(super) const RAM: u64 = 64 * MIB;
pub(super) const OWN: u64 = 48 * MIB;
const PAGE: u64 = 4096;

pub(super) fn capabilities() -> UnitCapabilities {
    UnitCapabilities {
        levels: LevelSet::THREE | LevelSet::FOUR,
        page_sizes: PageSizes::SIZE_4K | PageSizes::SIZE_2M,
        coherent: true,
        forces_snoop: true,
        caches_absent: false,
        publishes: true,
        last_tag: 255,
        pass_through: true,
        physical_bits: 46,
        iova_bits: 48,
        deepens: true,
    }
}

pub(super) fn phys(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// A unit with its registers above the memory of the machine.
pub(super) fn unit(number: u64, include_all: bool) -> UnitDescription {
    UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(phys(0xfed9_0000 + number * PAGE, PAGE)),
        include_all,
        scopes: Vec::new(),
        entries: Vec::new(),
    }
}

pub(super) fn one_unit() -> Firmware {
    Firmware { units: vec![unit(0, true)], ..Firmware::default() }
}
