//! The unit's registers, observed independently of the server: VT-d (VT-d 4.1 chapter 11) or AMD-Vi (48882 section
//! 3.4).

use std::fs::{File, OpenOptions};

use anyhow::{Context, Result, ensure};

use crate::map::Mapping;
use crate::memory::ServerMemory;

/// VT-d global status register: GSTS_REG.
const GLOBAL_STATUS: usize = 0x1c;
/// GSTS_REG bit 31: translation is on.
const TRANSLATION_ON: u32 = 1 << 31;
/// VT-d global command register: GCMD_REG.
const GLOBAL_COMMAND: usize = 0x18;
/// GCMD_REG and GSTS_REG bit 26: the queue of invalidations.
const QUEUE_ON: u32 = 1 << 26;
/// Bits of GSTS_REG that a write of GCMD_REG keeps (VT-d 4.1 section 11.4.4: all but the one-shot commands).
const LASTING: u32 = 0x96ff_ffff;
/// VT-d root table address register: RTADDR_REG.
const ROOT_TABLE: usize = 0x20;

/// AMD-Vi device table base address register.
const DEVICE_TABLE: usize = 0;
/// AMD-Vi control register; bit 0 is IommuEn.
const CONTROL: usize = 0x18;
/// AMD-Vi command buffer base address register.
const COMMAND_BUFFER: usize = 8;

/// Bits 51:12 of an address register or table entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A family of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// VT-d, described by a DMAR.
    Vtd,
    /// AMD-Vi, described by an IVRS.
    AmdVi,
}

impl Family {
    /// The family of the machine's unit.
    pub(crate) fn of_machine() -> Self {
        let ivrs = std::fs::exists("/sys/firmware/acpi/tables/IVRS").unwrap_or(false);
        if ivrs { Self::AmdVi } else { Self::Vtd }
    }

    /// The table's signature, and iommud's name for the family.
    pub(crate) const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Vtd => ("DMAR", "vt-d"),
            Self::AmdVi => ("IVRS", "amd-vi"),
        }
    }

    /// Register base of the table's first unit.
    fn base(self) -> Result<u64> {
        let signature = self.names().0;
        let table = std::fs::read(format!("/sys/firmware/acpi/tables/{signature}"));
        let table = table.context(signature)?;
        ensure!(table.get(..4) == Some(signature.as_bytes()), "bad signature");
        // Both headers have 48 bytes, and both structures have the base at byte 8: DRHD (VT-d 4.1 section 8.3), IVHD
        // of type 10h, 11h or 40h (48882 section 5.2.2.1).
        let kind = table.get(48).copied();
        let known = match self {
            Self::Vtd => kind == Some(0) && table.get(49) == Some(&0),
            Self::AmdVi => matches!(kind, Some(0x10 | 0x11 | 0x40)),
        };
        ensure!(known, "the first structure of {signature} is not a unit: {kind:?}");
        let base = table.get(56..64).context("the table is too short")?;
        Ok(u64::from_le_bytes(base.try_into()?))
    }
}

/// The registers of the machine's unit.
pub(crate) struct Registers {
    /// Physical address of the first register.
    pub(crate) base: u64,
    family: Family,
    memory: Mapping,
}

impl Registers {
    /// Maps the registers.
    pub(crate) fn open() -> Result<Self> {
        let family = Family::of_machine();
        let base = family.base()?;
        let memory = Mapping::new(&device_memory()?, base, 4096, true)?;
        Ok(Self { base, family, memory })
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
        Ok(match self.family {
            Family::Vtd => self.memory.read32(GLOBAL_STATUS)? & TRANSLATION_ON != 0,
            Family::AmdVi => self.memory.read32(CONTROL)? & 1 != 0,
        })
    }

    /// Has the unit carry out no command that comes. VT-d: its queue is switched off. AMD-Vi: its ring is elsewhere, at
    /// `empty`, a page of zeros; a ring that is switched off the server starts again by itself.
    pub(crate) fn stop_queue(&self, empty: u64) -> Result<()> {
        match self.family {
            Family::Vtd => {
                let state = self.memory.read32(GLOBAL_STATUS)? & LASTING;
                self.memory.write32(GLOBAL_COMMAND, state & !QUEUE_ON)
            }
            Family::AmdVi => {
                let buffer = self.memory.read64(COMMAND_BUFFER)?;
                self.memory.write64(COMMAND_BUFFER, buffer & !ADDRESS | empty)
            }
        }
    }

    /// Physical address of the root table or the device table.
    pub(crate) fn root_table(&self) -> Result<u64> {
        let register = match self.family {
            Family::Vtd => ROOT_TABLE,
            Family::AmdVi => DEVICE_TABLE,
        };
        Ok(self.memory.read64(register)? & ADDRESS)
    }

    /// Returns the tables used for device `slot`, function 0, on bus 0, down to the root of its page table: name and
    /// address of each.
    pub(crate) fn tables_of(
        &self,
        memory: &ServerMemory,
        slot: u8,
    ) -> Result<Vec<(&'static str, u64)>> {
        let (root, function) = (self.root_table()?, u64::from(slot) << 3);
        Ok(match self.family {
            Family::Vtd => {
                let context = memory.word(root)? & ADDRESS;
                // Context entry: the page table's root in bits 63:12 of the first word.
                let pages = memory.word(context + function * 16)? & ADDRESS;
                vec![("root table", root), ("context table", context), ("page table", pages)]
            }
            Family::AmdVi => {
                // Device table entry: the page table's root in bits 51:12 of the first word.
                let pages = memory.word(root + function * 32)? & ADDRESS;
                vec![("device table", root), ("page table", pages)]
            }
        })
    }

    /// Reads the registers that software sets: controls, tables and rings.
    pub(crate) fn state(&self) -> Result<Vec<(usize, u32)>> {
        // Leaves out heads and tails, which move with every invalidation, and the fault registers.
        let registers: &[usize] = match self.family {
            Family::Vtd => {
                &[0x1c, 0x20, 0x24, 0x38, 0x3c, 0x40, 0x44, 0x90, 0x94, 0xa0, 0xa4, 0xa8, 0xac]
            }
            Family::AmdVi => &[
                0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x38, 0x3c,
            ],
        };
        let read = |offset: &usize| {
            let value = self.memory.read32(*offset)?;
            // FECTL bit 30 shows a pending interrupt. Hardware sets it, not software.
            let pending = self.family == Family::Vtd && *offset == 0x38;
            Ok((*offset, if pending { value & !(1 << 30) } else { value }))
        };
        registers.iter().map(read).collect()
    }
}

fn device_memory() -> Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/mem").context("/dev/mem")
}
