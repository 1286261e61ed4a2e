//! Page tables with 512 entries in each table. One walker serves every format.
//!
//! Hardware never sees a change that is half done:
//!
//! ```text
//! map      check every slot, build new subtrees beside the live ones  -> only then store into live tables
//! unmap    build the tables of a split                                  -> only then store into live tables
//!          unlinked tables keep their content in `Detached`: `relink` restores them, `release` frees
//!          them once every unit has invalidated them
//! ```
//!
//! Each table counts its slots in use ([`TableMemory::live`]). A table that becomes empty is unlinked, except one
//! (`kept_leaf_table`). The root stays where it is, even when another one was put above it ([`PageTable::grow`]). For
//! hardware that does not snoop, a subtree is cleaned before the store that links it. Each contiguous run of stores
//! is cleaned once, and so is a new table, as a whole.

mod contiguous;
mod detached;
mod footprint;
mod format;
mod grow;
mod kept_leaf_table;
mod list;
mod map;
mod recent;
mod unmap;

#[cfg(test)]
mod kept_leaf_table_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod map_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unmap_tests;

use alloc::vec::Vec;
use core::marker::PhantomData;

use iommu_protocol::wire::Access;

pub use detached::Detached;
pub use footprint::Footprint;
pub use format::{MapError, PteFormat, PteSlot};

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::hw::hal::TableMemory;
use crate::topology::capabilities::{PageSizes, TableFormat};

use detached::Run;
use format::{Leaf, PHYSICAL_BITS, free_subtree, last_of, shift, slot_of, slot_size};
use recent::{Idle, Recent};

/// A page table of format `F`. It owns its tables; they are given back by [`PageTable::destroy`].
///
/// Translations change only through its methods. Every method either completes or leaves each word of each table as
/// it was. The caller must invalidate the units.
pub struct PageTable<F: PteFormat> {
    root: PhysAddr,
    levels: u8,
    /// The last address that the levels translate.
    last: u64,
    page_sizes: PageSizes,
    coherent: bool,
    /// Whether tables that become empty stay linked: see [`PageTable::retain_tables`].
    retains: bool,
    /// Bits that every leaf has in addition: [`PteFormat::SNOOP`], or none.
    marks: u64,
    /// The last table of pages that was looked up.
    recent: Recent,
    idle: Idle,
    /// Stores into live tables that `map` will do; empty between calls, kept for its capacity.
    pending: Vec<Run>,
    format: PhantomData<fn() -> F>,
}

/// A clone has the same tables: a checkpoint, for tests over memory that can be restored. Only one of the two may be
/// used from then on.
impl<F: PteFormat> Clone for PageTable<F> {
    fn clone(&self) -> Self {
        Self { pending: self.pending.clone(), ..*self }
    }
}

impl<F: PteFormat> PageTable<F> {
    /// Creates an empty page table; leaves of 4 KiB are always allowed.
    ///
    /// # Errors
    /// `Levels`, `Memory`.
    pub fn new<M: TableMemory>(memory: &mut M, format: TableFormat) -> Result<Self, MapError> {
        let TableFormat { levels, page_sizes, coherent, forces_snoop } = format;
        if !(3..=6).contains(&levels) {
            return Err(MapError::Levels(levels));
        }
        Ok(Self {
            root: memory.allocate()?,
            levels,
            last: last_of(levels),
            page_sizes: page_sizes | PageSizes::SIZE_4K,
            coherent,
            retains: false,
            marks: if forces_snoop { F::SNOOP } else { 0 },
            recent: Recent::NOTHING,
            idle: Idle::NOBODY,
            pending: Vec::new(),
            format: PhantomData,
        })
    }

    /// Keeps every table linked that [`PageTable::unmap`] empties from now on. Mapping the same pieces again then
    /// needs no memory and cannot fail. An empty table denies everything that an absent one denies.
    #[must_use]
    pub fn retain_tables(self) -> Self {
        Self { retains: true, ..self }
    }

