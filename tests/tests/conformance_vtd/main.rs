//! The VT-d backend against the software unit: the requirements for every backend over a matrix of capabilities, and
//! the features that only VT-d has ([`takeover`], [`queue`], [`bytes`]).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod bytes;
mod queue;
mod takeover;

use iommud_tests::conformance;
use iommud_tests::conformance::vtd::matrix;

iommud_tests::conformance_suite!(matrix);

/// VT-d has different reasons for reads, writes, and devices without an entry.
#[test]
fn reasons_differ() {
    for subject in matrix() {
        conformance::faults::reasons_differ(&subject);
    }
}
