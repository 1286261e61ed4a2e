//! Turns DMAR structures into units and regions.

use alloc::format;
use alloc::vec::Vec;

use crate::addr::{PAGE_SIZE, PhysRange};
use crate::topology::firmware::{
    DeviceScope, Firmware, NamedDevice, ReservedRegion, ScopeKind, UnitDefect, UnitDescription,
    UnitKind,
};

use super::super::anomaly::{Anomaly, RegionProblem, ScopeProblem, UnitProblem};
use super::super::dmar::{Body, DMA_CTRL_PLATFORM_OPT_IN, Dmar, INCLUDE_PCI_ALL, Structure};
use super::super::scope::{BadScopeLength, Scope, Scopes};
use super::{Builder, printable};

/// Builds units first, because regions are checked against their registers.
pub(in crate::acpi) fn build(table: &Dmar<'_>) -> (Firmware, Vec<Anomaly>) {
    let mut builder = Builder::new(&table.table);
    builder.set_width(u16::from(table.host_address_width).saturating_add(1));
    builder.firmware.dma_opt_in = table.flags & DMA_CTRL_PLATFORM_OPT_IN != 0;
    let declared: Vec<u8> = table.structures().filter_map(|s| declared_number(&s)).collect();
    for structure in table.structures() {
        builder.dmar_unit(&structure, &declared);
    }
    builder.compare_units();
    for structure in table.structures() {
        builder.dmar_other(&structure, &declared);
    }
    builder.name_devices(table);
    builder.finish()
}

fn declared_number(structure: &Structure<'_>) -> Option<u8> {
    match structure.body {
        Body::Andd { device_number, .. } => Some(device_number),
        _ => None,
    }
}

impl Builder {
    /// Enters a unit for every structure that describes one, or may have been meant to.
    fn dmar_unit(&mut self, structure: &Structure<'_>, declared: &[u8]) {
        let Structure { offset, kind, length, ref body, bytes } = *structure;
        match *body {
            Body::Drhd { flags, size, segment, register_base_address, ref scopes } => {
                let (scopes, broken) = self.scopes(scopes.clone(), declared);
                let include_all = flags & INCLUDE_PCI_ALL != 0;
                let bytes = PAGE_SIZE << (size & 0xf);
                let registers = match broken {
                    Some(offset) if !include_all => Err(UnitDefect::BadScope { offset }),
                    _ => self.registers(register_base_address, bytes, PAGE_SIZE),
                };
                let include_all =
                    include_all || matches!(registers, Err(UnitDefect::BadScope { .. }));
                self.push_vtd(offset, segment, registers, include_all, scopes);
            }
            Body::TooShort { needed, segment } => {
                self.report(Anomaly::TooShort { offset, name: structure.name(), length, needed });
                if kind == 0 {
                    let defect = UnitDefect::TooShort { offset };
                    self.push_vtd(offset, segment.unwrap_or(0), Err(defect), true, Vec::new());
                }
            }
            Body::BadLength => {
                self.report(Anomaly::BadLength { offset, kind, length, room: bytes.len() });
                let defect = UnitDefect::RestUnreadable { offset };
                self.push_vtd(offset, 0, Err(defect), true, Vec::new());
            }
            _ => {}
        }
    }

    fn push_vtd(
        &mut self,
        offset: usize,
        segment: u16,
        registers: Result<PhysRange, UnitDefect>,
        include_all: bool,
        scopes: Vec<DeviceScope>,
    ) {
        let index = self.firmware.units.len();
        self.push_unit(
            offset,
            UnitDescription {
                kind: UnitKind::Vtd,
                segment,
                registers,
                include_all,
                scopes,
                entries: Vec::new(),
            },
        );
        if let Err(defect) = registers {
            self.report_unit(index, UnitProblem::Unusable(defect));
        }
    }

