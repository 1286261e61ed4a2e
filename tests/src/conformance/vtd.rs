//! The VT-d backend on the software unit.

use iommud::hw::UnitError;
use iommud::hw::vtd::VtdUnit;

use super::UnderTest;
use crate::machine::{Machine, Registers, SoftClock, Tables};
use crate::vtd::{Config, Vtd};

/// The VT-d backend on a unit of these capabilities.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What to call it.
    pub name: &'static str,
    /// What the unit can do.
    pub config: Config,
}

impl UnderTest for Subject {
    type Unit = VtdUnit<Registers, SoftClock, Tables>;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn add(&self, machine: &Machine) -> usize {
        Vtd::add(machine, self.config.clone())
    }

    fn bring_up(
        &self,
        machine: &Machine,
        unit: usize,
        tables: &mut Tables,
    ) -> Result<Self::Unit, UnitError> {
        let bits = u8::try_from(self.config.host_width).unwrap();
        VtdUnit::bring_up(machine.registers(unit), machine.clock(), tables, bits)
    }

    fn counts(&self, machine: &Machine, unit: usize) -> (u64, u64, u64) {
        let counts = machine.with_unit(unit, |unit: &mut Vtd, _| unit.counts());
        (counts.pages, counts.contexts, counts.waits)
    }

    fn shows_new_at_once(&self) -> bool {
        !self.config.caching_mode
    }

    fn fault_capacity(&self) -> usize {
        usize::from(self.config.fault_records)
    }
}

/// Units of different ages and kinds.
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
