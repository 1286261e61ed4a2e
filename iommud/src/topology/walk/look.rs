//! Examines one function through its configuration space.

use iommu_protocol::ids::PciAddress;

use super::pch;
use super::virtuals::{self, Virtuals};
use super::word::{high, low};
use crate::topology::groups::REQUIRED;
use crate::topology::pci::{Buses, ConfigSpace, FunctionKind, PciFunction};
use crate::topology::quirks::acs::{self, Acs};

/// Capability id of PCI Express.
const CAPABILITY_EXPRESS: u32 = 0x10;
/// Most capabilities that fit in 192 bytes, 4 each.
const MAX_CAPABILITIES: usize = 48;
/// Most extended capabilities that are followed: a chain that is longer loops.
const MAX_EXTENDED: usize = 96;

/// Extended capability ids of Access Control Services, alternative routing ids, and I/O virtualization.
const EXTENDED_ACS: u32 = 0x0d;
const EXTENDED_ARI: u32 = 0x0e;
const EXTENDED_SR_IOV: u32 = 0x10;

/// Offsets in the PCI Express capability: Slot Capabilities, Device Control 2.
const SLOT_CAPABILITIES: u32 = 0x14;
const DEVICE_CONTROL_2: u32 = 0x28;
/// PCI Express Capabilities register, as the high half of the capability's first word: Slot Implemented.
const SLOT_IMPLEMENTED: u32 = 1 << 24;
/// Slot Capabilities: Hot-Plug Capable.
const HOT_PLUG_CAPABLE: u32 = 1 << 6;
/// Device Control 2: ARI Forwarding Enable.
const ARI_FORWARDING: u32 = 1 << 5;

/// A function, with the facts that the walk needs to go on.
pub(super) struct Found {
    pub(super) function: PciFunction,
    /// The header states that the device has several functions. Only the header of function 0 counts.
    pub(super) multifunction: bool,
    /// The number of the next function of an ARI device, 0 after the last one. `None` without the capability.
    pub(super) next: Option<u8>,
    /// A port that forwards requests for functions above 7.
    pub(super) forwards_ari: bool,
    /// The enabled virtual functions.
    pub(super) virtuals: Option<Virtuals>,
}

/// Why no function was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nothing {
    /// No function answers.
    Absent,
    /// A function answered at first, and then read all ones: it was reset, or pulled out. The values read would
    /// describe another function, without some capabilities.
    Undescribed,
}

/// Examines an address. `multifunction` is the statement of function 0 of the device, once that is known. With `ari`
/// the function may name the next one.
pub(super) fn look(
    config: &mut dyn ConfigSpace,
    address: PciAddress,
    multifunction: Option<bool>,
    ari: bool,
) -> Result<Found, Nothing> {
    let identity = config.read(address, 0);
    if is_absent(identity) {
        return Err(Nothing::Absent);
    }
    let mut reader = Reader { config, address, constant: (0, identity), lost: false };
    let header = reader.read(0x0c) >> 16;
    let several = header & 0x80 != 0;
    let class = reader.read(0x08) >> 8;
    let header = header & 0x7f;
    // Types 1 (PCI-to-PCI bridge) and 2 (CardBus bridge) hold the bus numbers at the same place.
    let buses = matches!(header, 1 | 2).then(|| {
        let [_, secondary, subordinate, _] = reader.read(0x18).to_le_bytes();
        Buses { secondary, subordinate }
    });
    let express = reader.express(if header == 2 { 0x14 } else { 0x34 });
    let kind = kind(express.map(|express| express.word >> 20 & 0xf), buses);
    let function = PciFunction {
        address,
        vendor: low(identity),
        device: high(identity),
        class,
        kind,
        multifunction: multifunction.unwrap_or(several),
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    };
    let mut found =
        Found { function, multifunction: several, next: None, forwards_ari: false, virtuals: None };
    if let (Some(express), FunctionKind::RootPort(_) | FunctionKind::DownstreamPort(_)) =
        (express, kind)
    {
        reader.port(express, &mut found);
    }
    reader.extended_capabilities(ari, &mut found);
    if reader.lost { Err(Nothing::Undescribed) } else { Ok(found) }
}

