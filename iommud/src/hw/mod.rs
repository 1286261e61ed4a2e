//! Remapping hardware: the seams it is reached through, what every unit can do, and what VT-d and AMD-Vi
//! share (page tables, rings, bounded polls).

pub mod amdvi;
mod poll;
pub mod radix;
mod ring;
mod seams;
mod unit;
pub mod vtd;

#[cfg(test)]
pub(crate) mod testing;

pub use seams::{
    BufferMemory, BufferPool, Clock, Constraints, MemoryError, Nanos, RegisterIo, TableMemory,
};
pub use unit::{Entry, HardwareFault, Survey, Unit, UnitError};
