//! What every remapping unit can do, whatever its vendor.

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hw::hal::{MemoryError, TableMemory};
use crate::hw::page_table::PteFormat;
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
        /// Tag that such requests are cached under.
        tag: DomainTag,
    },
}

/// Why an operation of a unit failed. The unit is to be taken as failed, except after `Memory` and
/// `Unsupported`, which change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// A wait passed its deadline.
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
    /// The invalidation queue or command ring reported an error that could not be cleared.
    Queue {
        /// What happened.
        what: &'static str,
        /// The status register then.
        status: u64,
    },
    /// Registers read all ones: the unit is not there or lost power.
    Dead,
    /// A capability that is needed is missing, or a value is outside what the unit can hold.
    Unsupported {
        /// What is missing.
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

/// What a unit is, as far as reading its registers tells. Nothing was changed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// What it can do.
    pub capabilities: UnitCapabilities,
    /// Whether `capabilities.coherent` is known. Some units have to be asked for coherent reads before it shows.
    pub coherence_known: bool,
    /// Runs of table frames that bring-up takes, in its order, each aligned to its size.
    pub runs: &'static [usize],
    /// Each bus with an entry takes one frame more, when its first entry is written.
    pub frame_per_bus: bool,
}

/// A fault as a unit reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareFault {
    /// Who tried.
    pub source: RequesterId,
    /// Where, if the unit says.
    pub address: Option<Iova>,
    /// What it tried.
    pub access: FaultAccess,
    /// The unit's own code.
    pub reason: u16,
    /// The code in words.
    pub words: &'static str,
}

/// A running unit: the object exists only while the hardware translates or is about to (bring-up ends with
/// [`Unit::enable`]). Constructors are the backends' own, since they differ in what firmware gives them.
///
/// Writing an entry and making the unit forget the old one are separate operations, because their order is
/// the plan's business: see `policy::plan::Step`.
pub trait Unit {
    /// The memory that this unit's tables live in.
    type Memory: TableMemory;
    /// The format of this unit's page table entries.
    type Format: PteFormat;

    /// Runs of table frames that bringing one up takes at most, the longest one first: see [`TableMemory::allocate_run`].
    const RUNS: &'static [usize] = &[];

    /// What the unit can do.
    fn capabilities(&self) -> UnitCapabilities;

    /// Whether the unit translated, for its last owner, when it was brought up. Until [`Unit::enable`] has returned it
    /// may hold translations of theirs, under their domain tags.
    fn found_translating(&self) -> bool {
        false
    }

    /// Writes the entry of `source`, cleaned for hardware that does not snoop. An entry that translates is
    /// replaced by going through one that denies; but by one store when the tag stays the same and the unit
    /// can do that (`UnitCapabilities::deepens`). What the unit has cached of the old entry stays until
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

    /// Makes the unit report no fault of `source` any more, or report them again, and leaves what its entry lets
    /// it do as it is. Takes effect when the entry is forgotten ([`Unit::invalidate_entry`]); writing the entry
    /// anew ends it.
    ///
    /// # Errors
    /// `Memory` when a context table cannot be allocated; the entry is as before.
    fn suppress_faults(
        &mut self,
        memory: &mut Self::Memory,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError>;

    /// Makes the unit forget what it cached of the entry of `source`, and of the translations of `old`
    /// when the entry translated before. Returns when the unit has done so. When the entry was absent or
    /// denied before (`old` is `None`), a unit that never caches such entries does nothing but make the
    /// new one visible.
    ///
    /// # Errors
    /// `Timeout`, `Queue`: nothing is known of what the unit still has cached.
    fn invalidate_entry(
        &mut self,
        memory: &mut Self::Memory,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), UnitError>;

    /// Makes new translations of a domain visible: does nothing unless the unit caches absent entries or
    /// needs its write buffer flushed.
    ///
    /// # Errors
    /// As [`Unit::invalidate_entry`].
    fn publish_pages(
        &mut self,
        memory: &mut Self::Memory,
        tag: DomainTag,
        range: IovaRange,
    ) -> Result<(), UnitError>;

    /// Makes the unit forget translations of a domain: one invalidation that covers `range` and one wait.
    /// `tables_freed` says that page tables, not only leaves, were unlinked. Returns when done.
    ///
    /// # Errors
    /// As [`Unit::invalidate_entry`].
    fn invalidate_pages(
        &mut self,
        memory: &mut Self::Memory,
        tag: DomainTag,
        range: IovaRange,
        tables_freed: bool,
    ) -> Result<(), UnitError>;

    /// Turns translation on; every source without an entry is denied from then on. Idempotent. On a unit
    /// that was taken over with translation on, this is where its root pointer is swapped.
    ///
    /// # Errors
    /// `Timeout`, `Queue`.
    fn enable(&mut self, memory: &mut Self::Memory) -> Result<(), UnitError>;

    /// Takes a unit that failed back as far as taking entries, with the tables and rings that it has: no memory is
    /// allocated, so that a unit which goes on failing costs none. Translation stays as it is, and so do the entries.
    /// A unit that walks these tables has forgotten everything that it cached when this returns, and every write of
    /// an entry needs its invalidation as ever; any other unit is told of them by [`Unit::enable`], which follows in
    /// both cases. Faults recorded meanwhile are lost, and the fault interrupt is masked.
    ///
    /// # Errors
    /// `Dead`, `Timeout`, `Queue`: it is as it was; what it caches is not known. May be tried again.
    fn revive(&mut self, memory: &mut Self::Memory) -> Result<(), UnitError> {
        let _ = memory;
        Err(UnitError::Unsupported { what: "bringing a unit back" })
    }

    /// Takes the waiting fault records, oldest first, at most `limit` of them, and clears them in the unit.
    /// Returns the number of faults the unit is known to have lost (at least; overflow counts as one, and
    /// so does a log that is full and does not tell).
    ///
    /// # Errors
    /// `Dead`, `Timeout`.
    fn take_faults(
        &mut self,
        memory: &mut Self::Memory,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError>;

    /// Makes the unit send the message `data` to `address` when it has fault records and had none. Records are
    /// to be asked for all the same, now and then: one that comes while others are taken may go untold.
    ///
    /// # Errors
    /// `Unsupported`: it is to be asked by [`Unit::take_faults`]. So is every AMD-Vi unit, whose message is set in
    /// the configuration space of its function.
    fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> Result<(), UnitError> {
        let _ = (address, data);
        Err(UnitError::Unsupported { what: "interrupt for faults" })
    }

    /// Registers in words, for `units/N`.
    fn describe(&mut self, out: &mut dyn core::fmt::Write) -> core::fmt::Result;
}
