//! Configuration space through pcid's `access` file, which reaches bridges too. Reads only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use iommu_protocol::ids::PciAddress;
use libredox::call::call_rw;
use syscall::flag::CallFlags;

use crate::topology::pci::ConfigSpace;

/// Metadata of a call that reads.
const READ: u64 = 1;

/// Configuration space of the machine.
pub(super) struct PciAccess(File);

impl PciAccess {
    /// Opens it.
    ///
    /// # Errors
    /// There is no pcid, or this is not uid 0.
    pub(super) fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open("/scheme/pci/access").map(Self)
    }

    fn call(&self, address: PciAddress, offset: u16) -> io::Result<u32> {
        let id = address.requester;
        let place = u64::from(address.segment) << 28
            | u64::from(id.bus()) << 20
            | u64::from(id.device()) << 15
            | u64::from(id.function()) << 12
            | u64::from(offset & 0xfff);
        let fd = usize::try_from(self.0.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut word = [0xff; 4];
        call_rw(fd, &mut word, CallFlags::empty(), &[READ, place])?;
        Ok(u32::from_le_bytes(word))
    }
}

impl ConfigSpace for PciAccess {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        self.call(address, offset).unwrap_or(u32::MAX)
    }
}

/// Buses that functions are known on, and the first of each segment: where a walk begins. pcid lists no
/// bridges, but what is behind them.
pub(super) fn roots() -> io::Result<Vec<(u16, u8)>> {
    let mut roots = BTreeSet::from([(0, 0)]);
    for entry in fs::read_dir("/scheme/pci")? {
        let name = entry?.file_name();
        if let Some(address) = name.to_str().and_then(|name| name.parse::<PciAddress>().ok()) {
            roots.insert((address.segment, 0));
            roots.insert((address.segment, address.requester.bus()));
        }
    }
    Ok(roots.into_iter().collect())
}
