//! Domains: one I/O address space each.

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::{IovaRange, PAGE_SIZE};
use crate::policy::collections::ranges::{Piece, Ranges};
use crate::policy::ids::{BufferId, UnitIndex};
use crate::policy::iova::{SPACE_BITS, Space, Wanted};
use crate::policy::state::mappings::Mappings;
use crate::policy::state::unmapped::UnmappedRanges;
use crate::topology::capabilities::{
    DomainTag, LevelSet, PageSizes, TableFormat, UnitCapabilities,
};

/// The use of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Purpose {
    /// All memory, for a class of units.
    Compat,
    /// Regions that firmware reserves, for devices of policy `strict`.
    Reserved,
    /// The devices of an owner.
    Client,
}

/// A domain of policy, for a class of units.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) enum Shared {
    /// All memory that policy `compat` maps.
    Compat(usize),
    /// Just these pieces.
    Reserved(usize, Vec<Piece>),
}

impl Shared {
    /// The class.
    pub(in crate::policy) const fn class(&self) -> usize {
        match self {
            Self::Compat(class) | Self::Reserved(class, _) => *class,
        }
    }
}

/// Whether a failed unit may use a domain.
///
/// ```text
/// sound --UnitFailed--> suspect --Proved--> retired (or gone, without an owner)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Trust {
    /// No failed unit may use it.
    Sound,
    /// A failed unit may use it: nothing that the domain maps or mapped can be proved unreachable.
    Suspect,
    /// Every unit that might use it was flushed. Sessions map nothing more in it, but end as usual.
    Retired,
}

/// One I/O address space.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Domain {
    pub(in crate::policy) purpose: Purpose,
    pub(in crate::policy) tag: DomainTag,
    pub(in crate::policy) shape: Shape,
    pub(in crate::policy) space: Space,
    pub(in crate::policy) mappings: Mappings,
    /// Pieces mapped one to one for firmware, without overlap.
    pub(in crate::policy) reserved: Vec<Piece>,
    /// Units with entries that point here, in their order, and the number of these entries.
    pub(in crate::policy) active: Vec<(UnitIndex, u32)>,
    pub(in crate::policy) trust: Trust,
    /// Buffers that ended sessions left mapped here, since a failed unit gets no invalidations.
    pub(in crate::policy) left: Vec<BufferId>,
    pub(in crate::policy) unmapped: UnmappedRanges,
}

impl Domain {
    /// Creates an empty domain.
    pub(in crate::policy) fn new(purpose: Purpose, tag: DomainTag, shape: Shape) -> Self {
        Self {
            purpose,
            tag,
            shape,
            space: Space::new(),
            mappings: Mappings::default(),
            reserved: Vec::new(),
            active: Vec::new(),
            trust: Trust::Sound,
            left: Vec::new(),
            unmapped: UnmappedRanges::new(),
        }
    }

    /// Whether it is the domain of an owner.
    pub(in crate::policy) fn is_client(&self) -> bool {
        self.purpose == Purpose::Client
    }

    /// Whether it is the domain of an owner and a failed unit may still use it.
    pub(in crate::policy) fn is_suspect(&self) -> bool {
        self.is_client() && self.trust == Trust::Suspect
    }

    /// Takes free addresses; `Quota` when the page tables would exceed their bound.
    #[inline]
    pub(in crate::policy) fn take_addresses(
        &mut self,
        regions: u32,
        wanted: Wanted,
    ) -> Result<IovaRange, Refusal> {
        let range = self.space.allocate(wanted).ok_or(Refusal::NoSpace)?;
        self.keep_within(regions, range)
    }

    /// Takes the addresses that a client asks for; `Quota` when the page tables would exceed their bound.
    #[inline]
    pub(in crate::policy) fn take_addresses_at(
        &mut self,
        regions: u32,
        range: IovaRange,
        excluded: &Ranges,
    ) -> Result<IovaRange, Refusal> {
        if !range.first().is_aligned(PAGE_SIZE) {
            return Err(Refusal::Alignment);
        }
        let last = range.last().0;
        if range.first().0 < PAGE_SIZE || last >> SPACE_BITS != 0 || last > self.shape.last_iova() {
            return Err(Refusal::Range);
        }
        if self.space.allocate_at(range) {
            return self.keep_within(regions, range);
        }
        Err(self.why_taken(range, excluded))
    }

