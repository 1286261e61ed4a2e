//! The pool of memory for buffers.

/// Memory for buffers.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) struct Pool {
    pub(in crate::policy) capacity: u64,
    pub(in crate::policy) granule: u64,
}

impl Default for Pool {
    /// An unlimited pool.
    fn default() -> Self {
        Self { capacity: u64::MAX, granule: 1 }
    }
}

impl Pool {
    /// The bytes of the pool that a buffer of this length takes.
    pub(in crate::policy) fn of(self, length: u64) -> u64 {
        length.checked_next_multiple_of(self.granule.max(1)).unwrap_or(u64::MAX)
    }
}
