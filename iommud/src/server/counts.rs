//! Counts of what the server did.

/// Counts of what the scheme did, for `metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) opens: u64,
    pub(super) calls: u64,
    pub(super) refusals: u64,
    pub(super) faults_lost_in_hardware: u64,
    pub(super) fault_interrupts: u64,
    pub(super) plans: u64,
    pub(super) plans_undone: u64,
    pub(super) units_recovered: u64,
    pub(super) quarantine_returned_bytes: u64,
    pub(super) memory_added_bytes: u64,
}
