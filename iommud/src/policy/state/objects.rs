//! The objects of the registry.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::Access;

use crate::addr::{IovaRange, PhysAddr, PhysRange};
use crate::policy::collections::inline_list::InlineList;
use crate::policy::collections::ranges::{Piece, Ranges};
use crate::policy::config::Mode;
use crate::policy::ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::iova::Space;
use crate::policy::state::mappings::{MappingList, Mappings};
use crate::policy::state::memory::{Grants, Memory};
use crate::policy::step::Binding;
use crate::topology::alias::Aliases;
use crate::topology::capabilities::{DomainTag, PageSizes, TableFormat, UnitCapabilities};
use crate::topology::table::FunctionIndex;

/// One unit.
#[derive(Clone, Debug)]
pub(in crate::policy) enum Unit {
    /// Known from the table.
    Parsed,
    /// Translating.
    Enabled {
        capabilities: UnitCapabilities,
        /// Index of its class.
        class: usize,
    },
    /// Not to be relied on.
    Failed,
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

/// What policy knows of a function, beside what the walk found. A machine may have 65,536 and more.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Function {
    pub(in crate::policy) group: GroupId,
    pub(in crate::policy) unit: Option<UnitIndex>,
    pub(in crate::policy) aliases: Aliases,
    pub(in crate::policy) mode: Mode,
    pub(in crate::policy) session: Option<SessionId>,
    pub(in crate::policy) attached: bool,
    /// Added to a claimed group: blocked until the group is free, unless attached.
    pub(in crate::policy) late: bool,
    /// Its session ended while it was attached: what it was told to do may be under way, with addresses of
    /// a domain that is gone. Its group is blocked until it was attached again and detached.
    pub(in crate::policy) cut: bool,
}

/// The entry of one requester id in one unit.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Source {
    /// Functions whose requests may carry it. Members of one group.
    pub(in crate::policy) users: InlineList<FunctionIndex>,
    pub(in crate::policy) binding: Binding,
    /// Its faults are not reported.
    pub(in crate::policy) silenced: bool,
}

/// One isolation group.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Group {
    pub(in crate::policy) members: InlineList<FunctionIndex>,
    pub(in crate::policy) owner: Option<OwnerId>,
    /// Open sessions on members. One whose member is gone does not count.
    pub(in crate::policy) sessions: u32,
    /// Members attached.
    pub(in crate::policy) attached: u32,
    /// Members cut off.
    pub(in crate::policy) cut: u32,
    /// A member was removed while the group was claimed: it may fall apart when it is free.
    pub(in crate::policy) stale: bool,
}

/// Who holds groups: a first session and those opened under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) struct OwnerId(pub(in crate::policy) u32);

#[derive(Clone, Debug)]
pub(in crate::policy) struct Owner {
    pub(in crate::policy) client: u32,
    /// The domain of all its devices behind units.
    pub(in crate::policy) domain: Option<DomainId>,
    pub(in crate::policy) sessions: u32,
    pub(in crate::policy) groups: Vec<GroupId>,
}

/// An open session.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Session {
    pub(in crate::policy) address: PciAddress,
    pub(in crate::policy) generation: u32,
    /// `None` when the device is gone.
    pub(in crate::policy) function: Option<FunctionIndex>,
    pub(in crate::policy) group: GroupId,
    pub(in crate::policy) owner: OwnerId,
    /// Number of its client's account.
    pub(in crate::policy) client: u32,
    pub(in crate::policy) unit: Option<UnitIndex>,
    /// `None` when no unit confines the device.
    pub(in crate::policy) domain: Option<DomainId>,
    /// Number of the slot record, by slot.
    pub(in crate::policy) slots: Vec<Option<u32>>,
}

/// What a domain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Purpose {
    /// All memory, for a class of units.
    Compat,
    /// Regions that firmware reserves, for devices of policy `strict`.
    Reserved,
    /// An owner's.
    Client,
}

/// One I/O address space.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Domain {
    pub(in crate::policy) purpose: Purpose,
    pub(in crate::policy) tag: DomainTag,
    pub(in crate::policy) shape: Shape,
    pub(in crate::policy) space: Space,
    pub(in crate::policy) mappings: Mappings,
    /// What is mapped one to one for firmware, without overlap.
    pub(in crate::policy) reserved: Vec<Piece>,
    /// Units with entries that point here, and how many.
    pub(in crate::policy) active: Vec<(UnitIndex, u32)>,
    pub(in crate::policy) trust: Trust,
    /// Buffers that sessions left mapped here when they ended, since a unit that failed was not to be told.
    pub(in crate::policy) left: Vec<BufferId>,
}

/// Whether a unit that failed may use a domain.
///
/// ```text
/// sound --UnitFailed--> suspect --Proved--> retired (or gone, without an owner)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Trust {
    /// None may.
    Sound,
    /// One may: nothing that the domain maps or mapped can be proved unreachable.
    Suspect,
    /// All that might have forgotten it. Sessions map nothing more in it, but end as any.
    Retired,
}

