//! Turns IVRS blocks into units and regions.

use alloc::vec;
use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use crate::addr::PhysRange;
use crate::topology::firmware::{
    DeviceScope, EntryRange, Firmware, NamedDevice, ReservedRegion, UnitDefect, UnitDescription,
    UnitKind,
};

use super::super::anomaly::{Anomaly, RegionProblem, UnitProblem};
use super::super::ivrs::{Body, EXCLUSION_RANGE, Ivrs, READ, Structure, UNITY, WRITE};
use super::Builder;
use super::entries::Named;

/// Bytes of registers of a unit without performance counters, and the alignment of all registers.
const REGISTERS_SIZE: u64 = 16 * 1024;
/// Bytes of registers of a unit with performance counters.
const REGISTERS_SIZE_COUNTERS: u64 = 512 * 1024;
/// Extended feature register bit 9, PCSup: the unit has performance counters.
const EFR_PC_SUP: u64 = 1 << 9;
/// IVinfo bit 1: devices are to be kept from DMA before drivers run.
const DMA_REMAP_OPT_IN: u32 = 1 << 1;

/// Builds units first, because regions are checked against their registers.
pub(in crate::acpi) fn build(table: &Ivrs<'_>) -> (Firmware, Vec<Anomaly>) {
    let mut builder = Builder::new(&table.table);
    builder.set_width(u16::from(table.physical_bits()));
    builder.firmware.dma_opt_in = table.iv_info & DMA_REMAP_OPT_IN != 0;
    let mut drafts: Vec<Draft> = Vec::new();
    for structure in table.structures() {
        builder.draft(&mut drafts, &structure);
    }
    for draft in drafts {
        builder.amd_unit(draft);
    }
    builder.compare_amd_units();
    for structure in table.structures() {
        builder.ivrs_other(&structure);
    }
    builder.finish()
}

/// A unit while its blocks are gathered. It has the place where the table first names it.
struct Draft {
    offset: usize,
    device_id: Option<u16>,
    segment: Option<u16>,
    blocks: Vec<Block>,
    defect: UnitDefect,
}

/// One readable IVHD.
struct Block {
    kind: u16,
    flags: u8,
    capability: u16,
    base: u64,
    efr: Option<u64>,
    named: Named,
}

impl Draft {
    const fn empty(offset: usize, device_id: Option<u16>, segment: Option<u16>) -> Self {
        let defect = UnitDefect::TooShort { offset };
        Self { offset, device_id, segment, blocks: Vec::new(), defect }
    }

    /// Whether both are the same unit: requester id and segment agree, as far as they could be read.
    fn is_same(&self, other: &Self) -> bool {
        let segment = self.segment.zip(other.segment).is_none_or(|(a, b)| a == b);
        self.device_id.is_some() && self.device_id == other.device_id && segment
    }
}

/// Adds `new` to its unit, which keeps the place where it was first named.
fn enter(drafts: &mut Vec<Draft>, new: Draft) {
    match drafts.iter_mut().find(|draft| draft.is_same(&new)) {
        Some(draft) => {
            draft.segment = draft.segment.or(new.segment);
            draft.blocks.extend(new.blocks);
        }
        None => drafts.push(new),
    }
}

impl Builder {
    /// Enters a draft for every structure that describes a unit, or may have been meant to.
    fn draft(&mut self, drafts: &mut Vec<Draft>, structure: &Structure<'_>) {
        let Structure { offset, kind, length, ref body, bytes } = *structure;
        match *body {
            Body::Ivhd { device_id, segment, .. } => {
                let block = self.block(structure);
                let draft = Draft::empty(offset, Some(device_id), Some(segment));
                enter(drafts, Draft { blocks: block.into_iter().collect(), ..draft });
            }
            Body::TooShort { needed, device_id } => {
                let name = structure.name();
                self.report(Anomaly::TooShort { offset, name, length, needed });
                if name == "IVHD" {
                    enter(drafts, Draft::empty(offset, device_id, None));
                }
            }
            Body::BadLength => {
                self.report(Anomaly::BadLength { offset, kind, length, room: bytes.len() });
                let defect = UnitDefect::RestUnreadable { offset };
                drafts.push(Draft { defect, ..Draft::empty(offset, None, None) });
            }
            _ => {}
        }
    }

    fn block(&mut self, structure: &Structure<'_>) -> Option<Block> {
        let Body::Ivhd { flags, capability_offset, base_address, efr, ref entries, .. } =
            structure.body
        else {
            return None;
        };
        Some(Block {
            kind: structure.kind,
            flags,
            capability: capability_offset,
            base: base_address,
            efr,
            named: Named::read(entries.clone(), &mut self.anomalies),
        })
    }

