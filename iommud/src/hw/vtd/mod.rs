//! Intel VT-d units in legacy mode: root and context tables, second-stage page tables, queued invalidation.

pub mod spec;
