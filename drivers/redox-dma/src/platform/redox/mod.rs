//! Redox: the memory scheme, and what pcid-spawner or a parent handed to this process.

mod memory;

use std::io;
use std::sync::OnceLock;

use iommu_client::platform::redox::pci::Spawned;
use iommu_client::{Device, Error as Client, PciAddress};

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

/// The session that the process inherited. A second try finds it too.
pub(crate) fn inherited() -> Option<Result<Device, Client>> {
    Device::handed_over().transpose()
}