/// The registers of one function.
struct Reader<'a> {
    config: &'a mut dyn ConfigSpace,
    address: PciAddress,
    /// A register that never changes: its offset and its value.
    constant: (u16, u32),
    /// The function did not answer for a while, so the values read are of no use.
    lost: bool,
}

/// The PCI Express capability.
#[derive(Clone, Copy)]
struct Express {
    at: u32,
    /// Its first word.
    word: u32,
}

impl Reader<'_> {
    /// Reads a word. It is all ones past the end: a device chooses where its capabilities are, so they may reach
    /// there.
    fn read(&mut self, offset: u32) -> u32 {
        if offset >= 4096 {
            return u32::MAX;
        }
        let word = self.config.read(self.address, low(offset));
        if word == u32::MAX {
            self.lost = self.lost || !self.is_all_ones(low(offset));
        }
        word
    }

    /// Whether a register reads all ones although the function answers: extended configuration space may be out of
    /// reach. The register is read again between two reads of the constant register. So a function that came back
    /// after the first read, or went after it, is detected.
    fn is_all_ones(&mut self, offset: u16) -> bool {
        self.answers() && self.config.read(self.address, offset) == u32::MAX && self.answers()
    }

    fn answers(&mut self) -> bool {
        let (offset, word) = self.constant;
        self.config.read(self.address, offset) == word
    }

    /// Reads a word; `None` if it is all ones.
    fn answered(&mut self, offset: u32) -> Option<u32> {
        Some(self.read(offset)).filter(|word| *word != u32::MAX)
    }

    /// Finds the PCI Express capability; `None` for a conventional function.
    fn express(&mut self, pointer: u32) -> Option<Express> {
        let status = self.read(0x04) >> 16;
        if status & 0x10 == 0 {
            return None;
        }
        let mut at = self.read(pointer) & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if at < 0x40 {
                return None;
            }
            let word = self.read(at);
            if word & 0xff == CAPABILITY_EXPRESS {
                return Some(Express { at, word });
            }
            if word & 0xff == 0xff {
                return None;
            }
            at = word >> 8 & 0xfc;
        }
        None
    }

    /// Reads the properties that only root ports and downstream ports have.
    fn port(&mut self, express: Express, found: &mut Found) {
        if express.word & SLOT_IMPLEMENTED != 0 {
            let slot = self.answered(express.at + SLOT_CAPABILITIES).unwrap_or(0);
            found.function.hot_plug = slot & HOT_PLUG_CAPABLE != 0;
        }
        // Version 1 of the capability has no Device Control 2.
        if express.word >> 16 & 0xf >= 2 {
            let control = self.answered(express.at + DEVICE_CONTROL_2).unwrap_or(0);
            found.forwards_ari = control & ARI_FORWARDING != 0;
        }
    }

    fn extended_capabilities(&mut self, ari: bool, found: &mut Found) {
        let kind = found.function.kind;
        let endpoint = matches!(kind, FunctionKind::Endpoint | FunctionKind::RootComplexEndpoint);
        let acs = endpoint || needs_acs(kind, found.function.multifunction || ari);
        let wanted = [
            acs.then_some(EXTENDED_ACS),
            (ari && acs).then_some(EXTENDED_ARI),
            endpoint.then_some(EXTENDED_SR_IOV),
        ];
        let [acs, next, virtuals] = self.find_extended(wanted);
        found.next = next.and_then(|at| self.answered(at + 4)).map(|word| word.to_le_bytes()[1]);
        found.function.multifunction |= found.next.is_some_and(|next| next != 0);
        if let Some((total, virtuals)) =
            virtuals.and_then(|at| virtuals::read(&mut |offset| self.read(at + offset)))
        {
            // Virtual functions may be enabled at any time, and they are functions of this device.
            found.function.multifunction |= total > 0;
            found.virtuals = virtuals;
        }
        self.isolation(acs, &mut found.function);
    }

    /// Finds the offsets of these extended capabilities.
    fn find_extended<const N: usize>(&mut self, wanted: [Option<u32>; N]) -> [Option<u32>; N] {
        let mut found = [None; N];
        let mut left = wanted.iter().flatten().count();
        let mut at = 0x100;
        for _ in 0..MAX_EXTENDED {
            if left == 0 {
                break;
            }
            let word = self.read(at);
            if word == 0 || word == u32::MAX {
                break;
            }
            for (id, place) in wanted.iter().zip(&mut found) {
                if *id == Some(word & 0xffff) && place.is_none() {
                    *place = Some(at);
                    left -= 1;
                }
            }
            at = word >> 20 & 0xffc;
            if at < 0x100 {
                break;
            }
        }
        found
    }

    /// Reads the ACS registers, or takes the known isolation of a function whose registers do not show it.
    fn isolation(&mut self, at: Option<u32>, function: &mut PciFunction) {
        let known = acs::find(function);
        let (capability, control) = match known {
            Some(Acs::InForce) => (REQUIRED, REQUIRED),
            Some(Acs::Pch) if pch::isolates(self, function.address) => (REQUIRED, REQUIRED),
            _ => {
                let at = at.filter(|_| needs_acs(function.kind, function.multifunction));
                let Some(at) = at else { return };
                let Some(register) = self.answered(at + 4) else { return };
                match known {
                    Some(Acs::ControlAt8) => {
                        let Some(control) = self.answered(at + 8) else { return };
                        (low(register), low(control))
                    }
                    _ => (low(register), high(register)),
                }
            }
        };
        (function.acs_capability, function.acs) = (capability, Some(control));
    }
}

