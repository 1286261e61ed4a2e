//! AMD-Vi units: device table, command ring, event and page request logs, page tables of version 1.
//!
//! ```text
//! bring_up   memory for everything; every entry of the device table denies
//!   unit off: all off, flags, bases and pointers; rings armed (the unit uses none of them while IommuEn
//!             is 0, so no command can run yet)
//!   unit on:  only the rings and logs are replaced; the old device table stays in force
//! write_entry ..            into the new device table, which the unit does not read yet
//! enable
//!   unit off: IommuEn
//!   unit on:  the device table register is swapped in one store, IommuEn stays 1
//!   both:     exclusion range off, every entry written is invalidated, INVALIDATE_IOMMU_ALL, wait
//! ```
//!
//! While IommuEn is 0, the unit executes no commands and caches nothing. Invalidations that are due before `enable`
//! are left to `enable`.

mod bringup;
mod capability;
mod command;
mod device;
mod event;
mod format;
mod log;
mod port;
mod revive;
mod spec;
mod survey;
mod unit;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use bringup::addresses_told;
pub use capability::Capability;
pub use format::AmdFormat;
pub use unit::{AmdUnit, RUNS};