/// DMA memory.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Buffer {
    pub(in crate::policy) client: u32,
    pub(in crate::policy) length: u64,
    pub(in crate::policy) memory: Memory,
    /// Parts that policy `compat` mapped before, to be given back to it.
    pub(in crate::policy) taken: Vec<(u64, u64)>,
    /// Sessions that know it.
    pub(in crate::policy) slots: u32,
    /// Open handles.
    pub(in crate::policy) holds: u32,
    /// A unit that failed may still reach it: not freed until that unit is proved to have forgotten it.
    pub(in crate::policy) unproved: bool,
    /// Its memory counts against its client.
    pub(in crate::policy) charged: bool,
}

/// A buffer as one session knows it.
#[derive(Clone, Debug)]
pub(in crate::policy) struct SlotRecord {
    pub(in crate::policy) session: SessionId,
    pub(in crate::policy) number: Slot,
    pub(in crate::policy) buffer: BufferId,
    /// Length of the buffer, and where its memory begins if it is in one piece: neither ever changes.
    pub(in crate::policy) length: u64,
    pub(in crate::policy) base: Option<PhysAddr>,
    pub(in crate::policy) mappings: MappingList,
    /// The addresses reserved for grants.
    pub(in crate::policy) granted: Option<Grants>,
    /// Without a unit: what is in use, by first byte and length, and how many times.
    pub(in crate::policy) direct: BTreeMap<(u64, u64), u32>,
}

/// What a client uses.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Account {
    pub(in crate::policy) client: ClientId,
    /// Bytes of its buffers.
    pub(in crate::policy) memory: u64,
    /// What they take of the pool, in bytes.
    pub(in crate::policy) taken: u64,
    pub(in crate::policy) mappings: u32,
    pub(in crate::policy) sessions: u32,
    pub(in crate::policy) buffers: u32,
    pub(in crate::policy) domains: u32,
}

impl Domain {
    /// Gives memory back that records of mappings and addresses no longer need.
    #[inline]
    pub(in crate::policy) fn shrink(&mut self) {
        if self.mappings.len() == 0 {
            self.mappings.tidy();
            self.space.shrink();
        }
    }

    /// Notes one entry more or less of a unit.
    pub(in crate::policy) fn count_entry(&mut self, unit: UnitIndex, more: bool) {
        let at = self.active.iter().position(|(known, _)| *known == unit);
        match at {
            None if more => self.active.push((unit, 1)),
            Some(at) => {
                if let Some((_, count)) = self.active.get_mut(at) {
                    *count = if more { *count + 1 } else { *count - 1 };
                    if *count == 0 {
                        self.active.remove(at);
                    }
                }
            }
            None => {}
        }
    }
}

/// What a domain is made of, and the addresses it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Shape {
    pub(in crate::policy) format: TableFormat,
    /// Bits of memory addresses.
    pub(in crate::policy) physical_bits: u8,
    /// Bits of I/O virtual addresses that every unit lets through.
    pub(in crate::policy) iova_bits: u8,
}

impl Shape {
    /// Last I/O virtual address.
    pub(in crate::policy) fn last_iova(&self) -> u64 {
        last_of(self.iova_bits.min(12 + 9 * self.format.levels))
    }

    /// Whether a range holds all that a leaf of 2 MiB would translate, and there may be one.
    #[inline(always)]
    pub(in crate::policy) fn has_larger_leaf(&self, range: IovaRange) -> bool {
        const BLOCK: u64 = 1 << 21;
        if range.length() < BLOCK || !self.format.page_sizes.contains(PageSizes::SIZE_2M) {
            return false;
        }
        let block = range.first().0.checked_next_multiple_of(BLOCK);
        let end = block.and_then(|first| first.checked_add(BLOCK - 1));
        end.is_some_and(|last| last <= range.last().0)
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

/// Last address of so many bits.
const fn last_of(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Account {
    pub(in crate::policy) const fn new(client: ClientId) -> Self {
        Self { client, memory: 0, taken: 0, mappings: 0, sessions: 0, buffers: 0, domains: 0 }
    }

    /// Nothing is charged to it.
    pub(in crate::policy) const fn is_idle(&self) -> bool {
        self.sessions == 0 && self.buffers == 0 && self.memory == 0
    }
}

/// A set of addresses with one access.
pub(in crate::policy) fn read_write() -> Access {
    Access::READ | Access::WRITE
}

/// Whole pages around a range.
pub(in crate::policy) fn insert_pages(set: &mut Ranges, range: PhysRange) {
    let range = range.page_aligned();
    set.insert(range.first().0, range.last().0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_of_every_function_is_small() {
        let sizes = [size_of::<Option<Function>>(), size_of::<Source>(), size_of::<Group>()];
        assert_eq!(sizes, [32, 32, 40]);
        assert_eq!(size_of::<Option<Source>>() + size_of::<Option<Group>>(), 32 + 40);
    }

    #[test]
    fn reach_is_what_levels_and_memory_allow() {
        let shape = |levels, physical_bits, iova_bits| Shape {
            format: TableFormat {
                levels,
                page_sizes: PageSizes::SIZE_4K,
                coherent: true,
                forces_snoop: true,
            },
            physical_bits,
            iova_bits,
        };
        assert_eq!(shape(3, 46, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 39, 48).reach(), (1 << 39) - 1);
        assert_eq!(shape(4, 46, 36).reach(), (1 << 36) - 1);
        assert_eq!(shape(6, 64, 64).reach(), u64::MAX);
        assert_eq!(shape(3, 46, 48).last_memory(), (1 << 46) - 1);
    }
}
