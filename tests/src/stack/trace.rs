//! Stacks whose servers record what they do.

use iommud::acpi;
use iommud::config;
use iommud::topology::firmware::Firmware;
use iommud::trace::{Recorder, Ring, Snapshot, TableBytes, take_sealed};

use super::{Setup, Stack, ranges, table};
use crate::conformance::UnderTest;

/// Records of a ring: 4 MiB.
const RECORDS: usize = 1 << 16;

/// The firmware of a setup as the server reads it from its table's bytes, and a recorder that has the machine.
pub(super) fn recorded<T: UnderTest>(setup: &Setup, described: &Firmware) -> (Firmware, Recorder) {
    let bytes = table(described);
    let (firmware, table) = match T::TABLE {
        "DMAR" => (acpi::parse_dmar(&bytes).unwrap(), TableBytes::Dmar(bytes)),
        _ => (acpi::parse_ivrs(&bytes).unwrap(), TableBytes::Ivrs(bytes)),
    };
    assert_eq!(config::parse(setup.policy).unwrap(), setup.config);
    let bases = |firmware: &Firmware| {
        firmware.units.iter().map(|unit| unit.registers.unwrap().first()).collect::<Vec<_>>()
    };
    assert_eq!(bases(&firmware), bases(described));
    let snapshot = Snapshot {
        policy: setup.policy.into(),
        table,
        ram: ranges(&setup.layout.ram),
        own: ranges(&own(setup)),
    };
    let mut ring = Ring::new(vec![[0; 8]; RECORDS + 1].leak()).unwrap();
    snapshot.write(&mut ring);
    (firmware, ring.into())
}

/// Memory of the server.
pub(super) fn own(setup: &Setup) -> Vec<(u64, u64)> {
    let buffers = (!setup.take_memory).then_some(setup.layout.buffers);
    [setup.layout.tables].into_iter().chain(buffers).collect()
}

impl<T: UnderTest> Stack<T> {
    /// The bytes of a file with the records since the last call.
    ///
    /// # Panics
    /// When nothing is recorded.
    pub fn trace(&mut self) -> Vec<u8> {
        take_sealed(self.server.trace().expect("a setup that is recorded"), usize::MAX)
    }
}
