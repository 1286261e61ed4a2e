//! Describes in words the actions that the server would take with a table.

use std::collections::BTreeSet;
use std::fmt;

use iommud::acpi::TableError;
use iommud::addr::PhysRange;
use iommud::topology::firmware::{
    DeviceScope, EntryRange, Firmware, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};

/// What the server would do with a unit, a region or the whole table, and with which devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentence {
    before: String,
    devices: Option<Vec<String>>,
    after: &'static str,
}

impl Sentence {
    fn plain(text: impl Into<String>) -> Self {
        Self { before: text.into(), devices: None, after: "" }
    }

    /// Writes the sentence `indent` columns in, and the devices one a line below it.
    pub(super) fn write(&self, out: &mut dyn fmt::Write, indent: usize) -> fmt::Result {
        match &self.devices {
            Some(devices) if !devices.is_empty() => {
                writeln!(out, "{:indent$}{}{}", "", self.before, self.after)?;
                devices.iter().try_for_each(|name| writeln!(out, "{:indent$}  {name}", ""))
            }
            _ => writeln!(out, "{:indent$}{self}", ""),
        }
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        match &self.devices {
            None => {}
            Some(devices) if devices.is_empty() => f.write_str(" no device")?,
            Some(devices) => write!(f, " {}", devices.join(", "))?,
        }
        f.write_str(self.after)
    }
}

/// One sentence for each unit and region.
pub(super) fn outlook(verdict: Result<(), TableError>, firmware: &Firmware) -> Vec<Sentence> {
    let none = "serve the machine as one without an IOMMU, and call no device confined";
    if let Err(error) = verdict {
        return vec![Sentence::plain(format!("refuse the table: {error}")), Sentence::plain(none)];
    }
    let mut lines: Vec<Sentence> = firmware.units.iter().enumerate().map(unit).collect();
    lines.extend(firmware.reserved.iter().map(region));
    if firmware.dma_opt_in {
        lines.push(Sentence::plain(
            "note that firmware asks for devices to be kept from DMA before drivers run",
        ));
    }
    if lines.is_empty() {
        lines.push(Sentence::plain(none));
    }
    lines
}

fn unit((index, unit): (usize, &UnitDescription)) -> Sentence {
    let kind = match unit.kind {
        UnitKind::Vtd => "VT-d".to_owned(),
        UnitKind::AmdVi { function, .. } => format!("AMD-Vi {function:?}"),
    };
    let mut devices = named(&unit.scopes, &unit.entries);
    if unit.include_all {
        devices.push("all devices that no other unit names".to_owned());
    }
    let devices = Some(devices);
    match unit.registers {
        Ok(registers) => Sentence {
            before: format!(
                "use unit {index} ({kind}, segment {}, registers {}) for",
                unit.segment,
                range(registers)
            ),
            devices,
            after: "",
        },
        Err(defect) => Sentence {
            before: format!(
                "call unit {index} ({kind}, segment {}) failed: {defect}; call",
                unit.segment
            ),
            devices,
            after: " not confined",
        },
    }
}

/// The devices that scopes and entries name, each once. Where entries overlap the later one holds, so that of equal
/// names the last one stays.
fn named(scopes: &[DeviceScope], entries: &[EntryRange]) -> Vec<String> {
    let places: BTreeSet<String> = scopes.iter().map(place).collect();
    // A special device of an IVHD is a scope, and an entry for its requester id.
    let entries = entries.iter().map(entry).filter(|name| !places.contains(name));
    let mut names: Vec<String> = scopes.iter().map(scope).chain(entries).collect();
    let mut seen = BTreeSet::new();
    names.reverse();
    names.retain(|name| seen.insert(name.clone()));
    names.reverse();
    names
}

fn place(scope: &DeviceScope) -> String {
    let steps: Vec<String> = scope.path.iter().map(|(d, f)| format!("{d:02x}.{f:x}")).collect();
    format!("{:02x}:{}", scope.start_bus, steps.join("/"))
}

fn scope(scope: &DeviceScope) -> String {
    let place = place(scope);
    match scope.kind {
        ScopeKind::Endpoint => place,
        ScopeKind::Bridge => format!("{place} and all behind it"),
        ScopeKind::IoApic(id) => format!("I/O APIC {id} ({place})"),
        ScopeKind::Hpet(number) => format!("HPET {number} ({place})"),
        ScopeKind::Namespace(number) => format!("name space device {number} ({place})"),
    }
}

fn entry(entry: &EntryRange) -> String {
    let mut text = format!("{:?}", entry.first);
    if entry.last != entry.first {
        text.push_str(&format!(" to {:?}", entry.last));
    }
    if let Some(alias) = entry.alias {
        text.push_str(&format!(" (as {alias:?})"));
    }
    text
}

fn region(region: &ReservedRegion) -> Sentence {
    let access = match (region.read, region.write) {
        (true, true) => "to read and write",
        (true, false) => "to read",
        (false, true) => "to write",
        (false, false) => "without access",
    };
    Sentence {
        before: format!(
            "keep {} mapped one to one {access}, segment {}, in every domain of",
            range(region.range),
            region.segment
        ),
        devices: Some(named(&region.scopes, &region.entries)),
        after: "",
    }
}

fn range(range: PhysRange) -> String {
    format!("{:#x} to {:#x}", range.first().0, range.last().0)
}
