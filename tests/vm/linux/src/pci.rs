//! PCI functions through sysfs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::map::Mapping;

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// The kernel's name for it, like `0000:00:04.0`.
    pub(crate) name: String,
}

/// Offset of the command register (PCI Local Bus 3.0 section 6.2.2).
const COMMAND: u64 = 4;
/// Command register: respond to memory accesses.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command register: DMA enabled.
const BUS_MASTER: u16 = 1 << 2;

impl Function {
    /// Finds every function with this vendor and device id, by address.
    pub(crate) fn find(vendor: u16, device: u16) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/bus/pci/devices").context("listing PCI functions")? {
            let function = Self { name: entry?.file_name().to_string_lossy().into_owned() };
            if function.id("vendor")? == vendor && function.id("device")? == device {
                found.push(function);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Returns the function with this iommud name.
    pub(crate) fn from_scheme_name(name: &str) -> Self {
        Self { name: name.replace("--", ":") }
    }

    /// iommud's name for it, like `0000--00--04.0`.
    pub(crate) fn scheme_name(&self) -> String {
        self.name.replace(':', "--")
    }

    /// Returns the path of one of the function's files in sysfs.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        PathBuf::from("/sys/bus/pci/devices").join(&self.name).join(file)
    }

    fn id(&self, file: &str) -> Result<u16> {
        let text = std::fs::read_to_string(self.path(file)).context("reading an id")?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).context("parsing an id")
    }

    /// Whether a kernel driver is bound.
    pub(crate) fn has_driver(&self) -> bool {
        self.path("driver").exists()
    }

    fn config(&self, write: bool) -> Result<File> {
        let path = self.path("config");
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// The command register.
    pub(crate) fn command(&self) -> Result<u16> {
        let mut bytes = [0; 2];
        self.config(false)?.read_exact_at(&mut bytes, COMMAND).context("reading COMMAND")?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Enables memory accesses of the function, and its DMA if `bus_master`.
    pub(crate) fn enable(&self, bus_master: bool) -> Result<()> {
        let command = self.command()? & !BUS_MASTER | MEMORY_SPACE;
        let command = if bus_master { command | BUS_MASTER } else { command };
        self.config(true)?.write_all_at(&command.to_le_bytes(), COMMAND).context("writing COMMAND")
    }

    /// Maps the start of a BAR.
    pub(crate) fn bar(&self, index: u8, length: usize) -> Result<Mapping> {
        let path = self.path(&format!("resource{index}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        Mapping::new(&file, 0, length, true)
    }
}