    /// The frame of the topmost table.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Number of levels, 3 to 6.
    #[must_use]
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// The translation of `iova`, and the access of devices there.
    pub fn lookup<M: TableMemory>(&self, memory: &M, iova: Iova) -> Option<(PhysAddr, Access)> {
        if !self.reaches(iova) {
            return None;
        }
        let leaf = self.leaf_at(memory, iova)?;
        Some((PhysAddr(leaf.phys.0 | iova.0 & (slot_size(leaf.level) - 1)), leaf.access))
    }

    /// Frees all tables. No entry points to the root and every unit has invalidated it.
    pub fn destroy<M: TableMemory>(self, memory: &mut M) {
        free_subtree::<F, M>(memory, self.root, self.levels);
    }

    /// Whether the levels translate `iova`.
    #[inline(always)]
    fn reaches(&self, iova: Iova) -> bool {
        iova.0 <= self.last
    }

    /// The leaf that translates `iova`, which is in reach.
    fn leaf_at<M: TableMemory>(&self, memory: &M, iova: Iova) -> Option<Leaf> {
        let mut table = self.root;
        for level in (1..=self.levels).rev() {
            let slot = slot_of(iova.0, level);
            match F::decode_at(memory.load(table, slot), level, slot) {
                PteSlot::Empty => return None,
                PteSlot::Leaf { phys, access } => return Some(Leaf { phys, access, level }),
                PteSlot::Table(next) => table = next,
            }
        }
        None
    }

    /// The table of pages that translates all of `range`, if there is one.
    #[inline(always)]
    fn page_table<M: TableMemory>(&mut self, memory: &M, range: IovaRange) -> Option<Recent> {
        let region = range.first().0 >> shift(2);
        if range.last().0 >> shift(2) != region {
            return None;
        }
        if self.recent.region != region {
            self.recent = self.look_up(memory, region)?;
        }
        Some(self.recent)
    }

    /// Whether a leaf at `level` is allowed.
    fn leaf_allowed(&self, level: u8) -> bool {
        level <= 3 && self.page_sizes.bits() & slot_size(level) != 0
    }

    /// Checks that `range` is whole pages that the levels translate, and that `phys` is a page's address.
    #[inline(always)]
    fn check_range(&self, range: IovaRange, phys: PhysAddr) -> Result<(), MapError> {
        let (first, end) = (range.first().0, range.last().0.wrapping_add(1));
        if (first | end | phys.0) & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned { range, phys });
        }
        if self.reaches(range.last()) { Ok(()) } else { Err(MapError::OutOfReach { range, phys }) }
    }

    /// Checks everything that does not depend on mappings, for memory that is as long as `range`.
    #[inline(always)]
    fn check(&self, range: IovaRange, phys: PhysAddr) -> Result<(), MapError> {
        self.check_range(range, phys)?;
        let last = phys.checked_add(range.last().0 - range.first().0);
        if last.is_none_or(|last| last.0 >> PHYSICAL_BITS != 0) {
            return Err(MapError::OutOfReach { range, phys });
        }
        Ok(())
    }

    /// The entry of a leaf.
    #[inline(always)]
    fn leaf(&self, phys: PhysAddr, access: Access, level: u8) -> u64 {
        let entry = F::leaf(phys, access, level);
        if F::SNOOP == 0 { entry } else { entry | self.marks }
    }

    /// Cleans slots just written, for hardware that does not snoop.
    fn clean<M: TableMemory>(&self, memory: &mut M, table: PhysAddr, first: usize, count: usize) {
        if !self.coherent && count > 0 {
            memory.clean(table, first, count);
        }
    }

    /// Stores the entry of a run of one slot, which is empty; counts and cleans it.
    fn enter<M: TableMemory>(&self, memory: &mut M, run: Run) {
        debug_assert_eq!(run.count, 1);
        memory.store(run.table, run.index.into(), run.entry);
        *memory.live(run.table) += 1;
        self.clean(memory, run.table, run.index.into(), 1);
    }
}
