//! The errors of the driver.

use std::fmt;
use std::time::Duration;

/// Status of a command that did not succeed (3.3.3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// The command was aborted on request.
    pub const ABORTED: Self = Self(0x07);

    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path.
    #[must_use]
    pub const fn kind(self) -> u16 {
        self.0 >> 8
    }

    /// Status code.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0xff
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match (self.kind(), self.code()) {
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x06) => "internal error",
            (0, 0x07) => "aborted",
            (0, 0x0b) => "no such namespace",
            (0, 0x13) => "PRP offset invalid",
            (0, 0x80) => "beyond the end of the namespace",
            (2, _) => "media error",
            _ => "see the specification",
        };
        write!(f, "status {:x}:{:02x} ({words})", self.kind(), self.code())
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// DMA memory is not available, or the server is gone.
    Client(iommu_client::Error),
    /// The controller refused a command.
    Status(Status),
    /// The controller did not do something in time. It must be reset.
    Timeout {
        /// The missing event.
        what: &'static str,
        /// The deadline in ms.
        ms: u64,
    },
    /// The controller reports that it has failed. It must be reset.
    Fatal,
    /// The registers read as all ones: the controller is gone.
    Gone,
    /// The controller completed a command that was not under way. It must be reset.
    ProtocolError {
        /// Identifier of the command.
        command: u16,
    },
    /// The controller lacks a feature that this driver needs.
    Unsupported {
        /// The feature.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The queue is full: it holds no more requests.
    Full,
    /// No such namespace.
    NoNamespace(u32),
    /// The range is not within the namespace, has no blocks, or is longer than one transfer may be.
    Range {
        /// First block.
        first: u64,
        /// Number of blocks.
        blocks: u64,
        /// Blocks of the namespace.
        size: u64,
        /// The most blocks of one transfer.
        most: u64,
    },
    /// Memory that cannot be described to the controller: it is too short, or a piece in the middle does not fill its
    /// page.
    Memory {
        /// Address of the piece.
        iova: u64,
        /// Its length in bytes.
        length: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Status(status) => status.fmt(f),
            Self::Timeout { what, ms } => write!(f, "no {what} within {ms} ms"),
            Self::Fatal => f.write_str("the controller has failed"),
            Self::Gone => f.write_str("the controller is gone"),
            Self::ProtocolError { command } => {
                write!(f, "completion of command {command}, not under way")
            }
            Self::Unsupported { what, value } => write!(f, "{what} {value} is not supported"),
            Self::Full => f.write_str("the queue is full"),
            Self::NoNamespace(id) => write!(f, "no namespace {id}"),
            Self::Range { first, blocks, size, most } => {
                write!(f, "{blocks} blocks from {first} on, of {size}; at most {most} at a time")
            }
            Self::Memory { iova, length } => write!(f, "{length} bytes at iova {iova:#x}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn timeout(what: &'static str, time: Duration) -> Self {
        Self::Timeout { what, ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl From<iommu_client::Error> for Error {
    fn from(error: iommu_client::Error) -> Self {
        Self::Client(error)
    }
}
