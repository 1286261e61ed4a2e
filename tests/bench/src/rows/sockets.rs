//! Row 9.
pub fn run() {}
