//! Requirements for every backend, whatever its vendor: checks over [`Unit`] and a software unit that keeps
//! everything it cached. A check panics when the backend breaks a requirement. The machine reports when the backend
//! breaks the hardware's rules.
//!
//! ```text
//! entries.rs   what a requester reaches: entries, moves between domains, failures on the way
//! pages.rs     page tables and invalidations: sizes, ranges, tags, counts
//! faults.rs    fault records
//! takeover.rs  units that a previous owner left running
//! revival.rs   units that failed and come back
//! trouble.rs   time-outs, dead units, memory that runs out
//! suite.rs     the list of all checks
//! random.rs    long random runs against a list of the granted ranges
//! ```

pub mod entries;
pub mod faults;
pub mod pages;
pub mod random;
pub mod revival;
mod suite;
pub mod takeover;
pub mod trouble;

pub use iommud_model::backend::{Inherited, UnderTest, amdvi, vtd};

use iommu_protocol::RequesterId;
use iommu_protocol::wire::Access;
use iommud::addr::{Iova, IovaRange, PhysAddr};
use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::{Entry, Unit};
use iommud::topology::capabilities::{DomainTag, LevelSet, TableFormat, UnitCapabilities};

use crate::machine::{Machine, Reach, Tables, Through};

/// Requesters that the checks use: two functions of one bus, and one of another bus.
pub const SOURCES: [RequesterId; 3] =
    [RequesterId(0x0018), RequesterId(0x0019), RequesterId(0x0500)];

/// Memory that the checks map, aligned to 1 GiB, 1 GiB long.
pub const TARGET: u64 = 1 << 32;

/// A machine with one running unit, and its backend.
pub struct Bench<T: UnderTest> {
    /// The machine.
    pub machine: Machine,
    /// Number of the software unit.
    pub number: usize,
    /// Memory for tables.
    pub tables: Tables,
    /// The backend.
    pub unit: T::Unit,
}

/// A page table with its tag.
pub struct Domain<T: UnderTest> {
    /// The tag under which the unit caches its translations.
    pub tag: DomainTag,
    /// Its page table.
    pub pages: PageTable<<T::Unit as Unit>::Format>,
}

impl<T: UnderTest> Domain<T> {
    /// The entry that admits a requester to the domain.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry::Translate { tag: self.tag, root: self.pages.root(), levels: self.pages.levels() }
    }
}

/// The range of `length` bytes at `iova`.
///
/// # Panics
/// When it is empty or wraps.
#[must_use]
pub fn range(iova: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(iova), length).expect("a range")
}

/// A run of addresses that may be read and written.
#[must_use]
pub fn run(iova: u64, physical: u64, length: u64) -> Reach {
    Reach { iova, last: iova + (length - 1), physical, read: true, write: true }
}

/// Depths of page tables in a set.
#[must_use]
pub fn depths(levels: LevelSet) -> Vec<u8> {
    (3..=6).filter(|level| levels.bits() & 1 << level != 0).collect()
}

impl<T: UnderTest> Bench<T> {
    /// Starts a unit that translates.
    ///
    /// # Panics
    /// When the backend cannot bring it up.
    #[must_use]
    pub fn start(subject: &T) -> Self {
        let mut bench = Self::start_disabled(subject);
        bench.unit.enable(&mut bench.tables).expect("enable");
        bench.machine.assert_clean();
        bench
    }

    /// Starts a unit that accepts entries but does not translate yet.
    ///
    /// # Panics
    /// When the backend cannot bring it up.
    #[must_use]
    pub fn start_disabled(subject: &T) -> Self {
        let machine = Machine::default();
        let number = subject.add(&machine);
        Self::take(subject, machine, number)
    }

    /// Brings up a unit of a machine with a previous owner.
    ///
    /// # Panics
    /// When the backend cannot bring it up.
    #[must_use]
    pub fn take(subject: &T, machine: Machine, number: usize) -> Self {
        let mut tables = machine.tables();
        let unit = subject.bring_up(&machine, number, &mut tables).expect("bring-up");
        Self { machine, number, tables, unit }
    }

    /// The unit's capabilities.
    pub fn capabilities(&self) -> UnitCapabilities {
        self.unit.capabilities()
    }

    /// Creates an empty domain of the greatest depth.
    ///
    /// # Panics
    /// When table memory is exhausted.
    pub fn domain(&mut self, tag: u16) -> Domain<T> {
        let levels = *depths(self.capabilities().levels).last().expect("a depth");
        self.domain_of(tag, levels)
    }

