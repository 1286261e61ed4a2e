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

mod apply;
mod batch;
mod buffers;
mod change;
mod changes;
mod claims;
mod collections;
mod config;
mod draft;
mod event;
mod excluded;
mod functions;
mod ids;
pub mod iova;
mod map_list;
mod named_views;
mod owed;
mod plan;
mod recovery;
mod registry;
mod shares;
mod single;
mod state;
mod step;
mod tag_use;
#[cfg(test)]
mod tests;
mod units;
mod view;
mod views;
mod work;

pub use config::{Config, Matcher, Mode, Quotas, Rule};
pub use event::{
    AllocateRequest, BatchRequest, Event, ListRequest, MapRequest, Outcome, Owed, Refused,
};
pub use ids::{BufferId, ClientId, DomainId, GroupId, SessionId, UnitIndex};
pub use plan::{Plan, Sink};
pub use registry::Registry;
pub use single::{ChangePlan, Decided};
pub use state::tags::Holds;
pub use step::{Binding, Charge, PASS_THROUGH_TAG, Payer, Step};
pub use view::{
    BufferView, Counts, DomainView, FunctionView, GroupView, NamedView, RegionView, SessionView,
    UnitState, UnitView, VacantBuses,
};
