//! What the machine consists of, as plain data: units and reserved regions from the firmware's tables,
//! PCI functions from a walk of configuration space.

pub mod capabilities;
pub mod firmware;
pub mod pci;