    /// The reason why addresses are taken. Excluded and reserved addresses were never free for mappings.
    #[cold]
    fn why_taken(&self, range: IovaRange, excluded: &Ranges) -> Refusal {
        let excluded = excluded.within(range.first().0, range.last().0).next().is_some();
        if excluded || self.reserved.iter().any(|piece| piece.range.overlaps(range)) {
            return Refusal::Reserved;
        }
        Refusal::Mapped
    }

    #[inline]
    fn keep_within(&mut self, regions: u32, range: IovaRange) -> Result<IovaRange, Refusal> {
        if self.space.exceeds(regions) {
            self.space.free(range);
            return Err(Refusal::Quota);
        }
        Ok(range)
    }

    /// Counts one more or one less entry of a unit.
    pub(in crate::policy) fn count_entry(&mut self, unit: UnitIndex, more: bool) {
        match self.active.binary_search_by_key(&unit, |(unit, _)| *unit) {
            Err(at) if more => self.active.insert(at, (unit, 1)),
            Err(_) => {}
            Ok(at) => {
                if let Some((_, count)) = self.active.get_mut(at) {
                    *count = if more { *count + 1 } else { *count - 1 };
                    if *count == 0 {
                        self.active.remove(at);
                    }
                }
            }
        }
    }
}

/// The table format of a domain, and the addresses that it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Shape {
    pub(in crate::policy) format: TableFormat,
    /// Bits of memory addresses.
    pub(in crate::policy) physical_bits: u8,
    /// Bits of I/O virtual addresses that every unit accepts.
    pub(in crate::policy) iova_bits: u8,
}

impl Shape {
    /// A shape that all of these units can walk, with the fewest levels that reach `top`, else with the most that
    /// there are. `None` when the units have no number of levels in common.
    pub(in crate::policy) fn common<'a>(
        units: impl Iterator<Item = &'a UnitCapabilities>,
        top: u64,
    ) -> Option<Self> {
        let mut levels = LevelSet::all();
        let mut page_sizes = PageSizes::all();
        let (mut coherent, mut forces_snoop) = (true, true);
        let (mut physical_bits, mut iova_bits) = (64, 64);
        for unit in units {
            levels &= unit.levels;
            page_sizes &= unit.page_sizes;
            coherent &= unit.coherent;
            forces_snoop &= unit.forces_snoop;
            physical_bits = physical_bits.min(unit.physical_bits);
            iova_bits = iova_bits.min(unit.iova_bits);
        }
        let depths = || (3..=6).filter(|depth| levels.bits() & 1 << depth != 0);
        let shape = |levels| Self {
            format: TableFormat { levels, page_sizes, coherent, forces_snoop },
            physical_bits,
            iova_bits,
        };
        let enough = depths().map(shape).find(|shape| shape.reach() >= top);
        enough.or_else(|| depths().next_back().map(shape))
    }

    /// For domains of policy, which map memory that is not the server's. Devices snoop there, or do not, as they
    /// would without a unit. So units that differ in this share the tables.
    pub(in crate::policy) const fn of_policy(mut self) -> Self {
        self.format.forces_snoop = false;
        self
    }

    /// A shape that reaches `top` with the fewest additional levels, of those that all units can walk.
    pub(in crate::policy) fn deepened(self, levels: LevelSet, top: u64) -> Option<Self> {
        let deeper = (self.format.levels + 1..=6).filter(|depth| levels.bits() & 1 << depth != 0);
        deeper
            .map(|levels| Self { format: TableFormat { levels, ..self.format }, ..self })
            .find(|shape| shape.reach() >= top)
    }

    /// Whether a unit can walk tables of this shape.
    pub(in crate::policy) fn serves(self, unit: &UnitCapabilities) -> bool {
        unit.levels.bits() & 1 << self.format.levels != 0
            && unit.page_sizes.contains(self.format.page_sizes)
            && (unit.coherent || !self.format.coherent)
            && (unit.forces_snoop || !self.format.forces_snoop)
            && unit.physical_bits >= self.physical_bits
            && unit.iova_bits >= self.iova_bits
    }

    /// Last I/O virtual address.
    pub(in crate::policy) fn last_iova(&self) -> u64 {
        last_of(self.iova_bits.min(12 + 9 * self.format.levels))
    }

    /// Last address of memory.
    pub(in crate::policy) const fn last_memory(&self) -> u64 {
        last_of(self.physical_bits)
    }

    /// Last address that can be mapped to itself.
    pub(in crate::policy) fn reach(&self) -> u64 {
        self.last_iova().min(self.last_memory())
    }
}

