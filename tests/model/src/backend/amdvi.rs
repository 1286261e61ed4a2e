//! The AMD-Vi backend on the software unit.

use iommu_protocol::ids::RequesterId;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::amdvi::{AmdUnit, Capability};
use iommud::hw::{Survey, UnitError};
use iommud::topology::firmware::{EntryRange, UnitDescription, UnitKind};

use super::{Inherited, UnderTest};
use crate::amdvi::firmware::Firmware;
use crate::amdvi::{Amdvi, Config};
use crate::machine::{Machine, Registers, SoftClock, Tables};

/// Base address of the first unit's registers, and the distance between two units' registers.
const REGISTERS: u64 = 0xfeb8_0000;
const LENGTH: u64 = 0x4000;

/// The AMD-Vi backend on a unit of these capabilities.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in messages.
    pub name: &'static str,
    /// The unit's capabilities.
    pub config: Config,
    /// Firmware's entries for its devices, besides one that puts all 65536 behind it.
    pub entries: Vec<EntryRange>,
    /// Firmware's flags for the unit.
    pub flags: u8,
}

impl Subject {
    /// The capability block of a unit.
    fn block(&self, unit: usize) -> Capability {
        let base = REGISTERS + u64::try_from(unit).unwrap() * LENGTH;
        let [header, low, high, sizes] = self.config.block(base);
        Capability::new(header, low, high, sizes)
    }
}

impl UnderTest for Subject {
    type Unit = AmdUnit<Registers, SoftClock, Tables>;

    const TABLE: &'static str = "IVRS";
    const FAMILY: &'static str = "amd-vi";

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn add(&self, machine: &Machine) -> usize {
        Amdvi::add(machine, self.config.clone())
    }

    fn survey(&self, machine: &Machine, unit: usize) -> Result<Survey, UnitError> {
        let description = self.describe(unit, None);
        let (registers, block) = (machine.registers(unit), Some(self.block(unit)));
        Self::Unit::survey(registers, machine.clock(), &description, block)
    }

    fn prepare(
        &self,
        machine: &Machine,
        unit: usize,
        tables: &mut Tables,
    ) -> Result<Self::Unit, UnitError> {
        let description = self.describe(unit, None);
        let (registers, block) = (machine.registers(unit), Some(self.block(unit)));
        AmdUnit::prepare(registers, machine.clock(), tables, &description, block)
    }

    fn take_over(&self, unit: &mut Self::Unit, tables: &mut Tables) -> Result<(), UnitError> {
        unit.take_over(tables)
    }

    fn describe(&self, unit: usize, devices: Option<&[RequesterId]>) -> UnitDescription {
        let of = |first, last| EntryRange { first, last, alias: None, settings: 0 };
        let mut entries: Vec<EntryRange> = match devices {
            Some(devices) => devices.iter().map(|device| of(*device, *device)).collect(),
            None => vec![of(RequesterId(0), RequesterId(u16::MAX))],
        };
        entries.extend(self.entries.iter().copied());
        let start = REGISTERS + u64::try_from(unit).unwrap() * LENGTH;
        let function = RequesterId(u16::try_from(unit).unwrap() << 3 | 2);
        UnitDescription {
            kind: UnitKind::AmdVi {
                function,
                capability: 0x40,
                flags: self.flags,
                features: self.config.extended.then(|| self.config.features()),
            },
            segment: 0,
            registers: Ok(PhysRange::new(PhysAddr(start), LENGTH).unwrap()),
            include_all: false,
            scopes: Vec::new(),
            entries,
        }
    }

    fn inherit_as(
        &self,
        machine: &Machine,
        unit: usize,
        start: u64,
        reaches: &Inherited,
        domain: u16,
    ) {
        let mut firmware = Firmware::new(machine, unit, start);
        firmware.deny_all();
        for (source, pages) in reaches {
            let table = firmware.frame();
            pages.iter().for_each(|page| firmware.map(table, 4, *page, *page));
            firmware.attach(source.0, domain, table, 4);
        }
        firmware.start(0);
    }

    fn counts(&self, machine: &Machine, unit: usize) -> (u64, u64, u64) {
        let counts = machine.with_unit(unit, |unit: &mut Amdvi, _| unit.counts());
        (counts.pages, counts.devices, counts.waits)
    }

    fn shows_new_at_once(&self) -> bool {
        !self.config.caches_absent
    }

    fn invalidates_pages(&self) -> bool {
        true
    }

    fn fault_capacity(&self) -> usize {
        // 16 frames of 16-byte entries, minus one: a full log with all entries used would look empty.
        4095
    }

    fn full_counts_as_lost(&self) -> bool {
        true
    }
}

/// Units of different ages and features.
#[must_use]
pub fn matrix() -> Vec<Subject> {
    let base = Config::default;
    let of = |name, config| Subject { name, config, entries: Vec::new(), flags: 0 };
    vec![
        of("server", base()),
        of("server, absent entries cached", Config { caches_absent: true, ..base() }),
        of("server, not snooping", Config { coherent: false, ..base() }),
        of("qemu", Config::qemu()),
        of("early", Config::early()),
        of(
            "early, not snooping, absent entries cached",
            Config { coherent: false, caches_absent: true, ..Config::early() },
        ),
        of("5 levels, slow", Config { levels: 5, command_time: 30_000, ..base() }),
    ]
}
