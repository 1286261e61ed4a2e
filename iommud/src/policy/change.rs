//! Changes of the mappings of a domain, made when they are decided.

use alloc::vec::Vec;

use iommu_protocol::wire::Access;

use crate::addr::{INTERRUPT_WINDOW, Iova, IovaRange, PhysAddr};
use crate::policy::ids::{DomainId, UnitIndex};
use crate::policy::state::mappings::MappingIndex;

/// Where nothing is mapped.
const NOWHERE: IovaRange = INTERRUPT_WINDOW;

/// A change of one mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Single {
    pub(super) domain: DomainId,
    /// Number of the account that the mapping is charged to.
    pub(super) account: u32,
    pub(super) range: IovaRange,
    /// What devices may do; nothing when the range is unmapped.
    pub(super) mapped: Option<Access>,
    /// First byte of what is mapped, in its buffer.
    pub(super) offset: u64,
    /// Its memory; known when it is in one piece.
    pub(super) phys: Option<PhysAddr>,
    /// The mark on the registry.
    pub(super) change: Change,
    /// The unit that uses the domain, and whether it is to be told of new translations.
    pub(super) unit: Option<(UnitIndex, bool)>,
}

impl Default for Single {
    /// Of nothing.
    fn default() -> Self {
        Self {
            domain: DomainId(u32::MAX),
            account: u32::MAX,
            range: NOWHERE,
            mapped: None,
            offset: 0,
            phys: None,
            change: Change::Left(MappingIndex::NONE, u32::MAX),
            unit: None,
        }
    }
}

impl Single {
    /// What the client is told: the address, 0 for an unmap or revoke.
    #[inline(always)]
    pub(super) const fn iova(&self) -> Iova {
        if self.mapped.is_some() { self.range.first() } else { Iova(0) }
    }
}

/// A change that a batch made to the mappings of a domain when the plan was drawn up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Entered in the record of a slot, and charged; taken back by abort.
    Entered(MappingIndex, u32),
    /// Taken out of the record of a slot; its addresses are given back by commit, it is put back by abort.
    Left(MappingIndex, u32),
}

/// The changes of a batch, in order.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) domain: DomainId,
    /// Number of the account that mappings are charged to.
    pub(super) account: u32,
    pub(super) list: Vec<Change>,
    /// A range around all that is mapped.
    pub(super) mapped: Option<IovaRange>,
    /// A range around all that is unmapped.
    pub(super) unmapped: Option<IovaRange>,
    /// Tables may be unlinked to make room for larger leaves.
    pub(super) vacated: bool,
}

impl Changes {
    /// Adds a change.
    #[inline(always)]
    pub(super) fn note(&mut self, single: &Single) {
        (self.domain, self.account) = (single.domain, single.account);
        self.list.push(single.change);
        let around = if single.mapped.is_some() { &mut self.mapped } else { &mut self.unmapped };
        *around = Some(hull(*around, single.range));
    }

    /// Whether nothing was changed: no other field means anything then.
    pub(super) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets everything but the capacity of the list.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.list.clear();
        (self.mapped, self.unmapped, self.vacated) = (None, None, false);
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            domain: DomainId(u32::MAX),
            account: u32::MAX,
            list: Vec::new(),
            mapped: None,
            unmapped: None,
            vacated: false,
        }
    }
}

/// The smallest range around two.
#[inline]
pub(super) fn hull(a: Option<IovaRange>, b: IovaRange) -> IovaRange {
    let Some(a) = a else { return b };
    IovaRange::inclusive(a.first().min(b.first()), a.last().max(b.last())).unwrap_or(b)
}
