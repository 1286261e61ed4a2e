//! The edu driver.
fn main() {}
