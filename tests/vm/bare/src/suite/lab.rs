//! Shared state of the checks: the unit, memory for tables, three edu devices, and helpers that check their DMA.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;
use iommu_protocol::wire::Access;
use iommud::addr::{Iova, IovaRange, PhysAddr};
use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::vtd::{SecondStage, VtdUnit};
use iommud::hw::{Entry, HardwareFault, Unit};
use iommud::topology::capabilities::{DomainTag, PageSizes, TableFormat, UnitCapabilities};

use crate::edu::Edu;
use crate::phys;
use crate::seams::{Frames, Registers, Time};

/// First byte of the memory for DMA.
pub const ARENA: u64 = 64 << 20;

/// A second page of that memory.
pub const OTHER: u64 = ARENA + (1 << 20);

/// Memory for superpages, 2 MiB.
pub const BIG: u64 = 96 << 20;

/// Content of pages before a DMA.
const MARK: u64 = 0x6d6d_6d6d_6d6d_6d6d;

/// Bytes of a DMA.
pub const LENGTH: u64 = 64;

/// Host address width of the machine in bits, from QEMU's DMAR.
pub const HOST_BITS: u8 = 39;

pub type TheUnit = VtdUnit<Registers, Time, Frames>;

pub struct Lab {
    pub base: u64,
    /// Whether the unit was started with caching-mode=on.
    pub caching: bool,
    pub memory: Frames,
    pub registers: Registers,
    pub unit: TheUnit,
    /// Each device's buffer is filled with `pattern` of its index.
    pub edu: Vec<Edu>,
}

/// An address space.
pub struct Space {
    pub tag: DomainTag,
    pub table: PageTable<SecondStage>,
}

pub const READ_WRITE: Access = Access::READ.union(Access::WRITE);

/// The content of edu device `index`'s buffer.
pub const fn pattern(index: usize) -> u64 {
    0xe000_e000_e000_e000 + index as u64 * 0x0101
}

pub fn words<E: core::fmt::Debug>(error: E) -> String {
    format!("{error:?}")
}

pub fn page(iova: u64) -> IovaRange {
    range(iova, 4096)
}

pub fn range(iova: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(iova), length).expect("a range of the suite's own making")
}

impl Lab {
    /// Fills the devices' buffers and brings the unit up.
    pub fn new(base: u64, caching: bool) -> Result<Self, String> {
        let edu: Vec<Edu> = Edu::all().collect();
        for (index, edu) in edu.iter().enumerate() {
            edu.load(ARENA, pattern(index));
        }
        let mut memory = Frames::new();
        let registers = Registers::new(base);
        let unit = VtdUnit::bring_up(registers.clone(), Time, &mut memory, HOST_BITS);
        Ok(Self { base, caching, unit: unit.map_err(words)?, memory, registers, edu })
    }

    /// Brings the unit up again, with every device blocked.
    pub fn restart(&mut self) -> Result<(), String> {
        let registers = self.registers.clone();
        self.unit =
            VtdUnit::bring_up(registers, Time, &mut self.memory, HOST_BITS).map_err(words)?;
        self.unit.enable(&mut self.memory).map_err(words)?;
        for index in 0..2 {
            self.write_entry(self.edu[index].id, Entry::Blocked)?;
            self.invalidate_entry(self.edu[index].id, None)?;
        }
        Ok(())
    }

    /// Creates a space without mappings.
    pub fn space(&mut self, tag: u16) -> Result<Space, String> {
        let UnitCapabilities { page_sizes, coherent, forces_snoop, .. } = self.unit.capabilities();
        let format = TableFormat { levels: 3, page_sizes, coherent, forces_snoop };
        let table = PageTable::new(&mut self.memory, format);
        Ok(Space { tag: DomainTag(tag), table: table.map_err(words)? })
    }

    /// Creates a space like [`Lab::space`], with 4 KiB pages only.
    pub fn small_page_space(&mut self, tag: u16) -> Result<Space, String> {
        let UnitCapabilities { forces_snoop, .. } = self.unit.capabilities();
        let page_sizes = PageSizes::SIZE_4K;
        let format = TableFormat { levels: 3, page_sizes, coherent: false, forces_snoop };
        let table = PageTable::new(&mut self.memory, format).map_err(words)?;
        Ok(Space { tag: DomainTag(tag), table })
    }

    /// Maps and publishes a range.
    pub fn map(
        &mut self,
        space: &mut Space,
        range: IovaRange,
        phys: u64,
        access: Access,
    ) -> Result<(), String> {
        space.table.map(&mut self.memory, range, PhysAddr(phys), access).map_err(words)?;
        self.unit.publish_pages(&mut self.memory, space.tag, range).map_err(words)
    }

