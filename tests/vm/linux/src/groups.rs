//! Isolation groups of the kernel and of iommud, for the same machine in the same state.
//!
//! The kernel drives the unit first. It enables the ACS controls that isolation needs, which iommud never does. Both
//! read the same registers, because iommud takes the unit over from the running kernel. No driver of this guest does
//! DMA.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::report::{check, data};
use crate::server::Server;
use crate::unit::Registers;

/// Groups of functions, by the kernel's names.
type Partition = BTreeSet<BTreeSet<String>>;

const KERNEL: &str = "/sys/kernel/iommu_groups";
const FUNCTIONS: &str = "/sys/bus/pci/devices";

/// Bytes of configuration space of PCI Express functions.
const EXTENDED: usize = 4096;

/// Runs the scenario.
pub(crate) fn run() {
    let (mut theirs, mut ours) = (Partition::new(), Partition::new());
    check(1, || {
        theirs = kernels()?;
        capture(&theirs)
    });
    check(2, || {
        let server = Server::start("compat", None)?;
        ours = servers(&server)?;
        let status = server.text("status")?;
        ensure!(status.contains("unit 0: vt-d enabled"), "{status}");
        let registers = Registers::open()?;
        ensure!(registers.translates()?, "translation is off");
        ensure!(
            server.memory()?.contains(registers.root_table()?),
            "the root table is not iommud's"
        );
        Ok("translation is on, the root table is iommud's".into())
    });
    check(3, || {
        let theirs = merge_switches(theirs.clone())?;
        let only = |a: &Partition, b: &Partition| a.difference(b).cloned().collect::<Vec<_>>();
        let (kernel, server) = (only(&theirs, &ours), only(&ours, &theirs));
        ensure!(
            kernel.is_empty() && server.is_empty(),
            "only the kernel's: {kernel:?}; only iommud's: {server:?}"
        );
        let functions: usize = ours.iter().map(BTreeSet::len).sum();
        ensure!(ours.len() > 1, "one group is no partition");
        Ok(format!("{functions} functions in {} groups", ours.len()))
    });
}

/// Vendor and device id of a downstream port of QEMU's switch, which has no ACS.
const DOWNSTREAM: (&str, &str) = ("0x104c", "0x8233");

/// Merges the kernel's groups of the ports of one switch. That is iommud's rule, because devices behind such ports
/// reach each other inside the switch. (The kernel makes one group for each port.)
fn merge_switches(groups: Partition) -> Result<Partition> {
    let mut switches: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut merged = Partition::new();
    for group in groups {
        let mut switch = None;
        for name in &group {
            let id = |what| std::fs::read_to_string(Path::new(FUNCTIONS).join(name).join(what));
            let (vendor, device) = (id("vendor")?, id("device")?);
            if (vendor.trim(), device.trim()) == DOWNSTREAM {
                // Segment and bus. All ports of a switch are on one bus.
                switch = name.get(..7).map(ToOwned::to_owned);
            }
        }
        match switch {
            Some(bus) => switches.entry(bus).or_default().extend(group),
            None => drop(merged.insert(group)),
        }
    }
    merged.extend(switches.into_values());
    Ok(merged)
}

fn kernels() -> Result<Partition> {
    ensure!(Registers::open()?.translates()?, "the kernel does not drive the unit");
    let mut groups = Partition::new();
    for group in std::fs::read_dir(KERNEL).context(KERNEL)? {
        groups.insert(names(&group?.path().join("devices"))?);
    }
    let grouped: BTreeSet<String> = groups.iter().flatten().cloned().collect();
    let all = names(Path::new(FUNCTIONS))?;
    ensure!(grouped == all, "without a group: {:?}", all.difference(&grouped));
    Ok(groups)
}

fn servers(server: &Server) -> Result<Partition> {
    let mut groups = Partition::new();
    for group in server.names("groups")? {
        let text = server.text(&format!("groups/{group}"))?;
        let members = text.lines().filter_map(|line| line.strip_prefix("member: "));
        groups.insert(members.map(|name| name.replace("--", ":")).collect());
    }
    Ok(groups)
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Prints the input of both for the host: every non-zero word of configuration space, and the kernel's groups.
fn capture(groups: &Partition) -> Result<String> {
    let mut functions = 0;
    for name in names(Path::new(FUNCTIONS))? {
        let bytes = std::fs::read(Path::new(FUNCTIONS).join(&name).join("config"))?;
        ensure!(bytes.len() <= EXTENDED, "{name}: {} bytes", bytes.len());
        let mut line = format!("config {name} {}", bytes.len());
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let word = u32::from_le_bytes(*word);
            if word != 0 {
                line.push_str(&format!(" {:x}:{word:x}", index * 4));
            }
        }
        data(&line);
        functions += 1;
    }
    for group in groups {
        let members: Vec<&str> = group.iter().map(String::as_str).collect();
        data(&format!("group {}", members.join(" ")));
    }
    Ok(format!("{functions} functions in {} groups", groups.len()))
}
