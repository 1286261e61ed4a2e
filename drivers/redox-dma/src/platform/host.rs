//! Systems other than Redox, for tests: no process inherits anything. Plain memory is any memory; no device reaches
//! it, and its address for one is that in this process.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::{NonNull, null_mut};

use iommu_client::{Device, Error as Client, PciAddress};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::ENOMEM;

/// An error number, with the interface of `libredox::error::Error`, which it is on Redox.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Error(i32);

/// The result of an allocation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error of this number.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        Self(errno)
    }

    /// The number.
    #[must_use]
    pub const fn errno(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error `{self}` {}", self.0)
    }
}

impl std::error::Error for Error {}

/// The session that the process inherited.
pub(crate) const fn inherited() -> Option<std::result::Result<Device, Client>> {
    None
}

/// The function that this process was started for.
#[expect(clippy::unnecessary_wraps, reason = "on Redox there are errors")]
pub(crate) const fn function() -> std::result::Result<Option<PciAddress>, Client> {
    Ok(None)
}

/// Keeps what later allocations need.
pub(crate) const fn keep() {}

/// Memory of this process.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, and this type gives no access to it.
unsafe impl Send for Mapping {}
// SAFETY: as said above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Allocates adjacent pages of zeros, and returns the address of the first for a device.
    pub(crate) fn contiguous(length: usize) -> Result<(Self, usize)> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let start = unsafe { mmap_anonymous(null_mut(), length, access, flags) };
        let start = start.map_err(|error| Error::new(error.raw_os_error()))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Error::new(ENOMEM))?;
        Ok((Self { start, length }, start.addr().get()))
    }

    /// Allocates pieces of these lengths, adjacent for this process.
    pub(crate) fn scattered(lengths: &[usize]) -> Result<(Self, Vec<usize>)> {
        let (mapping, mut next) = Self::contiguous(lengths.iter().sum())?;
        let addresses = lengths.iter().map(|length| {
            let at = next;
            next += length;
            at
        });
        let addresses = addresses.collect();
        Ok((mapping, addresses))
    }

    pub(crate) const fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. A region that gave out references to it is being dropped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
