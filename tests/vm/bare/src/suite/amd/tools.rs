//! Shared functions of the checks of the AMD-Vi unit.

use super::*;

pub(super) fn discover(info: &StartInfo) -> Result<(UnitDescription, Capability), String> {
    let bytes = table::<Ivrs>(info.rsdp).ok_or("no IVRS")?;
    let firmware = acpi::parse_ivrs(&bytes).map_err(|error| format!("IVRS: {error:?}"))?;
    let [unit] = &firmware.units[..] else {
        return Err(format!("{} units", firmware.units.len()));
    };
    let UnitKind::AmdVi { function, capability, .. } = unit.kind else {
        return Err("not AMD-Vi".into());
    };
    let address = PciAddress { segment: unit.segment, requester: function };
    let block = Capability::read(&mut Configuration, address, capability)
        .ok_or("the unit's function does not answer")?;
    Ok((unit.clone(), block))
}

pub(super) fn new_unit(
    description: &UnitDescription,
    capability: Capability,
    memory: &mut Frames,
) -> Result<TestUnit, String> {
    let base = description.base().ok_or("no registers")?.0;
    TestUnit::bring_up(Registers::new(base), Time, memory, description, Some(capability))
        .map_err(|error| format!("{error}"))
}

pub(super) fn range(iova: u64, length: u64) -> Result<IovaRange, String> {
    IovaRange::new(Iova(iova), length).ok_or_else(|| "bad range".into())
}

/// Whether a write of the device at `iova` changes the memory at `phys`.
pub(super) fn writes(edu: Edu, iova: u64, phys: u64) -> bool {
    phys::fill(phys, 4096, !PATTERN);
    edu.write_memory(iova, MAX_COUNT);
    !phys::is_filled(phys, 4096, !PATTERN)
}

/// Whether a read of the device at `iova` returns the content of the memory at `phys`. The device then copies its
/// data to the window, which every page table maps.
pub(super) fn reads(edu: Edu, iova: u64, phys: u64) -> bool {
    phys::fill(WINDOW, 4096, !PATTERN);
    edu.read_memory(WINDOW_IOVA, MAX_COUNT);
    phys::fill(phys, 4096, PATTERN);
    edu.read_memory(iova, MAX_COUNT);
    edu.write_memory(WINDOW_IOVA, MAX_COUNT);
    phys::is_filled(WINDOW, MAX_COUNT, PATTERN)
}

/// Whether the device can read and write the memory at `phys` through `iova`.
pub(super) fn reaches(edu: Edu, iova: u64, phys: u64) -> bool {
    reads(edu, iova, phys) && writes(edu, iova, phys)
}

/// Whether the device can neither read nor write the memory at `phys` through `iova`.
pub(super) fn denied(edu: Edu, iova: u64, phys: u64) -> bool {
    !reads(edu, iova, phys) && !writes(edu, iova, phys)
}

impl Suite {
    pub(super) fn registers(&self) -> Registers {
        Registers::new(self.description.base().map_or(0, |base| base.0))
    }

    pub(super) fn edu(&self) -> Result<Edu, String> {
        self.edus.last().copied().ok_or_else(|| "no edu device".into())
    }

    pub(super) fn table(&mut self, levels: u8, sizes: PageSizes) -> Result<Table, String> {
        let UnitCapabilities { coherent, forces_snoop, .. } = self.unit.capabilities();
        let format = TableFormat { levels, page_sizes: sizes, coherent, forces_snoop };
        let mut table = Table::new(&mut self.memory, format).map_err(|error| format!("{error}"))?;
        self.map(&mut table, WINDOW_IOVA, WINDOW, 4096, READ_WRITE)?;
        Ok(table)
    }

    pub(super) fn map(
        &mut self,
        table: &mut Table,
        iova: u64,
        phys: u64,
        length: u64,
        access: Access,
    ) -> Result<(), String> {
        table
            .map(&mut self.memory, range(iova, length)?, PhysAddr(phys), access)
            .map_err(|error| format!("{error}"))
    }

    pub(super) fn write(&mut self, source: RequesterId, entry: Entry) -> Result<(), String> {
        self.unit.write_entry(&mut self.memory, source, entry).map_err(|error| format!("{error}"))
    }

    pub(super) fn suppress_faults(
        &mut self,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), String> {
        self.unit
            .suppress_faults(&mut self.memory, source, silent)
            .map_err(|error| format!("{error}"))
    }

    pub(super) fn forget(
        &mut self,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), String> {
        self.unit
            .invalidate_entry(&mut self.memory, source, old)
            .map_err(|error| format!("{error}"))
    }

    pub(super) fn attach(&mut self, edu: Edu, table: &Table, tag: DomainTag) -> Result<(), String> {
        let entry = Entry::Translate { tag, root: table.root(), levels: table.levels() };
        self.write(edu.id, entry)?;
        self.forget(edu.id, None)
    }

    pub(super) fn detach(&mut self, edu: Edu, tag: DomainTag) -> Result<(), String> {
        self.write(edu.id, Entry::Blocked)?;
        self.forget(edu.id, Some(tag))
    }

    /// Takes all waiting faults. Returns their number and the number lost.
    pub(super) fn take(&mut self) -> (usize, u32) {
        self.faults.clear();
        let faults = &mut self.faults;
        let taken = self.unit.take_faults(&mut self.memory, usize::MAX, &mut |fault| {
            faults.push(fault);
        });
        self.lost = taken.unwrap_or(u32::MAX);
        (self.faults.len(), self.lost)
    }
}
