//! Page tables of 512 entries a level, the same walker for every format.
//!
//! What hardware may see is never half done:
//!
//! ```text
//! map      look at every slot, build new subtrees beside the live ones  -> only then store into live tables
//! unmap    build the tables of a split                                  -> only then store into live tables
//!          unlinked tables keep their content in `Detached`: `relink` puts them back, `release` frees
//!          them once every unit has forgotten them
//! ```
//!
//! Each table counts its slots in use ([`TableMemory::live`]); a table that becomes empty is unlinked, but for one
//! ([`idle`]). The root itself stays where it is, also when another one was put above it ([`PageTable::grow`]).
//! For hardware that does not snoop, a subtree is cleaned before the store that links it, and each
//! contiguous run of stores is cleaned once; a new table is cleaned as a whole, once.

mod contiguous;
mod detached;
mod grow;
mod kept_leaf_table;
mod list;
mod map;
mod unmap;

#[cfg(test)]
mod kept_leaf_table_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use iommu_protocol::wire::Access;

pub use detached::Detached;

use crate::addr::{Iova, IovaRange, PAGE_SIZE, PhysAddr};
use crate::hw::hal::{MemoryError, TableMemory};
use crate::topology::capabilities::{PageSizes, TableFormat};

use detached::{Run, RunKind};
use grow::KEPT;
use kept_leaf_table::{Idle, Recent};

/// Slots of a table.
const SLOTS: usize = 512;

/// Bits of a physical address that an entry of any supported format holds.
const PHYSICAL_BITS: u32 = 52;

/// What one entry of a table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PteSlot {
    /// Not present.
    Empty,
    /// Points to the table of the next lower level.
    Table(PhysAddr),
    /// Maps a page.
    Leaf {
        /// First byte of the page.
        phys: PhysAddr,
        /// What a device may do.
        access: Access,
    },
}

/// The format of page table entries. Levels count from 1 (entries that map 4 KiB). An empty slot is 0.
pub trait PteFormat {
    /// The entry at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) that maps the page at `phys`, aligned to its size.
    /// The address stands in its place: the entry of a page further on is greater by the distance.
    fn leaf(phys: PhysAddr, access: Access, level: u8) -> u64;

    /// The entry at `level` (2 and up) that points to the table at `next`.
    fn table(next: PhysAddr, level: u8) -> u64;

    /// What an entry found at `level` means. A page over several slots begins at `phys`: see
    /// [`PteFormat::decode_at`].
    fn decode(entry: u64, level: u8) -> PteSlot;

    /// The bits of a leaf that make every access snoop; 0 where [`PteFormat::leaf`] has them already.
    const SNOOP: u64 = 0;

    /// The most slots that one page may take, as a power of two (0 to 8); each holds the same entry.
    const MOST: u32 = 0;

    /// The entry at `level` that maps a page of 2^`power` slots at `phys`, aligned to its size.
    fn group(phys: PhysAddr, access: Access, level: u8, _power: u32) -> u64 {
        Self::leaf(phys, access, level)
    }

    /// How many slots the page takes that a leaf at `level` maps, as a power of two; 0 for entries of
    /// other kinds.
    fn power(_entry: u64, _level: u8) -> u32 {
        0
    }

    /// As [`PteFormat::decode`], for the part of a page that lies in slot `slot` (0 to 511).
    fn decode_at(entry: u64, level: u8, _slot: usize) -> PteSlot {
        Self::decode(entry, level)
    }
}

/// Why a page table did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The page table would have fewer than 3 or more than 6 levels.
    Levels(u8),
    /// The range or the memory does not begin or end at a multiple of 4096.
    Unaligned {
        /// The range.
        range: IovaRange,
        /// The memory of its first byte.
        phys: PhysAddr,
    },
    /// The range lies outside what the levels translate, or the memory outside what an entry can hold.
    OutOfReach {
        /// The range.
        range: IovaRange,
        /// The memory of its first byte.
        phys: PhysAddr,
    },
    /// Neither reading nor writing was asked for: such an entry would be an absent one.
    NoAccess,
    /// Something is mapped there already.
    Overlap(Iova),
    /// No memory for a table.
    Memory(MemoryError),
}

impl From<MemoryError> for MapError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Levels(levels) => write!(f, "a page table cannot have {levels} levels"),
            Self::Unaligned { range, phys } => {
                write!(f, "{range:?} at {phys:?} is not whole pages")
            }
            Self::OutOfReach { range, phys } => {
                write!(f, "{range:?} at {phys:?} is beyond what the page table can translate")
            }
            Self::NoAccess => f.write_str("a mapping must allow reading or writing"),
            Self::Overlap(iova) => write!(f, "{iova:?} is mapped already"),
            Self::Memory(MemoryError::Exhausted) => f.write_str("no memory for a page table"),
            Self::Memory(MemoryError::Constraints) => {
                f.write_str("no memory for a page table that meets the constraints")
            }
            Self::Memory(MemoryError::Share) => f.write_str("the share of page tables is used up"),
        }
    }
}

/// Bits of an address below the ones that index a table at `level` (1 to 6).
const fn shift(level: u8) -> u32 {
    3 + 9 * level as u32
}

