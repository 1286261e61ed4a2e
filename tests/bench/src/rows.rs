//! The rows, each named by the number of its target.

pub mod alone;
pub mod calls;
pub mod core;
pub mod driver;
pub mod frames;
pub mod iova;
pub mod memory;
pub mod pool;
pub mod probe;
pub mod range;
pub mod servers;
pub mod sockets;
pub mod storm;
