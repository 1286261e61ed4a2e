//! PCI functions, and the trait through which configuration space is read.

use iommu_protocol::ids::PciAddress;

/// Reads configuration space. Nothing in the server writes it.
pub trait ConfigSpace {
    /// Reads the 32 bits at `offset` (a multiple of 4, below 4096) of a function. Returns all ones if no function
    /// answers or the offset cannot be reached.
    fn read(&mut self, address: PciAddress, offset: u16) -> u32;

    /// Reads the 32 bits at a physical address (a multiple of 4) that holds registers of the chipset. `None` if they
    /// cannot be read; isolation that depends on them then counts as not in force.
    fn chipset(&mut self, _address: u64) -> Option<u32> {
        None
    }
}

/// Kind of a function, from its header type and PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// PCI Express endpoint, or legacy PCI Express endpoint.
    Endpoint,
    /// Endpoint integrated in the root complex.
    RootComplexEndpoint,
    /// A function on a conventional PCI bus.
    Conventional,
    /// Root port, with the buses behind it.
    RootPort(Buses),
    /// Upstream port of a switch.
    UpstreamPort(Buses),
    /// Downstream port of a switch.
    DownstreamPort(Buses),
    /// Bridge from PCI Express to conventional PCI. It puts `bus:00.0` of its secondary bus on requests from behind.
    ExpressToConventional(Buses),
    /// Bridge from conventional PCI to PCI Express.
    ConventionalToExpress(Buses),
    /// Conventional PCI-to-PCI bridge: puts its own requester id on requests from behind.
    ConventionalBridge(Buses),
    /// Event collector of the root complex.
    EventCollector,
}

/// Buses behind a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// The bus directly behind.
    pub secondary: u8,
    /// The highest bus behind (inclusive).
    pub subordinate: u8,
}

/// One function of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Its address.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass, programming interface: bits 23:16, 15:8, 7:0.
    pub class: u32,
    /// Its kind.
    pub kind: FunctionKind,
    /// The device has more than one function.
    pub multifunction: bool,
    /// The ACS control bits in force: from the ACS control register (PCI Express Base 6.0 section 7.7.11), or from
    /// [`crate::topology::quirks::acs`]. `None` without either.
    pub acs: Option<u16>,
    /// The ACS capability bits.
    pub acs_capability: u16,
    /// A port with a slot where devices come and go (PCI Express Base 6.0 section 7.5.3.9, Hot-Plug Capable).
    pub hot_plug: bool,
}

/// Distinguishes devices that are at one address at different times: vendor id and device id. Everything else may
/// change while a device is there: isolation and bus numbers by system software, the class by the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    vendor: u16,
    device: u16,
}

impl Buses {
    /// Whether a bus is behind.
    #[must_use]
    pub const fn contains(self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

impl PciFunction {
    /// Distinguishes it from another function at its address. That of a virtual function comes from its physical one.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        Identity { vendor: self.vendor, device: self.device }
    }

    /// The buses behind a bridge that is set up. `None` for other functions, and for a bridge with impossible bus
    /// numbers: buses behind a bridge have higher numbers than the bus that it is on.
    #[must_use]
    pub const fn buses(&self) -> Option<Buses> {
        match self.kind.buses() {
            Some(buses)
                if buses.secondary > self.address.requester.bus()
                    && buses.subordinate >= buses.secondary =>
            {
                Some(buses)
            }
            _ => None,
        }
    }
}

impl FunctionKind {
    /// The kind in words, as `devices/ADDRESS` has it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::RootComplexEndpoint => "integrated endpoint",
            Self::Conventional => "conventional function",
            Self::RootPort(_) => "root port",
            Self::UpstreamPort(_) => "upstream port",
            Self::DownstreamPort(_) => "downstream port",
            Self::ExpressToConventional(_) => "bridge from express to conventional",
            Self::ConventionalToExpress(_) => "bridge from conventional to express",
            Self::ConventionalBridge(_) => "conventional bridge",
            Self::EventCollector => "event collector",
        }
    }

    /// The kind that [`FunctionKind::words`] names; `buses` are those behind a bridge.
    #[must_use]
    pub fn from_words(words: &str, buses: Option<Buses>) -> Option<Self> {
        let plain =
            [Self::Endpoint, Self::RootComplexEndpoint, Self::Conventional, Self::EventCollector];
        let bridge = |buses| {
            [
                Self::RootPort(buses),
                Self::UpstreamPort(buses),
                Self::DownstreamPort(buses),
                Self::ExpressToConventional(buses),
                Self::ConventionalToExpress(buses),
                Self::ConventionalBridge(buses),
            ]
        };
        let named = |kind: &Self| kind.words() == words;
        match buses {
            None => plain.into_iter().find(named),
            Some(buses) => bridge(buses).into_iter().find(named),
        }
    }

    /// The buses behind any bridge, as its registers state them.
    #[must_use]
    pub const fn buses(self) -> Option<Buses> {
        match self {
            Self::RootPort(buses)
            | Self::UpstreamPort(buses)
            | Self::DownstreamPort(buses)
            | Self::ExpressToConventional(buses)
            | Self::ConventionalToExpress(buses)
            | Self::ConventionalBridge(buses) => Some(buses),
            _ => None,
        }
    }
}
