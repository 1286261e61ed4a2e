//! The server's backends on software units.

pub mod amdvi;
pub mod vtd;

use iommu_protocol::RequesterId;
use iommud::hw::{Survey, Unit, UnitError};
use iommud::topology::firmware::UnitDescription;

use crate::machine::{Machine, Tables};

/// Requesters, each with the pages that it reaches.
pub type Inherited = [(RequesterId, Vec<u64>)];

/// A backend with a kind of hardware to run on.
pub trait UnderTest {
    /// The backend.
    type Unit: Unit<Memory = Tables>;

    /// The firmware table that describes such units.
    const TABLE: &'static str;

    /// The server's name for such units.
    const FAMILY: &'static str;

    /// Its name in messages.
    fn name(&self) -> String;

    /// Adds the software unit to a machine and returns its number.
    fn add(&self, machine: &Machine) -> usize;

    /// Reads the unit's properties before it is brought up.
    ///
    /// # Errors
    /// The backend's error.
    fn survey(&self, machine: &Machine, unit: usize) -> Result<Survey, UnitError>;

    /// Examines the unit and allocates the memory that it needs.
    ///
    /// # Errors
    /// The backend's error.
    fn prepare(
        &self,
        machine: &Machine,
        unit: usize,
        tables: &mut Tables,
    ) -> Result<Self::Unit, UnitError>;

    /// Takes the unit over until it accepts entries; [`Unit::enable`] comes later.
    ///
    /// # Errors
    /// The backend's error.
    fn take_over(&self, unit: &mut Self::Unit, tables: &mut Tables) -> Result<(), UnitError>;

    /// Prepares the unit and takes it over.
    ///
    /// # Errors
    /// The backend's error.
    fn bring_up(
        &self,
        machine: &Machine,
        unit: usize,
        tables: &mut Tables,
    ) -> Result<Self::Unit, UnitError> {
        let mut prepared = self.prepare(machine, unit, tables)?;
        self.take_over(&mut prepared, tables)?;
        Ok(prepared)
    }

    /// Returns firmware's description of unit `unit`: these devices are behind it, or all that no other unit names.
    fn describe(&self, unit: usize, devices: Option<&[RequesterId]>) -> UnitDescription;

    /// Leaves the unit translating with tables of a previous owner, in system memory from `start` on. Each of these
    /// requesters reaches these pages, one to one, as domain 7. Other requesters reach nothing.
    fn inherit(&self, machine: &Machine, unit: usize, start: u64, reaches: &Inherited) {
        self.inherit_as(machine, unit, start, reaches, 7);
    }

    /// The same as [`UnderTest::inherit`], with this domain number.
    fn inherit_as(
        &self,
        machine: &Machine,
        unit: usize,
        start: u64,
        reaches: &Inherited,
        domain: u16,
    );

    /// Executed invalidations of pages, invalidations of entries, and waits.
    fn counts(&self, machine: &Machine, unit: usize) -> (u64, u64, u64);

    /// Whether new entries and pages become visible without an invalidation.
    fn shows_new_at_once(&self) -> bool;

    /// Whether the unit can invalidate some pages of a domain instead of all of them.
    fn invalidates_pages(&self) -> bool;

    /// Fault records that the unit holds before it drops any.
    fn fault_capacity(&self) -> usize;

    /// Whether an exactly full set of records counts as one lost. Such a unit does not show whether more faults came.
    fn full_counts_as_lost(&self) -> bool;
}
