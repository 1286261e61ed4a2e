//! `activity`: counts that grow, of the server, of each unit and of each device, in one text. Two readings give rates.
//!
//! Lines and work are bounded. The lines of units and devices have fields `name value` with commas between them.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::fmt::{self, Write};

use iommu_protocol::ids::PciAddress;

use super::text::kind;
use crate::hw::{BufferMemory, Invalidations, Unit};
use crate::policy::{Tally, UnitIndex};
use crate::server::Server;
use crate::server::unit_status::{UnitState, UnitStatus};

/// Most devices that the text lists.
const MOST_DEVICES: usize = 512;

/// The counts of a device.
#[derive(Clone, Copy, Default)]
struct Row {
    tally: Tally,
    faults: u64,
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The text of `activity`.
    pub(super) fn activity(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "opens: {}", self.counts.opens)?;
        writeln!(out, "calls: {}", self.counts.calls)?;
        writeln!(out, "refusals: {}", self.counts.refusals)?;
        writeln!(out, "faults: {}", self.faults.total())?;
        writeln!(out, "faults of unknown devices: {}", self.faults.of_nobody())?;
        writeln!(out, "faults lost in hardware: {}", self.counts.faults_lost_in_hardware)?;
        for (index, unit) in (0..).zip(self.machine.units()) {
            unit_line(index, unit, &self.engine.invalidations(UnitIndex(index)), out)?;
        }
        let rows = self.active_devices();
        for (device, row) in rows.iter().take(MOST_DEVICES) {
            self.device_line(*device, row, out)?;
        }
        match rows.len().checked_sub(MOST_DEVICES) {
            Some(more @ 1..) => writeln!(out, "devices not listed: {more}"),
            _ => Ok(()),
        }
    }

    /// The devices that have a session, have had one that mapped anything, or have had faults.
    fn active_devices(&self) -> BTreeMap<PciAddress, Row> {
        let mut rows: BTreeMap<PciAddress, Row> = BTreeMap::new();
        for (device, tally) in self.registry.tallies() {
            let row = rows.entry(device).or_default();
            row.tally = row.tally.plus(tally);
        }
        for (device, faults) in self.faults.by_device() {
            rows.entry(device).or_default().faults = faults;
        }
        rows
    }

    fn device_line(&self, address: PciAddress, row: &Row, out: &mut String) -> fmt::Result {
        let Row { tally, faults } = row;
        write!(out, "device: {address}, ")?;
        if let Some(device) = self.registry.device(address) {
            write!(out, "id {:04x}:{:04x}, ", device.vendor, device.device)?;
            write!(out, "owner {}, ", self.owner_words(device.owner))?;
            write!(out, "silenced {}, ", device.silenced)?;
        }
        write!(out, "maps {}, unmaps {}, ", tally.maps, tally.unmaps)?;
        write!(out, "mapped {}, unmapped {}, ", tally.mapped_bytes, tally.unmapped_bytes)?;
        writeln!(out, "faults {faults}")
    }
}

fn unit_line(index: u32, unit: &UnitStatus, told: &Invalidations, out: &mut String) -> fmt::Result {
    let state = match unit.state {
        UnitState::Parsed => "parsed",
        UnitState::Enabled => "enabled",
        UnitState::Failed(_) => "failed",
    };
    write!(out, "unit: {index}, kind {}, state {state}, ", kind(unit.description.kind))?;
    write!(out, "commands {}, waits {}, ", told.commands, told.waits())?;
    write!(out, "unanswered {}, at-once {}, times", told.unanswered, told.at_once)?;
    for count in told.times {
        write!(out, " {count}")?;
    }
    writeln!(out, ", nanoseconds {}, iotlb none", told.nanos)
}
