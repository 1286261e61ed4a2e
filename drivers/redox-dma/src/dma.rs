//! One value, or several, in memory that a device reaches.

pub use crate::platform::Dma;
