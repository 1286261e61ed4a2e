//! What can go wrong.

use std::fmt;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::{Errno, Refusal};

/// Why a request did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server refused; its state, and the device's, are as before.
    Refused(Refusal),
    /// The server refused a batch because of one of its items; none took effect.
    RefusedItem {
        /// Why.
        refusal: Refusal,
        /// Index of the item.
        item: u32,
    },
    /// The server answered with an error number that is no refusal.
    Errno(Errno),
    /// There is no server, or it is gone, and with it the session: the device is cut off.
    Disconnected,
    /// The operating system failed.
    Io(std::io::Error),
    /// The server answered something that the protocol does not allow.
    ProtocolError(ProtocolError),
    /// An offset or length outside of the memory.
    Outside,
    /// The text is not the name of a device.
    BadName,
    /// A permission to master the bus that this session did not give.
    OtherPermission {
        /// The device that the permission is for.
        of: PciAddress,
        /// The device that it was used with.
        device: PciAddress,
    },
    /// A block of a pool cannot be that long.
    TooLong {
        /// What was asked for, in bytes.
        length: u64,
        /// The largest block of the pool.
        most: u64,
    },
    /// The pool has handed out all of its memory and may not take more.
    PoolLimit {
        /// What it has, in bytes.
        taken: u64,
        /// What it may have.
        limit: u64,
    },
    /// Sizes of a pool that are no powers of two, or the smallest above the largest.
    PoolOptions {
        /// The smallest block, in bytes.
        smallest: u64,
        /// The largest block.
        largest: u64,
        /// What is taken from the server at a time.
        chunk: u64,
    },
}

/// What is wrong with an answer of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// It is too short or too long.
    Length,
    /// It speaks another version.
    Version(u16),
    /// It answers another request.
    Mismatch,
    /// A refusal code that is not defined.
    Refusal(u16),
    /// A value outside of its range.
    Value,
    /// The memory that came with it is smaller than it says.
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

    /// The refusal that an error number stands for where only a number fits. Several refusals share a
    /// number; `likely` are those that the operation is refused for, looked at first.
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
            Self::Outside => f.write_str("outside of the memory"),
            Self::BadName => f.write_str("not the name of a device (SSSS--BB--DD.F)"),
            Self::OtherPermission { of, device } if of == device => {
                write!(f, "the permission is of another session of {of}")
            }
            Self::OtherPermission { of, device } => {
                write!(f, "the permission is for {of}, not for {device}")
            }
            Self::TooLong { length, most } => {
                write!(f, "a block of {length} bytes; the pool's largest has {most}")
            }
            Self::PoolLimit { taken, limit } => {
                write!(f, "the pool has {taken} bytes of at most {limit}, all in use")
            }
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
