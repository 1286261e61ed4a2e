//! Row 12.
pub fn run() {}
