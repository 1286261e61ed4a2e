//! The errors of this library.

use std::fmt;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::{Errno, Refusal};

use crate::reset::ResetError;

/// Why a request did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server refused. Its state and the device's state are as before.
    Refused(Refusal),
    /// The server refused a batch because of one of its items; none took effect.
    RefusedItem {
        /// The reason.
        refusal: Refusal,
        /// Index of the item.
        item: u32,
    },
    /// The server returned an error number that is no refusal.
    Errno(Errno),
    /// There is no server, or it is gone and the session with it: the device is cut off.
    Disconnected,
    /// The operating system failed.
    Io(std::io::Error),
    /// The server's reply violates the protocol.
    ProtocolError(ProtocolError),
    /// The device's function was not reset, and must not be attached.
    Reset(ResetError),
    /// An offset or length outside of the memory.
    Outside,
    /// The text is not the name of a device.
    BadName,
    /// A permission to master the bus that is not of this session.
    OtherPermission {
        /// The device that the permission is for.
        of: PciAddress,
        /// The device that it was used with.
        device: PciAddress,
    },
    /// No block of the pool, or slot of the queue, is that long.
    TooLong {
        /// The requested length in bytes.
        length: u64,
        /// The largest block, or the length of each slot.
        most: u64,
    },
    /// The pool has handed out all of its memory and may not take more.
    PoolLimit {
        /// Bytes that the pool has.
        taken: u64,
        /// Bytes that the pool may have.
        limit: u64,
    },
    /// Every slot of the transfer queue is in use, or waits for its revoke in the next flush.
    NoSlot {
        /// The slots that the queue has.
        slots: usize,
    },
    /// A slot or a transfer of another queue.
    OtherQueue,
    /// The program's memory is borrowed, and what its device wrote cannot be copied there.
    Borrowed,
    /// Sizes of a pool that are no powers of two, or the smallest above the largest.
    PoolOptions {
        /// The smallest block, in bytes.
        smallest: u64,
        /// The largest block.
        largest: u64,
        /// Bytes that are taken from the server at a time.
        chunk: u64,
    },
}

/// How a reply of the server violates the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// It is too short or too long.
    Length,
    /// It has another version.
    Version(u16),
    /// It is for another request.
    Mismatch,
    /// A refusal code that is not defined.
    Refusal(u16),
    /// A value outside of its range.
    Value,
    /// The memory that came with it is smaller than stated.
    Memory,
}

impl Error {
    /// The refusal, if the server refused.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) | Self::RefusedItem { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Finds the refusal for an error number, where an operation returns only a number. Several refusals share a
    /// number. Those in `likely`, the usual refusals of the operation, are searched first.
    #[must_use]
    pub fn from_errno(errno: Errno, likely: &[Refusal]) -> Self {
        let all = likely.iter().chain(Refusal::ALL);
        all.copied()
            .find(|refusal| refusal.errno() == errno)
            .map_or(Self::Errno(errno), Self::Refused)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::RefusedItem { refusal, item } => write!(f, "item {item}: {refusal}"),
            Self::Errno(Errno(number)) => write!(f, "error number {number}"),
            Self::Disconnected => f.write_str("iommud is not there"),
            Self::Io(error) => error.fmt(f),
            Self::ProtocolError(breach) => write!(f, "iommud breaks the protocol: {breach:?}"),
            Self::Reset(error) => write!(f, "reset: {error}"),
            Self::Outside => f.write_str("outside of the memory"),
            Self::BadName => f.write_str("not the name of a device (SSSS--BB--DD.F)"),
            Self::OtherPermission { of, device } if of == device => {
                write!(f, "the permission is of another session of {of}")
            }
            Self::OtherPermission { of, device } => {
                write!(f, "the permission is for {of}, not for {device}")
            }
            Self::TooLong { length, most } => {
                write!(f, "{length} bytes; the longest block or slot has {most}")
            }
            Self::PoolLimit { taken, limit } => {
                write!(f, "the pool has {taken} bytes of at most {limit}, all in use")
            }
            Self::NoSlot { slots } => write!(f, "all {slots} slots of the queue are in use"),
            Self::OtherQueue => f.write_str("it is of another transfer queue"),
            Self::Borrowed => f.write_str("the memory to be copied to is borrowed"),
            Self::PoolOptions { smallest, largest, chunk } => {
                write!(f, "blocks of {smallest} to {largest} bytes, {chunk} at a time")
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ResetError> for Error {
    fn from(error: ResetError) -> Self {
        Self::Reset(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ProtocolError> for Error {
    fn from(breach: ProtocolError) -> Self {
        Self::ProtocolError(breach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_numbers_are_told_apart_by_what_is_likely() {
        let access = Error::from_errno(Errno(22), &[Refusal::BadAccess]);
        assert_eq!(access.refusal(), Some(Refusal::BadAccess));
        assert_eq!(Error::from_errno(Errno(22), &[]).refusal(), Some(Refusal::Alignment));
        assert!(matches!(Error::from_errno(Errno(27), &[]), Error::Errno(Errno(27))));
    }
}
