//! The functions of the machine.

use std::collections::BTreeSet;

use super::pci::SysfsConfig;
use crate::topology::pci::PciFunction;
use crate::topology::walk::{Roots, walk};

/// Every function, bridges included, from a walk that begins at every bus the kernel knows.
pub(super) fn functions(config: &mut SysfsConfig) -> Vec<PciFunction> {
    let buses: BTreeSet<(u16, u8)> = config
        .functions()
        .iter()
        .map(|address| (address.segment, address.requester.bus()))
        .collect();
    let roots: Vec<(u16, u8)> = buses.into_iter().collect();
    walk(config, Roots::Known(&roots))
}
