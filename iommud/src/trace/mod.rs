//! The trace: every event, decision and outcome, so that a bug report reproduces itself.
//!
//! ```text
//!             begin(request)            committed | refused | undone
//!   server ------------------> Ring <------------------------------ server
//!                               |  half full, or a second old: in one write
//!                               v
//!                              FILE --> iommuctl replay: the same requests to the same policy and engine, over software
//!                                       units; its own ring must get the same records; I1 to I9 hold after each
//! ```
//!
//! Recorded is what enters policy: each request as decoded, each event, and the few facts that the registry gets
//! without an event ([`Fact`]). A life of a server begins with a [`Snapshot`]: the policy file, the firmware's table,
//! the memory. Functions, units and their capabilities come as events. So a replay needs nothing else, and policy,
//! which has no clock and no input of its own, decides the same.
//!
//! Not recorded is what never reaches policy: texts, queries, limits of handles, faults that are only delivered.
//!
//! What hardware decides is recorded as the outcome: whether the plan was carried out, or undone, and whether a device
//! may still reach what it brought. A replay does not repeat a failure. It takes the plan back in the same way, and goes
//! on. Lack of memory for tables is such a failure, so a replay has as much of it as it needs. The memory of each
//! buffer is in the request to policy, so it lies at the same addresses.
//!
//! Cost. A record is 64 bytes: eight words, built in registers and stored at a masked index. Each call asks by one
//! branch whether there is a ring. The record is written before the decision, and its last two words after it: a server that dies in
//! between leaves the event that it died in. Nothing is allocated, and nothing is written to a file, before the loop has
//! served the event. Elements of a list have records of their own. Time is that of the loop's last tick.
//!
//! A file is a series of records and nothing else. Each has its number in its life, so a missing one is found. Behind the
//! records of each write stands their [`Seal`], so a bit that was changed later is found. Of a ring that was not taken in
//! time the oldest records are lost, and the numbers show it.
//!
//! ```text
//! record     the words      encode     requests and events      fact, snapshot   what is no event
//! ring       memory         recorder   what the server calls    decode           a file's records, whatever they hold
//! seal       a file's check
//! ```

mod decode;
mod encode;
mod fact;
mod record;
mod recorder;
mod ring;
mod seal;
mod snapshot;
#[cfg(test)]
mod tests;

pub use decode::{Entry, Said, Unreadable, read, records};
pub use encode::Traced;
pub use fact::Fact;
pub use record::{Kind, RECORD_BYTES, Record, State, Status};
pub use recorder::Recorder;
pub use ring::{MARK, Ring};
pub use seal::{Seal, take_sealed};
pub use snapshot::{Snapshot, TableBytes};
