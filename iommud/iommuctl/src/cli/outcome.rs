//! How a command ends, and the exit status that says so.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::check::PickError;
use crate::decode::DecodeError;

/// What a command found that the exit status tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing that needs somebody's attention.
    Nothing,
    /// Something: exit status 3.
    Something,
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum CommandError {
    /// A firmware table cannot be decoded.
    Decode(PathBuf, DecodeError),
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// The output cannot be written.
    Output(io::Error),
    /// The server refuses, or is not there.
    Server(iommu_client::Error),
    /// There is no device to test with.
    Pick(PickError),
    /// The server knows nothing by this name.
    Nothing(String),
}

impl CommandError {
    /// Exit status of the process.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Server(iommu_client::Error::Disconnected) => 4,
            Self::Decode(..)
            | Self::File(..)
            | Self::Output(_)
            | Self::Server(_)
            | Self::Pick(_)
            | Self::Nothing(_) => 1,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(path, error) => write!(f, "{}: {error}", path.display()),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "output: {error}"),
            Self::Server(error) => write!(f, "{error}"),
            Self::Pick(error) => write!(f, "{error}"),
            Self::Nothing(what) => write!(f, "there is no {what}"),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<PickError> for CommandError {
    fn from(error: PickError) -> Self {
        Self::Pick(error)
    }
}

impl From<iommu_client::Error> for CommandError {
    fn from(error: iommu_client::Error) -> Self {
        Self::Server(error)
    }
}
