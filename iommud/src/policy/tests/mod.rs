//! The registry as a whole: scenarios and random sequences, over a machine that remembers everything it ever
//! let a device see.

mod random;
mod scenarios;
mod world;
