//! Where on its way a unit stopped a request, from the hardware's reason code.

/// What stopped a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What is mapped at the address, or not.
    Mapping,
    /// The device's own entry, which denies everything.
    Entry,
    /// The request was an interrupt.
    Interrupt,
    /// The device asked for translations to keep, brought its own, or named a process.
    DeviceCache,
    /// The unit could not use its tables.
    Tables,
    /// The event is of the unit itself, and of no device.
    Unit,
    /// The code alone does not say.
    Unsure,
}

impl Stage {
    /// The stage that a reason of a unit means. `kind` is the unit's, as `status` has it.
    #[must_use]
    pub fn of(kind: &str, reason: u64) -> Self {
        match kind {
            "vt-d" => Self::of_vtd(reason),
            "amd-vi" => Self::of_amdvi(reason),
            _ => Self::Unsure,
        }
    }

    /// VT-d 4.1 sections 5.1.4.1 (table 15) and 7.1.3 (table 30).
    const fn of_vtd(reason: u64) -> Self {
        match reason {
            0x04..=0x06 | 0x0e | 0x71 | 0x79 | 0x80..=0x87 | 0xa3..=0xa5 => Self::Mapping,
            0x01 | 0x02 | 0x33 | 0x39 | 0x41 => Self::Entry,
            0x20..=0x2b => Self::Interrupt,
            0x0d | 0x31 | 0x32 | 0x34 | 0x44..=0x49 | 0x51 | 0x59 | 0x5c | 0x5d | 0x60 | 0x89 => {
                Self::DeviceCache
            }
            0x03
            | 0x07..=0x0c
            | 0x30
            | 0x38
            | 0x3a
            | 0x40
            | 0x42
            | 0x43
            | 0x50
            | 0x52
            | 0x58
            | 0x5a
            | 0x5b
            | 0x70
            | 0x72..=0x78
            | 0x7a..=0x7d
            | 0x90
            | 0x91
            | 0xa0..=0xa2 => Self::Tables,
            _ => Self::Unsure,
        }
    }

    /// AMD IOMMU 48882 rev 3.10 section 2.5; 101h is a page request (section 2.6), which the server numbers so.
    const fn of_amdvi(reason: u64) -> Self {
        match reason {
            0x2 => Self::Mapping,
            0x3 | 0x4 | 0xe => Self::Tables,
            0x5 | 0x6 | 0xa | 0xc => Self::Unit,
            0x7 | 0x9 | 0x101 => Self::DeviceCache,
            _ => Self::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_vtd() {
        for (reason, stage) in [
            (0x02, Stage::Entry),
            (0x05, Stage::Mapping),
            (0x06, Stage::Mapping),
            (0x07, Stage::Tables),
            (0x0d, Stage::DeviceCache),
            (0x25, Stage::Interrupt),
            (0x2c, Stage::Unsure),
            (0x41, Stage::Entry),
            (0x85, Stage::Mapping),
            (0x0f, Stage::Unsure),
            (0, Stage::Unsure),
        ] {
            assert_eq!(Stage::of("vt-d", reason), stage, "{reason:#x}");
        }
    }

    #[test]
    fn reasons_of_amdvi() {
        for (reason, stage) in [
            (0x1, Stage::Unsure),
            (0x2, Stage::Mapping),
            (0x4, Stage::Tables),
            (0x5, Stage::Unit),
            (0x9, Stage::DeviceCache),
            (0x101, Stage::DeviceCache),
            (0x102, Stage::Unsure),
        ] {
            assert_eq!(Stage::of("amd-vi", reason), stage, "{reason:#x}");
        }
        assert_eq!(Stage::of("other", 2), Stage::Unsure);
    }
}
