//! The checks of AMD-Vi: iommud's unit on QEMU's amd-iommu, observed through edu devices.

mod depth;
mod tools;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::Access;
use iommud::acpi;
use iommud::addr::{Iova, IovaRange, PhysAddr};
use iommud::hw::amdvi::{AmdFormat, AmdUnit, Capability};
use iommud::hw::page_table::{Detached, PageTable};
use iommud::hw::{Entry, HardwareFault, RegisterIo, TableMemory, Unit};
use iommud::topology::capabilities::{
    DomainTag, LevelSet, PageSizes, TableFormat, UnitCapabilities,
};
use iommud::topology::firmware::{UnitDescription, UnitKind};
use iommud::topology::pci::ConfigSpace;

use super::{Outcome, Tally, ensure};
use crate::edu::{Edu, MAX_COUNT};
use crate::firmware::{Ivrs, StartInfo, table};
use crate::seams::{Frames, Registers, Time};
use crate::{cpu, pci, phys, println};
use tools::{denied, discover, new_unit, range, reaches, reads, writes};

type TestUnit = AmdUnit<Registers, Time, Frames>;
type Table = PageTable<AmdFormat>;

/// Memory granted to devices, and memory that is not.
const GRANTED: u64 = 64 << 20;
const OTHERS: u64 = 80 << 20;
/// Memory to which a device copies the data that it has read, and its address in every page table.
const WINDOW: u64 = 96 << 20;
const WINDOW_IOVA: u64 = 0xf000_0000;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;
const TAG: DomainTag = DomainTag(0x1234);
const READ_WRITE: Access = Access::READ.union(Access::WRITE);

/// Configuration space, all on segment 0 and below offset 256.
struct Configuration;

impl ConfigSpace for Configuration {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        match u8::try_from(offset) {
            Ok(offset) if address.segment == 0 => pci::read(address.requester, offset),
            _ => u32::MAX,
        }
    }
}

/// State shared by the checks.
struct Suite {
    memory: Frames,
    description: UnitDescription,
    capability: Capability,
    unit: TestUnit,
    edus: Vec<Edu>,
    /// The faults taken last.
    faults: Vec<HardwareFault>,
    lost: u32,
}

/// Runs every check from number 4 on.
pub fn run(info: &StartInfo, tally: &mut Tally) {
    let mut found = None;
    tally.check(|| {
        let (description, capability) = discover(info)?;
        let detail = format!("{:?}, {:?}", description.registers, description.kind);
        found = Some((description, capability));
        Ok(detail)
    });
    let Some((description, capability)) = found else { return };
    let mut suite = None;
    tally.check(|| {
        let (fresh, detail) = Suite::bring_up(description, capability)?;
        suite = Some(fresh);
        Ok(detail)
    });
    let Some(mut suite) = suite else { return };
    for check in [
        Suite::enables,
        Suite::blocks,
        Suite::tells_who,
        Suite::translates,
        Suite::uses_every_level_and_size,
        Suite::becomes_deeper,
        Suite::keeps_permissions,
        Suite::needs_invalidation,
        Suite::moves_between_domains,
        Suite::lets_through,
        Suite::silences,
        Suite::survives_a_full_log,
        Suite::is_taken_over,
        Suite::counts,
    ] {
        tally.check(|| check(&mut suite));
    }
}

impl Suite {
    fn bring_up(
        description: UnitDescription,
        capability: Capability,
    ) -> Result<(Self, String), String> {
        let mut memory = Frames::new();
        let base = description.base().ok_or("no registers")?.0;
        let edus: Vec<Edu> = Edu::all().collect();
        ensure!(edus.iter().any(|edu| edu.id.0 >= 256), "no edu device on another bus");
        let start = cpu::instructions();
        let unit = new_unit(&description, capability, &mut memory)?;
        let spent = cpu::instructions() - start;
        let mut registers = Registers::new(base);
        let control = registers.read64(0x18);
        // Coherent, CmdBufEn, EventLogEn, PprLogEn, PprEn, and any flags of the IVHD, but not IommuEn.
        ensure!(control & 0xb405 == 0xb404, "control {control:#x}");
        let device_table = registers.read64(0);
        ensure!(device_table & 0xfff == 0x1ff, "device table {device_table:#x}");
        for source in 0..=u16::MAX {
            let at = (device_table & !0xfff) + 32 * u64::from(source);
            let word = phys::read64(at);
            ensure!(word & 0x6000_0000_0000_0003 == 3, "entry {source:#x} is {word:#x}");
        }
        for edu in &edus {
            ensure!(
                writes(*edu, GRANTED, GRANTED),
                "{:?} is cut off before the unit is on",
                edu.id
            );
        }
        let detail = format!("bring-up takes {spent} instructions");
        let suite =
            Self { memory, description, capability, unit, edus, faults: Vec::new(), lost: 0 };
        Ok((suite, detail))
    }

