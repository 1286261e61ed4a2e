//! The operations of every remapping unit, of any vendor.

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::{MemoryError, TableMemory};
use crate::hw::page_table::PteFormat;
use crate::hw::waits::Invalidations;
use crate::topology::capabilities::{DomainTag, UnitCapabilities};

/// The entry of one requester id in a unit's context or device table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Every access is denied and reported.
    Blocked,
    /// Accesses go through the page table at `root`.
    Translate {
        /// Tag of the domain.
        tag: DomainTag,
        /// Root of its page table.
        root: PhysAddr,
        /// Levels of its page table, 3 to 6.
        levels: u8,
    },
    /// Accesses go to memory untranslated (policy `off`).
    PassThrough {
        /// Tag under which the unit caches such requests.
        tag: DomainTag,
    },
}

/// Why an operation of a unit failed. `Memory` and `Unsupported` change nothing. After any other error the unit
/// counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// A wait passed its deadline.
    Timeout {
        /// The awaited event, in words.
        what: &'static str,
    },
    /// The invalidation queue or command ring reported an error that could not be cleared.
    Queue {
        /// The error, in words.
        what: &'static str,
        /// The status register at that moment.
        status: u64,
    },
    /// Registers read all ones: the unit is not there or lost power.
    Dead,
    /// A capability that is needed is missing, or a value is outside what the unit can hold.
    Unsupported {
        /// The missing capability or the unsuitable value, in words.
        what: &'static str,
    },
    /// No memory for a table.
    Memory(MemoryError),
}

impl From<MemoryError> for UnitError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl core::fmt::Display for UnitError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Timeout { what } => write!(f, "timed out waiting for {what}"),
            Self::Queue { what, status } => write!(f, "{what} (status {status:#x})"),
            Self::Dead => f.write_str("registers read all ones"),
            Self::Unsupported { what } => write!(f, "unsupported: {what}"),
            Self::Memory(MemoryError::Exhausted) => f.write_str("no memory for tables"),
            Self::Memory(MemoryError::Constraints) => {
                f.write_str("no memory that meets the constraints")
            }
            Self::Memory(MemoryError::Share) => {
                f.write_str("a client's share of tables is used up")
            }
        }
    }
}

/// Properties of a unit as its registers state them. Nothing is changed to find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The unit's capabilities.
    pub capabilities: UnitCapabilities,
    /// Whether `capabilities.coherent` is known. Some units show it only after software has requested coherent reads.
    pub coherence_known: bool,
    /// Number of frames in each run of table frames that bring-up allocates, in its order, each run aligned to its
    /// size.
    pub runs: &'static [usize],
    /// Each bus with an entry takes one frame more, when its first entry is written.
    pub frame_per_bus: bool,
}

/// A fault as a unit reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareFault {
    /// The requester that tried the access.
    pub source: RequesterId,
    /// The address, if the unit reports it.
    pub address: Option<Iova>,
    /// The kind of access.
    pub access: FaultAccess,
    /// The unit's own reason code.
    pub reason: u16,
    /// The reason code in words.
    pub words: &'static str,
}

/// A unit in use: the object exists only while the hardware translates or is about to (bring-up ends with
/// [`Unit::enable`]). Each backend has a constructor of its own, since firmware gives them different data.
///
/// Writing an entry and invalidating the old one are separate operations, because the plan decides their order: see
/// `policy::Step`.
pub trait Unit {
    /// The memory that this unit's tables live in.
    type Memory: TableMemory;
    /// The format of this unit's page table entries.
    type Format: PteFormat;

    /// The most runs of table frames that bringing a unit up takes, the longest first: see
    /// [`TableMemory::allocate_run`].
    const RUNS: &'static [usize] = &[];

    /// The unit's capabilities.
    fn capabilities(&self) -> UnitCapabilities;

    /// Whether the unit was translating for its previous owner when it was brought up. If so, it may hold
    /// translations of that owner, under the owner's domain tags, until [`Unit::enable`] has returned.
    fn found_translating(&self) -> bool {
        false
    }

    /// Writes the entry of `source`, and cleans it for hardware that does not snoop. A translating entry is first
    /// replaced by a denying one. One store does it instead if the tag stays the same and the unit can do so
    /// (`UnitCapabilities::deepens`). The unit may use its cached copy of the old entry until
    /// [`Unit::invalidate_entry`].
    ///
    /// # Errors
    /// `Memory` when a context table cannot be allocated, `Unsupported`; the entry is as before.
    fn write_entry(
        &mut self,
        memory: &mut Self::Memory,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), UnitError>;

