//! Tests of the registry as a whole: scenarios and random sequences, over a machine that records everything a device
//! was ever able to reach.

mod random;
mod scenarios;
mod world;
