//! Defects of a table that is read all the same.

use core::fmt;

use crate::topology::firmware::UnitDefect;

use super::table::TableError;

/// A defect or an unknown part of a table. Offsets are bytes from the start of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anomaly {
    /// Wrong checksum or length of the whole table. Such a table is decoded but not used.
    Table(TableError),
    /// More bytes than the table states.
    TrailingBytes {
        /// Number of bytes.
        count: usize,
    },
    /// The table describes no unit.
    NoUnits,
    /// The width of physical addresses is impossible.
    AddressWidth {
        /// The stated width in bits.
        bits: u16,
    },
    /// Nothing can be read from here on: the length of the structure is impossible.
    BadLength {
        /// Offset of the structure.
        offset: usize,
        /// Its type.
        kind: u16,
        /// The length it states.
        length: u16,
        /// Bytes left in the table.
        room: usize,
    },
    /// A structure too short for its fields. It was skipped.
    TooShort {
        /// Offset of the structure.
        offset: usize,
        /// Its name.
        name: &'static str,
        /// The length it states.
        length: u16,
        /// Bytes its fields take.
        needed: usize,
    },
    /// A structure of unknown type. It was skipped.
    UnknownStructure {
        /// Offset of the structure.
        offset: usize,
        /// Its type.
        kind: u16,
        /// Its length.
        length: u16,
    },
    /// A defect of a device scope or device entry.
    Scope {
        /// Offset of the scope or entry.
        offset: usize,
        /// The defect.
        problem: ScopeProblem,
    },
    /// A defect of a unit.
    Unit {
        /// Offset of the unit's structure.
        offset: usize,
        /// Its index.
        unit: usize,
        /// The defect.
        problem: UnitProblem,
    },
    /// A defect of a region of reserved memory.
    Region {
        /// Offset of the region's structure.
        offset: usize,
        /// The defect.
        problem: RegionProblem,
    },
    /// An affinity structure for registers that no unit has.
    AffinityOfNoUnit {
        /// Offset of the structure.
        offset: usize,
        /// The address it names.
        address: u64,
    },
}

/// Defects of a device scope (DMAR) or a device entry (IVRS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeProblem {
    /// The length is impossible: the walk over the scopes of the structure ends.
    BadLength {
        /// The length stated.
        length: u8,
        /// Bytes left in the structure.
        room: usize,
    },
    /// The length of a device entry is impossible: the walk over the entries of the block ends.
    BadEntry {
        /// The entry's type.
        kind: u8,
        /// Bytes left in the block.
        room: usize,
    },
    /// A type this specification does not have. It was skipped.
    UnknownKind(u8),
    /// No path, or half a pair at its end.
    BadPath,
    /// A device above 31 or a function above 7, which cannot exist.
    Impossible {
        /// Device number.
        device: u8,
        /// Function number.
        function: u8,
    },
    /// A name space device without a declaration.
    Undeclared(u8),
    /// A range has no end before another begins or the block ends. It stands for its first device alone.
    RangeWithoutEnd,
    /// The end of a range that has not begun. It stands for its last device alone.
    EndWithoutStart,
    /// A range ends before it starts. It stands for its first device alone.
    RangeReversed,
    /// A special device that is neither I/O APIC nor HPET.
    UnknownVariety(u8),
}

/// Defects of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitProblem {
    /// The unit is not used.
    Unusable(UnitDefect),
    /// The unit takes all other devices of its segment, but is not the last of the segment.
    IncludeAllNotLast,
    /// The unit names no device and does not take all others.
    NoDevices,
    /// The unit names a device that an earlier unit names already. The earlier unit keeps the device.
    NamedTwice {
        /// The earlier unit.
        first: usize,
    },
    /// The structures of the unit disagree about the address of its registers. The richest structure holds.
    AddressesDiffer {
        /// The address that does not hold.
        other: u64,
    },
}

