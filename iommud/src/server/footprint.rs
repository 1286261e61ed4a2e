//! How many entries of an IOTLB the translations of a domain, or of a buffer, take.

use core::fmt;

use iommu_protocol::ids::Slot;

use crate::addr::{Iova, IovaRange};
use crate::hw::page_table::Footprint;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{DomainId, SessionId};
use crate::server::Server;

/// Most tables that are read for one text, `metrics` included: 512 entries each.
const MOST_TABLES: u32 = 1024;

/// The same for a client's request, which any client may make as often as it likes.
const MOST_TABLES_OF_BUFFER: u32 = 64;

const EVERYTHING: IovaRange = match IovaRange::inclusive(Iova(0), Iova(u64::MAX)) {
    Some(range) => range,
    None => unreachable!(),
};

/// Leaves in words.
pub(super) struct FootprintWords {
    leaves: Footprint,
    /// Every table was read.
    complete: bool,
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The leaves of an owner's domain.
    pub(super) fn footprint_of_domain(&self, domain: DomainId) -> FootprintWords {
        let (mut tables, mut leaves) = (MOST_TABLES, Footprint::default());
        let complete = self.engine.footprint(domain, EVERYTHING, &mut tables, &mut leaves);
        FootprintWords { leaves, complete }
    }

    /// The number of leaves of all owners' domains, up to those in [`MOST_TABLES`] tables.
    pub(super) fn footprint_of_all(&self) -> u64 {
        let (mut tables, mut leaves) = (MOST_TABLES, Footprint::default());
        let mut domains = self.domain_numbers().into_iter().map(DomainId);
        let _ = domains
            .all(|domain| self.engine.footprint(domain, EVERYTHING, &mut tables, &mut leaves));
        leaves.total()
    }

    /// The number of leaves of a buffer's mappings in the domain of a session, up to those in
    /// [`MOST_TABLES_OF_BUFFER`] tables.
    pub(super) fn footprint_of_buffer(&self, session: SessionId, slot: Slot) -> u32 {
        let (mut tables, mut leaves) = (MOST_TABLES_OF_BUFFER, Footprint::default());
        let domain = self.registry.session(session).and_then(|session| session.domain);
        if let Some(domain) = domain {
            let mut mappings = self.registry.mappings(session, slot);
            let _ = mappings.all(|mapping| {
                self.engine.footprint(domain.id, mapping.range, &mut tables, &mut leaves)
            });
        }
        u32::try_from(leaves.total()).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for FootprintWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.complete { "" } else { "at least " };
        write!(f, "{least}{}", self.leaves.total())?;
        for (index, (size, count)) in self.leaves.sizes().enumerate() {
            let (before, (number, unit)) = (if index == 0 { ": " } else { ", " }, words(size));
            write!(f, "{before}{count} of {number} {unit}")?;
        }
        Ok(())
    }
}

/// A power of two from 4096 on, in bytes, in a unit in which it is below 1024.
const fn words(size: u64) -> (u64, &'static str) {
    match size {
        0..0x10_0000 => (size >> 10, "KiB"),
        0x10_0000..0x4000_0000 => (size >> 20, "MiB"),
        _ => (size >> 30, "GiB"),
    }
}
