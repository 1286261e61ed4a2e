//! The interface between the machine and a software unit of any vendor.

use std::any::Any;

use super::{Memory, Violation};

/// A unit's view of the machine.
pub struct Bus<'a> {
    /// Physical memory.
    pub memory: &'a mut Memory,
    /// Nanoseconds since start.
    pub now: u64,
    /// The unit's number: its view of memory.
    pub unit: usize,
}

impl Bus<'_> {
    /// Returns a read-only view.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { memory: self.memory, unit: self.unit }
    }

    /// Records a broken rule.
    pub fn report(&mut self, violation: Violation) {
        self.memory.report(violation);
    }

    /// Records the misuse of a register.
    pub fn misused(&mut self, offset: u32, value: u64, rule: &'static str) {
        self.report(Violation::Register { unit: self.unit, offset, value, rule });
    }
}

/// A unit's read-only view of the machine.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Physical memory.
    pub memory: &'a Memory,
    /// The unit's number: its view of memory.
    pub unit: usize,
}

/// One access of a device, within one page of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Requester id.
    pub source: u16,
    /// Address that the device put on the bus.
    pub iova: u64,
    /// A write; else a read.
    pub write: bool,
    /// Whether the unit records a fault. Probes, which no device makes, leave no record.
    pub record: bool,
}

/// Why an access was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The vendor's reason code; 0 when the unit is dead or the address is in the interrupt range.
    pub reason: u16,
    /// The first denied address.
    pub iova: u64,
}

/// A run of addresses that a requester can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reach {
    /// First I/O virtual address.
    pub iova: u64,
    /// Last I/O virtual address (inclusive).
    pub last: u64,
    /// Physical address of the first byte.
    pub physical: u64,
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

/// Appends a run. A run that continues the last one is joined to it.
pub fn join(runs: &mut Vec<Reach>, run: Reach) {
    if let Some(end) = runs.last_mut()
        && end.last.checked_add(1) == Some(run.iova)
        && end.physical.wrapping_add(run.iova - end.iova) == run.physical
        && (end.read, end.write) == (run.read, run.write)
    {
        end.last = run.last;
    } else {
        runs.push(run);
    }
}

/// The sources to include when listing a requester's reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The tables as they stand in memory.
    Tables,
    /// The tables and everything that the unit has cached, in any mixture that hardware may use.
    TablesAndCaches,
}

/// Ways to make a unit misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The queue takes no further descriptor after this many descriptors.
    StallQueueAfter(u64),
    /// Commands in the global command register never complete.
    StallCommands,
    /// Translation cannot be turned on.
    StaysOff,
    /// All registers read as ones and ignore writes. Every access of a device is denied.
    Dead,
    /// The unit works again (a dead unit stays dead).
    None,
}

/// A cached item of a unit. Pages are counted in units of 2^`bits` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The entry of a requester, and the domain it points to; `None` when the entry denies.
    Entry {
        /// The requester.
        source: u16,
        /// The domain.
        domain: Option<u16>,
    },
    /// A translation.
    Page {
        /// The domain.
        domain: u16,
        /// Bytes of the page, as a power of two.
        bits: u32,
        /// The page's number.
        page: u64,
        /// The physical address.
        physical: u64,
    },
    /// A table on the way to pages.
    Table {
        /// The domain.
        domain: u16,
        /// Bytes that it translates, as a power of two.
        bits: u32,
        /// The number of that block.
        page: u64,
    },
    /// An absent entry.
    Absent {
        /// The domain.
        domain: u16,
        /// Bytes that are absent, as a power of two.
        bits: u32,
        /// The number of that block.
        page: u64,
    },
}

/// A remapping unit in software.
pub trait SoftwareUnit: Any {
    /// Reads `width` bytes (4 or 8) of registers.
    fn read(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64;

    /// Writes `width` bytes (4 or 8) of registers.
    fn write(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64);

    /// Does one piece of work that is due by now (completes a command, executes a descriptor). False when nothing is
    /// due.
    fn step(&mut self, bus: &mut Bus<'_>) -> bool;

    /// Notifies the unit of each store of the CPU to a table frame.
    fn stored(&mut self, bus: &mut Bus<'_>, address: u64);

    /// Translates an access through the caches, filling them.
    ///
    /// # Errors
    /// `Denied`, after the fault was recorded.
    fn translate(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Denied>;

    /// Whether an access just translated snoops caches despite its no-snoop attribute.
    fn forces_snoop(&self, view: View<'_>, source: u16, iova: u64) -> bool;

    /// Returns everything that a requester can reach now, in the order of the tables. Reads caches only when
    /// `through` includes them. Changes nothing.
    fn reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach>;

    /// Returns the requesters whose entry allows any access, in ascending order.
    fn sources(&self, view: View<'_>, through: Through) -> Vec<u16>;

    /// Returns the frames that the unit may still read as tables, each with a description.
    fn tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)>;

    /// Returns a requester's entry by the tables: domain id, root of its page table (0 when requests pass
    /// untranslated), levels. `None` when the entry denies.
    fn binding(&self, view: View<'_>, source: u16) -> Option<(u16, u64, u8)>;

    /// Returns where a read leads by the tables alone, as if nothing were cached. Changes nothing.
    fn lookup(&self, view: View<'_>, source: u16, iova: u64) -> Option<u64>;

    /// Returns everything that the unit has cached, in any order.
    fn cached(&self) -> Vec<Cached>;

    /// Invalidations and waits executed so far.
    fn executed(&self) -> u64;

    /// Whether accesses are translated. Otherwise they pass untranslated, or a dead unit denies them all.
    fn translating(&self) -> bool;

    /// Makes the unit misbehave.
    fn trouble(&mut self, trouble: Trouble);

    /// Returns a copy, for [`super::Machine::save`]; `None` from a unit that cannot be copied.
    fn copy(&self) -> Option<Box<dyn SoftwareUnit>> {
        None
    }

    /// Gives access to the methods of one vendor's unit that change it.
    fn as_any(&mut self) -> &mut dyn Any;

    /// Gives read-only access to the methods of one vendor's unit.
    fn as_any_ref(&self) -> &dyn Any;
}
