//! The AMD-Vi backend against the software unit: the requirements for every backend over a matrix of capabilities,
//! and the features that only AMD-Vi has ([`takeover`], [`ring`], [`logs`], [`bytes`]).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod bytes;
mod halves;
mod logs;
mod ring;
mod takeover;

use iommud_tests::conformance::amdvi::matrix;

iommud_tests::conformance_suite!(matrix);
