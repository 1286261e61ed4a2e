//! The ordering contract, shown: every order of clients' requests, units' events, hot-plug and deaths through the
//! shipped policy, engine and server over software units, with the eight invariants checked after each event by
//! an independent reading of the hardware, and at every instant within it by devices that never stop trying.
//!
//! ```text
//! scene.rs     machines        act.rs      events and answers      plays.rs    which streams, where
//! subject.rs   what is explored            real.rs   the shipped server          racy.rs   known to be wrong
//! ledger.rs    what must be so             check.rs  I1 to I8                    scenario.rs S1 to S32, history.rs where they were seen
//! search.rs    every interleaving          random.rs longer ones, shrinking      sweep.rs  every k-th failure
//! report.rs    what is printed, and ORDERING.md
//! ```
//!
//! Model checkers that can be had (stateright) want states that are values of their own, to be hashed, compared
//! and sent to threads: the shipped server is driven over seams that it owns, so a state of theirs could only be
//! the list of events, replayed from boot for each successor. Checkpoints of server and machine do that work
//! here, at a few microseconds each. Those that explore thread schedules (loom, shuttle) have nothing to
//! schedule: there is one thread. Random runs and their shrinking are proptest's.

pub mod act;
pub mod check;
pub mod controls;
pub mod history;
pub mod ledger;
pub mod plays;
pub mod racy;
pub mod random;
pub mod real;
pub mod report;
pub mod scenario;
pub mod scene;
pub mod search;
pub mod subject;
pub mod sweep;
