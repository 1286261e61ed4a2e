//! Software units and shared parts of the tests.
//!
//! [`conformance`] checks the requirements for every backend. [`machine`] is physical memory with CPU caches, a clock
//! and the seams of `iommud::hw` over them. [`vtd`] is a VT-d unit that decodes raw bits with its own constants.
//! [`fuzz`] covers input from outside. A machine that detects a broken rule records a [`machine::Violation`]. A test
//! that drops the machine without taking its violations fails. [`model`] combines all of it for tests of drivers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

pub mod amdvi;
pub mod conformance;
pub mod explore;
pub mod fuzz;
pub mod machine;
pub mod model;
pub(crate) mod paging;
pub mod stack;
pub mod vtd;
