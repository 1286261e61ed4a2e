//! The machine as a server found it.

use alloc::string::String;
use alloc::vec::Vec;

use super::encode::append_ranges;
use super::record::{Kind, RECORD_BYTES, Record, first, pair};
use super::ring::{MARK, Ring};
use crate::addr::PhysRange;

/// The format of the records in a file.
pub(super) const VERSION: u64 = 1;

/// The firmware's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TableBytes {
    /// There is none, or it could not be read.
    #[default]
    None,
    /// A DMAR (VT-d).
    Dmar(Vec<u8>),
    /// An IVRS (AMD-Vi).
    Ivrs(Vec<u8>),
}

impl TableBytes {
    fn parts(&self) -> (u64, &[u8]) {
        match self {
            Self::None => (0, &[]),
            Self::Dmar(bytes) => (1, bytes),
            Self::Ivrs(bytes) => (2, bytes),
        }
    }

    /// The table of this code.
    pub(super) fn of(code: u64, bytes: Vec<u8>) -> Option<Self> {
        match code {
            0 if bytes.is_empty() => Some(Self::None),
            1 => Some(Self::Dmar(bytes)),
            2 => Some(Self::Ivrs(bytes)),
            _ => None,
        }
    }
}

/// The machine as a server found it, before its first event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The policy file; empty without one.
    pub policy: String,
    /// The firmware's table.
    pub table: TableBytes,
    /// Memory of the machine.
    pub ram: Vec<PhysRange>,
    /// Memory of the server.
    pub own: Vec<PhysRange>,
}

impl Snapshot {
    /// Appends the snapshot to a ring: the beginning of a life.
    pub fn write(&self, ring: &mut Ring) {
        let (code, table) = self.table.parts();
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let record: Record = [
            first(Kind::Life, 0),
            0,
            pair(number(self.ram.len()), number(self.own.len())),
            pair(number(self.policy.len()), number(table.len())),
            VERSION | code << 32,
            MARK,
            0,
            0,
        ];
        ring.fact(record);
        append_ranges(ring, &self.ram);
        append_ranges(ring, &self.own);
        append_bytes(ring, self.policy.as_bytes());
        append_bytes(ring, table);
    }
}

/// Appends bytes, 64 to a record.
fn append_bytes(ring: &mut Ring, bytes: &[u8]) {
    for bytes in bytes.chunks(RECORD_BYTES) {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut full = [0; 8];
            full.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            *word = u64::from_le_bytes(full);
        }
        ring.append(words);
    }
}