    /// Only removes translations from the tables.
    pub fn unmap_only(&mut self, space: &mut Space, range: IovaRange) -> Result<Detached, String> {
        let mut detached = Detached::new();
        space.table.unmap(&mut self.memory, range, &mut detached).map_err(words)?;
        Ok(detached)
    }

    /// Invalidates the translations in `detached`, and frees its tables.
    pub fn finish_unmap(&mut self, space: &Space, mut detached: Detached) -> Result<(), String> {
        if let Some(stale) = detached.stale() {
            let freed = detached.tables_freed();
            self.unit.invalidate_pages(&mut self.memory, space.tag, stale, freed).map_err(words)?;
        }
        PageTable::<SecondStage>::release(&mut self.memory, &mut detached);
        Ok(())
    }

    /// Unmaps and invalidates a range, and frees its tables.
    pub fn unmap(&mut self, space: &mut Space, range: IovaRange) -> Result<(), String> {
        let detached = self.unmap_only(space, range)?;
        self.finish_unmap(space, detached)
    }

    /// Only writes an entry.
    pub fn write_entry(&mut self, source: RequesterId, entry: Entry) -> Result<(), String> {
        self.unit.write_entry(&mut self.memory, source, entry).map_err(words)
    }

    pub fn suppress_faults(&mut self, source: RequesterId, silent: bool) -> Result<(), String> {
        self.unit.suppress_faults(&mut self.memory, source, silent).map_err(words)
    }

    pub fn invalidate_entry(
        &mut self,
        source: RequesterId,
        old: Option<DomainTag>,
    ) -> Result<(), String> {
        self.unit.invalidate_entry(&mut self.memory, source, old).map_err(words)
    }

    /// Attaches a blocked device to a space.
    pub fn attach(&mut self, source: RequesterId, space: &Space) -> Result<(), String> {
        self.write_entry(source, entry(space))?;
        self.invalidate_entry(source, None)
    }

    /// Blocks a device that was attached to a space.
    pub fn detach(&mut self, source: RequesterId, space: &Space) -> Result<(), String> {
        self.write_entry(source, Entry::Blocked)?;
        self.invalidate_entry(source, Some(space.tag))
    }

    /// Frees a space's tables. No device may be attached to it.
    pub fn destroy(&mut self, space: Space) {
        space.table.destroy(&mut self.memory);
    }

    /// Takes all waiting faults.
    pub fn faults(&mut self) -> Result<Vec<HardwareFault>, String> {
        let mut all = Vec::new();
        self.unit.take_faults(&mut self.memory, 16, &mut |fault| all.push(fault)).map_err(words)?;
        Ok(all)
    }

    /// Fails unless exactly this fault is waiting.
    pub fn expect_fault(
        &mut self,
        source: RequesterId,
        address: u64,
        access: FaultAccess,
        reason: u16,
    ) -> Result<(), String> {
        let all = self.faults()?;
        let [fault] = all.as_slice() else {
            return Err(format!("one fault expected at {address:#x}, but {all:?}"));
        };
        let seen = (fault.source, fault.address, fault.access, fault.reason);
        if seen == (source, Some(Iova(address)), access, reason) {
            Ok(())
        } else {
            Err(format!("{source:?} {address:#x} {access:?} {reason} expected, but {fault:?}"))
        }
    }

    /// Fails if any fault is waiting.
    pub fn expect_no_fault(&mut self) -> Result<(), String> {
        let all = self.faults()?;
        if all.is_empty() { Ok(()) } else { Err(format!("no fault expected, but {all:?}")) }
    }

    /// Lets edu device `index` write its pattern at `iova`. Returns whether the pattern arrived at `phys`.
    pub fn arrives(&self, index: usize, iova: u64, phys: u64) -> Result<bool, String> {
        phys::fill(phys, LENGTH, MARK);
        self.edu[index].write_memory(iova, LENGTH);
        if phys::is_filled(phys, LENGTH, pattern(index)) {
            Ok(true)
        } else if phys::is_filled(phys, LENGTH, MARK) {
            Ok(false)
        } else {
            Err(format!("{phys:#x} holds {:#x}, which nobody wrote", phys::read64(phys)))
        }
    }
}

/// Returns the entry that attaches a device to a space.
pub fn entry(space: &Space) -> Entry {
    let (root, levels) = (space.table.root(), space.table.levels());
    Entry::Translate { tag: space.tag, root, levels }
}
