//! Tests of the registry as a whole: scenarios, single decisions and random sequences, over a machine that records
//! everything a device was ever able to reach.

mod crowd;
mod decisions;
mod random;
mod scenarios;
mod world;
