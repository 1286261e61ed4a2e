//! What a Linux host says of itself in sysfs and procfs, below any folder that stands in for the root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use iommu_protocol::ids::PciAddress;
use iommud::topology::pci::{ConfigSpace, PciFunction};
use iommud::topology::walk::{Roots, walk};

use crate::server::printable;

/// Bytes of configuration space that everybody may read.
const PUBLIC: usize = 64;
/// Command register: Bus Master Enable (PCI Local Bus 3.0 section 6.2.2).
const BUS_MASTER: u32 = 1 << 2;
/// Extended capability id of Address Translation Services (PCI Express Base 6.0 section 10.5.1).
const ATS: u32 = 0x0f;
/// ATS Control register, in the word that holds it: Enable.
const ATS_ENABLE: u32 = 1 << 31;
/// Most extended capabilities that are followed: a chain that is longer loops.
const MAX_EXTENDED: usize = 96;

/// Most bytes that are read of a file. The longest are tables of firmware and /proc/interrupts.
const MOST: u64 = 4 << 20;

/// One device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// What its configuration space says.
    pub function: PciFunction,
    /// It may master the bus.
    pub bus_master: bool,
    /// Its driver.
    pub driver: Option<String>,
    /// Its group.
    pub group: Option<u32>,
    /// It may ask for translations and use them later without asking.
    pub ats: bool,
    /// The kernel's word: `fixed`, `removable` or `unknown`.
    pub removable: Option<String>,
}

/// A host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The DMAR or IVRS, with its signature.
    pub table: Option<(&'static str, Vec<u8>)>,
    /// Units that the kernel uses.
    pub units: Vec<String>,
    /// Devices, by address.
    pub devices: Vec<HostDevice>,
    /// Type of each group: `DMA`, `DMA-FQ`, `identity`, `blocked` or others.
    pub group_types: BTreeMap<u32, String>,
    /// Interrupts go through a unit; `None` where that cannot be read.
    pub interrupts_remapped: Option<bool>,
    /// Options of the kernel that concern units.
    pub options: Vec<String>,
    /// Thunderbolt domains, and whether firmware protects from their DMA.
    pub thunderbolt: Vec<(String, bool)>,
    /// Configuration space could not be read beyond its public part.
    pub cut: bool,
}

impl Host {
    /// Reads a host below `root`. What is not there is left empty.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let mut config = Folder::open(root.join("sys/bus/pci/devices"));
        let buses: BTreeSet<(u16, u8)> =
            config.files.keys().map(|of| (of.segment, of.requester.bus())).collect();
        let buses: Vec<(u16, u8)> = buses.into_iter().collect();
        let functions = walk(&mut config, Roots::Known(&buses));
        let mut devices: Vec<HostDevice> =
            functions.into_iter().map(|function| device(&mut config, function)).collect();
        devices.sort_by_key(|device| device.function.address);
        let cut = config.files.values().any(|bytes| bytes.len() <= PUBLIC) && !devices.is_empty();
        Self {
            table: table(root),
            units: names(&root.join("sys/class/iommu")),
            devices,
            group_types: group_types(root),
            interrupts_remapped: interrupts(root),
            options: options(root),
            thunderbolt: thunderbolt(root),
            cut,
        }
    }

    /// The functions, for questions of topology.
    #[must_use]
    pub fn functions(&self) -> Vec<PciFunction> {
        self.devices.iter().map(|device| device.function).collect()
    }
}

/// Configuration space as files.
struct Folder {
    path: PathBuf,
    files: BTreeMap<PciAddress, Vec<u8>>,
}

impl Folder {
    fn open(path: PathBuf) -> Self {
        let known = names(&path).into_iter().filter_map(|name| {
            let address = name.replace(':', "--").parse().ok()?;
            Some((address, bytes(&path.join(name).join("config"))?))
        });
        let files = known.collect();
        Self { path, files }
    }

    fn of(&self, address: PciAddress) -> PathBuf {
        self.path.join(crate::names::address(address))
    }
}

impl ConfigSpace for Folder {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        let at = usize::from(offset);
        let bytes = self.files.get(&address).and_then(|bytes| bytes.get(at..at + 4));
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_le_bytes)
    }
}

fn device(config: &mut Folder, function: PciFunction) -> HostDevice {
    let address = function.address;
    let command = config.read(address, 4);
    let folder = config.of(address);
    HostDevice {
        function,
        bus_master: command != u32::MAX && command & BUS_MASTER != 0,
        driver: link(&folder.join("driver")),
        group: link(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
        ats: ats(config, address),
        removable: line(&folder.join("removable")),
    }
}

fn ats(config: &mut Folder, address: PciAddress) -> bool {
    let mut at: u16 = 0x100;
    for _ in 0..MAX_EXTENDED {
        let word = config.read(address, at);
        if word == 0 || word == u32::MAX {
            return false;
        }
        if word & 0xffff == ATS {
            let control = config.read(address, at + 4);
            return control != u32::MAX && control & ATS_ENABLE != 0;
        }
        at = u16::try_from(word >> 20 & 0xffc).unwrap_or(0);
        if at < 0x100 {
            return false;
        }
    }
    false
}

fn table(root: &Path) -> Option<(&'static str, Vec<u8>)> {
    let folder = root.join("sys/firmware/acpi/tables");
    ["DMAR", "IVRS"].into_iter().find_map(|name| Some((name, bytes(&folder.join(name))?)))
}

fn group_types(root: &Path) -> BTreeMap<u32, String> {
    let folder = root.join("sys/kernel/iommu_groups");
    let known = names(&folder)
        .into_iter()
        .filter_map(|name| Some((name.parse().ok()?, line(&folder.join(name).join("type"))?)));
    known.collect()
}

/// Linux names the chips of remapped interrupts `IR-…`.
fn interrupts(root: &Path) -> Option<bool> {
    let text = text(&root.join("proc/interrupts"))?;
    Some(text.split_whitespace().any(|word| word.starts_with("IR-")))
}

fn options(root: &Path) -> Vec<String> {
    let text = text(&root.join("proc/cmdline")).unwrap_or_default();
    let names = ["iommu", "intel_iommu", "amd_iommu", "intremap", "pci"];
    let wanted = |word: &&str| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        name.starts_with("iommu.")
            || names.contains(&name)
                && (name != "pci" || value.contains("acs") || value.contains("ats"))
    };
    text.split_whitespace().filter(wanted).map(str::to_owned).collect()
}

fn thunderbolt(root: &Path) -> Vec<(String, bool)> {
    let folder = root.join("sys/bus/thunderbolt/devices");
    let known = names(&folder).into_iter().filter_map(|name| {
        let protected = line(&folder.join(&name).join("iommu_dma_protection"))?;
        Some((name, protected == "1"))
    });
    known.collect()
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The last name of where a link points.
fn link(path: &Path) -> Option<String> {
    Some(printable(fs::read_link(path).ok()?.file_name()?.to_str()?))
}

fn line(path: &Path) -> Option<String> {
    Some(text(path)?.trim().to_owned())
}

fn text(path: &Path) -> Option<String> {
    Some(printable(&String::from_utf8(bytes(path)?).ok()?))
}

/// The content of a regular file, [`MOST`] bytes of it at most: the root may be anybody's.
fn bytes(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
