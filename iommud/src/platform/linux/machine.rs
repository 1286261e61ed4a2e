//! Finds the PCI functions of the machine.

use std::collections::BTreeSet;

use iommu_protocol::ids::PciAddress;

use super::pci::SysfsConfig;
use crate::server::Discovery;
use crate::topology::pci::PciFunction;
use crate::topology::walk::{Roots, answers, walk};

/// Walks configuration space from every bus that the kernel lists. Returns every function, bridges included.
pub(super) fn functions(config: &mut SysfsConfig) -> Vec<PciFunction> {
    let buses: BTreeSet<(u16, u8)> = config
        .functions()
        .iter()
        .map(|address| (address.segment, address.requester.bus()))
        .collect();
    let roots: Vec<(u16, u8)> = buses.into_iter().collect();
    walk(config, Roots::Known(&roots))
}

/// Discovers functions through sysfs, while the server runs.
pub(super) struct Sysfs;

impl Discovery for Sysfs {
    fn walk(&mut self) -> Option<Vec<PciFunction>> {
        let config = SysfsConfig::open().inspect_err(|error| log::error!("PCI: {error}"));
        Some(functions(&mut config.ok()?))
    }

    fn answers(&mut self, address: PciAddress) -> bool {
        answers(&mut SysfsConfig::of(address), address)
    }
}
