//! Containers that the rest of policy is built on.

pub(in crate::policy) mod inline_list;
pub(in crate::policy) mod ranges;
pub(in crate::policy) mod slab;
