// Titles of the checks, in order; the numbers that the guest reports count from 1.

/// Checks of a machine with a unit.
pub(crate) const CHECKS: &[&str] = &[
    "the unit is enabled before the first driver starts",
    "a driver that knows nothing of iommud reads its disk",
    "edud claims its device and copies both ways through its IOVA",
    "DMA that was never granted is blocked, and the driver is told in words",
    "status and the list of devices can be read",
    "a driver killed in mid-DMA is cut off, and another can claim its device",
    "uid 1000 cannot claim",
];

/// Checks of a machine without one.
pub(crate) const CHECKS_WITHOUT: &[&str] = &[
    "boot goes on, and the server says that there is no unit",
    "a driver that knows nothing of iommud reads its disk",
    "edud works unconfined",
    "status and the list of devices can be read",
    "uid 1000 cannot claim",
];
