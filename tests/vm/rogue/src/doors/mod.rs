//! The ways out of a driver that iommu-run started with no names, as another user. Each is tried, and reported as held or
//! open.

mod channel;
mod device;
mod names;
mod ports;

use edud::{Driver, Failure};
use iommu_client::Device;

/// How an attempt ended.
pub(crate) enum Door {
    /// It was refused, like this.
    Held(String),
    /// It succeeded, like this.
    Open(String),
}

use Door::{Held, Open};

/// Tries all of them, and prints a line for each.
pub(crate) fn try_all(driver: &mut Driver<'_>, device: &Device) -> Result<(), Failure> {
    let report = |name: &str, door: Door| match door {
        Held(how) => println!("door {name}: held: {how}"),
        Open(how) => println!("door {name}: open: {how}"),
    };
    report("names", names::by_path());
    report("descriptors", names::by_descriptor());
    report("directory", names::by_directory());
    report("processes", names::other_processes());
    report("user", names::other_user());
    report("devices", device::other_devices(device));
    report("buffers", device::other_buffers(driver, device));
    report("memory", device::other_memory(driver, device)?);
    report("vectors", device::other_vectors(driver)?);
    report("registers", channel::beyond_registers()?);
    report("bars", channel::moved_bar()?);
    report("ports", ports::configuration());
    Ok(())
}
