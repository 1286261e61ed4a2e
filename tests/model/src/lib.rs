//! Units in software, with constants of their own, and the machine that they are in.
//!
//! [`machine`] is physical memory with CPU caches, a clock, and the traits of `iommud::hw` over them. [`vtd`] and
//! [`amdvi`] are units that decode raw bits, keep what they cached until it is invalidated, and record faults.
//! [`backend`] runs the server's backends on them; [`invariant`] has the invariants that a server keeps. A machine that
//! detects a broken rule records a [`machine::Violation`]. Whoever drops the machine without taking its violations
//! fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a unit that meets the unexpected must stop"
)]

pub mod amdvi;
pub mod backend;
pub mod invariant;
pub mod machine;
pub(crate) mod paging;
pub mod vtd;