    /// Handles all other structures.
    fn dmar_other(&mut self, structure: &Structure<'_>, declared: &[u8]) {
        let offset = structure.offset;
        match structure.body {
            Body::Rmrr { segment, base_address, limit_address, ref scopes } => {
                let (scopes, _) = self.scopes(scopes.clone(), declared);
                self.rmrr(offset, segment, (base_address, limit_address), scopes);
            }
            Body::Rhsa { register_base_address: address, .. } => {
                let known =
                    |unit: &UnitDescription| unit.base().is_some_and(|own| own.0 == address);
                if !self.firmware.units.iter().any(known) {
                    self.report(Anomaly::AffinityOfNoUnit { offset, address });
                }
            }
            Body::Atsr { ref scopes, .. }
            | Body::Satc { ref scopes, .. }
            | Body::Sidp { ref scopes, .. } => {
                self.scopes(scopes.clone(), declared);
            }
            Body::Unknown => self.report(Anomaly::UnknownStructure {
                offset,
                kind: structure.kind,
                length: structure.length,
            }),
            Body::Drhd { .. } | Body::Andd { .. } | Body::TooShort { .. } | Body::BadLength => {}
        }
    }

    fn rmrr(&mut self, offset: usize, segment: u16, bounds: (u64, u64), scopes: Vec<DeviceScope>) {
        let (base, limit) = bounds;
        // The limit must be above the base (VT-d 4.1 section 8.4). Firmware that reserves nothing leaves both zero.
        if limit == base {
            let problem = RegionProblem::Bounds { start: base, end: limit };
            return self.report(Anomaly::Region { offset, problem });
        }
        let Some(range) = self.region(offset, base, Some(limit)) else { return };
        if scopes.is_empty() {
            self.report(Anomaly::Region { offset, problem: RegionProblem::NoDevices });
        }
        self.firmware.reserved.push(ReservedRegion {
            segment,
            range,
            read: true,
            write: true,
            exclusion: false,
            scopes,
            entries: Vec::new(),
        });
    }

    /// Returns the named devices, and the offset of the first scope whose device is unknown.
    fn scopes(&mut self, scopes: Scopes<'_>, declared: &[u8]) -> (Vec<DeviceScope>, Option<usize>) {
        let mut named = Vec::new();
        let mut broken = None;
        for scope in scopes {
            let (offset, kind, result) = match scope {
                Ok(scope) => (scope.offset, Some(scope.kind), device(&scope, declared)),
                Err(BadScopeLength { offset, length, room }) => {
                    (offset, None, Err(ScopeProblem::BadLength { length, room }))
                }
            };
            match result {
                Ok((scope, problem)) => {
                    named.push(scope);
                    if let Some(problem) = problem {
                        self.report(Anomaly::Scope { offset, problem });
                    }
                }
                Err(problem) => {
                    // I/O APICs and HPETs (3, 4) do no DMA, so a scope of theirs hides no device.
                    if matches!(kind, None | Some(1 | 2 | 5)) {
                        broken = broken.or(Some(offset));
                    }
                    self.report(Anomaly::Scope { offset, problem });
                }
            }
        }
        (named, broken)
    }

    /// Enters the name space devices in the scopes of units, with the names from their declarations.
    fn name_devices(&mut self, table: &Dmar<'_>) {
        let name = |number: u8| {
            let named = table.structures().find_map(|structure| match structure.body {
                Body::Andd { device_number, object_name } if device_number == number => {
                    Some(printable(object_name))
                }
                _ => None,
            });
            let named = named.filter(|name| !name.is_empty());
            named.unwrap_or_else(|| format!("name space device {number}"))
        };
        let mut devices = Vec::new();
        for (unit, description) in self.firmware.units.iter().enumerate() {
            for scope in &description.scopes {
                if let ScopeKind::Namespace(number) = scope.kind {
                    let (start_bus, path) = (scope.start_bus, scope.path.clone());
                    devices.push(NamedDevice { unit, start_bus, path, name: name(number) });
                }
            }
        }
        devices.into_iter().for_each(|device| self.name_device(device));
    }

    /// Finds the defects that only a comparison of units shows.
    fn compare_units(&mut self) {
        for index in 0..self.firmware.units.len() {
            self.merge_duplicate(index);
            self.check_include_all(index);
            self.check_devices(index);
        }
    }

