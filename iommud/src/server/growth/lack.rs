//! What was not to be had.

use iommu_protocol::Refusal;

use crate::hw::MemoryError;
use crate::policy::SessionId;

/// Buffers that were not to be had.
#[derive(Clone, Default)]
pub(in crate::server) struct Growth {
    /// The last one that policy refused: to which session, and of how many bytes.
    pub(super) refused: Option<(SessionId, u64)>,
    /// There was no memory for one that policy had admitted.
    pub(super) exhausted: bool,
}

impl Growth {
    /// Policy refused a buffer of `length` bytes.
    pub(in crate::server) const fn refused(&mut self, session: SessionId, length: u64) {
        self.refused = Some((session, length));
    }

    /// There was memory for a buffer of a session: it asks for no other one.
    pub(in crate::server) fn found(&mut self, session: SessionId) {
        self.refused.take_if(|(waiting, _)| *waiting == session);
    }

    /// The platform has no memory for a buffer that policy admitted; says what the client is told.
    pub(in crate::server) fn not_found(&mut self, error: MemoryError) -> Refusal {
        self.exhausted |= error == MemoryError::Exhausted;
        Refusal::NoMemory
    }
}