    /// Builds one unit from all its blocks: the fields of the richest one, the devices of all.
    fn amd_unit(&mut self, mut draft: Draft) {
        draft.blocks.sort_by_key(|block| block.kind);
        let index = self.firmware.units.len();
        let function = RequesterId(draft.device_id.unwrap_or(0));
        let mut unit = UnitDescription {
            kind: UnitKind::AmdVi { function, capability: 0, flags: 0, features: None },
            segment: draft.segment.unwrap_or(0),
            registers: Err(draft.defect),
            include_all: false,
            scopes: Vec::new(),
            entries: Vec::new(),
        };
        let (mut differing, mut devices) = (Vec::new(), Vec::new());
        if let Some(richest) = draft.blocks.last() {
            let Block { flags, capability, base, efr: features, .. } = *richest;
            unit.kind = UnitKind::AmdVi { function, capability, flags, features };
            unit.registers = self.amd_registers(richest, &draft.blocks);
            differing.extend(draft.blocks.iter().map(|block| block.base).filter(|b| *b != base));
            (unit.scopes, unit.entries) = union(&draft.blocks);
            devices
                .extend(draft.blocks.iter().flat_map(|block| block.named.devices.iter().cloned()));
        }
        unit.include_all = matches!(
            unit.registers,
            Err(UnitDefect::TooShort { .. }
                | UnitDefect::RestUnreadable { .. }
                | UnitDefect::BadScope { .. })
        );
        for (id, name) in devices {
            let path = vec![(id.device(), id.function())];
            self.name_device(NamedDevice { unit: index, start_bus: id.bus(), path, name });
        }
        let empty = unit.registers.is_ok() && unit.entries.is_empty();
        let defect = unit.registers.err();
        self.push_unit(draft.offset, unit);
        if let Some(defect) = defect {
            self.report_unit(index, UnitProblem::Unusable(defect));
        }
        if empty {
            self.report_unit(index, UnitProblem::NoDevices);
        }
        for other in differing {
            self.report_unit(index, UnitProblem::AddressesDiffer { other });
        }
    }

    /// The registers, if at least one block names the unit's devices completely.
    fn amd_registers(&self, richest: &Block, blocks: &[Block]) -> Result<PhysRange, UnitDefect> {
        if let Some(offset) = richest.named.broken
            && blocks.iter().all(|block| block.named.broken.is_some())
        {
            return Err(UnitDefect::BadScope { offset });
        }
        let counters = richest.efr.is_some_and(|efr| efr & EFR_PC_SUP != 0);
        let size = if counters { REGISTERS_SIZE_COUNTERS } else { REGISTERS_SIZE };
        self.registers(richest.base, size, REGISTERS_SIZE)
    }

    fn compare_amd_units(&mut self) {
        for index in 0..self.firmware.units.len() {
            let Some(first) = self.overlapped(index) else { continue };
            let defect = UnitDefect::SharedRegisters { unit: first };
            if let Some(unit) = self.firmware.units.get_mut(index) {
                unit.registers = Err(defect);
            }
            self.report_unit(index, UnitProblem::Unusable(defect));
        }
    }

    /// Handles all other structures.
    fn ivrs_other(&mut self, structure: &Structure<'_>) {
        let Structure { offset, kind, length, ref body, .. } = *structure;
        match *body {
            Body::Ivmd { flags, device_id, auxiliary, segment, start_address, memory_length } => {
                let last = match kind {
                    0x20 => (0, u16::MAX),
                    0x21 => (device_id, device_id),
                    _ => (device_id, auxiliary),
                };
                let end = memory_length.checked_sub(1).and_then(|n| start_address.checked_add(n));
                self.ivmd(offset, flags, segment, last, (start_address, end));
            }
            Body::Unknown => self.report(Anomaly::UnknownStructure { offset, kind, length }),
            Body::Ivhd { .. } | Body::TooShort { .. } | Body::BadLength => {}
        }
    }

    fn ivmd(
        &mut self,
        offset: usize,
        flags: u8,
        segment: u16,
        (first, last): (u16, u16),
        (start, end): (u64, Option<u64>),
    ) {
        let exclusion = flags & EXCLUSION_RANGE != 0;
        if !exclusion && flags & UNITY == 0 {
            return self.report(Anomaly::Region { offset, problem: RegionProblem::NoAccess });
        }
        let Some(range) = self.region(offset, start, end) else { return };
        if last < first {
            return self.report(Anomaly::Region { offset, problem: RegionProblem::NoDevices });
        }
        self.firmware.reserved.push(ReservedRegion {
            segment,
            range,
            read: exclusion || flags & READ != 0,
            write: exclusion || flags & WRITE != 0,
            exclusion,
            scopes: Vec::new(),
            entries: vec![EntryRange {
                first: RequesterId(first),
                last: RequesterId(last),
                alias: None,
                settings: 0,
            }],
        });
    }
}

/// The devices of all blocks, each once. Those of richer blocks come last, because later entries hold.
fn union(blocks: &[Block]) -> (Vec<DeviceScope>, Vec<EntryRange>) {
    let mut scopes: Vec<DeviceScope> = Vec::new();
    let mut entries: Vec<EntryRange> = Vec::new();
    for block in blocks.iter().rev() {
        for entry in block.named.entries.iter().rev() {
            if !entries.contains(entry) {
                entries.push(*entry);
            }
        }
        for scope in &block.named.scopes {
            if !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
    }
    entries.reverse();
    (scopes, entries)
}
