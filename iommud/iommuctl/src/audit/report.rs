//! What the facts of a host mean.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iommu_protocol::ids::PciAddress;
use iommud::acpi::{parse_dmar, parse_ivrs};
use iommud::topology::alias;
use iommud::topology::firmware::Firmware;
use iommud::topology::groups::partition;
use iommud::topology::scope::Scopes;
use iommud::topology::table::FunctionTable;
use serde_json::{Value, json};

use super::host::{Host, HostDevice};
use crate::names;
use crate::output::{Look, Tone};
use crate::why::reasons;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Memory is not protected: the exit status is 3.
    Bad,
}

/// One sentence about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// A stable name, for programs.
    pub name: &'static str,
    /// The sentence.
    pub text: String,
    /// Devices or groups that it is about, one a line.
    pub about: Vec<String>,
}

/// What the kernel lets a device reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// All memory: no unit translates for it, or the unit passes it through.
    All,
    /// What its driver maps.
    Mapped,
    /// It masters no bus now.
    Nothing,
    /// The kernel does not say what its group is.
    Unknown,
}

/// An audit of a host.
#[derive(Clone, Debug)]
pub struct Report {
    findings: Vec<Finding>,
    devices: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    device: HostDevice,
    reach: Reach,
    /// The unit that iommud would confine it with.
    unit: Option<usize>,
}

impl Report {
    /// Judges a host.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let firmware = firmware(host);
        let mut table = FunctionTable::default();
        for device in &host.devices {
            table.insert(device.function);
        }
        let rows = rows(host, firmware.as_ref().and_then(|read| read.as_ref().ok()), &table);
        let mut findings = Vec::new();
        findings.extend(exposed(&rows));
        findings.extend(units(host, firmware.as_ref()));
        findings.extend(opt_in(firmware.as_ref().and_then(|read| read.as_ref().ok())));
        findings.extend(interrupts(host));
        findings.extend(external(host));
        findings.extend(ats(host));
        findings.extend(lazy(host));
        findings.extend(groups(host, &table));
        findings.extend(limits(host));
        findings.extend(outlook(&rows));
        findings.sort_by_key(|finding| match finding.weight {
            Weight::Bad => 0,
            Weight::Note => 1,
            Weight::Good => 2,
        });
        Self { findings, devices: rows }
    }

    /// Whether memory is not protected.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.findings.iter().any(|finding| finding.weight == Weight::Bad)
    }

    /// The findings, the worst first.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// A page for people.
    #[must_use]
    pub fn text(&self, look: Look) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let (tone, word) = match finding.weight {
                Weight::Bad => (Tone::Bad, "BAD "),
                Weight::Note => (Tone::Odd, "note"),
                Weight::Good => (Tone::Good, "good"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}  {}", look.paint(tone, word), finding.text);
            for line in &finding.about {
                let _ = writeln!(out, "        {line}");
            }
        }
        out
    }

    /// The same for programs, with every device.
    #[must_use]
    pub fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            let weight = match finding.weight {
                Weight::Bad => "bad",
                Weight::Note => "note",
                Weight::Good => "good",
            };
            json!({
                "weight": weight,
                "name": finding.name,
                "text": finding.text,
                "about": finding.about,
            })
        });
        json!({
            "protected": !self.is_bad(),
            "findings": findings.collect::<Vec<_>>(),
            "devices": self.devices.iter().map(row_json).collect::<Vec<_>>(),
        })
    }
}

fn row_json(Row { device, reach, unit }: &Row) -> Value {
    let function = &device.function;
    json!({
        "address": names::address(function.address),
        "name": names::device(function.vendor, function.device),
        "class_name": names::class(function.class),
        "bus_master": device.bus_master,
        "driver": device.driver,
        "group": device.group,
        "ats": device.ats,
        "removable": device.removable,
        "reaches": match reach {
            Reach::All => "all-memory",
            Reach::Mapped => "mapped",
            Reach::Nothing => "nothing",
            Reach::Unknown => "unknown",
        },
        "iommud_unit": unit,
    })
}

/// What firmware says; `None` without a table.
fn firmware(host: &Host) -> Option<Result<Firmware, String>> {
    let (name, bytes) = host.table.as_ref()?;
    let parsed = if *name == "DMAR" { parse_dmar(bytes) } else { parse_ivrs(bytes) };
    Some(parsed.map_err(|error| error.to_string()))
}

