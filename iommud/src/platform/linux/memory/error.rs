//! Why pages cannot be had.

use std::io;
use std::path::PathBuf;

use super::pagemap::PagemapError;

/// Why memory cannot be had from the directory.
#[derive(Debug)]
pub enum DirectoryError {
    /// The directory cannot be made, opened, read or locked.
    Unusable(PathBuf, io::Error),
    /// Another server uses it.
    InUse(PathBuf),
    /// It does not lie in a hugetlbfs with pages of 2 MiB.
    NotHuge(PathBuf),
    /// The system has no huge page left.
    NoPages {
        /// How many were taken before.
        taken: u32,
    },
    /// The physical address of a page cannot be had.
    Address(PagemapError),
}

impl std::fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unusable(path, error) => write!(f, "{}: {error}", path.display()),
            Self::InUse(path) => write!(f, "{}: another iommud uses it", path.display()),
            Self::NotHuge(path) => {
                write!(f, "{}: not on a hugetlbfs with pages of 2 MiB", path.display())
            }
            Self::NoPages { taken } => {
                write!(f, "no huge page left after {taken}; raise /proc/sys/vm/nr_hugepages")
            }
            Self::Address(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DirectoryError {}
