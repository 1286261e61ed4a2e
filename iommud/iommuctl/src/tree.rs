//! Unit, segment, group, device: who is where, who owns it, what it reaches, and why devices are together.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::names;
use crate::output::{Look, Tone};
use crate::server::machine::{Device, Machine};
use crate::server::printable;
use crate::why::{Reason, reasons};

/// A group of devices.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Its number.
    pub index: u32,
    /// Its devices, by address.
    pub devices: Vec<&'a Device>,
    /// Why they are together.
    pub reasons: Vec<Reason>,
}

/// The groups of a segment behind a unit.
#[derive(Clone, Debug)]
pub struct Branch<'a> {
    /// The unit; `None` for devices that none confines.
    pub unit: Option<u32>,
    /// The unit in words.
    pub words: String,
    /// It translates.
    pub enabled: bool,
    /// Groups by segment. A group is where its first device is.
    pub segments: BTreeMap<u16, Vec<Group<'a>>>,
}

/// Every unit of the machine, then the devices without one.
#[must_use]
pub fn branches(machine: &Machine) -> Vec<Branch<'_>> {
    let mut branches: BTreeMap<Option<u32>, Branch<'_>> = BTreeMap::new();
    for unit in &machine.status.units {
        let words = format!("unit {}: {} {}", unit.index, unit.kind, unit.state);
        let branch = Branch::new(Some(unit.index), words, unit.state == "enabled");
        branches.insert(branch.unit, branch);
    }
    for group in groups(machine) {
        let Some(first) = group.devices.first() else { continue };
        let unknown = || match first.unit {
            Some(unit) => Branch::new(first.unit, format!("unit {unit}: not in status"), false),
            None => Branch::new(None, "behind no unit: NOT CONFINED".to_owned(), false),
        };
        let branch = branches.entry(first.unit).or_insert_with(unknown);
        branch.segments.entry(first.address().segment).or_default().push(group);
    }
    let without = branches.remove(&None);
    branches.into_values().chain(without).collect()
}

/// The groups of a machine, by number.
fn groups(machine: &Machine) -> Vec<Group<'_>> {
    let table = machine.table();
    let mut groups: BTreeMap<u32, Vec<&Device>> = BTreeMap::new();
    for device in &machine.devices {
        groups.entry(device.group).or_default().push(device);
    }
    let found = groups.into_iter().map(|(index, devices)| {
        let member = |of: &&Device| (of.address(), of.requester_ids.clone());
        let members: Vec<_> = devices.iter().map(member).collect();
        Group { index, devices, reasons: reasons(table.view(), &members) }
    });
    found.collect()
}

impl Branch<'_> {
    const fn new(unit: Option<u32>, words: String, enabled: bool) -> Self {
        Self { unit, words, enabled, segments: BTreeMap::new() }
    }
}

/// Name and class of a device in one phrase.
#[must_use]
pub fn title(device: &Device) -> String {
    let function = &device.function;
    let name = names::device(function.vendor, function.device);
    format!("{}: {name}", names::class(function.class))
}

/// What the group's devices are now.
#[must_use]
pub fn state(device: &Device, processes: &dyn Fn(u32) -> Option<String>) -> String {
    let mut parts = Vec::new();
    match &device.owner {
        None => parts.push(format!("policy {}", device.policy)),
        Some(owner) => {
            parts.push(format!("owned by {}", owner_words(owner, processes)));
            parts.push(if device.attached { "attached" } else { "not attached" }.to_owned());
        }
    }
    if let Some((domain, mappings)) = device.domain {
        let plural = if mappings == 1 { "" } else { "s" };
        parts.push(format!("domain {domain}, {mappings} mapping{plural}"));
    }
    if device.silenced {
        parts.push("silenced".to_owned());
    }
    parts.push(format!("reaches {}", device.reaches));
    parts.join(", ")
}

