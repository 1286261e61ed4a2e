//! The texts of the scheme. No physical address appears in any of them.

use alloc::string::String;
use core::fmt::{self, Write};

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::path::Path;

use crate::hw::{BufferMemory, TableMemory, Unit};
use crate::policy::{
    Binding, DomainId, FunctionView, GroupId, Mode, NamedView, SessionView, UnitIndex, VacantBuses,
};
use crate::server::Server;
use crate::server::faults::storms::LIMIT;
use crate::server::unit_status::{UnitState, UnitStatus};
use crate::topology::firmware::UnitKind;

/// What a device reaches that is blocked beside a driven one: their group has one domain.
pub(super) const LEFT_OUT: &str =
    "nothing: another device of its group is attached, and no driver has claimed this one";

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
            Path::Domain(index) => self.domain(DomainId(index), &mut out),
            Path::Faults => self.fault_log(&mut out),
            Path::Metrics => self.metrics(&mut out),
            Path::Activity => self.activity(&mut out),
            Path::Rescan => self.survey_text(&mut out),
            Path::Root | Path::Units | Path::Groups | Path::Devices | Path::Domains => {
                Err(fmt::Error)
            }
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
        self.confinement(out)?;
        writeln!(out, "policy: {}", mode(self.registry.config().default))?;
        writeln!(out, "groups: {}", self.registry.groups().count())?;
        writeln!(out, "devices: {}", self.registry.functions().count())?;
        let totals = self.registry.counts();
        writeln!(out, "sessions: {}", totals.sessions)?;
        for (device, refusal) in self.survey.missed() {
            writeln!(out, "not taken in: {device}: {refusal}")?;
        }
        for (UnitIndex(unit), source, known) in self.registry.silenced() {
            let device = self.device_of_source(UnitIndex(unit), source);
            let words = if known { "" } else { ", no function is known there" };
            writeln!(out, "silenced: {device} after {LIMIT} faults{words}")?;
        }
        for device in self.registry.left_out() {
            writeln!(out, "left out: {device} reaches {LEFT_OUT}")?;
        }
        self.facts.lines(out)?;
        self.vacant_buses(out)?;
        let withheld: u64 = self.machine.withheld.iter().map(|range| range.length()).sum();
        if withheld > 0 {
            writeln!(
                out,
                "withheld: {withheld} bytes that firmware reserves for a device were an earlier server's: no device \
                 reaches them"
            )?;
        }
        if totals.quarantined_bytes > 0 {
            writeln!(out, "quarantine: {} bytes", totals.quarantined_bytes)?;
        }
        self.unfinished(out)
    }

    /// The device that a requester id behind a unit is.
    pub(super) fn device_of_source(
        &self,
        UnitIndex(unit): UnitIndex,
        source: RequesterId,
    ) -> PciAddress {
        PciAddress { segment: self.segment_of(unit), requester: source }
    }

    /// Where devices may come: a unit that translates denies them until they are known.
    fn vacant_buses(&self, out: &mut String) -> fmt::Result {
        for VacantBuses { port, unit, first, last } in self.registry.vacant_buses() {
            if self.state_of(unit) == Some(&UnitState::Enabled) {
                writeln!(
                    out,
                    "hot-plug: buses {first:02x}-{last:02x} behind {port}: no function is known there, \
                     one that comes is blocked until it is"
                )?;
            }
        }
        Ok(())
    }

    fn state_of(&self, UnitIndex(unit): UnitIndex) -> Option<&UnitState> {
        let index = usize::try_from(unit).ok()?;
        self.machine.units().get(index).map(|unit| &unit.state)
    }

    fn segment_of(&self, unit: u32) -> u16 {
        let unit = usize::try_from(unit).ok().and_then(|at| self.machine.units().get(at));
        unit.map_or(0, |unit| unit.description.segment)
    }

    fn confinement(&self, out: &mut String) -> fmt::Result {
        let units = || self.machine.units().iter().enumerate();
        let off = |(_, unit): &(usize, &UnitStatus)| unit.state != UnitState::Enabled;
        if units().all(|unit| off(&unit)) {
            return writeln!(out, "confinement: NOT CONFINED, every device reaches all memory");
        }
        write!(out, "confinement: on")?;
        for (index, _) in units().filter(off) {
            write!(out, ", NOT CONFINED behind unit {index}")?;
        }
        writeln!(out)
    }

    fn unit(&mut self, index: u32, out: &mut String) -> fmt::Result {
        let unit = usize::try_from(index).ok().and_then(|at| self.machine.units().get(at));
        let unit = unit.ok_or(fmt::Error)?;
        writeln!(out, "kind: {}", kind(unit.description.kind))?;
        writeln!(out, "state: {}", unit.state)?;
        let tries = self.recovery.tries(UnitIndex(index));
        if tries > 0 {
            writeln!(out, "brought up again: {tries} times")?;
        }
        writeln!(out, "segment: {:04x}", unit.description.segment)?;
        writeln!(out, "all other devices: {}", unit.description.include_all)?;
        writeln!(out, "faults: {}", if unit.tells { "by interrupt" } else { "asked for" })?;
        self.engine.describe(UnitIndex(index), out)?;
        let view = self.registry.unit(UnitIndex(index)).ok_or(fmt::Error)?;
        writeln!(out, "devices: {}", view.functions)?;
        writeln!(out, "domains: {}", view.domains)?;
        for named in self.registry.named(UnitIndex(index)) {
            self.named(UnitIndex(index), &named, out)?;
        }
        Ok(())
    }

    /// A device that firmware names and that is no PCI function.
    fn named(&self, unit: UnitIndex, named: &NamedView, out: &mut String) -> fmt::Result {
        write!(out, "named by firmware: {}", named.name)?;
        let Some(address) = named.address else {
            return writeln!(out, ", behind a bridge that is not known: blocked");
        };
        let reach = match (self.state_of(unit), named.binding) {
            (Some(UnitState::Enabled), _) if named.is_function => {
                "what the device of that name does"
            }
            (Some(UnitState::Enabled), Binding::Blocked) => "nothing",
            (Some(UnitState::Enabled), Binding::PassThrough) => "all memory, untranslated",
            (Some(UnitState::Enabled), Binding::Domain(_)) => "what policy maps",
            _ => "not known: its unit is not enabled",
        };
        writeln!(out, ", {address}, reaches: {reach}")
    }

    fn group(&self, id: GroupId, out: &mut String) -> fmt::Result {
        let group = self.registry.group(id).ok_or(fmt::Error)?;
        for member in &group.members {
            writeln!(out, "member: {member}")?;
        }
        match group.owner {
            Some(_) => writeln!(out, "owner: claimed, {} attached", group.attached),
            None => writeln!(out, "owner: none"),
        }
    }

    fn device(&self, address: PciAddress, out: &mut String) -> fmt::Result {
        let device = self.registry.function(address).ok_or(fmt::Error)?;
        writeln!(out, "device: {address}")?;
        writeln!(out, "id: {:04x}:{:04x}", device.function.vendor, device.function.device)?;
        writeln!(out, "class: {:06x}", device.function.class)?;
        writeln!(out, "generation: {}", device.generation)?;
        writeln!(out, "group: {}", device.group.0)?;
        match device.unit {
            Some(UnitIndex(unit)) => writeln!(out, "unit: {unit}")?,
            None => writeln!(out, "unit: none, NOT CONFINED")?,
        }
        writeln!(out, "policy: {}", mode(device.mode))?;
        writeln!(out, "claimed: {}", device.session.is_some())?;
        writeln!(out, "silenced: {}", device.silenced)?;
        let session = device.session.and_then(|session| self.registry.session(session));
        writeln!(out, "reaches: {}", self.reach(&device, session))?;
        self.device_details(&device, session, out)
    }

    fn reach(&self, device: &FunctionView, session: Option<SessionView>) -> &'static str {
        let unit = device.unit.and_then(|UnitIndex(unit)| usize::try_from(unit).ok());
        match unit.and_then(|unit| self.machine.units().get(unit)) {
            Some(unit) if !unit.translated => return "what it reached before iommud, NOT CONFINED",
            Some(UnitStatus { state: UnitState::Failed(_), .. }) => {
                return "not known: its unit failed";
            }
            _ => {}
        }
        let attached = session.is_some_and(|session| session.attached);
        match device.binding {
            Binding::Blocked if device.cut => "nothing: its owner ended while it was attached",
            Binding::Blocked if device.left_out => LEFT_OUT,
            Binding::Blocked => "nothing",
            Binding::PassThrough => "all memory, untranslated",
            Binding::Domain(_) if attached => "what its session maps",
            Binding::Domain(_) => "what policy maps",
        }
    }

    fn fault_log(&self, out: &mut String) -> fmt::Result {
        for record in self.faults.log() {
            writeln!(out, "{record}")?;
        }
        Ok(())
    }

    fn metrics(&self, out: &mut String) -> fmt::Result {
        let counts = self.registry.counts();
        let number = super::length_of;
        let shares = self.engine.shares();
        let [facts_committed, facts_kept, facts_missed] = self.facts.counts();
        let rows: [(&str, u64); 33] = [
            ("opens", self.counts.opens),
            ("calls", self.counts.calls),
            ("refusals", self.counts.refusals),
            ("handles", number(self.handles.count())),
            ("claims_waiting", number(self.waiting.count())),
            ("clients", number(counts.clients)),
            ("sessions", number(counts.sessions)),
            ("sessions_attached", number(counts.attached)),
            ("groups_claimed", number(counts.groups_claimed)),
            ("domains", number(counts.domains)),
            ("buffers", number(counts.buffers)),
            ("buffer_bytes", counts.buffer_bytes),
            ("buffer_bytes_pool", self.buffers.pool().capacity),
            ("mappings", number(counts.mappings)),
            ("iotlb_entries", self.footprint_of_all()),
            ("quarantined_bytes", counts.quarantined_bytes),
            ("quarantine_returned_bytes", self.counts.quarantine_returned_bytes),
            ("units_recovered", self.counts.units_recovered),
            ("table_frames", number(self.engine.memory().frames_in_use())),
            ("table_frames_reserved", number(self.engine.frames_set_aside())),
            ("table_frames_free", number(shares.free)),
            ("table_frames_promised", number(shares.promised)),
            ("table_frames_share", number(shares.of_one)),
            ("memory_added_bytes", self.counts.memory_added_bytes),
            ("plans", self.counts.plans),
            ("plans_undone", self.counts.plans_undone),
            ("facts_committed", facts_committed),
            ("facts_kept", facts_kept),
            ("facts_missed", facts_missed),
            ("faults", self.faults.total()),
            ("fault_interrupts", self.counts.fault_interrupts),
            ("silenced", number(self.registry.silenced().count())),
            ("faults_lost_in_hardware", self.counts.faults_lost_in_hardware),
        ];
        for (name, value) in rows {
            writeln!(out, "{name} {value}")?;
        }
        Ok(())
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Compat => "compat",
        Mode::Strict => "strict",
        Mode::Off => "off",
    }
}

pub(super) const fn kind(kind: UnitKind) -> &'static str {
    match kind {
        UnitKind::Vtd => "vt-d",
        UnitKind::AmdVi { .. } => "amd-vi",
    }
}