    /// Two structures for the same registers are one unit: the first takes the devices of both.
    fn merge_duplicate(&mut self, index: usize) {
        let Some(first) = self.overlapped(index) else { return };
        let place = |unit: &UnitDescription| (unit.segment, unit.base());
        let earlier = self.firmware.units.get(first).map(place);
        let Some(unit) = self.firmware.units.get_mut(index) else { return };
        let same = earlier == Some(place(unit));
        let defect = UnitDefect::SharedRegisters { unit: first };
        unit.registers = Err(defect);
        if same {
            let scopes = core::mem::take(&mut unit.scopes);
            let include_all = core::mem::take(&mut unit.include_all);
            if let Some(unit) = self.firmware.units.get_mut(first) {
                unit.scopes.extend(scopes);
                unit.include_all |= include_all;
            }
        }
        self.report_unit(index, UnitProblem::Unusable(defect));
    }

    fn check_include_all(&mut self, index: usize) {
        let Some(unit) = self.firmware.units.get(index) else { return };
        if !unit.include_all || unit.registers.is_err() {
            return;
        }
        let segment = unit.segment;
        let usable = |unit: &UnitDescription| unit.segment == segment && unit.registers.is_ok();
        let earlier =
            self.firmware.units.iter().take(index).position(|u| u.include_all && usable(u));
        let later = self.firmware.units.iter().skip(index + 1).any(usable);
        if let Some(first) = earlier {
            let defect = UnitDefect::SecondIncludeAll { unit: first };
            if let Some(unit) = self.firmware.units.get_mut(index) {
                unit.registers = Err(defect);
            }
            self.report_unit(index, UnitProblem::Unusable(defect));
        }
        if later {
            self.report_unit(index, UnitProblem::IncludeAllNotLast);
        }
    }

    fn check_devices(&mut self, index: usize) {
        let Some(unit) = self.firmware.units.get(index) else { return };
        if unit.registers.is_err() {
            return;
        }
        if unit.scopes.is_empty() && !unit.include_all {
            return self.report_unit(index, UnitProblem::NoDevices);
        }
        let names = |other: &UnitDescription| {
            other.segment == unit.segment
                && other.scopes.iter().any(|a| unit.scopes.iter().any(|b| share(a, b)))
        };
        if let Some(first) = self.firmware.units.iter().take(index).position(names) {
            self.report_unit(index, UnitProblem::NamedTwice { first });
        }
    }
}

/// Whether two scopes name the same device, or one is a bridge above the other.
fn share(a: &DeviceScope, b: &DeviceScope) -> bool {
    let above = |upper: &DeviceScope, lower: &DeviceScope| {
        upper.kind == ScopeKind::Bridge && lower.path.starts_with(&upper.path)
    };
    let pci = |scope: &DeviceScope| matches!(scope.kind, ScopeKind::Endpoint | ScopeKind::Bridge);
    if pci(a) && pci(b) {
        a.start_bus == b.start_bus && (a.path == b.path || above(a, b) || above(b, a))
    } else {
        a.kind == b.kind
    }
}

/// The device that a scope names, and a defect that does not prevent its use.
fn device(
    scope: &Scope<'_>,
    declared: &[u8],
) -> Result<(DeviceScope, Option<ScopeProblem>), ScopeProblem> {
    let id = scope.enumeration_id;
    let kind = match scope.kind {
        1 => ScopeKind::Endpoint,
        2 => ScopeKind::Bridge,
        3 => ScopeKind::IoApic(id),
        4 => ScopeKind::Hpet(id),
        5 => ScopeKind::Namespace(id),
        other => return Err(ScopeProblem::UnknownKind(other)),
    };
    let path: Vec<(u8, u8)> = scope.path().collect();
    if path.is_empty() || scope.odd_bytes() != 0 {
        return Err(ScopeProblem::BadPath);
    }
    if let Some((device, function)) = path.iter().find(|(d, f)| *d > 31 || *f > 7) {
        return Err(ScopeProblem::Impossible { device: *device, function: *function });
    }
    let problem =
        (scope.kind == 5 && !declared.contains(&id)).then_some(ScopeProblem::Undeclared(id));
    Ok((DeviceScope { kind, start_bus: scope.start_bus, path }, problem))
}
