//! Buffers that failed for lack of memory.

use iommu_protocol::Refusal;

use crate::hw::MemoryError;
use crate::policy::SessionId;

/// Buffers that failed for lack of memory.
#[derive(Clone, Default)]
pub(in crate::server) struct Growth {
    /// The last buffer that policy refused: its session, and its length in bytes.
    pub(super) refused: Option<(SessionId, u64)>,
    /// There was no memory for a buffer that policy had admitted.
    pub(super) exhausted: bool,
}

impl Growth {
    /// Records that policy refused a buffer of `length` bytes.
    pub(in crate::server) const fn refused(&mut self, session: SessionId, length: u64) {
        self.refused = Some((session, length));
    }

    /// Records that there was memory for a buffer of a session: the session waits for no other one.
    pub(in crate::server) fn found(&mut self, session: SessionId) {
        self.refused.take_if(|(waiting, _)| *waiting == session);
    }

    /// Records that the platform has no memory for a buffer that policy admitted. Returns the refusal for the client.
    pub(in crate::server) fn not_found(&mut self, error: MemoryError) -> Refusal {
        self.exhausted |= error == MemoryError::Exhausted;
        Refusal::NoMemory
    }
}
