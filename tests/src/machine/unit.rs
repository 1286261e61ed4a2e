//! What the machine asks of a software unit, whatever its vendor.

use std::any::Any;

use super::{Memory, Violation};

/// The machine as a unit sees it.
pub struct Bus<'a> {
    /// Physical memory.
    pub memory: &'a mut Memory,
    /// Nanoseconds since start.
    pub now: u64,
    /// The unit's number: its view of memory.
    pub unit: usize,
}

impl Bus<'_> {
    /// The machine to be looked at only.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { memory: self.memory, unit: self.unit }
    }

    /// Records that a rule was broken.
    pub fn report(&mut self, violation: Violation) {
        self.memory.report(violation);
    }

    /// Records that a register was misused.
    pub fn misused(&mut self, offset: u32, value: u64, rule: &'static str) {
        self.report(Violation::Register { unit: self.unit, offset, value, rule });
    }
}

/// The machine as a unit sees it, to be looked at only.
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
    /// Whether the unit records a fault. Probes that no device makes leave no record.
    pub record: bool,
}

/// Why an access was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The vendor's reason code; 0 when the unit is dead or the address is an interrupt's.
    pub reason: u16,
    /// The first address that was denied.
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

/// Appends a run, joining it to the one before when it continues it.
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

/// What to include when listing what a requester reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The tables as they stand in memory.
    Tables,
    /// The tables and all that the unit has cached, in any mixture that hardware may use.
    TablesAndCaches,
}

/// Ways in which a unit can be made to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The queue takes no further descriptor after this many.
    StallQueueAfter(u64),
    /// Commands in the global command register never complete.
    StallCommands,
    /// All registers read as ones and ignore writes; every access of a device is denied.
    Dead,
    /// All is well again (a dead unit stays dead).
    None,
}

/// Something that a unit has cached. Pages are counted in 2^`bits` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The entry of a requester, and the domain that it leads to; `None` when it denies.
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
        /// Which page.
        page: u64,
        /// Where it leads.
        physical: u64,
    },
    /// A table on the way to pages.
    Table {
        /// The domain.
        domain: u16,
        /// Bytes that it translates, as a power of two.
        bits: u32,
        /// Which of them.
        page: u64,
    },
    /// That there is nothing.
    Absent {
        /// The domain.
        domain: u16,
        /// Bytes that are absent, as a power of two.
        bits: u32,
        /// Which of them.
        page: u64,
    },
}

/// A remapping unit in software.
pub trait SoftwareUnit: Any {
    /// Reads `width` bytes (4 or 8) of registers.
    fn read(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64;

    /// Writes `width` bytes (4 or 8) of registers.
    fn write(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64);

    /// Does one thing that is due by now (completes a command, executes a descriptor); false when
    /// nothing is.
    fn step(&mut self, bus: &mut Bus<'_>) -> bool;

    /// Told of each store of the CPU to a table frame.
    fn stored(&mut self, bus: &mut Bus<'_>, address: u64);

    /// Translates an access through the caches, filling them.
    ///
    /// # Errors
    /// `Denied`, after the fault was recorded.
    fn translate(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Denied>;

    /// Whether an access that was just translated snoops caches although it asks not to.
    fn forces_snoop(&self, view: View<'_>, source: u16, iova: u64) -> bool;

    /// Everything a requester could reach now, in the order of the tables. Reads no caches unless asked
    /// to, and changes nothing.
    fn reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach>;

    /// Requesters whose entry lets something through, in ascending order.
    fn sources(&self, view: View<'_>, through: Through) -> Vec<u16>;

    /// Frames that the unit could still read as tables, each with how.
    fn tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)>;

    /// The entry of a requester by the tables: domain id, root of its page table (0 when requests pass
    /// untranslated), levels; `None` when it denies.
    fn binding(&self, view: View<'_>, source: u16) -> Option<(u16, u64, u8)>;

    /// Where a read leads by the tables alone, as if nothing were cached. Changes nothing.
    fn lookup(&self, view: View<'_>, source: u16, iova: u64) -> Option<u64>;

    /// Everything that it has cached, in any order.
    fn cached(&self) -> Vec<Cached>;

    /// Invalidations and waits that were executed.
    fn executed(&self) -> u64;

    /// Whether accesses are translated (else they pass, or all are denied by a dead unit).
    fn translating(&self) -> bool;

    /// Makes the unit misbehave.
    fn trouble(&mut self, trouble: Trouble);

    /// A copy, for [`super::Machine::save`]; `None` from a unit that cannot be copied.
    fn copy(&self) -> Option<Box<dyn SoftwareUnit>> {
        None
    }

    /// For what only one vendor's unit can do.
    fn as_any(&mut self) -> &mut dyn Any;

    /// For what only one vendor's unit knows.
    fn as_any_ref(&self) -> &dyn Any;
}
