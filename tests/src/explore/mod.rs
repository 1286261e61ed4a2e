//! Shows the ordering contract. Runs every order of clients' requests, units' events, hot-plug and deaths through the
//! shipped policy, engine and server over software units. After each event an independent reading of the hardware
//! checks the invariants. Accesses of devices that never stop trying check them at every instant within an event.
//!
//! ```text
//! scenes    scene.rs machines   backend.rs their units   act.rs events and answers   plays.rs streams of events
//!           session.rs a client's view   waiting.rs answers that come later
//! subjects  subject.rs the interface   shipped.rs the shipped server   flawed.rs servers that are wrong on purpose
//! checks    ledger.rs the expected state   units.rs   check.rs I1 to I8   instants.rs within an event
//!           scenario.rs S1 to S32   history.rs where they were seen
//! search    search.rs every interleaving   free.rs every choice   name.rs which states are the same
//!           random.rs long ones, shrinking   sweep.rs every k-th failure, over the runs in spines.rs
//!           exhaust.rs no memory at all
//! controls  controls.rs each flawed server is caught, by name
//! report    stages.rs the stages of a run   stats.rs counts   report.rs output and ORDERING.md
//! ```
//!
//! Existing model checkers (stateright 0.31) need states that are `Hash + Send + Sync` values, and compute successors
//! from a state alone. The shipped server runs over seams that share one machine (`Rc`). So a state could only be the
//! list of events, replayed from boot for each successor: some 5 ms instead of 0.1. Here checkpoints of server and
//! machine do that work. The rest (a set of names, one level at a time) is fifty lines in free.rs, which also check
//! that the names are right. Explorers of thread schedules (loom, shuttle) have nothing to schedule, because there is
//! one thread. proptest makes and shrinks the random runs.

pub mod act;
pub mod backend;
pub mod check;
pub mod controls;
pub mod exhaust;
pub mod flawed;
pub mod free;
pub mod history;
mod instants;
pub mod ledger;
pub mod name;
pub mod plays;
pub mod random;
pub mod report;
pub mod scenario;
pub mod scene;
pub mod search;
pub mod session;
pub mod shipped;
mod spines;
pub mod stages;
pub mod stats;
pub mod subject;
pub mod sweep;
mod units;
pub mod waiting;
