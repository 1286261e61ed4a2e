//! Describes in words the actions that the server would take with a table.

use crate::acpi::TableError;
use crate::addr::PhysRange;
use crate::topology::firmware::{
    DeviceScope, EntryRange, Firmware, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};

/// The actions, one sentence each.
pub(super) fn outlook(verdict: Result<(), TableError>, firmware: &Firmware) -> Vec<String> {
    if let Err(error) = verdict {
        return vec![
            format!("refuse the table: {error}"),
            "serve the machine as one without an IOMMU, and call no device confined".to_owned(),
        ];
    }
    let mut lines: Vec<String> = firmware.units.iter().enumerate().map(unit).collect();
    lines.extend(firmware.reserved.iter().map(region));
    if firmware.dma_opt_in {
        lines.push(
            "note that firmware asks for devices to be kept from DMA before drivers run".into(),
        );
    }
    if lines.is_empty() {
        lines.push("serve the machine as one without an IOMMU, and call no device confined".into());
    }
    lines
}

fn unit((index, unit): (usize, &UnitDescription)) -> String {
    let kind = match unit.kind {
        UnitKind::Vtd => "VT-d".to_owned(),
        UnitKind::AmdVi { function, .. } => format!("AMD-Vi {function:?}"),
    };
    let devices = devices(unit);
    match unit.registers {
        Ok(registers) => format!(
            "use unit {index} ({kind}, segment {}, registers {}) for {devices}",
            unit.segment,
            range(registers)
        ),
        Err(defect) => format!(
            "call unit {index} ({kind}, segment {}) failed: {defect}; call {devices} not confined",
            unit.segment
        ),
    }
}

fn devices(unit: &UnitDescription) -> String {
    let mut names = named(&unit.scopes, &unit.entries);
    if unit.include_all {
        names.push("all devices that no other unit names".to_owned());
    }
    if names.is_empty() { "no device".to_owned() } else { names.join(", ") }
}

fn named(scopes: &[DeviceScope], entries: &[EntryRange]) -> Vec<String> {
    scopes.iter().map(scope).chain(entries.iter().map(entry)).collect()
}

fn scope(scope: &DeviceScope) -> String {
    let steps: Vec<String> = scope.path.iter().map(|(d, f)| format!("{d:02x}.{f:x}")).collect();
    let place = format!("{:02x}:{}", scope.start_bus, steps.join("/"));
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

fn region(region: &ReservedRegion) -> String {
    let access = match (region.read, region.write) {
        (true, true) => "to read and write",
        (true, false) => "to read",
        (false, true) => "to write",
        (false, false) => "without access",
    };
    let names = named(&region.scopes, &region.entries);
    let devices = if names.is_empty() { "no device".to_owned() } else { names.join(", ") };
    format!(
        "keep {} mapped one to one {access}, segment {}, in every domain of {devices}",
        range(region.range),
        region.segment
    )
}

fn range(range: PhysRange) -> String {
    format!("{:#x} to {:#x}", range.first().0, range.last().0)
}
