//! Bit layouts, and nothing else. Sections are those of the Intel Virtualization Technology for Directed
//! I/O Architecture Specification, revision 4.1 (order number D51397).

mod pte;

pub use pte::SecondStage;
