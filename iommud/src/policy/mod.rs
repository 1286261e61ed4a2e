//! Decisions, and nothing else: no input or output, no log, no clock, no hardware type.
//!
//! ```text
//!            decide(event)                    run by the engine
//!  Registry ---------------> Plan (ordered) ---------------------> commit(plan) -> Outcome
//!     |                                      \
//!     +--> Refusal (nothing changed)          +-- a step failed, its predecessors undone --> abort(plan)
//! ```
//!
//! A plan is complete before the first register is touched, and consumed by `commit` or `abort`.
//!
//! ```text
//! registry     decide, commit, abort, quarantine
//! transition   the decision on each event: functions over a Decision
//! decision     the state, the plan and the journal, and methods that change them
//! journal      the inverse of each change, for abort
//! facts        what the next server is to know of a plan
//! state        the state of the machine and its clients
//! plan, event, step   plain data
//! ```

mod activity_views;
mod collections;
mod config;
mod decision;
mod domain_views;
mod event;
mod facts;
mod ids;
pub mod iova;
mod journal;
mod named_views;
mod plan;
mod registry;
mod setup;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod transition;
mod view;
mod views;

pub use collections::ranges::reserved_parts;
pub use config::{Config, Matcher, Mode, Quotas, Rule};
pub use event::{
    Allocate, AllocateRequest, Batch, BatchRequest, Claim, Event, Hold, Import, ImportShared,
    ListRequest, MapList, MapRequest, Owed, Placed, Refused,
};
pub use facts::{Changes, FactBook, MappingFact, ObjectFact, SessionFact, SlotFact};
pub use ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
pub use plan::{Orders, Plan};
pub use registry::Registry;
pub use state::tags::Holds;
pub use state::tally::Tally;
pub use step::{Binding, Charge, PASS_THROUGH_TAG, Payer, Step};
pub use transition::Request;
pub use view::{
    Admitted, BufferView, Counts, DeviceView, DomainView, FunctionView, GroupView, MappingView,
    NamedView, RegionView, SessionView, SlotView, UnitState, UnitView, VacantBuses,
};
