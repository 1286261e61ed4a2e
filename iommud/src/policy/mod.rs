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
mod config;
mod draft;
mod event;
mod excluded;
mod functions;
mod ids;
mod inline_list;
pub mod iova;
mod machine;
mod map_list;
mod mappings;
mod memory;
mod named_views;
mod owed;
mod plan;
mod pool;
mod ranges;
mod recovery;
mod registry;
mod shares;
mod single;
mod slab;
mod state;
mod step;
mod tag_use;
mod tags;
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
pub use step::{Binding, Charge, PASS_THROUGH_TAG, Payer, Step};
pub use tags::Holds;
pub use view::{
    BufferView, Counts, DomainView, FunctionView, GroupView, NamedView, RegionView, SessionView,
    UnitState, UnitView, VacantBuses,
};
