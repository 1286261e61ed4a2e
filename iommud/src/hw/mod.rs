//! Remapping hardware: the traits through which it is reached (`hal`), the operations of every unit, and the parts
//! that VT-d and AMD-Vi share (page tables, rings, bounded polls).

pub mod amdvi;
mod fields;
mod hal;
pub mod page_table;
mod poll;
mod ring;
mod set_aside;
mod unit;
pub mod vtd;
mod waits;

#[cfg(test)]
pub(crate) mod testing;

pub use hal::{
    BufferMemory, BufferPool, Clock, Constraints, MemoryError, Nanos, RegisterIo, TableMemory,
};
pub use set_aside::SetAside;
pub use unit::{Entry, HardwareFault, Survey, Unit, UnitError};
pub use waits::{Invalidations, RANGES};
