//! Shared parts of the tests, over the software units of [`iommud_model`].
//!
//! [`conformance`] checks the requirements for every backend. [`stack`] runs the whole server, [`explore`] every order
//! of its events. [`fuzz`] covers input from outside. [`model`] combines all of it for tests of drivers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

pub mod conformance;
pub mod explore;
pub mod fuzz;
pub mod model;
pub mod stack;

pub use iommud_model::{amdvi, machine, vtd};
