//! Looks at firmware tables and at a running server.
fn main() {}
