//! Firmware tables: bytes to [`crate::topology::firmware::Firmware`]. Never panics, never reads outside.
