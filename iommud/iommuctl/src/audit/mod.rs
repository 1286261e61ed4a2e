//! `audit`: who can reach all of memory on a Linux host now, and what iommud would confine. Needs no server.

pub mod host;
mod report;

pub use report::{Finding, Report, Weight};

#[cfg(test)]
mod tests;
