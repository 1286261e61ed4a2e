//! Requesters that have faults without a pause.

use alloc::collections::BTreeMap;

use iommu_protocol::ids::RequesterId;

use crate::policy::UnitIndex;

/// Number of faults of one requester, in consecutive ticks, before it is silenced.
pub(in crate::server) const LIMIT: u32 = 16;

/// Requesters that have had faults in each tick lately.
#[derive(Clone, Default)]
pub(in crate::server) struct Storms {
    /// Number of faults, and whether there was one since the last tick ended.
    counts: BTreeMap<(UnitIndex, RequesterId), (u32, bool)>,
    /// Whether it was logged that no more requesters of no known function can be silenced.
    pub(super) full: bool,
}

impl Storms {
    /// Counts a fault. Returns true for the last one before the requester is silenced; counting then begins anew. So
    /// a device that is attached again in the middle of its storm has 16 faults like any other.
    pub(super) fn count(&mut self, unit: UnitIndex, source: RequesterId) -> bool {
        let (count, lately) = self.counts.entry((unit, source)).or_insert((0, true));
        *count = count.saturating_add(1);
        *lately = true;
        if *count < LIMIT {
            return false;
        }
        *count = 0;
        true
    }

    /// Removes requesters that were quiet since the last call.
    pub(super) fn end_tick(&mut self) {
        self.counts.retain(|_, (_, lately)| core::mem::take(lately));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_that_do_not_pause_add_up() {
        let mut storms = Storms::default();
        let (unit, loud, other) = (UnitIndex(0), RequesterId(8), RequesterId(9));
        for _ in 0..40 {
            assert!(!storms.count(unit, other), "one now and then");
            storms.end_tick();
            storms.end_tick();
        }
        for _ in 0..15 {
            assert!(!storms.count(unit, loud));
            assert!(!storms.count(UnitIndex(1), loud), "of another unit");
            storms.end_tick();
        }
        assert!(!storms.count(unit, other));
        assert!(storms.count(unit, loud), "the sixteenth");
        assert!(!storms.count(unit, loud), "once");
        storms.end_tick();
        storms.end_tick();
        assert!(storms.counts.is_empty());
    }
}
