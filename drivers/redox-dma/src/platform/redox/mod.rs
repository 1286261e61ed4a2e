//! Redox: the memory scheme, and what pcid-spawner or a parent handed to this process.
#![allow(unsafe_code)]

mod memory;

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::OnceLock;

use iommu_client::platform::redox::pci::Spawned;
use iommu_client::{Device, Error as Client, PciAddress};

use super::SESSION_VARIABLE;

pub use libredox::error::{Error, Result};
pub(crate) use memory::Mapping;

/// The channel of the function that this process was started for, under a descriptor of its own.
static SPAWNED: OnceLock<Option<Spawned>> = OnceLock::new();

/// Keeps what later allocations need. A failure shows when it is needed.
pub(crate) fn keep() {
    let _ = memory::root();
    let _ = spawned();
}

fn spawned() -> io::Result<Option<&'static Spawned>> {
    if SPAWNED.get().is_none() {
        let _ = SPAWNED.set(Spawned::inherited()?);
    }
    Ok(SPAWNED.get().and_then(Option::as_ref))
}

/// The function that this process was started for; `None` if for none.
pub(crate) fn function() -> Result<Option<PciAddress>, Client> {
    Ok(spawned()?.map(Spawned::address).transpose()?)
}

/// The session that the process inherited. The descriptor is cloned: the parent's stays open, so that a second try
/// finds it.
pub(crate) fn inherited() -> Option<Result<Device, Client>> {
    let number = std::env::var_os(SESSION_VARIABLE)?;
    let number = number.to_str().and_then(|number| number.parse::<RawFd>().ok());
    Some(session(number.filter(|number| *number >= 0)))
}

fn session(number: Option<RawFd>) -> Result<Device, Client> {
    let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the number is not -1. The parent left the descriptor open for this crate, which never closes it. If it
    // did not, the kernel refuses the clone.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    Device::inherited(descriptor.try_clone_to_owned()?)
}
