//! Turns device entries of an IVHD into ranges of requester ids.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use crate::topology::firmware::{DeviceScope, EntryRange, ScopeKind};

use super::super::anomaly::{Anomaly, ScopeProblem};
use super::super::entry::{BadEntry, Entries, Entry, EntryBody};
use super::printable;

/// The devices that the entries of one IVHD name.
pub(super) struct Named {
    /// I/O APICs and HPETs.
    pub scopes: Vec<DeviceScope>,
    /// Requester ids.
    pub entries: Vec<EntryRange>,
    /// Devices of the name space that do DMA, by requester id.
    pub devices: Vec<(RequesterId, String)>,
    /// Offset of the first entry whose devices are unknown.
    pub broken: Option<usize>,
}

/// A range whose end was not read yet.
struct Open {
    offset: usize,
    first: u16,
    alias: Option<RequesterId>,
    settings: u8,
}

impl Named {
    pub(super) fn read(entries: Entries<'_>, anomalies: &mut Vec<Anomaly>) -> Self {
        let mut named =
            Self { scopes: Vec::new(), entries: Vec::new(), devices: Vec::new(), broken: None };
        let mut open: Option<Open> = None;
        let mut report = |offset, problem| anomalies.push(Anomaly::Scope { offset, problem });
        for entry in entries {
            match entry {
                Ok(entry) => named.entry(&entry, &mut open, &mut report),
                Err(BadEntry { offset, kind, room }) => {
                    named.broken = named.broken.or(Some(offset));
                    report(offset, ScopeProblem::BadEntry { kind, room });
                }
            }
        }
        named.leave_open(open, &mut report);
        named
    }

    fn entry(
        &mut self,
        entry: &Entry<'_>,
        open: &mut Option<Open>,
        report: &mut dyn FnMut(usize, ScopeProblem),
    ) {
        let (id, settings) = (entry.device_id, entry.data_setting);
        match entry.body {
            EntryBody::Padding => {}
            EntryBody::All => self.push((0, u16::MAX), None, settings),
            EntryBody::Select | EntryBody::ExtendedSelect { .. } => {
                self.push((id, id), None, settings);
            }
            EntryBody::AcpiHid { hardware_id, uid_format, uid, .. } => {
                self.push((id, id), None, settings);
                self.devices.push((RequesterId(id), name(&hardware_id, uid_format, uid)));
            }
            EntryBody::AliasSelect { source_device_id } => {
                self.push((id, id), Some(RequesterId(source_device_id)), settings);
            }
            EntryBody::RangeStart | EntryBody::ExtendedRangeStart { .. } => {
                self.start(entry, None, open, report);
            }
            EntryBody::AliasRangeStart { source_device_id } => {
                self.start(entry, Some(RequesterId(source_device_id)), open, report);
            }
            EntryBody::RangeEnd => self.end(entry, open.take(), report),
            EntryBody::Special { handle, source_device_id, variety } => {
                self.push((source_device_id, source_device_id), None, settings);
                match variety {
                    1 => self.special(ScopeKind::IoApic(handle), source_device_id),
                    2 => self.special(ScopeKind::Hpet(handle), source_device_id),
                    other => report(entry.offset, ScopeProblem::UnknownVariety(other)),
                }
            }
            EntryBody::Unknown => report(entry.offset, ScopeProblem::UnknownKind(entry.kind)),
        }
    }

    fn push(&mut self, (first, last): (u16, u16), alias: Option<RequesterId>, settings: u8) {
        let (first, last) = (RequesterId(first), RequesterId(last));
        self.entries.push(EntryRange { first, last, alias, settings });
    }

    fn special(&mut self, kind: ScopeKind, id: u16) {
        let id = RequesterId(id);
        self.scopes.push(DeviceScope {
            kind,
            start_bus: id.bus(),
            path: vec![(id.device(), id.function())],
        });
    }

    fn start(
        &mut self,
        entry: &Entry<'_>,
        alias: Option<RequesterId>,
        open: &mut Option<Open>,
        report: &mut dyn FnMut(usize, ScopeProblem),
    ) {
        let Entry { offset, device_id: first, data_setting: settings, .. } = *entry;
        let before = open.replace(Open { offset, first, alias, settings });
        self.leave_open(before, report);
    }

    fn end(
        &mut self,
        entry: &Entry<'_>,
        open: Option<Open>,
        report: &mut dyn FnMut(usize, ScopeProblem),
    ) {
        let last = entry.device_id;
        match open {
            Some(open) if open.first <= last => {
                self.push((open.first, last), open.alias, open.settings);
            }
            Some(open) => {
                report(entry.offset, ScopeProblem::RangeReversed);
                self.broken = self.broken.or(Some(entry.offset));
                self.push((open.first, open.first), open.alias, open.settings);
            }
            None => {
                report(entry.offset, ScopeProblem::EndWithoutStart);
                self.broken = self.broken.or(Some(entry.offset));
                self.push((last, last), None, entry.data_setting);
            }
        }
    }

    /// Enters a range that never ended.
    fn leave_open(&mut self, open: Option<Open>, report: &mut dyn FnMut(usize, ScopeProblem)) {
        let Some(open) = open else { return };
        report(open.offset, ScopeProblem::RangeWithoutEnd);
        self.broken = self.broken.or(Some(open.offset));
        self.push((open.first, open.first), open.alias, open.settings);
    }
}

/// Hardware id and unique id of a device of the name space (AMD IOMMU 48882 rev 3.10 table 95: format 0 no unique
/// id, 1 an integer of 8 bytes, 2 text).
fn name(hardware_id: &[u8], uid_format: u8, uid: &[u8]) -> String {
    let hardware = printable(hardware_id);
    match (uid_format, uid.first_chunk()) {
        (1, Some(number)) => format!("{hardware} {}", u64::from_le_bytes(*number)),
        (2, _) => format!("{hardware} {}", printable(uid)),
        _ => hardware,
    }
}
