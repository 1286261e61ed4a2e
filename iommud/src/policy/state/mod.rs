//! All that is known.

pub(in crate::policy) mod machine;
pub(in crate::policy) mod mappings;
pub(in crate::policy) mod memory;
pub(in crate::policy) mod objects;
pub(in crate::policy) mod pool;
pub(in crate::policy) mod tags;
