//! Software units and what the tests share.
//!
//! [`conformance`] is what every backend must do; [`machine`] is physical memory with CPU caches, a clock and the seams of `iommud::hw` over them; [`vtd`]
//! is a VT-d unit that decodes raw bits with its own constants; [`fuzz`] is what may come from outside. A machine that saw a rule broken records a
//! [`machine::Violation`], and fails the test that drops it without having looked. [`model`] is all of it
//! together, for drivers to be tested on.
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
