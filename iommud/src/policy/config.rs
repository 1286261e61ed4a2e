//! Settings of the administrator: the mode of each unclaimed device, and the limits of a client.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::topology::pci::PciFunction;

/// Access of a device while no client has claimed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Mode {
    /// Untranslated, where the unit supports that; else like `Compat`.
    Off,
    /// All memory one to one, except the server's own.
    #[default]
    Compat,
    /// Only the regions that firmware reserves for it.
    Strict,
}

/// The devices to which a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// The function at this address.
    Address(PciAddress),
    /// Every function with this vendor and device id.
    Device {
        /// Vendor id.
        vendor: u16,
        /// Device id.
        device: u16,
    },
    /// Every function whose class is the same in the bits of the mask.
    Class {
        /// Class, subclass, programming interface: bits 23:16, 15:8, 7:0.
        class: u32,
        /// Bits that are compared.
        mask: u32,
    },
}

impl Matcher {
    /// Whether the rule applies to this function.
    #[must_use]
    pub fn matches(self, function: &PciFunction) -> bool {
        match self {
            Self::Address(address) => address == function.address,
            Self::Device { vendor, device } => {
                vendor == function.vendor && device == function.device
            }
            Self::Class { class, mask } => class & mask == function.class & mask,
        }
    }
}

/// A mode for some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The devices.
    pub matcher: Matcher,
    /// Their mode.
    pub mode: Mode,
}

/// Limits of one client at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Bytes of buffers.
    pub memory: u64,
    /// Mappings and grants.
    pub mappings: u32,
    /// Sessions.
    pub sessions: u32,
    /// Buffers and imports of buffers.
    pub buffers: u32,
    /// Domains: devices claimed independently of each other.
    pub domains: u32,
    /// Open handles of the scheme.
    pub handles: u32,
    /// Unread fault records of one session.
    pub faults: u32,
    /// Regions of 2 MiB in which mappings begin or end, in each domain. This bounds its page tables.
    pub regions: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            mappings: 1 << 16,
            sessions: 64,
            buffers: 4096,
            domains: 16,
            handles: 256,
            faults: 64,
            regions: 1 << 14,
        }
    }
}

/// The policy of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// Mode of devices without a matching rule.
    pub default: Mode,
    /// The first rule that matches decides.
    pub rules: Vec<Rule>,
    /// Limits of each client.
    pub quotas: Quotas,
}

impl Config {
    /// The mode of a device that is no PCI function. Only rules for its address apply.
    #[must_use]
    pub fn mode_at(&self, address: PciAddress) -> Mode {
        let is = |rule: &&Rule| rule.matcher == Matcher::Address(address);
        self.rules.iter().find(is).map_or(self.default, |rule| rule.mode)
    }

    /// The mode of a function.
    #[must_use]
    pub fn mode(&self, function: &PciFunction) -> Mode {
        self.rules
            .iter()
            .find(|rule| rule.matcher.matches(function))
            .map_or(self.default, |rule| rule.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::endpoint;

    #[test]
    fn a_class_is_compared_in_the_bits_of_the_mask() {
        let matches = |class, mask, of| {
            Matcher::Class { class, mask }.matches(&PciFunction { class: of, ..endpoint(0, 3, 0) })
        };
        for (class, mask, of, expected) in [
            (0x02_0000, 0xff_0000, 0x02_8001, true),
            (0x02_0030, 0xff_0000, 0x02_0000, true),
            (0x02_0030, 0xff_0000, 0x01_0030, false),
            (0x02_0000, 0xff_0000, 0x03_0000, false),
            (0x01_0802, 0xff_ffff, 0x01_0802, true),
            (0x01_0802, 0xff_ffff, 0x01_0803, false),
            (0x01_0802, 0, 0x0c_0330, true),
        ] {
            assert_eq!(matches(class, mask, of), expected, "{class:#x} {mask:#x} {of:#x}");
        }
    }
}
