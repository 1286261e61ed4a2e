//! Fault records, as reads from a session return them.

use core::fmt;

use crate::ids::{PciAddress, RequesterId};
use crate::wire::Short;

/// Bytes of a fault record on the wire.
pub const RECORD_SIZE: usize = 128;

/// Longest description in bytes.
pub const WORDS_SIZE: usize = 88;

/// The kind of access that the device tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultAccess {
    /// The unit did not report it.
    Unknown = 0,
    /// A read of memory.
    Read = 1,
    /// A write to memory.
    Write = 2,
}

/// One blocked access, or several of the same kind.
///
/// | bytes | field |
/// |---|---|
/// | 0..8 | sequence |
/// | 8..16 | I/O virtual address, valid if flag bit 0 |
/// | 16..18 | segment |
/// | 18..20 | requester id |
/// | 20 | access: 0 unknown, 1 read, 2 write |
/// | 21 | flags: bit 0 address valid |
/// | 22..24 | the hardware's reason code |
/// | 24..28 | records lost before this one |
/// | 28..32 | length of the words in bytes |
/// | 32..40 | zero |
/// | 40..128 | the reason in words, UTF-8, zero padded |
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FaultRecord {
    /// Counts all faults of the machine since start, from 1.
    pub sequence: u64,
    /// The I/O virtual address, if the unit reports one.
    pub address: Option<u64>,
    /// The function that tried the access.
    pub source: PciAddress,
    /// The kind of access.
    pub access: FaultAccess,
    /// The hardware's own reason code (VT-d fault reason, AMD-Vi event code).
    pub reason: u16,
    /// Records of this device lost before this one.
    pub lost: u32,
    words: [u8; WORDS_SIZE],
    words_length: u8,
}

impl FaultRecord {
    /// A record whose description is `words`, cut after [`WORDS_SIZE`] bytes.
    #[must_use]
    pub fn new(
        sequence: u64,
        source: PciAddress,
        address: Option<u64>,
        access: FaultAccess,
        reason: u16,
        words: &str,
    ) -> Self {
        let mut record = Self {
            sequence,
            address,
            source,
            access,
            reason,
            lost: 0,
            words: [0; WORDS_SIZE],
            words_length: 0,
        };
        let cut = words.floor_char_boundary(WORDS_SIZE);
        for (to, from) in record.words.iter_mut().zip(words.as_bytes().iter().take(cut)) {
            *to = *from;
        }
        record.words_length = u8::try_from(cut).unwrap_or(0);
        record
    }

    /// The reason in words.
    #[must_use]
    pub fn words(&self) -> &str {
        let bytes = self.words.get(..usize::from(self.words_length)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut out = [0; RECORD_SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &self.sequence.to_le_bytes());
        put(8, &self.address.unwrap_or(0).to_le_bytes());
        put(16, &self.source.segment.to_le_bytes());
        put(18, &self.source.requester.0.to_le_bytes());
        put(20, &[self.access as u8, u8::from(self.address.is_some())]);
        put(22, &self.reason.to_le_bytes());
        put(24, &self.lost.to_le_bytes());
        put(28, &u32::from(self.words_length).to_le_bytes());
        put(40, &self.words);
        out
    }

    /// Reads a record.
    ///
    /// # Errors
    /// `Short` when `bytes` is not one well-formed record.
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        let bytes: &[u8; RECORD_SIZE] = bytes.try_into().map_err(|_| Short)?;
        let words_length = u8::try_from(u32::from_le_bytes(part(bytes, 28)?)).map_err(|_| Short)?;
        let words: [u8; WORDS_SIZE] = part(bytes, 40)?;
        let used = words.get(..usize::from(words_length)).ok_or(Short)?;
        core::str::from_utf8(used).map_err(|_| Short)?;
        let [access, flags] = part(bytes, 20)?;
        Ok(Self {
            sequence: u64::from_le_bytes(part(bytes, 0)?),
            address: (flags & 1 != 0).then_some(u64::from_le_bytes(part(bytes, 8)?)),
            source: PciAddress {
                segment: u16::from_le_bytes(part(bytes, 16)?),
                requester: RequesterId(u16::from_le_bytes(part(bytes, 18)?)),
            },
            access: match access {
                0 => FaultAccess::Unknown,
                1 => FaultAccess::Read,
                2 => FaultAccess::Write,
                _ => return Err(Short),
            },
            reason: u16::from_le_bytes(part(bytes, 22)?),
            lost: u32::from_le_bytes(part(bytes, 24)?),
            words,
            words_length,
        })
    }
}

fn part<const N: usize>(bytes: &[u8; RECORD_SIZE], at: usize) -> Result<[u8; N], Short> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(Short)
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} ", self.sequence, self.source)?;
        f.write_str(match self.access {
            FaultAccess::Unknown => "access",
            FaultAccess::Read => "read",
            FaultAccess::Write => "write",
        })?;
        match self.address {
            Some(address) => write!(f, " at iova {address:#x}")?,
            None => f.write_str(" at an unknown iova")?,
        }
        write!(f, ": {} (reason {:#x})", self.words(), self.reason)?;
        if self.lost > 0 {
            write!(f, ", {} earlier lost", self.lost)?;
        }
        Ok(())
    }
}

impl fmt::Debug for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
