//! Machines for exploration. They are small: few functions, few frames.

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{Config as Policy, Mode, Quotas};
use iommud::topology::firmware::{EntryRange, ReservedRegion};
use iommud::topology::pci::{Buses, FunctionKind, PciFunction};

use crate::conformance::vtd::scope;
use crate::machine::{Layout, Reach};
use crate::stack::{Setup, endpoint};

/// Index of a function in [`Scene::functions`].
pub type Device = usize;

/// The state of a unit when the server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The unit comes up at start.
    Up,
    /// The unit comes up later.
    Late,
    /// The unit exists but does not respond.
    Dead,
}

/// The vendor of a machine's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VT-d.
    Vtd,
    /// AMD-Vi.
    Amd,
}

impl Vendor {
    /// The vendor's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vtd => "VT-d",
            Self::Amd => "AMD-Vi",
        }
    }

    /// Base of the first unit's registers, and bytes of the registers of each unit.
    const fn registers(self) -> (u64, u64) {
        match self {
            Self::Vtd => (0xfed9_0000, 0x1000),
            Self::Amd => (0xfeb8_0000, 0x4000),
        }
    }

    /// Memory for tables: whole pages of 2 MiB, so that the domains of policy stay small. The device table of an
    /// AMD-Vi unit takes 2 MiB, and a server that takes over needs a new one.
    #[must_use]
    pub const fn tables(self) -> (u64, u64) {
        match self {
            Self::Vtd => (0x40_0000, 0x20_0000),
            Self::Amd => (0x100_0000, 0x200_0000),
        }
    }

    /// All memory.
    const fn ram(self) -> (u64, u64) {
        match self {
            Self::Vtd => (0, 0x100_0000),
            Self::Amd => (0, 0x300_0000),
        }
    }
}

/// A function, with facts known independently of the server.
#[derive(Clone, Debug)]
pub struct Function {
    /// The function as the walk finds it.
    pub pci: PciFunction,
    /// The unit in front of it by the firmware's scopes; `None` without one.
    pub unit: Option<usize>,
    /// Number of its group, derived by hand from the PCI Express rules.
    pub group: usize,
    /// Whether it is present when the server starts.
    pub present: bool,
    /// Memory that firmware reserves for it: first byte and length.
    pub reserved: Option<(u64, u64)>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Its name.
    pub name: &'static str,
    /// Its functions.
    pub functions: Vec<Function>,
    /// Its units.
    pub units: Vec<Start>,
    /// The vendor of its units.
    pub vendor: Vendor,
    /// Whether the units cache absent entries and do not snoop.
    pub caching_mode: bool,
    /// Policy of unclaimed devices.
    pub mode: Mode,
    /// Limits of each client.
    pub quotas: Quotas,
    /// Whether the system owns buffer memory until the server takes it. Policy `compat` maps it until then.
    pub takes: bool,
    /// Whether the units support tables deeper than three levels, which a reserved region needs.
    pub deep: bool,
    /// Whether functions share requester ids through a hot-plugged bridge. A device's reach is then checked only
    /// against its upper bound.
    pub aliases: bool,
}

/// Memory for buffers: first byte and length.
pub const BUFFERS: (u64, u64) = (0x60_0000, 0x20_0000);
/// The region that firmware reserves for the first function, in scenes with such a region.
pub const RESERVED: (u64, u64) = (0x20_0000, 0x1000);
/// The region that firmware reserves for the second function in deep scenes: the first page beyond three levels.
pub const BEYOND: (u64, u64) = (1 << 39, 0x1000);
/// The last page of the 2 MiB of buffer memory. Buffers end before it, but one large page maps both.
pub const BESIDE: u64 = BUFFERS.0 + 0x1f_f000;

fn function(pci: PciFunction, unit: usize, group: usize) -> Function {
    Function { pci, unit: Some(unit), group, present: true, reserved: None }
}

fn of_three(number: u8) -> PciFunction {
    PciFunction { multifunction: true, ..endpoint(0, 3, number) }
}

