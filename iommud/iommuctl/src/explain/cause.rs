//! What the place of a fault says: the nearest mapping, the owner, or what stopped the request before it had a place.

use iommud::addr::INTERRUPT_WINDOW;

use super::stage::Stage;
use crate::server::domain::{Buffer, Domain, Mapping, Unmapped};
use crate::server::fault::Fault;
use crate::server::machine::{Device, Machine};

use iommu_protocol::fault::FaultAccess;

/// Farther away than this a mapping says nothing about an access, in bytes.
pub(super) const NEAR: u64 = 1 << 20;

/// What the server knows of the place of a fault, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The server's own word, no access.
    Notice,
    /// An event of the unit itself.
    Unit,
    /// No function is known by the requester id.
    Unknown,
    /// The device sent an interrupt that the unit does not let through.
    InterruptRequest,
    /// The device uses a cache of translations, or processes of its own.
    DeviceCache,
    /// The unit could not use its tables.
    Tables,
    /// An access to the window of interrupts.
    Window,
    /// The device was blocked then, and is attached now.
    Early,
    /// The device is claimed and not attached, or its owner ended.
    NotAttached,
    /// Nobody has claimed the device, and policy does not let it. True when policy is `compat`.
    Policy(bool),
    /// The unit did not say where.
    NoAddress,
    /// Inside of a mapping that does not allow the access.
    Forbidden(Mapping),
    /// Inside of a mapping that allows the access now.
    Allowed(Mapping),
    /// In the range of a buffer's grants, where none is in force.
    NotGranted(Buffer),
    /// In a range that was mapped until a moment ago.
    Unmapped(Unmapped),
    /// Behind the end of a mapping, with this many bytes between.
    Behind(Mapping, u64),
    /// This many bytes before the start of a mapping.
    Before(Mapping, u64),
    /// In a mapping of another domain, which has this number.
    Foreign(u32, Mapping),
    /// Above the highest address of the domain, which is this.
    TooHigh(u64),
    /// Near nothing.
    Nowhere,
}

impl Cause {
    /// The cause of a fault, by what the server says now.
    #[must_use]
    pub fn of(fault: &Fault, machine: &Machine, domains: &[Domain]) -> Self {
        if fault.reason == 0 && fault.address.is_none() {
            return Self::Notice;
        }
        let device = machine.source(fault.device);
        let kind = machine.unit_kind(device.and_then(|device| device.unit));
        let stage = kind.map_or(Stage::Unsure, |kind| Stage::of(kind, fault.reason));
        match (stage, device) {
            (Stage::Unit, _) => Self::Unit,
            (_, None) => Self::Unknown,
            (Stage::Interrupt, _) => Self::InterruptRequest,
            (Stage::DeviceCache, _) => Self::DeviceCache,
            (Stage::Tables, _) => Self::Tables,
            (Stage::Entry, Some(device)) if device.attached => Self::Early,
            (_, Some(device)) => of_device(fault, device, domains),
        }
    }

    /// A stable name, for programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Unit => "unit",
            Self::Unknown => "unknown-device",
            Self::InterruptRequest => "interrupt",
            Self::DeviceCache => "device-cache",
            Self::Tables => "tables",
            Self::Window => "interrupt-window",
            Self::Early => "before-attach",
            Self::NotAttached => "not-attached",
            Self::Policy(_) => "policy",
            Self::NoAddress => "no-address",
            Self::Forbidden(_) => "forbidden",
            Self::Allowed(_) => "mapped-since",
            Self::NotGranted(_) => "not-granted",
            Self::Unmapped(_) => "unmapped",
            Self::Behind(..) => "behind-mapping",
            Self::Before(..) => "before-mapping",
            Self::Foreign(..) => "other-domain",
            Self::TooHigh(_) => "above-domain",
            Self::Nowhere => "nowhere",
        }
    }
}

fn of_device(fault: &Fault, device: &Device, domains: &[Domain]) -> Cause {
    let window = INTERRUPT_WINDOW.first().0..=INTERRUPT_WINDOW.last().0;
    if fault.address.is_some_and(|address| window.contains(&address)) {
        return Cause::Window;
    }
    if device.owner.is_none() && !device.is_cut_off() {
        return Cause::Policy(device.policy == "compat");
    }
    if !device.attached {
        return Cause::NotAttached;
    }
    let Some(address) = fault.address else { return Cause::NoAddress };
    let own = device.domain.and_then(|(index, _)| domains.iter().find(|of| of.index == index));
    own.map_or(Cause::Nowhere, |own| place(address, fault.access, own, domains))
}

fn place(address: u64, access: FaultAccess, own: &Domain, domains: &[Domain]) -> Cause {
    if let Some(mapping) = holder(own, address) {
        let allowed = match access {
            FaultAccess::Read => mapping.read,
            FaultAccess::Write => mapping.write,
            FaultAccess::Unknown => mapping.read && mapping.write,
        };
        return if allowed { Cause::Allowed(*mapping) } else { Cause::Forbidden(*mapping) };
    }
    let granted = |buffer: &&Buffer| {
        buffer.grants.is_some_and(|(first, last)| (first..=last).contains(&address))
    };
    if let Some(buffer) = own.buffers.iter().find(granted) {
        return Cause::NotGranted(*buffer);
    }
    let unmapped = own.unmapped.iter().find(|of| (of.first..=of.last).contains(&address));
    let unmapped = unmapped.map(|of| Cause::Unmapped(*of));
    unmapped.or_else(|| nearest(address, own)).or_else(|| foreign(address, own, domains)).unwrap_or(
        {
            if address > own.addresses.1 { Cause::TooHigh(own.addresses.1) } else { Cause::Nowhere }
        },
    )
}

fn holder(domain: &Domain, address: u64) -> Option<&Mapping> {
    domain.mappings.iter().find(|mapping| mapping.contains(address))
}

/// The mapping that is nearest to an address in none, if it is near.
fn nearest(address: u64, own: &Domain) -> Option<Cause> {
    let mappings = || own.mappings.iter();
    let below = mappings().filter(|of| of.last < address).max_by_key(|of| of.last);
    let above = mappings().filter(|of| of.first > address).min_by_key(|of| of.first);
    let behind = below.map(|of| (address - of.last - 1, Cause::Behind(*of, address - of.last - 1)));
    let before = above.map(|of| (of.first - address, Cause::Before(*of, of.first - address)));
    let found = behind.into_iter().chain(before).min_by_key(|(distance, _)| *distance);
    found.filter(|(distance, _)| *distance <= NEAR).map(|(_, cause)| cause)
}

fn foreign(address: u64, own: &Domain, domains: &[Domain]) -> Option<Cause> {
    let mut others = domains.iter().filter(|other| other.index != own.index);
    others.find_map(|other| Some(Cause::Foreign(other.index, *holder(other, address)?)))
}
