//! Intel VT-d units in legacy mode: root and context tables, second-stage page tables, queued invalidation.
//!
//! ```text
//!            bring_up                           enable
//! (powered) ----------> [entries can be       --------> [translating]
//!                        written, hardware               every write needs its invalidation
//!                        uses none of them]
//! ```
//!
//! Sections are those of the "Intel Virtualization Technology for Directed I/O Architecture Specification",
//! D51397, revision 5.1.

mod bringup;
mod describe;
mod fault;
mod port;
mod queue;
mod revive;
mod spec;
mod survey;
mod unit;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use bringup::addresses_told;
pub use spec::SecondStage;
pub use survey::RUNS;
pub use unit::VtdUnit;
