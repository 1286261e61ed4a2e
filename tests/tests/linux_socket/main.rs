//! The server behind its Unix socket, without hardware, privileges or huge pages.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod clients;
mod faults;
mod frames;
mod harness;
mod units;
mod waiting;
