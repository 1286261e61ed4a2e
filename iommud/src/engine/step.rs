//! Carries out one step.

use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use super::kept::Part;
use super::walkers::Walkers;
use super::{Engine, Fault, Table, at_mut, is_fatal, place};
use crate::addr::{IovaRange, PhysAddr};
use crate::hw::page_table::{Detached, PageTable};
use crate::hw::{BufferMemory, Entry, TableMemory, Unit, UnitError};
use crate::policy::{Binding, DomainId, PASS_THROUGH_TAG, Payer, Step, UnitIndex};
use crate::topology::capabilities::{DomainTag, TableFormat};

impl<U: Unit> Engine<U> {
    /// Inlined: where the compiler knows the kind of step, only the code of that kind remains.
    #[inline(always)]
    pub(super) fn carry_out<B: BufferMemory>(
        &mut self,
        step: &Step,
        pages: &[PhysAddr],
        buffers: &mut B,
    ) -> Result<(), Fault> {
        match *step {
            Step::Map { domain, range, phys, access } => {
                let table = table_of(&mut self.tables, domain)?;
                let before = self.memory.frames_in_use();
                let mapped = table.pages.map(&mut self.memory, range, phys, access);
                table.frames += self.memory.frames_in_use().wrapping_sub(before);
                Ok(mapped?)
            }
            Step::MapList { domain, range, access } => {
                let table = table_of(&mut self.tables, domain)?;
                let before = self.memory.frames_in_use();
                let mapped = table.pages.map_list(&mut self.memory, range, pages, access);
                table.frames += self.memory.frames_in_use().wrapping_sub(before);
                Ok(mapped?)
            }
            Step::Unmap { domain, range } => {
                let table = table_of(&mut self.tables, domain)?;
                let before = self.memory.frames_in_use();
                let unmapped = table.pages.unmap(&mut self.memory, range, &mut table.detached);
                table.frames += self.memory.frames_in_use().wrapping_sub(before);
                Ok(unmapped?)
            }
            Step::Publish { unit, domain, range } => self.publish(unit, domain, range),
            Step::Invalidate { unit, domain, range } => self.invalidate(unit, domain, range),
            Step::CreateTable { domain, tag, format, payer } => {
                self.create(domain, tag, format, payer)
            }
            Step::SetEntry { unit, source, from, to } => {
                let entry = self.entry(to)?;
                let written = self.write(unit, source, entry);
                if from != to && written.as_ref().err().is_none_or(|fault| is_fatal(&fault.error)) {
                    self.move_entry(unit, from, to);
                }
                written
            }
            Step::Deny { unit, source } => {
                // The result is ignored: the unit has failed, and nothing relies on this entry.
                let _ = self.write(unit, source, Entry::Blocked);
                Ok(())
            }
            Step::Grow { domain, levels, .. } => {
                let table = table_of(&mut self.tables, domain)?;
                let before = self.memory.frames_in_use();
                let grown = table.pages.grow(&mut self.memory, levels);
                table.frames += self.memory.frames_in_use().wrapping_sub(before);
                Ok(grown?)
            }
            Step::Deepen { unit, source, domain, .. } => {
                let entry = self.entry(Binding::Domain(domain))?;
                self.write(unit, source, entry)
            }
            Step::SuppressFaults { unit, source, silent, .. } => {
                self.suppress_faults(unit, source, silent)
            }
            Step::InvalidateEntry { unit, source, was } => self.forget(unit, source, was),
            Step::Revive { unit } => {
                let hardware = unit_of(&mut self.units, unit)?;
                hardware.revive(&mut self.memory).map_err(|error| Fault::of(unit, error))?;
                let unwalked = self.kept.revived(unit);
                self.free(unwalked);
                Ok(())
            }
            Step::Enable { unit } => {
                let hardware = unit_of(&mut self.units, unit)?;
                hardware.enable(&mut self.memory).map_err(|error| Fault::of(unit, error))
            }
            Step::ReleaseTables { .. }
            | Step::DestroyTable { .. }
            | Step::ReleaseBuffer { .. }
            | Step::ReleaseAbandoned => {
                self.finish(step, buffers);
                Ok(())
            }
        }
    }

    /// Carries out a step that cannot fail.
    pub(super) fn finish<B: BufferMemory>(&mut self, step: &Step, buffers: &mut B) {
        match *step {
            Step::ReleaseTables { domain } => {
                if let Ok(table) = table_of(&mut self.tables, domain) {
                    table.release(&mut self.memory);
                }
            }
            Step::DestroyTable { domain } => self.destroy(domain),
            Step::ReleaseBuffer { buffer } => buffers.release(buffer.0),
            Step::ReleaseAbandoned => {
                let all = self.kept.all();
                self.free(all);
            }
            _ => {}
        }
    }

    /// Counts an entry that was moved. It leaves its domain when the plan has succeeded.
    #[inline(never)]
    fn move_entry(&mut self, unit: UnitIndex, from: Binding, to: Binding) {
        if let Binding::Domain(domain) = to
            && let Ok(table) = table_of(&mut self.tables, domain)
        {
            table.walkers.enter(unit);
        }
        if let Binding::Domain(domain) = from {
            self.leaving.push((unit, domain));
        }
    }

    /// Counts the entries that a plan has moved away from domains.
    #[inline(never)]
    pub(super) fn leave(&mut self) {
        while let Some((unit, domain)) = self.leaving.pop() {
            if let Ok(table) = table_of(&mut self.tables, domain) {
                table.walkers.leave(unit);
            }
        }
    }