    /// Blocks every responding function, then enables the unit.
    fn enables(&mut self) -> Outcome {
        let functions: Vec<_> =
            (0..0x400).map(RequesterId).filter(|id| pci::read(*id, 0) != u32::MAX).collect();
        for function in &functions {
            self.write(*function, Entry::Blocked)?;
        }
        self.unit.enable(&mut self.memory).map_err(|error| format!("{error}"))?;
        let mut registers = self.registers();
        let status = registers.read64(0x2020);
        ensure!(registers.read64(0x18) & 1 == 1, "the unit is off");
        ensure!(status & 0x18 == 0x18, "status {status:#x}");
        Ok(format!("{} functions", functions.len()))
    }

    fn blocks(&mut self) -> Outcome {
        for edu in self.edus.clone() {
            ensure!(!writes(edu, GRANTED, GRANTED), "{:?} reaches memory", edu.id);
        }
        self.take();
        Ok(format!("{} devices", self.edus.len()))
    }

    /// A fault names its source and code, like the raw record. Fields that QEMU's records lack are not checked. Up to
    /// 11.1 the address and the source's bus are 0, and access bits are in the wrong place.
    fn tells_who(&mut self) -> Outcome {
        let (mut addresses, mut buses) = (0, 0);
        for edu in self.edus.clone() {
            let mut registers = self.registers();
            let at = (registers.read64(0x10) & 0x000f_ffff_ffff_f000) + registers.read64(0x2018);
            edu.write_memory(OTHERS + 0x120, 4);
            let (first, second) = (phys::read64(at), phys::read64(at + 8));
            let (faults, lost) = self.take();
            ensure!(lost == 0 && faults == 1, "{faults} faults, {lost} lost");
            let fault = self.faults.first().ok_or("no fault")?;
            ensure!((fault.reason, first >> 60) == (2, 2), "code {}", fault.reason);
            let source = u64::from(fault.source.0);
            ensure!(source == first & 0xffff, "{source:#x} in {first:#x}");
            match source ^ u64::from(edu.id.0) {
                0 => {}
                bus if bus & 0xff == 0 && source >> 8 == 0 => buses += 1,
                _ => return Err(format!("{:?} for {:?}", fault.source, edu.id)),
            }
            if second == 0 {
                addresses += 1;
                ensure!(fault.address.is_none(), "made an address up: {:?}", fault.address);
            } else {
                ensure!(second == OTHERS + 0x120, "the record has address {second:#x}");
                ensure!(fault.address == Some(Iova(second)), "{:?}", fault.address);
            }
        }
        ensure!(buses < self.edus.len(), "no record has a source");
        if addresses > 0 {
            println!("@@unchecked address and access of a fault: the emulator's records have none");
        }
        if buses > 0 {
            println!("@@unchecked bus of a fault's source: the emulator's records have none");
        }
        let words = self.faults.first().map_or("", |fault| fault.words);
        Ok(format!("{} devices, {words:?}", self.edus.len()))
    }

    fn translates(&mut self) -> Outcome {
        let mut table = self.table(4, PageSizes::SIZE_4K)?;
        self.map(&mut table, 0x1_0000, GRANTED, 0x2000, READ_WRITE)?;
        for edu in self.edus.clone() {
            self.attach(edu, &table, TAG)?;
            ensure!(reaches(edu, 0x1_0000, GRANTED), "{:?} does not reach its memory", edu.id);
            ensure!(denied(edu, GRANTED, GRANTED), "{:?} reaches the bus address", edu.id);
            ensure!(denied(edu, 0x1_2000, OTHERS), "{:?} reaches beyond its memory", edu.id);
            self.detach(edu, TAG)?;
            ensure!(!writes(edu, 0x1_0000, GRANTED), "{:?} reaches memory once detached", edu.id);
        }
        table.destroy(&mut self.memory);
        self.take();
        Ok(format!("{} devices", self.edus.len()))
    }

