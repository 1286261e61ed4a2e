//! The texts of the scheme. No physical address appears in any of them.

use alloc::string::String;
use core::fmt::{self, Write};

use iommu_protocol::path::Path;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{GroupId, UnitIndex};
use crate::server::Server;
use crate::server::machine::UnitState;
use crate::topology::firmware::UnitKind;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The text at `path`; `None` when there is no such object or the path is a directory.
    pub(super) fn text(&mut self, path: Path) -> Option<String> {
        let mut out = String::new();
        // Writing to a String cannot fail: an error here only says that there is no such object.
        match path {
            Path::Status => self.status(&mut out),
            Path::Unit(index) => self.unit(index, &mut out),
            Path::Group(index) => self.group(GroupId(index), &mut out),
            Path::Device(address) => self.device(address, &mut out),
            Path::Faults => self.fault_log(&mut out),
            Path::Metrics => self.metrics(&mut out),
            Path::Root | Path::Units | Path::Groups | Path::Devices => Err(fmt::Error),
        }
        .ok()?;
        Some(out)
    }

    fn status(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "table: {}", self.machine.table)?;
        for anomaly in &self.machine.anomalies {
            writeln!(out, "anomaly: {anomaly}")?;
        }
        for (index, unit) in self.machine.units().iter().enumerate() {
            writeln!(out, "unit {index}: {} {}", kind(unit.description.kind), unit.state)?;
        }
        let confined =
            self.machine.units().iter().any(|unit| matches!(unit.state, UnitState::Enabled));
        if confined {
            writeln!(out, "confinement: on")?;
        } else {
            writeln!(out, "confinement: NOT CONFINED, every device reaches all memory")?;
        }
        writeln!(out, "policy: {}", self.registry.default_mode())?;
        writeln!(out, "groups: {}", self.registry.groups().count())?;
        writeln!(out, "devices: {}", self.registry.functions().count())?;
        let totals = self.registry.totals();
        writeln!(out, "sessions: {}", totals.sessions)?;
        if totals.quarantined_bytes > 0 {
            writeln!(out, "quarantine: {} bytes", totals.quarantined_bytes)?;
        }
        Ok(())
    }

    fn unit(&mut self, index: u32, out: &mut String) -> fmt::Result {
        let unit = usize::try_from(index).ok().and_then(|at| self.machine.units().get(at));
        let unit = unit.ok_or(fmt::Error)?;
        writeln!(out, "kind: {}", kind(unit.description.kind))?;
        writeln!(out, "state: {}", unit.state)?;
        writeln!(out, "segment: {:04x}", unit.description.segment)?;
        writeln!(out, "all other devices: {}", unit.description.include_all)?;
        if let Some(unit) = self.engine.unit_mut(UnitIndex(index)) {
            unit.describe(out)?;
        }
        writeln!(out, "domains: {}", self.registry.totals().domains)
    }

    fn group(&self, id: GroupId, out: &mut String) -> fmt::Result {
        let group = self.registry.groups().find(|group| group.id == id).ok_or(fmt::Error)?;
        for member in &group.members {
            writeln!(out, "member: {member}")?;
        }
        writeln!(out, "policy: {}", group.mode)?;
        writeln!(out, "owner: {}", if group.owned { "claimed" } else { "none" })?;
        writeln!(out, "state: {}", group.state)
    }

    fn device(&self, address: iommu_protocol::PciAddress, out: &mut String) -> fmt::Result {
        let device = self.registry.function(address).ok_or(fmt::Error)?;
        writeln!(out, "device: {address}")?;
        writeln!(out, "id: {:04x}:{:04x}", device.vendor, device.device)?;
        writeln!(out, "class: {:06x}", device.class)?;
        writeln!(out, "generation: {}", device.generation)?;
        writeln!(out, "group: {}", device.group.0)?;
        match device.unit {
            Some(UnitIndex(unit)) => writeln!(out, "unit: {unit}")?,
            None => writeln!(out, "unit: none, NOT CONFINED")?,
        }
        writeln!(out, "policy: {}", device.mode)?;
        writeln!(out, "state: {}", device.state)
    }

    fn fault_log(&self, out: &mut String) -> fmt::Result {
        for record in self.faults.log() {
            writeln!(out, "{record}")?;
        }
        Ok(())
    }

    fn metrics(&self, out: &mut String) -> fmt::Result {
        let totals = self.registry.totals();
        let engine = self.engine.counts();
        let rows: [(&str, u64); 18] = [
            ("opens", self.counts.opens),
            ("calls", self.counts.calls),
            ("refusals", self.counts.refusals),
            ("handles", super::length_of(self.handles.count())),
            ("sessions", totals.sessions),
            ("groups_claimed", totals.groups_claimed),
            ("domains", totals.domains),
            ("buffers", totals.buffers),
            ("buffer_bytes", totals.buffer_bytes),
            ("mappings", totals.mappings),
            ("quarantined_bytes", totals.quarantined_bytes),
            ("table_frames", super::length_of(self.engine.frames_in_use())),
            ("plans", engine.plans),
            ("plans_undone", engine.undone),
            ("invalidations", engine.invalidations),
            ("entry_writes", engine.entry_writes),
            ("faults", self.faults.total()),
            ("faults_lost_in_hardware", self.counts.faults_lost_in_hardware),
        ];
        for (name, value) in rows {
            writeln!(out, "{name} {value}")?;
        }
        Ok(())
    }
}

const fn kind(kind: UnitKind) -> &'static str {
    match kind {
        UnitKind::Vtd => "vt-d",
        UnitKind::AmdVi { .. } => "amd-vi",
    }
}