/// Defects of a region of reserved memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionProblem {
    /// It ends before it starts, is empty, or runs past the end of the address space. Skipped.
    Bounds {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// It lies beyond the width of physical addresses. Skipped.
    BeyondWidth,
    /// It contains a unit's registers, so that its devices could turn the unit off. Skipped.
    OverRegisters {
        /// The unit.
        unit: usize,
    },
    /// It contains the interrupt window. Skipped.
    OverInterrupts,
    /// It does not begin and end on page boundaries. It was enlarged to whole pages.
    Unaligned,
    /// It names no device.
    NoDevices,
    /// It is neither to be mapped nor to be excluded. Skipped.
    NoAccess,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Table(error) => write!(f, "{error}"),
            Self::TrailingBytes { count } => write!(f, "{count} bytes after the end of the table"),
            Self::NoUnits => f.write_str("the table describes no unit"),
            Self::AddressWidth { bits } => write!(f, "physical addresses cannot have {bits} bits"),
            Self::BadLength { offset, kind, length, room } => write!(
                f,
                "offset {offset}: structure of type {kind:#x} states {length} bytes where {room} are \
                 left; nothing was read from there on"
            ),
            Self::TooShort { offset, name, length, needed } => write!(
                f,
                "offset {offset}: {name} of {length} bytes is too short for its {needed} bytes of fields; \
                 skipped"
            ),
            Self::UnknownStructure { offset, kind, length } => write!(
                f,
                "offset {offset}: unknown structure of type {kind:#x} and {length} bytes; skipped"
            ),
            Self::Scope { offset, problem } => write!(f, "offset {offset}: {problem}"),
            Self::Unit { offset, unit, problem } => {
                write!(f, "offset {offset}: unit {unit} {problem}")
            }
            Self::Region { offset, problem } => {
                write!(f, "offset {offset}: reserved memory {problem}")
            }
            Self::AffinityOfNoUnit { offset, address } => {
                write!(f, "offset {offset}: affinity of registers at {address:#x} that no unit has")
            }
        }
    }
}

impl fmt::Display for ScopeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadLength { length, room } => write!(
                f,
                "device scope states {length} bytes where {room} are left; the rest of the structure's \
                 scopes was not read"
            ),
            Self::BadEntry { kind, room } => write!(
                f,
                "device entry of type {kind:#x} has no room in the {room} bytes left; the rest of the \
                 block's entries was not read"
            ),
            Self::UnknownKind(kind) => {
                write!(f, "device scope or entry of unknown type {kind:#x}; skipped")
            }
            Self::BadPath => f.write_str("device scope without a whole path; skipped"),
            Self::Impossible { device, function } => write!(
                f,
                "scope of a missing device: there is no device {device:#x} function {function:#x}; skipped"
            ),
            Self::Undeclared(number) => {
                write!(f, "scope of a missing device: name space device {number} is not declared")
            }
            Self::RangeWithoutEnd => {
                f.write_str("range without an end; read as its first device alone")
            }
            Self::EndWithoutStart => {
                f.write_str("end of a range without a start; read as its last device alone")
            }
            Self::RangeReversed => {
                f.write_str("range that ends before it starts; read as its first device alone")
            }
            Self::UnknownVariety(variety) => {
                write!(
                    f,
                    "special device of unknown variety {variety}; only its requester id is used"
                )
            }
        }
    }
}

impl fmt::Display for UnitProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unusable(defect) => write!(f, "is not used: {defect}"),
            Self::IncludeAllNotLast => f.write_str(
                "takes all other devices of its segment but is not the last of the segment",
            ),
            Self::NoDevices => f.write_str("names no device"),
            Self::NamedTwice { first } => {
                write!(f, "names a device that unit {first} names, which keeps it")
            }
            Self::AddressesDiffer { other } => {
                write!(f, "has registers at {other:#x} by another of its structures; ignored")
            }
        }
    }
}

impl fmt::Display for RegionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bounds { start, end } => {
                write!(f, "from {start:#x} to {end:#x} cannot be; skipped")
            }
            Self::BeyondWidth => f.write_str("is beyond the width of physical addresses; skipped"),
            Self::OverRegisters { unit } => {
                write!(f, "has the registers of unit {unit} in it; skipped")
            }
            Self::OverInterrupts => f.write_str("has the interrupt window in it; skipped"),
            Self::Unaligned => {
                f.write_str("does not begin and end with pages; enlarged to whole pages")
            }
            Self::NoDevices => f.write_str("names no device"),
            Self::NoAccess => f.write_str("is neither mapped nor excluded; skipped"),
        }
    }
}
