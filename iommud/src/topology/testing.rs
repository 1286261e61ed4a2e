//! Functions for tests, and a count of the work that groups cost.

use std::cell::Cell;

use iommu_protocol::ids::PciAddress;

use crate::topology::pci::{Buses, FunctionKind, PciFunction};

/// All the ACS control bits that isolation needs: source validation, request redirect, completion redirect,
/// upstream forwarding (PCI Express Base 6.0 section 7.7.11.3).
pub(crate) const ACS: u16 = 0b1_1101;

pub(crate) fn address(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}

pub(crate) fn function(address: PciAddress, kind: FunctionKind) -> PciFunction {
    PciFunction {
        address,
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        kind,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    }
}

pub(crate) fn endpoint(bus: u8, device: u8, number: u8) -> PciFunction {
    function(address(bus, device, number), FunctionKind::Endpoint)
}

/// A root port without ACS.
pub(crate) fn bridge(bus: u8, device: u8, number: u8, first: u8, last: u8) -> PciFunction {
    let buses = Buses { secondary: first, subordinate: last };
    function(address(bus, device, number), FunctionKind::RootPort(buses))
}

pub(crate) fn with_acs(mut function: PciFunction) -> PciFunction {
    function.acs = Some(ACS);
    function.acs_capability = ACS;
    function
}

pub(crate) fn multi(mut function: PciFunction) -> PciFunction {
    function.multifunction = true;
    function
}

std::thread_local! {
    static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

/// Counts a function whose edges are looked at.
pub(crate) fn look() {
    LOOKED_AT.set(LOOKED_AT.get() + 1);
}

/// The number of functions whose edges this thread looked at since it last asked.
pub(crate) fn looked_at() -> usize {
    LOOKED_AT.take()
}
