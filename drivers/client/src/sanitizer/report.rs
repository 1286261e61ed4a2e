//! A bug of a driver, with the places in its source.

use std::fmt;
use std::panic::Location;

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::PciAddress;

/// A place in the source of a driver.
pub type Place = &'static Location<'static>;

/// A bug of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// The device was still at work on memory whose mapping or grant had ended.
    UseAfterUnmap {
        /// The I/O virtual address of the access, as the unit reported it.
        at: u64,
        /// The kind of access.
        access: FaultAccess,
        /// The place that ended it; `None` for a drop.
        unmapped: Option<Place>,
    },
    /// A buffer was dropped with a mapping or grant that the driver had made of it and not ended.
    FreedWhileMapped,
    /// The device accessed memory in a direction that was not granted.
    WrongDirection {
        /// The I/O virtual address of the access, as the unit reported it.
        at: u64,
        /// The kind of access.
        access: FaultAccess,
    },
    /// The driver wrote to memory while it was granted to the device for writing only.
    WrittenWhileGranted {
        /// The place that wrote.
        at: Place,
    },
    /// The driver read memory twice that the device may write. The two values may differ, so a check of the first one
    /// says nothing about the second one.
    ReadTwice {
        /// The first read.
        first: Place,
        /// The second read.
        again: Place,
    },
    /// The device wrote to a block of a pool after the driver had given it back.
    WrittenAfterFree {
        /// The I/O virtual address of the first byte that was changed.
        at: u64,
    },
    /// The device went past one end of its memory, into a page next to it.
    OutOfBounds {
        /// The I/O virtual address of the access, as the unit reported it.
        at: u64,
        /// The kind of access.
        access: FaultAccess,
    },
}

impl Bug {
    /// Its name in reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UseAfterUnmap { .. } => "use after unmap",
            Self::FreedWhileMapped => "freed while mapped",
            Self::WrongDirection { .. } => "wrong direction",
            Self::WrittenWhileGranted { .. } => "written while granted",
            Self::ReadTwice { .. } => "read twice",
            Self::WrittenAfterFree { .. } => "written after free",
            Self::OutOfBounds { .. } => "out of bounds",
        }
    }

    /// The place of the bug, where it is another one than that of the grant.
    pub(super) const fn place(&self) -> Option<Place> {
        match *self {
            Self::UseAfterUnmap { unmapped, .. } => unmapped,
            Self::WrittenWhileGranted { at } => Some(at),
            Self::ReadTwice { again, .. } => Some(again),
            _ => None,
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |access: &FaultAccess| match access {
            FaultAccess::Read => "read",
            FaultAccess::Write => "wrote",
            FaultAccess::Unknown => "read or wrote",
        };
        write!(f, "{}: ", self.name())?;
        match self {
            Self::UseAfterUnmap { at, access, unmapped } => {
                write!(f, "the device {} at iova {at:#x}, unmapped ", verb(access))?;
                match unmapped {
                    Some(place) => write!(f, "at {place}"),
                    None => f.write_str("by a drop"),
                }
            }
            Self::FreedWhileMapped => f.write_str("the buffer was dropped"),
            Self::WrongDirection { at, access } => {
                write!(f, "the device {} at iova {at:#x}, granted the other way", verb(access))
            }
            Self::WrittenWhileGranted { at } => {
                write!(f, "the driver wrote at {at} to memory granted for writing")
            }
            Self::ReadTwice { first, again } => {
                write!(f, "at {first} and at {again}, without a snapshot")
            }
            Self::WrittenAfterFree { at } => {
                write!(f, "the device wrote at iova {at:#x} after the block was given back")
            }
            Self::OutOfBounds { at, access } => {
                write!(f, "the device {} at iova {at:#x}, next to its memory", verb(access))
            }
        }
    }
}

/// A bug that the sanitizer found, and the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BugReport {
    /// The device whose session it is.
    pub device: PciAddress,
    /// The bug.
    pub bug: Bug,
    /// First I/O virtual address of the memory: of a mapping, a grant or a block.
    pub iova: u64,
    /// Bytes of the memory.
    pub length: u64,
    /// The place in the driver's source that granted the memory.
    pub granted: Place,
}

impl fmt::Display for BugReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, bug, iova, length, granted } = self;
        write!(f, "{device}: {bug}; {length} bytes at iova {iova:#x} were granted at {granted}")
    }
}