    fn uses_every_level_and_size(&mut self) -> Outcome {
        let edu = self.edu()?;
        let supported = self.unit.capabilities().levels;
        let mut tried = 0;
        for levels in 3..=6u8 {
            if !supported.contains(LevelSet::from_bits_retain(1 << levels)) {
                continue;
            }
            for (sizes, length) in [
                (PageSizes::SIZE_4K, 4096),
                // 64 KiB take 16 equal entries; 8 MiB take 4.
                (PageSizes::SIZE_4K, 64 << 10),
                (PageSizes::SIZE_2M, 2 << 20),
                (PageSizes::SIZE_2M, 8 << 20),
                (PageSizes::SIZE_1G, 1 << 30),
            ] {
                let mut table = self.table(levels, sizes)?;
                let frames = self.memory.frames_in_use();
                // The memory starts at a multiple of the size: 64 MiB, or 0 for 1 GiB.
                let phys = GRANTED & !(length - 1);
                self.map(&mut table, 0x8000_0000, phys, length, READ_WRITE)?;
                let tables = self.memory.frames_in_use() - frames;
                // The window's mapping has already created the upper tables.
                let expected = 3 - length.ilog2() as usize / 9;
                ensure!(tables == expected, "{tables} tables at {levels} levels for {length:#x}");
                self.attach(edu, &table, TAG)?;
                let iova = 0x8000_0000 + (GRANTED - phys);
                ensure!(reaches(edu, iova, GRANTED), "{levels} levels, {length:#x}");
                if phys == GRANTED {
                    let end = length - 4096;
                    ensure!(
                        reaches(edu, iova + end, phys + end),
                        "{levels} levels, {length:#x}: end"
                    );
                }
                self.detach(edu, TAG)?;
                table.destroy(&mut self.memory);
                tried += 1;
            }
        }
        ensure!(tried >= 10, "{tried} combinations");
        Ok(format!("{tried} combinations of depth and size"))
    }

    fn keeps_permissions(&mut self) -> Outcome {
        let edu = self.edu()?;
        let mut table = self.table(4, PageSizes::SIZE_4K)?;
        self.map(&mut table, 0x1_0000, GRANTED, 0x1000, Access::READ)?;
        self.map(&mut table, 0x1_1000, GRANTED + 0x1000, 0x1000, Access::WRITE)?;
        self.attach(edu, &table, TAG)?;
        ensure!(reads(edu, 0x1_0000, GRANTED), "cannot read what is readable");
        ensure!(!writes(edu, 0x1_0000, GRANTED), "writes what is readable");
        ensure!(writes(edu, 0x1_1000, GRANTED + 0x1000), "cannot write what is writable");
        ensure!(!reads(edu, 0x1_1000, GRANTED + 0x1000), "reads what is writable");
        self.detach(edu, TAG)?;
        table.destroy(&mut self.memory);
        self.take();
        Ok("read-only, write-only".into())
    }