    /// Creates an empty domain of `levels` levels.
    ///
    /// # Panics
    /// When table memory is exhausted.
    pub fn domain_of(&mut self, tag: u16, levels: u8) -> Domain<T> {
        let UnitCapabilities { page_sizes, coherent, forces_snoop, .. } = self.capabilities();
        let format = TableFormat { levels, page_sizes, coherent, forces_snoop };
        let pages = PageTable::new(&mut self.tables, format);
        Domain { tag: DomainTag(tag), pages: pages.expect("a root table") }
    }

    /// Maps for reading and writing, and publishes the pages.
    ///
    /// # Panics
    /// When mapping fails.
    pub fn map(&mut self, domain: &mut Domain<T>, iova: u64, physical: u64, length: u64) {
        self.map_as(domain, iova, physical, length, Access::READ | Access::WRITE);
    }

    /// Maps, and publishes the pages.
    ///
    /// # Panics
    /// When mapping fails.
    pub fn map_as(
        &mut self,
        domain: &mut Domain<T>,
        iova: u64,
        physical: u64,
        length: u64,
        access: Access,
    ) {
        let range = range(iova, length);
        domain.pages.map(&mut self.tables, range, PhysAddr(physical), access).expect("map");
        self.unit.publish_pages(&mut self.tables, domain.tag, range).expect("publish");
    }

    /// Unmaps, invalidates, and only then frees tables.
    ///
    /// # Panics
    /// When unmapping fails.
    pub fn unmap(&mut self, domain: &mut Domain<T>, iova: u64, length: u64) {
        self.unmap_range(domain, range(iova, length));
    }

    /// The same as [`Bench::unmap`], for a range whose length may not fit in 64 bits.
    ///
    /// # Panics
    /// When unmapping fails.
    pub fn unmap_range(&mut self, domain: &mut Domain<T>, range: IovaRange) {
        let mut detached = Detached::new();
        domain.pages.unmap(&mut self.tables, range, &mut detached).expect("unmap");
        self.unit
            .invalidate_pages(
                &mut self.tables,
                domain.tag,
                detached.around(range),
                detached.tables_freed(),
            )
            .expect("invalidate");
        PageTable::<<T::Unit as Unit>::Format>::release(&mut self.tables, &mut detached);
    }

    /// Attaches a blocked requester to a domain.
    ///
    /// # Panics
    /// When the unit fails.
    pub fn attach(&mut self, source: RequesterId, domain: &Domain<T>) {
        self.unit.write_entry(&mut self.tables, source, domain.entry()).expect("entry");
        self.unit.invalidate_entry(&mut self.tables, source, None).expect("invalidate");
    }

    /// Blocks a requester that is attached to a domain.
    ///
    /// # Panics
    /// When the unit fails.
    pub fn detach(&mut self, source: RequesterId, domain: &Domain<T>) {
        self.unit.write_entry(&mut self.tables, source, Entry::Blocked).expect("entry");
        self.unit.invalidate_entry(&mut self.tables, source, Some(domain.tag)).expect("invalidate");
    }

    /// Checks that the requester reaches exactly this, whatever the unit has cached, and that no rule was broken.
    ///
    /// # Panics
    /// When the requester reaches anything else.
    pub fn expect(&self, source: RequesterId, expected: &[Reach]) {
        self.machine.assert_clean();
        for through in [Through::Tables, Through::TablesAndCaches] {
            let reach = self.machine.reach(self.number, source.0, through);
            assert_eq!(reach, expected, "{source:?} by {through:?}");
        }
        for run in expected {
            for iova in [run.iova, run.last] {
                let physical = run.physical + (iova - run.iova);
                let (read, write) =
                    (self.probe(source, iova, false), self.probe(source, iova, true));
                assert_eq!(read, run.read.then_some(physical), "{source:?} reads {iova:#x}");
                assert_eq!(write, run.write.then_some(physical), "{source:?} writes {iova:#x}");
            }
        }
        self.machine.assert_clean();
    }

    /// Returns where an access leads.
    #[must_use]
    pub fn probe(&self, source: RequesterId, iova: u64, write: bool) -> Option<u64> {
        self.machine.probe(self.number, source.0, iova, write)
    }

    /// Reads every page of a range, so that the unit has it cached.
    pub fn touch(&self, source: RequesterId, iova: u64, length: u64) {
        for at in (iova..iova + length).step_by(4096) {
            let _ = self.probe(source, at, false);
        }
    }
}
