//! PCI configuration space, word by word. Offsets and bits: PCI Express Base 6.0, sections 7.5.1 (header),
//! 7.5.3 (PCI Express capability, id 0x10), 7.7.11 (ACS, extended capability id 0x000d).

use iommu_protocol::ids::PciAddress;
use iommud::topology::pci::ConfigSpace;

use super::Machine;

/// The functions of a machine.
#[derive(Clone, Default)]
pub(super) struct Space {
    words: std::collections::BTreeMap<(PciAddress, u16), u32>,
    reads: u64,
}

/// `ConfigSpace` over a machine, and the methods that add functions to it.
pub struct PciBus {
    machine: Machine,
}

impl Machine {
    /// Configuration space.
    #[must_use]
    pub fn pci(&self) -> PciBus {
        PciBus { machine: self.clone() }
    }

    /// Reads of configuration space so far.
    #[must_use]
    pub fn config_reads(&self) -> u64 {
        self.state().config.reads
    }
}

impl PciBus {
    /// Sets one word of a function. The first word creates the function.
    pub fn set(&self, address: PciAddress, offset: u16, value: u32) {
        self.machine.state().config.words.insert((address, offset & 0xffc), value);
    }

    /// Adds a conventional endpoint.
    pub fn endpoint(&self, address: PciAddress, vendor: u16, device: u16, class: u32) {
        self.set(address, 0, u32::from(device) << 16 | u32::from(vendor));
        self.set(address, 8, class << 8);
        self.set(address, 0xc, 0);
    }

    /// Marks the device of function 0 as multifunction (header type bit 7).
    pub fn multifunction(&self, address: PciAddress) {
        let mut state = self.machine.state();
        *state.config.words.entry((address, 0xc)).or_insert(0) |= 1 << 23;
    }

    /// Gives a function a PCI Express capability with this device/port type (0 endpoint, 4 root port,
    /// 5 upstream, 6 downstream port, 7 bridge to PCI, 8 bridge from PCI, 9 root complex endpoint).
    pub fn express(&self, address: PciAddress, port_type: u32) {
        {
            let mut state = self.machine.state();
            *state.config.words.entry((address, 4)).or_insert(0) |= 1 << 20;
        }
        self.set(address, 0x34, 0x40);
        self.set(address, 0x40, 0x0010 | (port_type << 4 | 2) << 16);
    }

    /// Gives a function an ACS capability, the only extended one, with these capability and control bits.
    pub fn acs(&self, address: PciAddress, capability: u16, control: u16) {
        self.set(address, 0x100, 0x0001_000d);
        self.set(address, 0x104, u32::from(control) << 16 | u32::from(capability));
    }

    /// Makes a function a bridge (header type 1) to these buses.
    pub fn bridge(&self, address: PciAddress, secondary: u8, subordinate: u8) {
        self.set(address, 8, 0x06_0400 << 8);
        {
            let mut state = self.machine.state();
            *state.config.words.entry((address, 0xc)).or_insert(0) |= 1 << 16;
        }
        let primary = address.requester.bus();
        self.set(address, 0x18, u32::from_le_bytes([primary, secondary, subordinate, 0]));
    }

    /// Removes a function.
    pub fn remove(&self, address: PciAddress) {
        self.machine.state().config.words.retain(|(of, _), _| *of != address);
    }
}

impl ConfigSpace for PciBus {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        let mut state = self.machine.state();
        state.config.reads += 1;
        if !offset.is_multiple_of(4) || !state.config.words.contains_key(&(address, 0)) {
            return u32::MAX;
        }
        state.config.words.get(&(address, offset)).copied().unwrap_or(0)
    }
}