/// Lets `pch` read a port's registers through the reader, so that a lost function is noticed.
impl ConfigSpace for Reader<'_> {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        if address == self.address {
            self.read(u32::from(offset))
        } else {
            self.config.read(address, offset)
        }
    }

    fn chipset(&mut self, address: u64) -> Option<u32> {
        self.config.chipset(address)
    }
}

/// Offsets: Command and Status; class and revision.
const STATUS: u16 = 0x04;
const CLASS: u16 = 0x08;

/// Reads the isolation of a virtual function, which has no vendor id of its own. Returns false if the function
/// stopped answering meanwhile.
pub(super) fn look_at_virtual(config: &mut dyn ConfigSpace, function: &mut PciFunction) -> bool {
    let address = function.address;
    let constant = (CLASS, config.read(address, CLASS));
    let mut reader = Reader { config, address, constant, lost: false };
    let [at] = reader.find_extended([Some(EXTENDED_ACS)]);
    reader.isolation(at, function);
    !reader.lost
}

/// Whether a function answers at an address. The vendor id of a virtual function reads all ones (PCI Express Base 6.0
/// section 9.3.4.1.1), but its status does not.
pub fn answers(config: &mut dyn ConfigSpace, address: PciAddress) -> bool {
    match low(config.read(address, 0)) {
        0 => false,
        0xffff => !matches!(config.read(address, STATUS), 0 | u32::MAX),
        _ => true,
    }
}

/// Whether no function answers, or one without an identity.
const fn is_absent(identity: u32) -> bool {
    matches!(low(identity), 0 | 0xffff) || identity == 0xffff_0001
}

/// The kind of a function, from its device/port type and from whether it has a bridge's header. If the two contradict
/// each other, it is the kind that isolates least.
pub(super) const fn kind(express: Option<u32>, buses: Option<Buses>) -> FunctionKind {
    match (express, buses) {
        (Some(4), Some(buses)) => FunctionKind::RootPort(buses),
        (Some(5), Some(buses)) => FunctionKind::UpstreamPort(buses),
        (Some(6), Some(buses)) => FunctionKind::DownstreamPort(buses),
        (Some(7), Some(buses)) => FunctionKind::ExpressToConventional(buses),
        (Some(8), Some(buses)) => FunctionKind::ConventionalToExpress(buses),
        (_, Some(buses)) => FunctionKind::ConventionalBridge(buses),
        (Some(0 | 1), None) => FunctionKind::Endpoint,
        (Some(9), None) => FunctionKind::RootComplexEndpoint,
        (Some(10), None) => FunctionKind::EventCollector,
        (_, None) => FunctionKind::Conventional,
    }
}

/// Whether ACS makes a difference: see [`crate::topology::groups::is_isolating`].
const fn needs_acs(kind: FunctionKind, multifunction: bool) -> bool {
    match kind {
        FunctionKind::RootPort(_) | FunctionKind::DownstreamPort(_) => true,
        FunctionKind::Endpoint
        | FunctionKind::RootComplexEndpoint
        | FunctionKind::UpstreamPort(_) => multifunction,
        _ => false,
    }
}
