//! Root ports of older Intel chipsets, which have no ACS capability and isolate by other registers.
//!
//! From Linux 6.18 `drivers/pci/quirks.c`, `pci_quirk_enable_intel_pch_acs`. Linux writes the missing bits. The
//! server only reads whether isolation is in force.

use iommu_protocol::ids::PciAddress;

use crate::topology::pci::ConfigSpace;

/// Miscellaneous Port Configuration of a root port: Invalid Receive Bus Number Check Enable. It has the effect of ACS
/// source validation.
const MPC: u16 = 0xd8;
const MPC_BUS_NUMBER_CHECK: u32 = 1 << 26;

/// Root Complex Base Address of the bridge 00:1f.0: whether it is enabled, and bits 31:14 of the address.
const RCBA: u16 = 0xf0;
const RCBA_ENABLE: u32 = 1;
const RCBA_ADDRESS: u32 = 0xffff_c000;

/// Backbone Scratch Pad: peer requests, non-posted and posted, are disabled for good.
const BSPR: u64 = 0x1104;
const BSPR_NO_PEERS: u32 = 1 << 8 | 1 << 9;

/// Upstream Peer Decode Configuration: ports whose requests are decoded for peers.
const UPDCR: u64 = 0x1014;
const UPDCR_PORTS: u32 = 0x3f;

/// Whether a root port checks the bus number of each request, and lets no request go to a peer.
pub(super) fn isolates(config: &mut dyn ConfigSpace, port: PciAddress) -> bool {
    checks_bus_numbers(config.read(port, MPC)) && redirects(config, port).unwrap_or(false)
}

fn checks_bus_numbers(register: u32) -> bool {
    register != u32::MAX && register & MPC_BUS_NUMBER_CHECK != 0
}

/// Whether no request goes to a peer; `None` when the chipset's registers cannot be read.
fn redirects(config: &mut dyn ConfigSpace, port: PciAddress) -> Option<bool> {
    let bridge = PciAddress::new(port.segment, port.requester.bus(), 0x1f, 0)?;
    let base = config.read(bridge, RCBA);
    if base == u32::MAX || base & RCBA_ENABLE == 0 {
        return None;
    }
    let mut register = |offset| {
        let word = config.chipset(u64::from(base & RCBA_ADDRESS) + offset)?;
        (word != u32::MAX).then_some(word)
    };
    let peers = register(BSPR)?;
    Some(peers & BSPR_NO_PEERS == BSPR_NO_PEERS || register(UPDCR)? & UPDCR_PORTS == 0)
}