/// Last address of this many bits.
const fn last_of(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(levels: u8, physical_bits: u8, iova_bits: u8) -> Shape {
        let page_sizes = PageSizes::SIZE_4K;
        let format = TableFormat { levels, page_sizes, coherent: true, forces_snoop: true };
        Shape { format, physical_bits, iova_bits }
    }

    #[test]
    fn reach_is_what_levels_and_memory_allow() {
        assert_eq!(shape(3, 46, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 39, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 46, 36).reach(), (1 << 36) - 1);
        assert_eq!(shape(6, 64, 64).reach(), u64::MAX);
        assert_eq!(shape(3, 46, 48).last_memory(), (1 << 46) - 1);
    }

    /// A unit that walks tables of 3 and 5 levels.
    const fn unit() -> UnitCapabilities {
        UnitCapabilities {
            levels: LevelSet::THREE.union(LevelSet::FIVE),
            page_sizes: PageSizes::SIZE_4K,
            coherent: true,
            forces_snoop: true,
            caches_absent: false,
            publishes: false,
            last_tag: 9,
            pass_through: false,
            physical_bits: 46,
            iova_bits: 57,
            deepens: true,
        }
    }

    /// A unit is asked for nothing that it lacks; tables may use less than it has.
    #[test]
    fn a_unit_walks_tables_that_need_no_more_than_it_has() {
        let served = [3, 4, 5, 6].map(|levels| shape(levels, 46, 57).serves(&unit()));
        assert_eq!(served, [true, false, true, false]);
        assert!(shape(3, 45, 57).serves(&unit()) && shape(3, 46, 48).serves(&unit()));
        assert!(!shape(3, 47, 57).serves(&unit()) && !shape(3, 46, 58).serves(&unit()));
        let mut large = shape(3, 46, 57);
        large.format.page_sizes |= PageSizes::SIZE_2M;
        assert!(!large.serves(&unit()));
        let page_sizes = PageSizes::SIZE_4K | PageSizes::SIZE_2M | PageSizes::SIZE_1G;
        assert!(large.serves(&UnitCapabilities { page_sizes, ..unit() }));
        let (mut cleaned, mut bypassed) = (shape(3, 46, 57), shape(3, 46, 57));
        (cleaned.format.coherent, bypassed.format.forces_snoop) = (false, false);
        let noncoherent = UnitCapabilities { coherent: false, ..unit() };
        let lax = UnitCapabilities { forces_snoop: false, ..unit() };
        assert!(cleaned.serves(&noncoherent) && !bypassed.serves(&noncoherent));
        assert!(bypassed.serves(&lax) && !cleaned.serves(&lax));
        assert!(cleaned.serves(&unit()) && bypassed.serves(&unit()));
    }

    #[test]
    fn a_deeper_shape_has_the_fewest_levels_that_are_more() {
        let deepened = |from, levels, top| {
            shape(from, 52, 64).deepened(levels, top).map(|shape| shape.format.levels)
        };
        assert_eq!(deepened(3, LevelSet::all(), 0), Some(4));
        assert_eq!(deepened(3, LevelSet::all(), (1 << 48) - 1), Some(4));
        assert_eq!(deepened(3, LevelSet::all(), 1 << 48), Some(5));
        assert_eq!(deepened(3, LevelSet::THREE | LevelSet::SIX, 0), Some(6));
        assert_eq!(deepened(5, LevelSet::THREE | LevelSet::FIVE, 0), None);
        assert_eq!(deepened(5, LevelSet::all(), 1 << 52), None, "beyond memory");
        assert_eq!(deepened(6, LevelSet::all(), 0), None);
    }

    #[test]
    fn entries_are_counted_by_unit() {
        let mut domain = Domain::new(Purpose::Client, DomainTag(2), shape(4, 46, 48));
        let [a, b, c] = [1, 2, 3].map(UnitIndex);
        domain.count_entry(b, false);
        assert_eq!(domain.active, [], "none to take away");
        for unit in [c, a, b, b] {
            domain.count_entry(unit, true);
        }
        assert_eq!(domain.active, [(a, 1), (b, 2), (c, 1)]);
        for unit in [b, a, a] {
            domain.count_entry(unit, false);
        }
        assert_eq!(domain.active, [(b, 1), (c, 1)]);
    }
}
