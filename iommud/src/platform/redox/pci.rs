//! Reads configuration space. It reads from memory where firmware gives an address, otherwise through pcid's `access`
//! file, which covers bridges too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use iommu_protocol::ids::PciAddress;
use libredox::call::call_rw;
use syscall::flag::CallFlags;

use super::acpi_tables;
use super::ecam::{self, Window};
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::RegisterIo;
use crate::platform::Registers;
use crate::topology::pci::ConfigSpace;

/// Metadata of a call that reads a word.
const READ: u64 = 1;

/// Configuration space of the machine.
pub(super) struct PciAccess {
    access: File,
    windows: Vec<Window>,
    /// The mapped buses. `None` for a bus that could not be mapped.
    buses: BTreeMap<(u16, u8), Option<Registers>>,
}

impl PciAccess {
    /// Opens configuration space. Prefers windows in memory, if firmware describes them and they agree with pcid. A
    /// call of pcid for each word would take most of the time of starting.
    ///
    /// # Errors
    /// There is no pcid, or this process is not uid 0.
    pub(super) fn open() -> io::Result<Self> {
        let access = File::options().read(true).write(true).open("/scheme/pci/access")?;
        let mcfg = acpi_tables::read("MCFG").ok().flatten().unwrap_or_default();
        let mut space = Self { access, windows: Window::all(&mcfg), buses: BTreeMap::new() };
        if !space.agrees() {
            log::warn!("configuration space is not where firmware says: pcid is asked instead");
            space.windows.clear();
            space.buses.clear();
        }
        Ok(space)
    }

    /// Whether memory and pcid give the same identity of the first function. True when that function is not in
    /// memory.
    fn agrees(&mut self) -> bool {
        let Some(first) = PciAddress::new(0, 0, 0, 0) else { return false };
        match self.in_memory(first, 0) {
            Some(identity) => self.call(first, 0).is_ok_and(|told| told == identity),
            None => true,
        }
    }

    fn in_memory(&mut self, address: PciAddress, offset: u16) -> Option<u32> {
        self.bus(address).map(|bus| bus.read32(ecam::offset(address, offset)))
    }

    fn bus(&mut self, address: PciAddress) -> Option<&mut Registers> {
        let (segment, bus) = (address.segment, address.requester.bus());
        let windows = &self.windows;
        // Only buses in a window are remembered, because clients may ask for any bus.
        let range = windows.iter().find_map(|window| window.bus(segment, bus))?;
        let mapped =
            self.buses.entry((segment, bus)).or_insert_with(|| super::registers(range).ok());
        mapped.as_mut()
    }

    fn call(&self, address: PciAddress, offset: u16) -> io::Result<u32> {
        let id = address.requester;
        let place = u64::from(address.segment) << 28
            | u64::from(id.bus()) << 20
            | u64::from(id.device()) << 15
            | u64::from(id.function()) << 12
            | u64::from(offset & 0xfff);
        let fd =
            usize::try_from(self.access.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut word = [0xff; 4];
        call_rw(fd, &mut word, CallFlags::empty(), &[READ, place])?;
        Ok(u32::from_le_bytes(word))
    }
}

impl ConfigSpace for PciAccess {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        match self.in_memory(address, offset) {
            Some(word) => word,
            None => self.call(address, offset).unwrap_or(u32::MAX),
        }
    }

    fn chipset(&mut self, address: u64) -> Option<u32> {
        let range = PhysRange::new(PhysAddr(address), 4)?;
        Some(super::registers(range).ok()?.read32(0))
    }
}

/// Lists the buses where a walk begins: the first bus of each segment, and every bus with a function that pcid lists.
/// pcid lists the functions behind bridges, but no bridges.
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