impl Scene {
    /// D1 and D2 are functions of one device behind U1 and form one group. D3 is alone behind U2.
    #[must_use]
    pub fn pair(mode: Mode) -> Self {
        Self {
            name: "pair",
            functions: vec![
                function(of_three(0), 0, 0),
                function(of_three(1), 0, 0),
                function(endpoint(0, 4, 0), 1, 1),
            ],
            units: vec![Start::Up, Start::Up],
            vendor: Vendor::Vtd,
            caching_mode: false,
            mode,
            quotas: Quotas::default(),
            takes: false,
            deep: false,
            aliases: false,
        }
    }

    /// D1 is alone behind U1, D2 alone behind U2.
    #[must_use]
    pub fn apart(mode: Mode) -> Self {
        let functions = vec![function(endpoint(0, 3, 0), 0, 0), function(endpoint(0, 4, 0), 1, 1)];
        Self { name: "apart", functions, ..Self::pair(mode) }
    }

    /// D1 and D2 are alone, both behind U1. D2 is absent at start, and firmware reserves memory for it.
    #[must_use]
    pub fn beside(mode: Mode) -> Self {
        let late = Function {
            present: false,
            reserved: Some(RESERVED),
            ..function(endpoint(0, 4, 0), 0, 1)
        };
        let functions = vec![function(endpoint(0, 3, 0), 0, 0), late];
        Self { name: "beside", functions, ..Self::pair(mode) }
    }

    /// The same as `pair`, with a third function of the device that is absent at start.
    #[must_use]
    pub fn growing(mode: Mode) -> Self {
        let mut scene = Self::pair(mode);
        let late = Function { present: false, ..function(of_three(2), 0, 0) };
        scene.functions.insert(2, late);
        Self { name: "growing", ..scene }
    }

    /// A bridge to conventional PCI and two functions behind it, all absent at start. D4 is alone. The bridge and the
    /// functions behind it form one group.
    #[must_use]
    pub fn bridge() -> Self {
        let buses = Buses { secondary: 5, subordinate: 5 };
        let kind = FunctionKind::ExpressToConventional(buses);
        let bridge = PciFunction { kind, class: 0x06_0400, ..endpoint(0, 5, 0) };
        let behind =
            |device| PciFunction { kind: FunctionKind::Conventional, ..endpoint(5, device, 0) };
        let away = |pci| Function { present: false, ..function(pci, 1, 0) };
        let functions =
            vec![away(bridge), away(behind(1)), away(behind(2)), function(endpoint(0, 3, 0), 0, 1)];
        Self { name: "bridge", functions, aliases: true, ..Self::pair(Mode::Strict) }
    }

    /// One device behind a dead unit, one behind a late unit, one without a unit.
    #[must_use]
    pub fn broken() -> Self {
        let mut scene = Self::apart(Mode::Strict);
        let alone = PciFunction {
            address: PciAddress::new(1, 0, 3, 0).expect("an address"),
            ..endpoint(0, 3, 0)
        };
        scene.functions.push(Function { unit: None, ..function(alone, 0, 2) });
        Self { name: "broken", units: vec![Start::Dead, Start::Late], ..scene }
    }

    /// Adds a reserved region for the first function.
    #[must_use]
    pub fn with_reserved(mut self) -> Self {
        self.functions[0].reserved = Some(RESERVED);
        self
    }

    /// Adds a reserved region for the third function.
    #[must_use]
    pub fn with_region_of_third(mut self) -> Self {
        self.functions[2].reserved = Some(RESERVED);
        self
    }

    /// Adds a reserved region for the second function, beyond the reach of three levels of tables.
    #[must_use]
    pub fn with_region_beyond(mut self) -> Self {
        self.functions[1].reserved = Some(BEYOND);
        self.deep = true;
        self
    }

    /// Makes the server take buffer memory from the system and return it.
    #[must_use]
    pub fn with_memory_taken(mut self) -> Self {
        self.takes = true;
        self
    }

    /// Makes the second unit come up late.
    #[must_use]
    pub fn with_late_unit(mut self) -> Self {
        self.units[1] = Start::Late;
        self
    }

