//! Commands that show what the server says of itself, and the requests of administrators.

use std::io::Write;
use std::path::Path;

use iommu_client::Connection;
use iommu_protocol::ids::PciAddress;
use serde_json::{Value, json};

use super::arguments::Reset;
use super::local::print_policy;
use super::outcome::{CommandError, Found};
use crate::metrics;
use crate::names;
use crate::output::{Look, Tone, document, write_json, write_lines};
use crate::server::lines::Lines;
use crate::server::machine::Machine;
use crate::server::status::Status;
use crate::server::{Texts, all};

pub(super) fn status(
    texts: &dyn Texts,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let status = Status::parse(&texts.text("status")?);
    if json {
        write_json(out, &document("status", status.json()))?;
    } else {
        write_lines(out, look, &status_text(&status, look))?;
    }
    Ok(if status.confined() { Found::Nothing } else { Found::Something })
}

fn status_text(status: &Status, look: Look) -> String {
    let tone = if status.confined() { Tone::Good } else { Tone::Bad };
    let mut lines = vec![format!("confinement: {}", look.paint(tone, &status.confinement))];
    for unit in &status.units {
        let tone = match unit.state.as_str() {
            "enabled" => Tone::Good,
            "parsed" => Tone::Odd,
            _ => Tone::Bad,
        };
        lines.push(format!("unit {}: {} {}", unit.index, unit.kind, look.paint(tone, &unit.state)));
    }
    lines.push(format!("firmware table: {}", status.table));
    lines.push(format!("policy: {}", status.policy));
    lines.extend(status.counts.iter().map(|(name, count)| format!("{name}: {count}")));
    for (key, value) in &status.notes {
        lines.push(look.paint(Tone::Odd, format_args!("{key}: {value}")).to_string());
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(super) fn units(
    unit: Option<u32>,
    texts: &dyn Texts,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let mut units = all(texts, "units")?;
    units.sort_by_key(|(name, _)| name.parse::<u32>().unwrap_or(u32::MAX));
    if let Some(unit) = unit {
        units.retain(|(name, _)| *name == unit.to_string());
        if units.is_empty() {
            return Err(CommandError::Nothing(format!("unit {unit}")));
        }
    }
    if json {
        let units: Vec<Value> = units.iter().map(|(name, text)| unit_json(name, text)).collect();
        write_json(out, &document("units", json!({ "units": units })))?;
        return Ok(Found::Nothing);
    }
    for (name, text) in units {
        let mut lines = format!("{}\n", look.paint(Tone::Strong, format_args!("unit {name}")));
        text.lines().for_each(|line| lines.push_str(&format!("  {line}\n")));
        write_lines(out, look, &lines)?;
    }
    Ok(Found::Nothing)
}

fn unit_json(name: &str, text: &str) -> Value {
    let facts = Lines::of(text);
    let facts = facts.iter().map(|(name, value)| json!({ "name": name, "value": value }));
    json!({ "index": name.parse::<u32>().ok(), "facts": facts.collect::<Vec<_>>() })
}

pub(super) fn metrics(
    prometheus: bool,
    texts: &dyn Texts,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let text = texts.text("metrics")?;
    if json {
        write_json(out, &document("metrics", metrics::json(&metrics::parse(&text))))?;
    } else if prometheus {
        out.write_all(metrics::prometheus(&metrics::parse(&text)).as_bytes())?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(Found::Nothing)
}

pub(super) fn policy(
    file: &Path,
    texts: &dyn Texts,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let machine = Machine::read(texts)?;
    let functions: Vec<_> = machine.devices.iter().map(|device| device.function).collect();
    print_policy(file, &functions, json, out)
}

pub(super) fn rescan(
    server: &Connection,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    server.rescan()?;
    let text = server.text("rescan")?;
    if json {
        let lines: Vec<&str> = text.lines().collect();
        write_json(out, &document("rescan", json!({ "lines": lines })))?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(Found::Nothing)
}

pub(super) fn reset(
    Reset::Unit { unit }: Reset,
    server: &Connection,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    server.reset_unit(unit)?;
    if json {
        write_json(out, &document("reset", json!({ "unit": unit, "requested": true })))?;
    } else {
        writeln!(out, "unit {unit} is brought up again; iommuctl status tells the outcome")?;
    }
    Ok(Found::Nothing)
}

pub(super) fn release(
    address: PciAddress,
    server: &Connection,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let machine = Machine::read(server)?;
    let device = machine.devices.iter().find(|device| device.address() == address);
    let name = names::address(address);
    let group = device.ok_or_else(|| CommandError::Nothing(format!("device {name}")))?.group;
    server.release_group(group)?;
    let members = machine.devices.iter().filter(|device| device.group == group);
    let owned = members.filter(|device| device.owner.is_some());
    let ended: Vec<String> = owned.map(|device| names::address(device.address())).collect();
    if json {
        write_json(out, &document("release", json!({ "group": group, "ended": ended })))?;
    } else if ended.is_empty() {
        writeln!(out, "nobody had {name}")?;
    } else {
        writeln!(out, "group {group} is nobody's now; sessions ended on: {}", ended.join(", "))?;
    }
    Ok(Found::Nothing)
}
