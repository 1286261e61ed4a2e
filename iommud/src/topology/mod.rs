//! The machine as plain data: units and reserved regions from the firmware's tables, PCI functions from a walk of
//! configuration space.

pub mod alias;
pub mod capabilities;
pub mod firmware;
pub mod groups;
pub mod numbers;
pub mod pci;
pub mod pool;
pub mod quirks;
pub mod scope;
pub mod table;
pub mod tags;
#[cfg(test)]
pub(crate) mod testing;
pub mod walk;
pub mod windows;
