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
        match error {
            MemoryError::Exhausted => {
                self.exhausted = true;
                Refusal::Full
            }
            MemoryError::Constraints => Refusal::NoMemory,
            MemoryError::Share => Refusal::Quota,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_finds_memory_waits_for_no_other() {
        let mut growth = Growth::default();
        growth.found(SessionId(1));
        assert_eq!(growth.refused, None);
        growth.refused(SessionId(1), 0x1000);
        growth.refused(SessionId(2), 0x3000);
        growth.found(SessionId(1));
        assert_eq!(growth.refused, Some((SessionId(2), 0x3000)), "it was the other's");
        growth.found(SessionId(2));
        assert_eq!(growth.refused, None);
    }

    /// Memory that exists, but not as it must lie, is no reason to take more.
    #[test]
    fn only_memory_that_is_used_up_counts_as_lack() {
        for (errors, lack) in [
            (&[MemoryError::Constraints, MemoryError::Share][..], false),
            (&[MemoryError::Exhausted], true),
            (&[MemoryError::Exhausted, MemoryError::Constraints], true),
            (&[MemoryError::Share, MemoryError::Exhausted], true),
        ] {
            let mut growth = Growth::default();
            for error in errors {
                let _ = growth.not_found(*error);
            }
            assert_eq!(growth.exhausted, lack, "{errors:?}");
        }
    }

    #[test]
    fn a_client_is_told_what_is_lacking() {
        let refusal = |error| Growth::default().not_found(error);
        assert_eq!(refusal(MemoryError::Exhausted), Refusal::Full);
        assert_eq!(refusal(MemoryError::Constraints), Refusal::NoMemory);
        assert_eq!(refusal(MemoryError::Share), Refusal::Quota);
    }
}
