//! The VT-d backend on the software unit.

use iommu_protocol::ids::RequesterId;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::vtd::VtdUnit;
use iommud::hw::{Survey, UnitError};
use iommud::topology::firmware::{DeviceScope, ScopeKind, UnitDescription, UnitKind};

use super::{Inherited, UnderTest};
use crate::machine::{Machine, Registers, SoftClock, Tables};
use crate::vtd::firmware::Firmware;
use crate::vtd::{Config, Vtd};

/// Base address of the first unit's registers, and the distance between two units' registers.
const REGISTERS: u64 = 0xfed9_0000;
const LENGTH: u64 = 0x1000;

/// Returns a scope that names one endpoint on its own bus.
#[must_use]
pub fn scope(device: RequesterId) -> DeviceScope {
    DeviceScope {
        kind: ScopeKind::Endpoint,
        start_bus: device.bus(),
        path: vec![(device.device(), device.function())],
    }
}

/// The VT-d backend on a unit of these capabilities.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in messages.
    pub name: &'static str,
    /// The unit's capabilities.
    pub config: Config,
}

impl UnderTest for Subject {
    type Unit = VtdUnit<Registers, SoftClock, Tables>;

    const TABLE: &'static str = "DMAR";
    const FAMILY: &'static str = "vt-d";

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn add(&self, machine: &Machine) -> usize {
        Vtd::add(machine, self.config.clone())
    }

    fn survey(&self, machine: &Machine, unit: usize) -> Result<Survey, UnitError> {
        let bits = u8::try_from(self.config.host_width).unwrap();
        Self::Unit::survey(machine.registers(unit), machine.clock(), bits)
    }

    fn prepare(
        &self,
        machine: &Machine,
        unit: usize,
        tables: &mut Tables,
    ) -> Result<Self::Unit, UnitError> {
        let bits = u8::try_from(self.config.host_width).unwrap();
        VtdUnit::prepare(machine.registers(unit), machine.clock(), tables, bits)
    }

    fn take_over(&self, unit: &mut Self::Unit, tables: &mut Tables) -> Result<(), UnitError> {
        unit.take_over(tables)
    }

    fn describe(&self, unit: usize, devices: Option<&[RequesterId]>) -> UnitDescription {
        let start = REGISTERS + u64::try_from(unit).unwrap() * LENGTH;
        UnitDescription {
            kind: UnitKind::Vtd,
            segment: 0,
            registers: Ok(PhysRange::new(PhysAddr(start), LENGTH).unwrap()),
            include_all: devices.is_none(),
            scopes: devices.unwrap_or_default().iter().copied().map(scope).collect(),
            entries: Vec::new(),
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
        let levels = self.config.levels[0];
        let mut firmware = Firmware::new(machine, unit, start);
        for (source, pages) in reaches {
            let table = firmware.frame();
            pages.iter().for_each(|page| firmware.map(table, levels, *page, *page));
            firmware.attach(source.0, domain, table, levels);
        }
        firmware.set_root();
        firmware.start_queue();
        firmware.translate();
    }

    fn counts(&self, machine: &Machine, unit: usize) -> (u64, u64, u64) {
        let counts = machine.with_unit(unit, |unit: &mut Vtd, _| unit.counts());
        (counts.pages, counts.contexts, counts.waits)
    }

    fn shows_new_at_once(&self) -> bool {
        !self.config.caching_mode
    }

    fn invalidates_pages(&self) -> bool {
        self.config.page_selective
    }

    fn fault_capacity(&self) -> usize {
        usize::from(self.config.fault_records)
    }

    fn full_counts_as_lost(&self) -> bool {
        false
    }
}

/// Units of different ages and features.
#[must_use]
pub fn matrix() -> Vec<Subject> {
    let base = Config::default;
    let of = |name, config| Subject { name, config };
    vec![
        of("server", base()),
        of("server, caching mode", Config { caching_mode: true, ..base() }),
        of("server, root pointer flushes", Config { root_flush: true, ..base() }),
        of("server, 64 fault records", Config { fault_records: 64, ..base() }),
        of("qemu", Config::qemu()),
        of("qemu, caching mode", Config { caching_mode: true, ..Config::qemu() }),
        of("early", Config::early()),
        of("early, caching mode", Config { caching_mode: true, ..Config::early() }),
        of("one page at a time", Config { max_mask: 0, ..base() }),
        of("16 domains, 2 MiB", Config { domain_bits: 4, large_1g: false, ..base() }),
        of(
            "write buffer, snooping, 3 levels",
            Config { write_buffer: true, levels: vec![3], guest_width: 39, ..base() },
        ),
        of("5 levels only, slow", Config { levels: vec![5], descriptor_time: 30_000, ..base() }),
    ]
}
