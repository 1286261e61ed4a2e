//! The unit's registers, looked at from outside of the server (VT-d 4.1 chapter 11).

use std::fs::{File, OpenOptions};

use anyhow::{Context, Result, ensure};

use crate::map::Mapping;

/// Global status register: GSTS_REG.
const GLOBAL_STATUS: usize = 0x1c;
/// GSTS_REG bit 31: translation is on.
const TRANSLATION_ON: u32 = 1 << 31;
/// Root table address register: RTADDR_REG.
const ROOT_TABLE: usize = 0x20;

/// The registers of the machine's unit.
pub(crate) struct Registers {
    /// Physical address of the first.
    pub(crate) base: u64,
    memory: Mapping,
}

impl Registers {
    /// Maps them.
    pub(crate) fn open() -> Result<Self> {
        let base = base()?;
        let memory = Mapping::new(&device_memory()?, base, 4096, true)?;
        Ok(Self { base, memory })
    }

    /// VER_REG: major version in bits 7:4, minor in 3:0.
    pub(crate) fn version(&self) -> Result<u32> {
        self.memory.read32(0)
    }

    /// CAP_REG.
    pub(crate) fn capabilities(&self) -> Result<u64> {
        self.memory.read64(8)
    }

    /// Whether translation is on.
    pub(crate) fn translates(&self) -> Result<bool> {
        Ok(self.memory.read32(GLOBAL_STATUS)? & TRANSLATION_ON != 0)
    }

    /// Physical address of the root table.
    pub(crate) fn root_table(&self) -> Result<u64> {
        Ok(self.memory.read64(ROOT_TABLE)? & !0xfff)
    }

    /// What software sets: global status, root table, fault and queue addresses and controls.
    pub(crate) fn state(&self) -> Result<Vec<(usize, u32)>> {
        // Not: IQH and IQT, which move with every invalidation, and the fault registers.
        [0x1c, 0x20, 0x24, 0x38, 0x3c, 0x40, 0x44, 0x90, 0x94, 0xa0, 0xa4, 0xa8, 0xac]
            .into_iter()
            .map(|offset| {
                let value = self.memory.read32(offset)?;
                // FECTL bit 30 says that an interrupt is pending: hardware's, not software's.
                Ok((offset, if offset == 0x38 { value & !(1 << 30) } else { value }))
            })
            .collect()
    }
}

fn device_memory() -> Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/mem").context("/dev/mem")
}

/// Register base of the first DRHD (VT-d 4.1 section 8.3): the DMAR header has 48 bytes, the structure's
/// type is 0, its base is at byte 8.
fn base() -> Result<u64> {
    let table = std::fs::read("/sys/firmware/acpi/tables/DMAR").context("DMAR")?;
    ensure!(table.get(..4) == Some(b"DMAR"), "bad signature");
    ensure!(table.get(48..50) == Some(&[0, 0]), "the first structure is not a DRHD");
    let base = table.get(56..64).context("the table is too short")?;
    Ok(u64::from_le_bytes(base.try_into()?))
}
