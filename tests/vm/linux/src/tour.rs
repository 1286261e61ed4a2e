//! Five things to try at the guest's prompt. The message of the day has them, and `xtask` types them and reads what
//! comes: it compiles this file too.

/// One of them.
pub(crate) struct Stop {
    /// What it is about.
    pub(crate) about: &'static str,
    /// What is typed.
    pub(crate) command: &'static str,
    /// A part of what is printed with a VT-d unit.
    pub(crate) vtd: &'static str,
    /// A part of what is printed with an AMD-Vi unit. QEMU's records of it have no address up to version 11.1.
    pub(crate) amdvi: &'static str,
}

/// All of them, in order.
pub(crate) const TOUR: [Stop; 5] = [
    Stop {
        about: "Which devices there are, and what each of them reaches:",
        command: "iommuctl tree",
        vtd: "unit 0: vt-d enabled",
        amdvi: "unit 0: amd-vi enabled",
    },
    Stop {
        about: "A driver takes its device, and copies by DMA through memory of iommud's:",
        command: "edud --device 0000--00--04.0",
        vtd: "same data, no fault",
        amdvi: "same data, no fault",
    },
    Stop {
        about: "A device writes to memory that was taken from it:",
        command: "iommuctl check --device 00:04.0",
        vtd: "this machine confines",
        amdvi: "this machine stops devices, but its records are incomplete",
    },
    Stop {
        about: "A driver with a wrong pointer; iommud says what happened:",
        command: "rogue --device 0000--00--04.0 --iova 0xbad0000 && iommuctl explain",
        vtd: "tried to write memory in the page at 0xbad0000 and was stopped",
        amdvi: "was stopped",
    },
    Stop {
        about: "A driver dies in the middle of a DMA, and its device is cut off:",
        command: "rogue --device 0000--00--04.0 --hold & sleep 2; kill -9 $!; iommuctl device 00:04.0",
        vtd: "reaches nothing: its owner ended",
        amdvi: "reaches nothing: its owner ended",
    },
];
