//! What a machine under exploration is made of. Small: few functions, few frames.

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

/// How a unit is when the server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It comes up.
    Up,
    /// It comes later.
    Late,
    /// It is there and does not answer.
    Dead,
}

/// Whose units a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VT-d.
    Vtd,
    /// AMD-Vi.
    Amd,
}

impl Vendor {
    /// What to call them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vtd => "VT-d",
            Self::Amd => "AMD-Vi",
        }
    }

    /// Registers of the first unit, and bytes of the registers of each.
    const fn registers(self) -> (u64, u64) {
        match self {
            Self::Vtd => (0xfed9_0000, 0x1000),
            Self::Amd => (0xfeb8_0000, 0x4000),
        }
    }

    /// Where tables live: whole pages of 2 MiB, so that domains of policy stay small. The device table of an
    /// AMD-Vi unit takes 2 MiB, and a server that takes over needs its own.
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

/// A function, and what is known of it without asking the server.
#[derive(Clone, Debug)]
pub struct Function {
    /// What the walk finds.
    pub pci: PciFunction,
    /// The unit in front of it, as the firmware's scopes are written; `None` without one.
    pub unit: Option<usize>,
    /// Number of its group, written down by hand from the PCI Express rules.
    pub group: usize,
    /// It is there when the server starts.
    pub present: bool,
    /// Memory that firmware reserves for it: first byte and length.
    pub reserved: Option<(u64, u64)>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What to call it.
    pub name: &'static str,
    /// Its functions.
    pub functions: Vec<Function>,
    /// Its units.
    pub units: Vec<Start>,
    /// Whose they are.
    pub vendor: Vendor,
    /// They cache absent entries, too, and do not snoop.
    pub caching_mode: bool,
    /// Policy of unclaimed devices.
    pub mode: Mode,
    /// Limits of each client.
    pub quotas: Quotas,
    /// Memory of buffers is the system's until it is taken: policy `compat` maps it as long as it is not.
    pub takes: bool,
    /// The units walk deeper tables than three levels, which what is reserved needs.
    pub deep: bool,
    /// Requester ids are shared through a bridge that comes and goes: what a device reaches is then compared
    /// with what it may reach at most.
    pub aliases: bool,
}

/// Where buffers live.
pub const BUFFERS: (u64, u64) = (0x60_0000, 0x20_0000);
/// What firmware reserves for the first function in scenes that have such a region.
pub const RESERVED: (u64, u64) = (0x20_0000, 0x1000);
/// What firmware reserves for the second function in deep scenes: the first page that three levels do not reach.
pub const BEYOND: (u64, u64) = (1 << 39, 0x1000);
/// Memory next to that of buffers, in one large page of tables with it; the last buffer ends before.
pub const BESIDE: u64 = BUFFERS.0 + 0x1f_f000;

fn function(pci: PciFunction, unit: usize, group: usize) -> Function {
    Function { pci, unit: Some(unit), group, present: true, reserved: None }
}

fn of_three(number: u8) -> PciFunction {
    PciFunction { multifunction: true, ..endpoint(0, 3, number) }
}

impl Scene {
    /// D1 and D2 are one device of two functions behind U1, one group; D3 is alone behind U2.
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

    /// D1 and D2 are alone, both behind U1. D2 is not there yet, and firmware reserves memory for it.
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

    /// As `pair`, with a third function of the device that is not there yet.
    #[must_use]
    pub fn growing(mode: Mode) -> Self {
        let mut scene = Self::pair(mode);
        let late = Function { present: false, ..function(of_three(2), 0, 0) };
        scene.functions.insert(2, late);
        Self { name: "growing", ..scene }
    }

    /// A bridge to conventional PCI and two functions behind it, none of them there yet; D4 is alone. What is
    /// behind such a bridge is one group with it.
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

    /// One device behind a dead unit, one behind a unit that comes late, one that no unit stands in front of.
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

    /// Firmware reserves memory for the first function.
    #[must_use]
    pub fn with_reserved(mut self) -> Self {
        self.functions[0].reserved = Some(RESERVED);
        self
    }

    /// Firmware reserves memory for the second function that three levels of tables do not reach.
    #[must_use]
    pub fn with_region_beyond(mut self) -> Self {
        self.functions[1].reserved = Some(BEYOND);
        self.deep = true;
        self
    }

    /// Memory of buffers is taken from the system, and given back to it.
    #[must_use]
    pub fn with_memory_taken(mut self) -> Self {
        self.takes = true;
        self
    }

    /// The second unit comes late.
    #[must_use]
    pub fn with_late_unit(mut self) -> Self {
        self.units[1] = Start::Late;
        self
    }

    /// No function is there at start.
    #[must_use]
    pub fn empty(mut self) -> Self {
        self.functions.iter_mut().for_each(|function| function.present = false);
        self
    }

    /// The units cache absent entries, too, and do not snoop.
    #[must_use]
    pub fn with_caching_mode(mut self) -> Self {
        self.caching_mode = true;
        self
    }

    /// The units are AMD-Vi units.
    #[must_use]
    pub fn on_amd(mut self) -> Self {
        self.vendor = Vendor::Amd;
        self
    }

    /// Each client may have one page of buffers.
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

    /// What policy lets a device reach that nobody has claimed and that was not cut off, while clients hold this
    /// memory of buffers.
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

    /// What firmware reserves for a device, one to one.
    #[must_use]
    pub fn reserved_of(&self, device: Device) -> Option<Reach> {
        self.functions[device].reserved.map(|(start, length)| identity(start, length))
    }

    /// Members of a group.
    pub fn members(&self, group: usize) -> impl Iterator<Item = Device> + '_ {
        (0..self.functions.len()).filter(move |device| self.functions[*device].group == group)
    }

    /// The setup of a stack.
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

/// How an IVRS names one requester.
fn only(requester: RequesterId) -> EntryRange {
    EntryRange { first: requester, last: requester, alias: None, settings: 0 }
}

/// A run that is mapped one to one, for all access.
fn identity(start: u64, length: u64) -> Reach {
    Reach { iova: start, last: start + length - 1, physical: start, read: true, write: true }
}

fn index(unit: usize) -> u64 {
    u64::try_from(unit).expect("few units")
}