/// Bytes that one slot of a table at `level` (1 to 6) translates.
const fn slot_size(level: u8) -> u64 {
    1 << shift(level)
}

/// The last address that `levels` levels (3 to 6) translate.
const fn last_of(levels: u8) -> u64 {
    match levels {
        0..=3 => (1 << 39) - 1,
        4 => (1 << 48) - 1,
        5 => (1 << 57) - 1,
        _ => u64::MAX,
    }
}

/// Index of the slot that translates `iova` in a table at `level`.
const fn slot_of(iova: u64, level: u8) -> usize {
    ((iova >> shift(level)) & 511) as usize
}

/// A number of slots, at most 512, as [`TableMemory::live`] counts them.
fn slot_count(slots: usize) -> u16 {
    u16::try_from(slots).unwrap_or(u16::MAX)
}

/// A page table of format `F`. It owns its tables; they are given back by [`PageTable::destroy`].
///
/// Translations do not change until a method says so, and every method either does all of what was asked or
/// leaves each word of each table as it was. Making units forget is the caller's business.
pub struct PageTable<F: PteFormat> {
    root: PhysAddr,
    levels: u8,
    /// The last address that the levels translate.
    last: u64,
    page_sizes: PageSizes,
    coherent: bool,
    /// Tables that become empty stay linked: see [`PageTable::retain_tables`].
    retains: bool,
    /// What every leaf has besides: [`PteFormat::SNOOP`], or nothing.
    marks: u64,
    /// The last table of pages that was looked up.
    recent: Recent,
    idle: Idle,
    /// Stores into live tables that `map` will do; empty between calls, kept for its capacity.
    pending: Vec<Run>,
    format: PhantomData<fn() -> F>,
}

/// A copy names the same tables: a checkpoint, for tests over memory that can be put back as it was. Only one
/// of the two may be used from then on.
impl<F: PteFormat> Clone for PageTable<F> {
    fn clone(&self) -> Self {
        Self { pending: self.pending.clone(), ..*self }
    }
}

impl<F: PteFormat> PageTable<F> {
    /// An empty page table; leaves of 4 KiB are always allowed.
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

    /// Keeps every table linked that [`PageTable::unmap`] empties from now on. Mapping again what was unmapped, in the
    /// same pieces, then needs no memory and cannot fail. An empty table denies all that an absent one denies.
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

    /// What `iova` translates to, and what a device may do there.
    pub fn lookup<M: TableMemory>(&self, memory: &M, iova: Iova) -> Option<(PhysAddr, Access)> {
        if !self.reaches(iova) {
            return None;
        }
        let leaf = self.leaf_at(memory, iova)?;
        Some((PhysAddr(leaf.phys.0 | iova.0 & (slot_size(leaf.level) - 1)), leaf.access))
    }

    /// Gives all tables back. No entry points to the root and every unit has forgotten it.
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
        let (mut table, mut level) = (self.root, self.levels);
        loop {
            let slot = slot_of(iova.0, level);
            match F::decode_at(memory.load(table, slot), level, slot) {
                PteSlot::Empty => return None,
                PteSlot::Leaf { phys, access } => return Some(Leaf { phys, access, level }),
                PteSlot::Table(next) if level > 1 => table = next,
                PteSlot::Table(_) => return None,
            }
            level -= 1;
        }
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

    /// Checks what does not depend on what is mapped, for memory that is as long as `range`.
    #[inline(always)]
    fn check(&self, range: IovaRange, phys: PhysAddr) -> Result<(), MapError> {
        self.check_range(range, phys)?;
        let last = phys.checked_add(range.last().0 - range.first().0);
        if last.is_none_or(|last| last.0 >> PHYSICAL_BITS != 0) {
            return Err(MapError::OutOfReach { range, phys });
        }
        Ok(())
    }

    /// The entry of a page.
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

    /// Stores the entry of a run of one slot, which is empty, counts it and cleans it.
    fn enter<M: TableMemory>(&self, memory: &mut M, run: Run) {
        debug_assert_eq!(run.count, 1);
        memory.store(run.table, run.index.into(), run.entry);
        *memory.live(run.table) += 1;
        self.clean(memory, run.table, run.index.into(), 1);
    }
}

/// A page, found in a table at `level`.
#[derive(Clone, Copy)]
struct Leaf {
    phys: PhysAddr,
    access: Access,
    level: u8,
}

/// Frees a table at `level` and all tables below it.
fn free_subtree<F: PteFormat, M: TableMemory>(memory: &mut M, table: PhysAddr, level: u8) {
    let live = core::mem::take(memory.live(table)) & !KEPT;
    let mut left = if level > 1 { live } else { 0 };
    for index in 0..SLOTS {
        if left == 0 {
            break;
        }
        match F::decode(memory.load(table, index), level) {
            PteSlot::Empty => continue,
            PteSlot::Table(next) => free_subtree::<F, M>(memory, next, level - 1),
            PteSlot::Leaf { .. } => {}
        }
        left -= 1;
    }
    memory.free(table, live == 0);
}