fn rows(host: &Host, firmware: Option<&Firmware>, table: &FunctionTable) -> Vec<Row> {
    let scopes = firmware.map(|firmware| (firmware, Scopes::new(firmware, table.view())));
    let unit = |device: &HostDevice| {
        let (firmware, scopes) = scopes.as_ref()?;
        let index = scopes.unit(firmware, &device.function)?;
        firmware.units.get(index)?.registers.is_ok().then_some(index)
    };
    let row = |device: &HostDevice| Row {
        reach: reach(host, device),
        unit: unit(device),
        device: device.clone(),
    };
    host.devices.iter().filter(|device| !is_bridge(device)).map(row).collect()
}

/// Bridges forward; what they let through is their devices'. Others of their class, such as non-transparent bridges, do
/// DMA of their own.
const fn is_bridge(device: &HostDevice) -> bool {
    matches!(device.function.class >> 8, 0x0600..=0x0605 | 0x0607 | 0x0608 | 0x0609)
}

fn reach(host: &Host, device: &HostDevice) -> Reach {
    let kind = device.group.and_then(|group| host.group_types.get(&group));
    match (device.bus_master, device.group, kind.map(String::as_str)) {
        (false, ..) => Reach::Nothing,
        (true, None, _) | (true, _, Some("identity")) => Reach::All,
        (true, Some(_), Some(_)) => Reach::Mapped,
        (true, Some(_), None) => Reach::Unknown,
    }
}

fn words(device: &HostDevice) -> String {
    let function = &device.function;
    let driver = device.driver.as_ref().map_or_else(String::new, |name| format!(" [{name}]"));
    let name = names::device(function.vendor, function.device);
    let class = names::class(function.class);
    format!("{} {class}: {name}{driver}", names::address(function.address))
}

fn plural(count: usize, one: &str, several: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {several}") }
}

fn exposed(rows: &[Row]) -> Vec<Finding> {
    let of = |reach: Reach| -> Vec<String> {
        rows.iter().filter(|row| row.reach == reach).map(|row| words(&row.device)).collect()
    };
    let finding = |weight, text: String, about| Finding { weight, name: "reach", text, about };
    let (all, unknown) = (of(Reach::All), of(Reach::Unknown));
    let mut found = Vec::new();
    if rows.is_empty() {
        found.push(finding(Weight::Note, "No PCI device was found.".to_owned(), Vec::new()));
    } else if !all.is_empty() {
        let count = plural(all.len(), "device reaches", "devices reach");
        found.push(finding(Weight::Bad, format!("{count} all of memory now."), all));
    } else if unknown.is_empty() {
        let text = "No device reaches all of memory.".to_owned();
        found.push(finding(Weight::Good, text, Vec::new()));
    }
    if !unknown.is_empty() {
        let text = "The kernel does not say what these devices reach:".to_owned();
        found.push(finding(Weight::Note, text, unknown));
    }
    found
}

fn units(host: &Host, firmware: Option<&Result<Firmware, String>>) -> Vec<Finding> {
    let finding =
        |weight, text: String, about| vec![Finding { weight, name: "units", text, about }];
    let firmware = match firmware {
        None => {
            let text = "Firmware describes no IOMMU. Look for VT-d or AMD-Vi in its setup.";
            return finding(Weight::Bad, text.to_owned(), Vec::new());
        }
        Some(Err(error)) => {
            let text = format!("Firmware's table cannot be used: {error}.");
            return finding(Weight::Bad, text, Vec::new());
        }
        Some(Ok(firmware)) => firmware,
    };
    let defects: Vec<String> = firmware
        .units
        .iter()
        .enumerate()
        .filter_map(|(index, unit)| Some(format!("unit {index}: {}", unit.registers.err()?)))
        .chain(firmware.anomalies.iter().cloned())
        .collect();
    let (described, used) = (firmware.units.len(), host.units.len());
    let described_words = plural(described, "unit", "units");
    let options = match host.options.as_slice() {
        [] => String::new(),
        options => format!(" (kernel options: {})", options.join(" ")),
    };
    if used == 0 {
        let text = format!("Firmware describes {described_words}; the kernel uses none{options}.");
        return finding(Weight::Bad, text, defects);
    }
    let text = format!("Firmware describes {described_words}; the kernel uses {used}{options}.");
    let weight = if used < described || !defects.is_empty() { Weight::Note } else { Weight::Good };
    finding(weight, text, defects)
}

fn opt_in(firmware: Option<&Firmware>) -> Option<Finding> {
    let (weight, text) = if firmware?.dma_opt_in {
        (Weight::Good, "Firmware asks for devices to be kept from memory before drivers run.")
    } else {
        (
            Weight::Note,
            "Firmware does not ask for devices to be kept from memory before drivers run.",
        )
    };
    Some(Finding { weight, name: "dma-opt-in", text: text.to_owned(), about: Vec::new() })
}

