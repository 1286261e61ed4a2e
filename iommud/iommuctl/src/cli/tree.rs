//! `tree`, `device` and `domain`: text, JSON and pictures.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use iommu_protocol::ids::PciAddress;
use serde_json::{Value, json};

use super::arguments::Tree;
use super::outcome::{CommandError, Found};
use crate::draw;
use crate::names;
use crate::output::{Look, Tone, document, size, write_json, write_lines};
use crate::server::Texts;
use crate::server::domain::{Domain, Mapping};
use crate::server::fault;
use crate::server::machine::{Device, Machine};
use crate::tree::{
    Group, branches, device_json, json, owner_words, process_name, state, text, title,
};

pub(super) fn tree(
    arguments: &Tree,
    texts: &dyn Texts,
    as_json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let machine = Machine::read(texts)?;
    let branches = branches(&machine);
    if let Some(file) = &arguments.svg {
        write_picture(file, &draw::tree::draw(&branches, &process_name), out)?;
    } else if arguments.dot {
        out.write_all(draw::dot::tree(&branches).as_bytes())?;
    } else if as_json {
        write_json(out, &document("tree", json(&branches, &process_name)))?;
    } else {
        write_lines(out, look, &text(&branches, look, &process_name))?;
    }
    Ok(Found::Nothing)
}

pub(super) fn device(
    address: PciAddress,
    texts: &dyn Texts,
    as_json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let machine = Machine::read(texts)?;
    let none = || CommandError::Nothing(format!("device {}", names::address(address)));
    let device = machine.device(address).ok_or_else(none)?;
    let branches = branches(&machine);
    let mut groups = branches.iter().flat_map(|branch| branch.segments.values().flatten());
    let group: &Group<'_> = groups.find(|group| group.index == device.group).ok_or_else(none)?;
    let log = fault::faults(&texts.text("faults")?);
    let faults = log.iter().filter(|fault| fault.device == address).count();
    if as_json {
        write_json(
            out,
            &document("device", json!({ "device": with_group(device, group, faults) })),
        )?;
    } else {
        write_lines(out, look, &device_text(device, group, faults, look))?;
    }
    Ok(Found::Nothing)
}

fn with_group(device: &Device, group: &Group<'_>, faults: usize) -> Value {
    let mut value = device_json(device, &process_name);
    if let Some(fields) = value.as_object_mut() {
        let others = group.devices.iter().map(|other| names::address(other.address()));
        fields.insert("group_members".to_owned(), others.collect::<Vec<_>>().into());
        let reasons = group.reasons.iter().map(ToString::to_string);
        fields.insert("together".to_owned(), reasons.collect::<Vec<_>>().into());
        fields.insert("faults_in_log".to_owned(), faults.into());
    }
    value
}

fn device_text(device: &Device, group: &Group<'_>, faults: usize, look: Look) -> String {
    let heading = look.paint(Tone::Strong, names::address(device.address()));
    let mut lines = format!("{heading} {}\n", title(device));
    let unit = device.unit.map_or_else(|| "none, NOT CONFINED".to_owned(), |unit| unit.to_string());
    // Writing to a string cannot fail.
    let _ = writeln!(lines, "  {}", state(device, &process_name));
    let _ = writeln!(lines, "  kind: {}", device.function.kind.words());
    let _ = writeln!(lines, "  unit: {unit}\n  policy: {}", device.policy);
    let _ = writeln!(lines, "  requester ids: {}", device.requester_ids.join(" "));
    let _ = writeln!(lines, "  faults in the log: {faults}");
    let _ = writeln!(lines, "  group {}:", device.group);
    for member in &group.devices {
        let _ = writeln!(lines, "    {} {}", names::address(member.address()), title(member));
    }
    for reason in &group.reasons {
        let _ = writeln!(lines, "    together: {reason}");
    }
    lines
}

pub(super) fn domain(
    number: u32,
    picture: Option<&Path>,
    texts: &dyn Texts,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let none = || CommandError::Nothing(format!("domain {number} of an owner"));
    let text = texts.text(&format!("domains/{number}")).map_err(|error| {
        let missing = error.refusal() == Some(iommu_client::Refusal::NotFound);
        if missing { none() } else { error.into() }
    })?;
    let domain = Domain::parse(&text).ok_or_else(none)?;
    let owner = owner_words(&domain.owner, &process_name);
    if let Some(file) = picture {
        write_picture(file, &draw::domain::draw(&domain, &owner), out)?;
    } else if as_json {
        write_json(out, &document("domain", domain.json()))?;
    } else {
        out.write_all(domain_text(&domain, &owner).as_bytes())?;
    }
    Ok(Found::Nothing)
}

fn domain_text(domain: &Domain, owner: &str) -> String {
    let (first, last) = domain.addresses;
    let mut out = format!("domain {} of {owner}\n", domain.index);
    // Writing to a string cannot fail.
    for member in &domain.devices {
        let _ = writeln!(out, "  device {}, {}", names::address(member.address), member.state);
    }
    let _ = writeln!(out, "  addresses {first:#x} to {last:#x}, pages of {}", domain.page_sizes);
    let _ = writeln!(out, "  {} mappings, {} bytes free", domain.count, domain.free());
    for (place, words) in ranges(domain) {
        let _ = writeln!(out, "  {place:31} {words}");
    }
    for buffer in domain.unmapped() {
        let place = buffer.grants.map_or_else(
            || "not mapped".to_owned(),
            |(first, last)| format!("{first:#x} to {last:#x}"),
        );
        let words = if buffer.grants.is_some() { ", nothing granted" } else { "" };
        let (device, bytes) = (names::address(buffer.device), size(buffer.bytes));
        let _ = writeln!(out, "  {place:31} buffer {} of {device}: {bytes}{words}", buffer.slot);
    }
    if domain.cut {
        let _ = writeln!(out, "  and more, which iommud does not list");
    }
    out
}

/// Mappings and reserved ranges, by address: where, and what.
fn ranges(domain: &Domain) -> Vec<(String, String)> {
    let mapped = domain.mappings.iter().map(|mapping| {
        let Mapping { first, last, slot, device, .. } = mapping;
        let from = mapping
            .offset
            .map_or_else(|| ", scattered".to_owned(), |offset| format!(" from byte {offset}"));
        let (device, bytes, access) =
            (names::address(*device), size(mapping.bytes()), mapping.access());
        (*first, *last, format!("buffer {slot} of {device}: {bytes}{from}, {access}"))
    });
    let reserved = domain
        .reserved
        .iter()
        .map(|range| (range.first, range.last, format!("reserved: {}", range.words)));
    let mut all: Vec<(u64, u64, String)> = mapped.chain(reserved).collect();
    all.sort_by_key(|(first, last, _)| (*first, *last));
    let place = |first, last| format!("{first:#x} to {last:#x}");
    all.into_iter().map(|(first, last, words)| (place(first, last), words)).collect()
}

/// Writes a picture into a file; `-` is the output.
fn write_picture(
    file: &Path,
    picture: &svg::Document,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if file == Path::new("-") {
        writeln!(out, "{picture}")?;
        return Ok(());
    }
    std::fs::write(file, format!("{picture}\n"))
        .map_err(|error| CommandError::File(file.into(), error))
}
