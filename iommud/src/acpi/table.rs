//! Common parts of ACPI tables: the header (ACPI 6.5 section 5.2.6), and a walk over structures that state their own
//! lengths.

use core::fmt;

use super::bytes::{array, u8_at, u16_at, u32_at};

/// Bytes of the header of every table.
const HEADER_SIZE: usize = 36;

/// Longest table that is read, in bytes. Real ones have some hundred; the limit bounds the work, which is
/// quadratic in places.
pub const LONGEST: usize = 64 * 1024;

/// Why a table as a whole cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There are fewer bytes than the fixed part of the table has.
    Short {
        /// Bytes there are.
        available: usize,
        /// Bytes of the fixed part.
        needed: usize,
    },
    /// There are more than [`LONGEST`] bytes.
    TooLong {
        /// Bytes of the table.
        length: usize,
    },
    /// It is another table: it has this signature.
    Signature([u8; 4]),
    /// The table states more bytes than there are.
    Length {
        /// Bytes stated.
        stated: u32,
        /// Bytes there are.
        available: usize,
    },
    /// The bytes do not add up to zero. No address in such a table can be trusted.
    Checksum {
        /// Their sum modulo 256.
        sum: u8,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { available, needed } => {
                write!(f, "{available} bytes where the fixed part of the table has {needed}")
            }
            Self::TooLong { length } => {
                write!(f, "{length} bytes; tables above {LONGEST} bytes are not read")
            }
            Self::Signature(found) => write!(f, "signature \"{}\"", found.escape_ascii()),
            Self::Length { stated, available } => {
                write!(f, "the table states {stated} bytes, there are {available}")
            }
            Self::Checksum { sum } => write!(f, "bad checksum: the bytes add up to {sum:#04x}"),
        }
    }
}

/// The fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of table.
    pub signature: [u8; 4],
    /// Bytes of the whole table, as stated.
    pub length: u32,
    /// Revision of the table's layout.
    pub revision: u8,
    /// Makes the sum of all bytes zero.
    pub checksum: u8,
    /// Manufacturer of the machine.
    pub oem_id: [u8; 6],
    /// The manufacturer's name of the table.
    pub oem_table_id: [u8; 8],
    /// The manufacturer's revision of the table.
    pub oem_revision: u32,
    /// The tool that made the table.
    pub creator_id: [u8; 4],
    /// Revision of the tool.
    pub creator_revision: u32,
}

/// A table whose header could be read. Nothing else has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The header.
    pub header: Header,
    bytes: &'a [u8],
    available: usize,
}

impl<'a> Table<'a> {
    /// Reads the header. The table ends at its stated length, or at the end of `bytes`.
    ///
    /// # Errors
    /// `Short` if `bytes` does not hold a whole header; `TooLong`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, TableError> {
        let header = Self::header(bytes)
            .ok_or(TableError::Short { available: bytes.len(), needed: HEADER_SIZE })?;
        let stated = usize::try_from(header.length).unwrap_or(usize::MAX);
        let used = bytes.get(..stated).unwrap_or(bytes);
        if used.len() > LONGEST {
            return Err(TableError::TooLong { length: used.len() });
        }
        Ok(Self { header, bytes: used, available: bytes.len() })
    }

    fn header(bytes: &[u8]) -> Option<Header> {
        Some(Header {
            signature: array(bytes, 0)?,
            length: u32_at(bytes, 4)?,
            revision: u8_at(bytes, 8)?,
            checksum: u8_at(bytes, 9)?,
            oem_id: array(bytes, 10)?,
            oem_table_id: array(bytes, 16)?,
            oem_revision: u32_at(bytes, 24)?,
            creator_id: array(bytes, 28)?,
            creator_revision: u32_at(bytes, 32)?,
        })
    }

    /// The bytes of the table, header included.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of bytes given, of which the table may be only the first ones.
    #[must_use]
    pub const fn available(&self) -> usize {
        self.available
    }

    /// Sum of all bytes modulo 256: zero in a good table.
    #[must_use]
    pub fn sum(&self) -> u8 {
        self.bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Checks that the table is complete and that its bytes add up to zero.
    ///
    /// # Errors
    /// `Length` and `Checksum`.
    pub fn verify(&self) -> Result<(), TableError> {
        let stated = self.header.length;
        if usize::try_from(stated).is_ok_and(|stated| stated <= self.available) {
            match self.sum() {
                0 => Ok(()),
                sum => Err(TableError::Checksum { sum }),
            }
        } else {
            Err(TableError::Length { stated, available: self.available })
        }
    }

    /// Returns the bytes if the signature is `signature` and there are at least `needed`.
    pub(super) fn fixed(&self, signature: [u8; 4], needed: usize) -> Result<&'a [u8], TableError> {
        if self.header.signature != signature {
            return Err(TableError::Signature(self.header.signature));
        }
        if self.bytes.len() < needed {
            return Err(TableError::Short { available: self.bytes.len(), needed });
        }
        Ok(self.bytes)
    }
}

/// Position of type and length in a structure.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    /// Type in bytes 0 and 1, length in 2 and 3 (DMAR).
    WideType,
    /// Type in byte 0, flags in 1, length in 2 and 3 (IVRS).
    NarrowType,
}

/// Bytes that hold type and length in both layouts.
pub(super) const PREFIX_SIZE: usize = 4;

/// The bytes of one structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// Its type. 0 where the table ends before it.
    pub kind: u16,
    /// Its length as stated. 0 where the table ends before it.
    pub length: u16,
    /// Its bytes, type and length included; up to the end of the table when `whole` is false.
    pub bytes: &'a [u8],
    /// Whether the stated length fits into the table and covers type and length themselves. If not, the walk ends
    /// here.
    pub whole: bool,
}

/// One structure of a table, with the fields that the table's specification gives its type.
#[derive(Clone, Debug)]
pub struct Structure<'a, B> {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// Its type, as in the table.
    pub kind: u16,
    /// Its length, as in the table.
    pub length: u16,
    /// Its bytes, type and length included.
    pub bytes: &'a [u8],
    /// Its fields.
    pub body: B,
}

impl<'a> Block<'a> {
    /// The structure with these fields.
    pub(super) const fn with<B>(self, body: B) -> Structure<'a, B> {
        let Self { offset, kind, length, bytes, .. } = self;
        Structure { offset, kind, length, bytes, body }
    }
}

/// Walks structures one after the other. Each step goes at least [`PREFIX_SIZE`] bytes on, or is the last.
#[derive(Clone, Debug)]
pub(super) struct Blocks<'a> {
    layout: Layout,
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// The structures of a table from `offset` on.
    pub(super) fn new(table: &'a [u8], offset: usize, layout: Layout) -> Self {
        Self { layout, offset, rest: table.get(offset..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let kind = match self.layout {
            Layout::WideType => u16_at(self.rest, 0),
            Layout::NarrowType => u8_at(self.rest, 0).map(u16::from),
        };
        let length = u16_at(self.rest, 2).unwrap_or(0);
        let size = usize::from(length);
        let cut = if size < PREFIX_SIZE { None } else { self.rest.split_at_checked(size) };
        let (bytes, rest) = cut.unwrap_or((self.rest, &[]));
        let offset = self.offset;
        self.offset = offset.saturating_add(bytes.len());
        self.rest = rest;
        Some(Block { offset, kind: kind.unwrap_or(0), length, bytes, whole: cut.is_some() })
    }
}
