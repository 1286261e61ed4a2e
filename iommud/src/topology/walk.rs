//! The walk of configuration space, which finds all functions.
//!
//! Register offsets: PCI Local Bus 3.0 section 6.1 (type 0 header), PCI-to-PCI Bridge 1.2 section 3.2 (type 1),
//! PCI Express Base 6.0 sections 7.5.3 (PCI Express capability), 7.7.11 (ACS), 7.8.8 (ARI), 9.3.3 (SR-IOV).

mod enter_virtuals;
mod look;
mod pch;
#[cfg(test)]
mod tests;
mod virtuals;
mod word;

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};

use crate::topology::pci::{ConfigSpace, PciFunction};
pub use look::answers;
use look::{Found, Nothing, look};
use virtuals::Virtuals;

/// The buses at which a walk begins. Buses behind bridges are found from there.
#[derive(Clone, Copy, Debug)]
pub enum Roots<'a> {
    /// These buses, each with its segment.
    Known(&'a [(u16, u8)]),
    /// Every bus of these segments that no bridge led to. A bus that does not exist costs 32 reads.
    All(&'a [u16]),
}

/// Finds every function, in order of segment, then of discovery. A bridge comes before the functions behind it, and
/// virtual functions come last. Never follows a bus twice, whatever bus numbers bridges hold. A function that stops
/// answering during the walk is left out, although it may be there: see [`answers`].
pub fn walk(config: &mut dyn ConfigSpace, roots: Roots<'_>) -> Vec<PciFunction> {
    let mut found = Vec::new();
    match roots {
        Roots::Known(roots) => {
            let mut segments: Vec<u16> = roots.iter().map(|(segment, _)| *segment).collect();
            segments.sort_unstable();
            segments.dedup();
            for segment in segments {
                let mut walk = Walk::new(config, segment, &mut found);
                roots.iter().filter(|(of, _)| *of == segment).for_each(|(_, bus)| walk.bus(*bus));
                walk.virtual_functions();
            }
        }
        Roots::All(segments) => {
            for segment in segments {
                let mut walk = Walk::new(config, *segment, &mut found);
                (0..=255).for_each(|bus| walk.bus(bus));
                walk.virtual_functions();
            }
        }
    }
    found
}

/// A bus to be examined.
#[derive(Clone, Copy)]
struct Bus {
    number: u8,
    /// The port above forwards requests for functions above 7 (ARI): the bus holds one device, of up to 256.
    ari: bool,
}

struct Walk<'a> {
    config: &'a mut dyn ConfigSpace,
    segment: u16,
    seen: [bool; 256],
    found: &'a mut Vec<PciFunction>,
    /// Index in `found` of the first function of this segment.
    first: usize,
    /// Functions that have virtual functions.
    physical: Vec<(PciFunction, Virtuals)>,
}

impl<'a> Walk<'a> {
    fn new(config: &'a mut dyn ConfigSpace, segment: u16, found: &'a mut Vec<PciFunction>) -> Self {
        let first = found.len();
        Self { config, segment, seen: [false; 256], found, first, physical: Vec::new() }
    }

    /// Examines a bus and all buses behind it, with a list of buses in place of recursion.
    fn bus(&mut self, root: u8) {
        let mut todo = alloc::vec![Bus { number: root, ari: false }];
        while let Some(bus) = todo.pop() {
            match self.seen.get_mut(usize::from(bus.number)) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            let first = todo.len();
            if !(bus.ari && self.one_device(bus.number, &mut todo)) {
                for device in 0..32 {
                    self.device(bus.number, device, &mut todo);
                }
            }
            // The lowest bridge is followed first.
            todo.get_mut(first..).unwrap_or_default().reverse();
        }
    }

    /// Examines a device. Function 0 states whether there are others.
    fn device(&mut self, bus: u8, device: u8, todo: &mut Vec<Bus>) {
        let mut multifunction = None;
        for number in 0..8 {
            if number > 0 && multifunction != Some(true) {
                break;
            }
            let Some(address) = PciAddress::new(self.segment, bus, device, number) else { break };
            match look(self.config, address, multifunction, false) {
                Ok(found) => {
                    multifunction = multifunction.or(Some(found.multifunction));
                    self.enter(found, todo);
                }
                Err(_) if number == 0 => break,
                Err(_) => {}
            }
        }
    }

    /// Examines the one device behind a port that forwards ARI. Each function names the next one, and numbers must
    /// ascend. Returns false if the device does not support ARI.
    fn one_device(&mut self, bus: u8, todo: &mut Vec<Bus>) -> bool {
        let mut number = 0;
        loop {
            let requester = RequesterId(u16::from_be_bytes([bus, number]));
            let address = PciAddress { segment: self.segment, requester };
            let several = (number > 0).then_some(true);
            let found = match look(self.config, address, several, true) {
                Ok(found) => found,
                // If function 0 stopped answering, the device is not examined as one without ARI: that would describe
                // it wrongly.
                Err(nothing) => return number > 0 || nothing == Nothing::Undescribed,
            };
            let next = found.next;
            if number == 0 && next.is_none() {
                return false;
            }
            self.enter(found, todo);
            match next {
                Some(next) if next > number => number = next,
                _ => return true,
            }
        }
    }

    fn enter(&mut self, found: Found, todo: &mut Vec<Bus>) {
        let function = found.function;
        if let Some(buses) = function.buses() {
            todo.push(Bus { number: buses.secondary, ari: found.forwards_ari });
        }
        if let Some(virtuals) = found.virtuals {
            self.physical.push((function, virtuals));
        }
        self.found.push(function);
    }
}