    /// Frees tables that no unit may walk.
    fn free(&mut self, (parts, whole): (Vec<Part>, Vec<Table<U>>)) {
        for Part { domain, tag, mut tables } in parts {
            let before = self.memory.frames_in_use();
            PageTable::<U::Format>::release(&mut self.memory, &mut tables);
            let freed = before.wrapping_sub(self.memory.frames_in_use());
            if let Ok(table) = table_of(&mut self.tables, domain)
                && table.tag == tag
            {
                table.frames -= freed;
            }
        }
        for table in whole {
            table.destroy(&mut self.memory);
        }
    }

    fn create(
        &mut self,
        domain: DomainId,
        tag: DomainTag,
        format: TableFormat,
        payer: Payer,
    ) -> Result<(), Fault> {
        let pages = PageTable::new(&mut self.memory, format)?;
        let pages = if payer == Payer::Server { pages.retain_tables() } else { pages };
        let (detached, walkers) = (Detached::new(), Walkers::new());
        let table = Table { pages, tag, payer, frames: 1, detached, walkers };
        place(&mut self.tables, domain.0, table);
        Ok(())
    }

    pub(super) fn destroy(&mut self, domain: DomainId) {
        let Some(table) = at_mut(&mut self.tables, domain.0).and_then(Option::take) else { return };
        table.destroy(&mut self.memory);
    }

    /// The entry that gives a requester this binding.
    pub(super) fn entry(&mut self, binding: Binding) -> Result<Entry, Fault> {
        Ok(match binding {
            Binding::Blocked => Entry::Blocked,
            Binding::PassThrough => Entry::PassThrough { tag: PASS_THROUGH_TAG },
            Binding::Domain(domain) => {
                let table = table_of(&mut self.tables, domain)?;
                Entry::Translate {
                    tag: table.tag,
                    root: table.pages.root(),
                    levels: table.pages.levels(),
                }
            }
        })
    }

    pub(super) fn write(
        &mut self,
        unit: UnitIndex,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), Fault> {
        let hardware = unit_of(&mut self.units, unit)?;
        hardware
            .write_entry(&mut self.memory, source, entry)
            .map_err(|error| Fault::of(unit, error))
    }

    pub(super) fn suppress_faults(
        &mut self,
        unit: UnitIndex,
        source: RequesterId,
        silent: bool,
    ) -> Result<(), Fault> {
        let hardware = unit_of(&mut self.units, unit)?;
        hardware
            .suppress_faults(&mut self.memory, source, silent)
            .map_err(|error| Fault::of(unit, error))
    }

    pub(super) fn forget(
        &mut self,
        unit: UnitIndex,
        source: RequesterId,
        was: Binding,
    ) -> Result<(), Fault> {
        let old = match was {
            Binding::Blocked => None,
            Binding::PassThrough => Some(PASS_THROUGH_TAG),
            Binding::Domain(domain) => Some(table_of(&mut self.tables, domain)?.tag),
        };
        let hardware = unit_of(&mut self.units, unit)?;
        hardware
            .invalidate_entry(&mut self.memory, source, old)
            .map_err(|error| Fault::of(unit, error))
    }

    #[inline(always)]
    pub(super) fn publish(
        &mut self,
        unit: UnitIndex,
        domain: DomainId,
        range: IovaRange,
    ) -> Result<(), Fault> {
        let tag = table_of(&mut self.tables, domain)?.tag;
        let hardware = unit_of(&mut self.units, unit)?;
        hardware.publish_pages(&mut self.memory, tag, range).map_err(|error| Fault::of(unit, error))
    }

    #[inline(always)]
    pub(super) fn invalidate(
        &mut self,
        unit: UnitIndex,
        domain: DomainId,
        range: IovaRange,
    ) -> Result<(), Fault> {
        let table = table_of(&mut self.tables, domain)?;
        let (tag, tables_freed) = (table.tag, table.detached.tables_freed());
        // A superpage that was split may be cached as a whole.
        let range = table.detached.around(range);
        let hardware = unit_of(&mut self.units, unit)?;
        hardware
            .invalidate_pages(&mut self.memory, tag, range, tables_freed)
            .map_err(|error| Fault::of(unit, error))
    }
}

impl<U: Unit> Table<U> {
    /// Frees the tables that `Unmap` steps unlinked.
    #[inline]
    fn release(&mut self, memory: &mut U::Memory) {
        let before = memory.frames_in_use();
        PageTable::<U::Format>::release(memory, &mut self.detached);
        self.frames -= before.wrapping_sub(memory.frames_in_use());
    }
}

#[inline(always)]
pub(super) fn unit_of<U>(units: &mut [Option<U>], unit: UnitIndex) -> Result<&mut U, Fault> {
    match at_mut(units, unit.0) {
        Some(Some(hardware)) => Ok(hardware),
        _ => Err(Fault::of(unit, UnitError::Unsupported { what: "no such unit" })),
    }
}

#[inline(always)]
pub(super) fn table_of<U: Unit>(
    tables: &mut [Option<Table<U>>],
    domain: DomainId,
) -> Result<&mut Table<U>, Fault> {
    match at_mut(tables, domain.0) {
        Some(Some(table)) => Ok(table),
        _ => Err(Fault { unit: None, error: UnitError::Unsupported { what: "no such domain" } }),
    }
}