fn interrupts(host: &Host) -> Option<Finding> {
    let (weight, text) = if host.interrupts_remapped? {
        (Weight::Good, "Interrupts are remapped.")
    } else {
        (Weight::Note, "Interrupts are not remapped: a device can raise any vector.")
    };
    Some(Finding { weight, name: "interrupts", text: text.to_owned(), about: Vec::new() })
}

fn external(host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    let open: Vec<String> = host
        .thunderbolt
        .iter()
        .filter(|(_, protected)| !protected)
        .map(|(name, _)| name.clone())
        .collect();
    if !open.is_empty() {
        let text = "Thunderbolt ports are not protected from DMA.".to_owned();
        found.push(Finding { weight: Weight::Bad, name: "thunderbolt", text, about: open });
    }
    let removable = |device: &&HostDevice| device.removable.as_deref() == Some("removable");
    let outside: Vec<String> = host.devices.iter().filter(removable).map(words).collect();
    if !outside.is_empty() {
        let text = "Devices behind ports that face outwards:".to_owned();
        found.push(Finding { weight: Weight::Note, name: "external", text, about: outside });
    }
    found
}

fn ats(host: &Host) -> Option<Finding> {
    let with: Vec<&HostDevice> = host.devices.iter().filter(|device| device.ats).collect();
    let outside = with.iter().any(|device| device.removable.as_deref() == Some("removable"));
    (!with.is_empty()).then(|| Finding {
        weight: if outside { Weight::Bad } else { Weight::Note },
        name: "ats",
        text: "Devices with ATS on keep translations of their own; a unit believes them."
            .to_owned(),
        about: with.into_iter().map(words).collect(),
    })
}

fn lazy(host: &Host) -> Option<Finding> {
    let of_type = |(group, kind): (&u32, &String)| (kind == "DMA-FQ").then_some(*group);
    let groups: Vec<u32> = host.group_types.iter().filter_map(of_type).collect();
    (!groups.is_empty()).then(|| Finding {
        weight: Weight::Note,
        name: "lazy",
        text: format!(
            "In {} the kernel invalidates lazily: memory stays reachable some ms after it was unmapped.",
            plural(groups.len(), "group", "groups")
        ),
        about: Vec::new(),
    })
}

/// Groups of several devices, as iommud would make them, and why.
fn groups(host: &Host, table: &FunctionTable) -> Option<Finding> {
    let ids: BTreeMap<PciAddress, Vec<String>> = host
        .devices
        .iter()
        .map(|device| {
            let own = device.function.address.requester;
            let all = alias::aliases(table.view(), None, &device.function);
            (device.function.address, all.with(own).map(|id| format!("{id:?}")).collect())
        })
        .collect();
    let is_device =
        |address: &&PciAddress| table.find(**address).is_some_and(|of| of.class >> 16 != 6);
    let mut about = Vec::new();
    for group in partition(table) {
        if group.iter().filter(is_device).count() < 2 {
            continue;
        }
        about.push(group.iter().map(|of| names::address(*of)).collect::<Vec<_>>().join(" "));
        let members: Vec<(PciAddress, Vec<String>)> = group
            .iter()
            .map(|address| (*address, ids.get(address).cloned().unwrap_or_default()))
            .collect();
        let reasons = reasons(table.view(), &members);
        about.extend(reasons.iter().map(|reason| format!("  {reason}")));
    }
    (!about.is_empty()).then(|| Finding {
        weight: Weight::Note,
        name: "groups",
        text: "Devices that cannot be kept apart:".to_owned(),
        about,
    })
}

fn limits(host: &Host) -> Option<Finding> {
    host.cut.then(|| Finding {
        weight: Weight::Note,
        name: "partial",
        text: "Not all of configuration space could be read: ACS and ATS are not known. \
               Run this as root."
            .to_owned(),
        about: Vec::new(),
    })
}

fn outlook(rows: &[Row]) -> Option<Finding> {
    if rows.is_empty() {
        return None;
    }
    let (inside, outside): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.unit.is_some());
    // Without any inside, all are outside, and a finding above says why.
    let listed = outside.iter().filter(|_| !inside.is_empty());
    let about = listed.map(|row| format!("not confined: {}", words(&row.device))).collect();
    let text = format!("iommud would confine {} of {} devices.", inside.len(), rows.len());
    let weight = if outside.is_empty() { Weight::Good } else { Weight::Note };
    Some(Finding { weight, name: "iommud", text, about })
}
