// Titles of the checks, in order. The guest's report numbers them from 1.

/// Checks of a machine with a unit, iommud started before the first driver.
pub(crate) const EARLY: &[&str] = &[
    "the unit is enabled before the first driver starts",
    "nvmed, which knows nothing of iommud, reads its disk under compat",
    "e1000d, which knows nothing of iommud, attaches under compat",
    "edud claims its device and copies both ways through its IOVA",
    "DMA that was never granted is blocked, and the driver is told in words by an event",
    "status and the list of devices can be read",
    "a driver killed in mid-DMA is cut off, and another can claim its device",
    "uid 1000 cannot claim",
    "uid 1000 without a name space drives a device whose descriptor it inherited",
    "iommud has no name space once it serves",
    "nvme, started by pcid-spawner through iommu-run as uid 1000 without a name, works confined and woken by interrupts",
    "nvme writes, reads back and compares through granted buffers, woken by its controller's interrupts",
    "an NVMe command to memory never granted is blocked, told in words; the driver resets and goes on",
    "an NVMe driver killed in the middle of a write is cut off: a part was written, nothing else; the next one works",
    "faults are told by interrupt (VT-d), or asked for (AMD-Vi), and the server says which",
    "a buffer that one process made is mapped for another one's device, and taken back",
    "edud, started by iommu-run as uid 1001 without a name, copies both ways through what it was handed; other programs keep the names that they are left",
    "a hostile driver under iommu-run finds every way out held, but those that the system leaves open",
    "iommud killed under load: its memory is held, clients are told, the next one takes over and loses nothing",
    "a server killed, or hanging, while its keeper waits for a word of it: the memory stays held, another is started",
    "clients with 40 mapped buffers end, or are killed, while their server is dead: none of them waits for ever",
    "with no interrupt vector to be had, faults are asked for and told all the same, and nvme polls and says so",
];

/// Checks of a machine with a unit but a damaged table for it.
pub(crate) const DAMAGED: &[&str] = &[
    "boot goes on, and the server says which unit failed, and why",
    "nvmed, which knows nothing of iommud, reads its disk",
    "e1000d, which knows nothing of iommud, attaches",
    "edud cannot claim its device: its unit has failed",
    "status and the list of devices can be read",
    "uid 1000 cannot claim",
];

/// Checks of a machine without a unit.
pub(crate) const UNCONFINED: &[&str] = &[
    "boot goes on, and the server says that there is no unit",
    "nvmed, which knows nothing of iommud, reads its disk",
    "e1000d, which knows nothing of iommud, attaches",
    "edud works unconfined",
    "status and the list of devices can be read",
    "uid 1000 cannot claim",
];

/// Checks of a machine with a unit, iommud started from the root file system.
pub(crate) const LATE: &[&str] = &[
    "the disk is read before the unit is enabled, while it is, and after: nothing lost, nothing wrong",
    "the unit is enabled, and the disk is under compat",
    "edud claims its device and copies both ways through its IOVA",
    "DMA that was never granted is blocked, and the driver is told in words by an event",
];