    /// Makes all functions absent at start.
    #[must_use]
    pub fn empty(mut self) -> Self {
        self.functions.iter_mut().for_each(|function| function.present = false);
        self
    }

    /// Makes the units cache absent entries and not snoop.
    #[must_use]
    pub fn with_caching_mode(mut self) -> Self {
        self.caching_mode = true;
        self
    }

    /// Makes the units AMD-Vi units.
    #[must_use]
    pub fn on_amd(mut self) -> Self {
        self.vendor = Vendor::Amd;
        self
    }

    /// Sets each client's quota to 0x2000 bytes of memory and two mappings.
    #[must_use]
    pub fn with_small_quota(mut self) -> Self {
        self.quotas.memory = 0x2000;
        self.quotas.mappings = 2;
        self
    }

    /// The address of a function.
    #[must_use]
    pub fn address(&self, device: Device) -> PciAddress {
        self.functions[device].pci.address
    }

    /// The requester id of a function.
    #[must_use]
    pub fn source(&self, device: Device) -> u16 {
        self.address(device).requester.0
    }

    /// Returns the reach that policy grants an unclaimed device that is not cut off, while clients hold this buffer
    /// memory.
    #[must_use]
    pub fn policy(&self, device: Device, held: &[(u64, u64)]) -> Vec<Reach> {
        if self.mode == Mode::Strict {
            return self.reserved_of(device).into_iter().collect();
        }
        let mut holes = vec![self.vendor.tables(), (0xfee0_0000, 0x10_0000)];
        holes.extend_from_slice(if self.takes { held } else { &[BUFFERS] });
        let (registers, length) = self.vendor.registers();
        holes.extend((0..self.units.len()).map(|unit| (registers + length * index(unit), length)));
        holes.sort_unstable();
        let (mut runs, mut at) = (Vec::new(), 0);
        for (hole, length) in holes {
            if hole > at {
                runs.push(identity(at, hole - at));
            }
            at = hole + length;
        }
        runs.push(identity(at, (1 << 32) - at));
        runs
    }

    /// The region that firmware reserves for a device, mapped one to one.
    #[must_use]
    pub fn reserved_of(&self, device: Device) -> Option<Reach> {
        self.functions[device].reserved.map(|(start, length)| identity(start, length))
    }

    /// Members of a group.
    pub fn members(&self, group: usize) -> impl Iterator<Item = Device> + '_ {
        (0..self.functions.len()).filter(move |device| self.functions[*device].group == group)
    }

    /// Builds the setup of a stack.
    ///
    /// # Panics
    /// When the scene is malformed.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let present = self.functions.iter().filter(|function| function.present);
        let behind = self.functions.iter().filter(|function| function.unit == Some(0));
        let reserved = self.functions.iter().filter_map(|function| {
            let (start, length) = function.reserved?;
            Some(ReservedRegion {
                segment: 0,
                range: PhysRange::new(PhysAddr(start), length)?,
                read: true,
                write: true,
                exclusion: false,
                scopes: vec![scope(function.pci.address.requester)],
                entries: vec![only(function.pci.address.requester)],
            })
        });
        Setup {
            config: Policy { default: self.mode, rules: Vec::new(), quotas: self.quotas },
            functions: present.map(|function| function.pci).collect(),
            behind_first: behind.map(|function| function.pci.address).collect(),
            reserved: reserved.collect(),
            take_memory: self.takes,
            off: (0..2).filter(|unit| self.units[*unit] == Start::Late).collect(),
            layout: Layout {
                ram: vec![self.vendor.ram()],
                tables: self.vendor.tables(),
                buffers: BUFFERS,
                segment: 0x1000,
            },
            ..Setup::default()
        }
    }
}

/// The IVRS entry that names one requester.
fn only(requester: RequesterId) -> EntryRange {
    EntryRange { first: requester, last: requester, alias: None, settings: 0 }
}

/// A run that is mapped one to one for reading and writing.
fn identity(start: u64, length: u64) -> Reach {
    Reach { iova: start, last: start + length - 1, physical: start, read: true, write: true }
}

fn index(unit: usize) -> u64 {
    u64::try_from(unit).expect("few units")
}