    /// Makes the unit report no more faults of `source` (`silent`), or report them again. The memory that the source
    /// can reach stays the same. Takes effect when the entry is invalidated ([`Unit::invalidate_entry`]). Writing the
    /// entry anew ends the suppression.
    ///
    /// # Errors
    /// `Memory` when a context table cannot be allocated; the entry is as before.
    fn suppress_faults(
        &mut self,
        memory: &mut Self::Memory,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError>;

    /// Invalidates the unit's cached copy of the entry of `source`, and the translations of `old` if the entry
    /// translated before. Returns when the unit has done so. `old` is `None` if the entry was absent or denied
    /// before. A unit that never caches such entries then needs only to make the new one visible.
    ///
    /// # Errors
    /// `Timeout`, `Queue`: the unit may still cache any of it.
    fn invalidate_entry(
        &mut self,
        memory: &mut Self::Memory,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), UnitError>;

    /// Makes new translations of a domain visible. Does nothing unless the unit caches absent entries or needs its
    /// write buffer flushed.
    ///
    /// # Errors
    /// `Timeout`, `Queue`, like [`Unit::invalidate_entry`].
    fn publish_pages(
        &mut self,
        memory: &mut Self::Memory,
        tag: DomainTag,
        range: IovaRange,
    ) -> Result<(), UnitError>;

    /// Invalidates translations of a domain, by one invalidation that covers `range` and one wait. `tables_freed`
    /// states that page tables were unlinked, not only leaves. Returns when the unit has done so.
    ///
    /// # Errors
    /// `Timeout`, `Queue`, like [`Unit::invalidate_entry`].
    fn invalidate_pages(
        &mut self,
        memory: &mut Self::Memory,
        tag: DomainTag,
        range: IovaRange,
        tables_freed: bool,
    ) -> Result<(), UnitError>;

    /// Turns translation on. From then on every source without an entry is denied. Idempotent. A unit that was taken
    /// over with translation on swaps its root pointer here.
    ///
    /// # Errors
    /// `Timeout`, `Queue`.
    fn enable(&mut self, memory: &mut Self::Memory) -> Result<(), UnitError>;

    /// Brings a failed unit back until it accepts entries, with its existing tables and rings. It allocates no
    /// memory, so that a unit that keeps failing costs none. Translation and entries stay as they are.
    ///
    /// [`Unit::enable`] follows in any case. A unit that walks these tables has invalidated its whole cache when this
    /// returns, and every write of an entry needs its invalidation again. Any other unit gets the tables from
    /// [`Unit::enable`]. Faults recorded meanwhile are lost, and the fault interrupt is masked.
    ///
    /// # Errors
    /// `Dead`, `Timeout`, `Queue`: the unit stays failed, and the content of its caches is unknown. May be tried
    /// again.
    fn revive(&mut self, memory: &mut Self::Memory) -> Result<(), UnitError> {
        let _ = memory;
        Err(UnitError::Unsupported { what: "bringing a unit back" })
    }

    /// Takes the waiting fault records, oldest first, at most `limit` of them, and clears them in the unit. Returns
    /// how many faults the unit has lost at least. An overflow counts as one, and so does a log that is full without
    /// reporting an overflow.
    ///
    /// # Errors
    /// `Dead`, `Timeout`.
    fn take_faults(
        &mut self,
        memory: &mut Self::Memory,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError>;

    /// Makes the unit send the message `data` to `address` when it records a fault while no record is waiting. The
    /// caller must still call [`Unit::take_faults`] now and then: a fault recorded during that call may raise no
    /// message.
    ///
    /// # Errors
    /// `Unsupported`: the caller must poll with [`Unit::take_faults`]. Every AMD-Vi unit returns this, because its
    /// message is set in the configuration space of its function.
    fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> Result<(), UnitError> {
        let _ = (address, data);
        Err(UnitError::Unsupported { what: "interrupt for faults" })
    }

    /// The invalidations that the unit was given so far.
    fn invalidations(&self) -> Invalidations {
        Invalidations::default()
    }

    /// Describes the registers in words, for `units/N`.
    fn describe(&mut self, out: &mut dyn core::fmt::Write) -> core::fmt::Result;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::testing::TestMemory;
    use crate::hw::vtd::SecondStage;
    use crate::topology::capabilities::{LevelSet, PageSizes};

    /// A unit with nothing but what every unit must have.
    struct Plain;

    impl Unit for Plain {
        type Memory = TestMemory;
        type Format = SecondStage;

        fn capabilities(&self) -> UnitCapabilities {
            UnitCapabilities {
                levels: LevelSet::FOUR,
                page_sizes: PageSizes::SIZE_4K,
                coherent: true,
                forces_snoop: true,
                caches_absent: false,
                publishes: false,
                last_tag: 1,
                pass_through: true,
                physical_bits: 46,
                iova_bits: 48,
                deepens: false,
            }
        }
        fn write_entry(
            &mut self,
            _: &mut TestMemory,
            _: RequesterId,
            _: Entry,
        ) -> Result<(), UnitError> {
            Ok(())
        }
        fn suppress_faults(
            &mut self,
            _: &mut TestMemory,
            _: RequesterId,
            _: bool,
        ) -> Result<(), UnitError> {
            Ok(())
        }
        fn invalidate_entry(
            &mut self,
            _: &mut TestMemory,
            _: RequesterId,
            _: Option<DomainTag>,
        ) -> Result<(), UnitError> {
            Ok(())
        }
        fn publish_pages(
            &mut self,
            _: &mut TestMemory,
            _: DomainTag,
            _: IovaRange,
        ) -> Result<(), UnitError> {
            Ok(())
        }
        fn invalidate_pages(
            &mut self,
            _: &mut TestMemory,
            _: DomainTag,
            _: IovaRange,
            _: bool,
        ) -> Result<(), UnitError> {
            Ok(())
        }
        fn enable(&mut self, _: &mut TestMemory) -> Result<(), UnitError> {
            Ok(())
        }
        fn take_faults(
            &mut self,
            _: &mut TestMemory,
            _: usize,
            _: &mut dyn FnMut(HardwareFault),
        ) -> Result<u32, UnitError> {
            Ok(0)
        }
        fn describe(&mut self, _: &mut dyn core::fmt::Write) -> core::fmt::Result {
            Ok(())
        }
    }

    #[test]
    fn what_a_unit_does_not_have_is_refused() {
        let (mut unit, mut memory) = (Plain, TestMemory::new());
        assert!(!unit.found_translating(), "it was not in use");
        let revived = unit.revive(&mut memory);
        assert_eq!(revived, Err(UnitError::Unsupported { what: "bringing a unit back" }));
        let enabled = unit.enable_fault_interrupt(0xfee0_0000, 0x41);
        assert_eq!(enabled, Err(UnitError::Unsupported { what: "interrupt for faults" }));
    }
}
