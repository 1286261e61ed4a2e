//! The checks of the register-level suite, fixed in advance: one that does not report counts as failed.
//! `xtask` compiles this file too.

/// Titles; the first is number 1.
pub(crate) const CHECKS: [&str; 25] = [
    "the counter counts instructions",
    "edu copies memory both ways with translation off",
    "an interrupt of a device arrives exactly once",
    "the firmware's DMAR names one unit, and the devices behind it",
    "bring-up leaves translation off and every device as it was",
    "enabled: a device without an entry is denied, with reason 1 (no root entry)",
    "a blocked device is denied, with reason 2 (no context entry)",
    "a mapped page is reached, both ways, and nothing around it",
    "fault records are exact: source, page, access and reason 5 (write) or 6 (read)",
    "a silenced device is denied without a record",
    "the fault interrupt arrives, once while a fault is pending, and at once after unmasking",
    "interrupts of devices pass",
    "stale page: without the invalidation the DMA passes, with it it is denied",
    "a range of pages across an odd boundary is forgotten to its last page",
    "stale entry: without the invalidation the DMA passes, with it it is denied",
    "a device moves between domains and sees one at a time",
    "two devices, one address, two domains: each has its own page",
    "2 MiB in one entry; a hole in the middle leaves the rest reachable",
    "unlinked tables are freed after their invalidation, and frames return to what they were",
    "a device behind a root port is told apart from others",
    "nvme writes through its mapping; denied, it still says success",
    "take-over of our own tables: translation never goes off",
    "take-over of a stranger's tables: the old mapping holds until the new tables do",
    "a completion interrupt arrives where a wait asks for it",
    "register accesses: none to map without caching mode, one tail write to unmap",
];

/// Titles for a machine with AMD-Vi; the first three are the same.
pub(crate) const AMD_CHECKS: [&str; 18] = [
    CHECKS[0],
    CHECKS[1],
    CHECKS[2],
    "the IVRS describes one unit, and its capability block agrees",
    "brought up, the unit is off, every entry denies, and devices go on as before",
    "enabling turns translation, command ring and event log on",
    "a blocked device reaches no memory",
    "a fault names its source and what happened",
    "a device reaches what its domain maps, and nothing once detached",
    "page tables of every depth, leaves of every size",
    "read-only and write-only pages are",
    "a page unmapped stays reachable until invalidated, and not after",
    "a device that changes domain reaches the new one alone",
    "pass-through lets a device through, and can be taken back",
    "a silenced device is denied",
    "a log that fills up says so and goes on",
    "a second owner takes the unit over without an open instant",
    "costs are counted",
];