/// `process 12 (nvmed)`, where the name can be found.
#[must_use]
pub fn owner_words(owner: &str, processes: &dyn Fn(u32) -> Option<String>) -> String {
    let number = owner.strip_prefix("process ").and_then(|number| number.parse().ok());
    match number.and_then(processes) {
        Some(name) => format!("{owner} ({name})"),
        None => owner.to_owned(),
    }
}

/// The name of a process of this system.
#[must_use]
pub fn process_name(process: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    // A process may call itself anything.
    Some(printable(name.trim_end()).replace('\n', " ")).filter(|name| !name.is_empty())
}

/// The tree as text.
#[must_use]
pub fn text(
    branches: &[Branch<'_>],
    look: Look,
    processes: &dyn Fn(u32) -> Option<String>,
) -> String {
    let mut out = String::new();
    for branch in branches {
        let tone = if branch.enabled { Tone::Strong } else { Tone::Bad };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", look.paint(tone, &branch.words));
        let segments = branch.segments.len();
        for (at, (segment, groups)) in branch.segments.iter().enumerate() {
            let (mark, indent) = edge(at + 1 == segments);
            let _ = writeln!(out, "{mark}segment {segment:04x}");
            for (at, group) in groups.iter().enumerate() {
                let (mark, deeper) = edge(at + 1 == groups.len());
                let _ = writeln!(out, "{indent}{mark}group {}", group.index);
                write_group(&mut out, &format!("{indent}{deeper}"), group, look, processes);
            }
        }
    }
    out
}

fn write_group(
    out: &mut String,
    indent: &str,
    group: &Group<'_>,
    look: Look,
    processes: &dyn Fn(u32) -> Option<String>,
) {
    let rows = group.devices.len() + group.reasons.len();
    for (at, device) in group.devices.iter().enumerate() {
        let (mark, deeper) = edge(at + 1 == rows);
        let address = names::address(device.address());
        let address = look.paint(Tone::Strong, address);
        let _ = writeln!(out, "{indent}{mark}{address} {}", title(device));
        let tone = match &*device.reaches {
            words if words.contains("NOT CONFINED") || words.contains("untranslated") => Tone::Bad,
            _ if device.silenced => Tone::Odd,
            _ => Tone::Faint,
        };
        let state = look.paint(tone, state(device, processes));
        let _ = writeln!(out, "{indent}{deeper}  {state}");
    }
    for (at, reason) in group.reasons.iter().enumerate() {
        let (mark, _) = edge(group.devices.len() + at + 1 == rows);
        let reason = look.paint(Tone::Odd, format!("together: {reason}"));
        let _ = writeln!(out, "{indent}{mark}{reason}");
    }
}

/// The mark of a row, and what stands below it.
const fn edge(last: bool) -> (&'static str, &'static str) {
    if last { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}

/// A device as JSON.
#[must_use]
pub fn device_json(device: &Device, processes: &dyn Fn(u32) -> Option<String>) -> Value {
    let function = &device.function;
    let process: Option<u32> = device
        .owner
        .as_deref()
        .and_then(|owner| owner.strip_prefix("process "))
        .and_then(|number| number.parse().ok());
    json!({
        "address": names::address(function.address),
        "vendor": function.vendor,
        "device": function.device,
        "class": function.class,
        "name": names::device(function.vendor, function.device),
        "class_name": names::class(function.class),
        "kind": function.kind.words(),
        "group": device.group,
        "unit": device.unit,
        "policy": device.policy,
        "owner": device.owner,
        "process": process,
        "process_name": process.and_then(processes),
        "attached": device.attached,
        "silenced": device.silenced,
        "reaches": device.reaches,
        "domain": device.domain.map(|(domain, _)| domain),
        "mappings": device.domain.map(|(_, mappings)| mappings),
        "requester_ids": device.requester_ids,
    })
}

/// The tree as JSON.
#[must_use]
pub fn json(branches: &[Branch<'_>], processes: &dyn Fn(u32) -> Option<String>) -> Value {
    let group = |group: &Group<'_>| {
        let devices: Vec<Value> =
            group.devices.iter().map(|device| device_json(device, processes)).collect();
        let reasons: Vec<String> = group.reasons.iter().map(ToString::to_string).collect();
        json!({ "group": group.index, "devices": devices, "together": reasons })
    };
    let units = branches.iter().map(|branch| {
        let segments = branch.segments.iter().map(|(segment, groups)| {
            json!({ "segment": segment, "groups": groups.iter().map(group).collect::<Vec<_>>() })
        });
        json!({
            "unit": branch.unit,
            "words": branch.words,
            "enabled": branch.enabled,
            "segments": segments.collect::<Vec<_>>(),
        })
    });
    json!({ "units": units.collect::<Vec<_>>() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::server::machine::tests::{NVME, PORT};
    use crate::server::testing::Fixed;

    const STATUS: &str = "\
table: DMAR
unit 0: vt-d enabled
confinement: on
policy: compat
groups: 2
devices: 3
sessions: 1
";

    pub(crate) fn server() -> Fixed {
        let edu = NVME
            .replace("0000--01--00.0", "0000--00--04.0")
            .replace("144d:a808", "1234:11e8")
            .replace("class: 010802", "class: 00ff00")
            .replace("group: 2", "group: 5")
            .replace("unit: 0", "unit: none, NOT CONFINED")
            .replace("what its session maps", "what it reached before iommud, NOT CONFINED")
            .replace("01:00.0", "00:04.0")
            .replace("owner: process 12", "owner: none")
            .replace("attached: true", "attached: false")
            .replace("domain: 3\nmappings: 2", "domain: none");
        Fixed::new(&[
            ("status", STATUS),
            ("units/0", "kind: vt-d\nstate: enabled\nsegment: 0000\n"),
            ("devices/0000--00--04.0", &edu),
            ("devices/0000--00--1c.0", PORT),
            ("devices/0000--01--00.0", NVME),
            ("domains/3", crate::server::domain::tests::TEXT),
            ("metrics", "opens 5\nhandles 2\n"),
            ("activity", crate::server::activity::tests::TEXT),
            ("faults", "#4 0000--01--00.0 write at iova 0x11010: page not present (reason 0x6)\n"),
        ])
    }

    pub(crate) fn nvmed(process: u32) -> Option<String> {
        (process == 12).then(|| "nvmed".to_owned())
    }

    #[test]
    fn the_tree_says_who_is_where_and_why() {
        let machine = Machine::read(&server()).unwrap();
        let branches = branches(&machine);
        let expected = "\
unit 0: vt-d enabled
└─ segment 0000
   └─ group 2
      ├─ 0000:00:1c.0 PCI bridge: Intel 100 Series/C230 Series Chipset Family PCI Express Root Port #1
      │    policy compat, reaches what policy maps
      ├─ 0000:01:00.0 Non-Volatile memory controller: Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983
      │    owned by process 12 (nvmed), attached, domain 3, 2 mappings, reaches what its session maps
      └─ together: 0000:00:1c.0 (root port) has ACS with request redirect, completion redirect off: \
0000:01:00.0 behind it
behind no unit: NOT CONFINED
└─ segment 0000
   └─ group 5
      └─ 0000:00:04.0 Unclassified device: device 1234:11e8
           policy compat, reaches what it reached before iommud, NOT CONFINED
";
        assert_eq!(text(&branches, Look::default(), &nvmed), expected);
    }

    #[test]
    fn the_tree_as_json_has_the_same() {
        let machine = Machine::read(&server()).unwrap();
        let json = json(&branches(&machine), &nvmed);
        let group = &json["units"][0]["segments"][0]["groups"][0];
        assert_eq!(group["devices"][1]["process_name"], "nvmed");
        assert_eq!(group["devices"][1]["mappings"], 2);
        assert_eq!(group["devices"][0]["owner"], Value::Null);
        assert_eq!(group["together"].as_array().unwrap().len(), 1);
        assert_eq!(json["units"][1]["unit"], Value::Null);
    }
}