    /// The unit caches translations: without the invalidation the device keeps its access.
    fn needs_invalidation(&mut self) -> Outcome {
        let edu = self.edu()?;
        let mut table = self.table(4, PageSizes::all())?;
        self.map(&mut table, 0x1_0000, GRANTED, 0x2000, READ_WRITE)?;
        self.attach(edu, &table, TAG)?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "does not reach its memory");
        let range = range(0x1_0000, 0x1000)?;
        let mut detached = Detached::new();
        table.unmap(&mut self.memory, range, &mut detached).map_err(|error| format!("{error}"))?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "nothing is cached: the check shows nothing");
        self.unit
            .invalidate_pages(
                &mut self.memory,
                TAG,
                detached.around(range),
                detached.tables_freed(),
            )
            .map_err(|error| format!("{error}"))?;
        Table::release(&mut self.memory, &mut detached);
        ensure!(denied(edu, 0x1_0000, GRANTED), "reaches memory after the invalidation");
        ensure!(reaches(edu, 0x1_1000, GRANTED + 0x1000), "lost the other page");
        self.detach(edu, TAG)?;
        table.destroy(&mut self.memory);
        self.take();
        Ok("stale until invalidated, and not after".into())
    }

    fn moves_between_domains(&mut self) -> Outcome {
        let edu = self.edu()?;
        let (mut first, mut second) =
            (self.table(4, PageSizes::all())?, self.table(3, PageSizes::all())?);
        self.map(&mut first, 0x1_0000, GRANTED, 0x1000, READ_WRITE)?;
        self.map(&mut second, 0x1_0000, OTHERS, 0x1000, READ_WRITE)?;
        self.attach(edu, &first, TAG)?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "does not reach the first");
        self.detach(edu, TAG)?;
        self.attach(edu, &second, DomainTag(7))?;
        phys::fill(GRANTED, 4096, 0);
        ensure!(reaches(edu, 0x1_0000, OTHERS), "does not reach the second");
        ensure!(phys::is_filled(GRANTED, 4096, 0), "still reaches the first");
        self.detach(edu, DomainTag(7))?;
        first.destroy(&mut self.memory);
        second.destroy(&mut self.memory);
        self.take();
        Ok("same address, other memory".into())
    }

    fn lets_through(&mut self) -> Outcome {
        let edu = self.edu()?;
        self.write(edu.id, Entry::PassThrough { tag: DomainTag(9) })?;
        self.forget(edu.id, None)?;
        ensure!(writes(edu, GRANTED, GRANTED), "is not let through");
        self.detach(edu, DomainTag(9))?;
        ensure!(!writes(edu, GRANTED, GRANTED), "is still let through");
        self.take();
        Ok("pass-through and back".into())
    }

    fn silences(&mut self) -> Outcome {
        let edu = self.edu()?;
        self.suppress_faults(edu.id, true)?;
        self.forget(edu.id, None)?;
        ensure!(!writes(edu, GRANTED, GRANTED), "a silenced device reaches memory");
        let (faults, _) = self.take();
        if faults > 0 {
            println!("@@unchecked silence: the emulator knows no suppression of faults");
        }
        self.detach(edu, TAG)?;
        ensure!(!writes(edu, GRANTED, GRANTED), "reaches memory");
        let (after, _) = self.take();
        ensure!(after > 0, "no faults once it is not silenced");
        Ok(format!("{faults} faults while silenced, {after} after"))
    }

    /// The emulator logs one event for every 4 bytes: 1022 for a DMA, which are reported as one fault.
    fn survives_a_full_log(&mut self) -> Outcome {
        let edu = self.edu()?;
        for _ in 0..5 {
            edu.write_memory(GRANTED, MAX_COUNT);
        }
        let mut registers = self.registers();
        let [head, tail] = [0x2010, 0x2018].map(|at| registers.read64(at));
        let used = tail.wrapping_sub(head) % (4096 * 16) / 16;
        ensure!(used == 4095, "{used} events in the log");
        let (faults, lost) = self.take();
        ensure!(faults >= 1 && lost >= 1, "{faults} faults, {lost} lost");
        // Continues around the end of the log.
        for round in 0..5 {
            edu.write_memory(GRANTED, MAX_COUNT);
            let (faults, lost) = self.take();
            ensure!((faults, lost) == (1, 0), "round {round}: {faults} faults, {lost} lost");
        }
        Ok("4095 events, more lost and said so; then five times 1022".into())
    }

    /// A second owner finds the unit enabled. The first owner's table stays in force until the second one enables its
    /// own, and some table is in force always.
    fn is_taken_over(&mut self) -> Outcome {
        let edu = self.edu()?;
        let mut table = self.table(4, PageSizes::all())?;
        self.map(&mut table, 0x1_0000, GRANTED, 0x1000, READ_WRITE)?;
        self.attach(edu, &table, TAG)?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "does not reach its memory");
        let mut unit = new_unit(&self.description, self.capability, &mut self.memory)?;
        ensure!(self.registers().read64(0x18) & 1 == 1, "the unit was turned off");
        ensure!(reaches(edu, 0x1_0000, GRANTED), "the first owner's device is cut off");
        ensure!(denied(edu, OTHERS, OTHERS), "the unit is open");
        let mut own = self.table(4, PageSizes::all())?;
        self.map(&mut own, 0x2_0000, OTHERS, 0x1000, READ_WRITE)?;
        let entry = Entry::Translate { tag: DomainTag(3), root: own.root(), levels: own.levels() };
        unit.write_entry(&mut self.memory, edu.id, entry).map_err(|error| format!("{error}"))?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "the first owner's device is cut off too early");
        unit.enable(&mut self.memory).map_err(|error| format!("{error}"))?;
        self.unit = unit;
        ensure!(denied(edu, 0x1_0000, GRANTED), "the first owner's table still rules");
        ensure!(reaches(edu, 0x2_0000, OTHERS), "the second owner's device reaches nothing");
        let (faults, _) = self.take();
        ensure!(faults > 0, "no faults reach the second owner");
        self.detach(edu, DomainTag(3))?;
        table.destroy(&mut self.memory);
        own.destroy(&mut self.memory);
        Ok(format!("{faults} faults went to the second owner"))
    }

    fn counts(&mut self) -> Outcome {
        let range = range(0x1_0000, 0x1000)?;
        let before = cpu::instructions();
        self.unit
            .invalidate_pages(&mut self.memory, TAG, range, false)
            .map_err(|error| format!("{error}"))?;
        let page = cpu::instructions() - before;
        let edu = self.edu()?;
        let before = cpu::instructions();
        self.write(edu.id, Entry::Blocked)?;
        self.forget(edu.id, None)?;
        let entry = cpu::instructions() - before;
        let before = cpu::instructions();
        self.take();
        let idle = cpu::instructions() - before;
        println!("@@count {page} instructions of a page invalidation and its wait");
        println!("@@count {entry} instructions of an entry written and forgotten");
        println!("@@count {idle} instructions of a look for faults when there are none");
        Ok(format!("{page}, {entry}, {idle}"))
    }
}
