//! Undoes steps.

use alloc::vec::Vec;

use iommu_protocol::ids::RequesterId;

use super::kept::Part;
use super::step::table_of;
use super::{Engine, Fault, StepFailure, Table, at_mut, is_fatal};
use crate::addr::IovaRange;
use crate::hw::page_table::{Detached, PageTable};
use crate::hw::{Entry, TableMemory, Unit, UnitError};
use crate::policy::{Binding, DomainId, Step, UnitIndex};

/// The findings of an undo so far.
struct Undo {
    lost: Vec<UnitIndex>,
    unproved: bool,
    /// A unit may still walk the new root that an entry was to point to.
    walked: bool,
}

impl Undo {
    fn note(&mut self, fault: &Fault) {
        let Some(unit) = fault.unit else { return };
        if is_fatal(&fault.error) && !self.lost.contains(&unit) {
            self.lost.push(unit);
        }
    }

    /// Records the result of a unit. False when the unit is not proved to have done the work.
    fn proved(&mut self, result: Result<(), Fault>) -> bool {
        match result {
            Ok(()) => true,
            Err(fault) => {
                self.note(&fault);
                false
            }
        }
    }

    /// The units whose return frees what these may walk. None when one of them is not lost: it will not return.
    fn all_lost<'a>(&self, walkers: &'a [UnitIndex]) -> &'a [UnitIndex] {
        if walkers.iter().all(|unit| self.lost.contains(unit)) { walkers } else { &[] }
    }
}

impl<U: Unit> Engine<U> {
    /// Undoes `done`, last step first, after the step behind it failed.
    #[cold]
    pub(super) fn undo(&mut self, done: &[Step], failed: usize, fault: Fault) -> StepFailure {
        let mut undo = Undo { lost: Vec::new(), unproved: false, walked: false };
        self.leaving.clear();
        undo.note(&fault);
        for step in done.iter().rev() {
            self.undo_step(step, &mut undo);
        }
        StepFailure {
            step: failed,
            unit: fault.unit,
            error: fault.error,
            lost: undo.lost,
            unproved: undo.unproved,
        }
    }

    fn undo_step(&mut self, step: &Step, undo: &mut Undo) {
        match *step {
            Step::CreateTable { domain, .. } => self.undo_table(domain, undo),
            Step::Grow { domain, from, .. } => self.undo_root(domain, from, undo),
            Step::Deepen { unit, source, domain, from } => {
                self.undo_deeper(unit, source, (domain, from), undo);
            }
            Step::Map { domain, range, .. } | Step::MapList { domain, range, .. } => {
                self.undo_map(domain, range, undo);
            }
            Step::Unmap { domain, range } => self.undo_unmap(domain, range, undo),
            Step::SetEntry { unit, source, from, to } => {
                self.undo_entry((unit, source), (from, to), undo);
            }
            Step::SuppressFaults { unit, source, silent, was } => {
                // The word is restored, whatever the unit reports. The access of the requester never changed.
                let restored = self.suppress_faults(unit, source, !silent);
                if undo.proved(restored) && !undo.lost.contains(&unit) {
                    let forgotten = self.forget(unit, source, was);
                    undo.proved(forgotten);
                }
            }
            // Invalidations need no undo: a unit may look up the translations again. Steps that cannot fail come last
            // in a plan, behind everything that can.
            Step::Publish { .. }
            | Step::Invalidate { .. }
            | Step::InvalidateEntry { .. }
            | Step::Enable { .. }
            | Step::Revive { .. }
            | Step::ReleaseAbandoned
            | Step::Deny { .. }
            | Step::ReleaseTables { .. }
            | Step::ReleaseBuffer { .. }
            | Step::DestroyTable { .. } => {}
        }
    }

    /// Destroys a table to which no entry points any longer. If a unit may still walk it, the table is kept.
    fn undo_table(&mut self, domain: DomainId, undo: &Undo) {
        let Some(table) = at_mut(&mut self.tables, domain.0).and_then(Option::take) else { return };
        let walkers = table.walkers.units();
        if walkers.is_empty() {
            table.destroy(&mut self.memory);
        } else {
            self.kept.whole(table, undo.all_lost(&walkers));
        }
    }

    /// Removes a new root to which no entry points any longer. If a unit may still walk it, the root stays: it
    /// translates the same.
    fn undo_root(&mut self, domain: DomainId, from: u8, undo: &Undo) {
        if undo.walked {
            return;
        }
        if let Ok(table) = table_of(&mut self.tables, domain) {
            let before = self.memory.frames_in_use();
            table.pages.shrink(&mut self.memory, from);
            table.frames -= before.wrapping_sub(self.memory.frames_in_use());
        }
    }

    /// Points the entry to the old root of the domain. Only when the unit confirms this is the old root proved in
    /// use.
    fn undo_deeper(
        &mut self,
        unit: UnitIndex,
        source: RequesterId,
        (domain, from): (DomainId, u8),
        undo: &mut Undo,
    ) {
        let entry = table_of(&mut self.tables, domain).map(|table| {
            let root = table.pages.root_at(&self.memory, from);
            root.map_or(Entry::Blocked, |root| Entry::Translate {
                tag: table.tag,
                root,
                levels: from,
            })
        });
        let written = entry.and_then(|entry| self.write(unit, source, entry));
        let forgotten = if undo.lost.contains(&unit) {
            Err(Fault { unit: None, error: UnitError::Dead })
        } else {
            self.forget(unit, source, Binding::Domain(domain))
        };
        let proved = undo.proved(written) & undo.proved(forgotten);
        undo.walked |= !proved;
        undo.unproved |= !proved;
    }

    fn undo_map(&mut self, domain: DomainId, range: IovaRange, undo: &mut Undo) {
        let Ok(table) = table_of(&mut self.tables, domain) else { return };
        let mut detached = Detached::new();
        let unmapped = table.pages.undo_map(&mut self.memory, range, &mut detached);
        // Removing exactly the mapped range splits no leaf and needs no table, so this does not fail.
        undo.unproved |= unmapped.is_err();
        self.settle(domain, range, detached, undo);
    }

    fn undo_unmap(&mut self, domain: DomainId, range: IovaRange, undo: &mut Undo) {
        let Ok(table) = table_of(&mut self.tables, domain) else { return };
        table.pages.relink(&mut self.memory, &mut table.detached);
        for unit in table.walkers.units() {
            if !undo.lost.contains(&unit) {
                undo.proved(self.publish(unit, domain, range));
            }
        }
        let Ok(Table { detached, .. }) = table_of(&mut self.tables, domain) else { return };
        // Tables of an undone split have the same translations as before, but the unit may be walking them.
        if !detached.is_empty() && detached.is_undone() {
            let split = core::mem::take(detached);
            let unproved = undo.unproved;
            self.settle(domain, range, split, undo);
            undo.unproved = unproved;
        }
    }

    /// Frees unlinked tables when every unit that may walk them has invalidated them. Otherwise they are kept until each
    /// of these was revived.
    fn settle(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        mut detached: Detached,
        undo: &mut Undo,
    ) {
        let range = detached.around(range);
        let Ok(table) = table_of(&mut self.tables, domain) else { return };
        let (tag, mut walkers) = (table.tag, table.walkers.units());
        walkers.retain(|unit| {
            undo.lost.contains(unit) || !undo.proved(self.invalidate_all(*unit, domain, range))
        });
        if walkers.is_empty() {
            let before = self.memory.frames_in_use();
            PageTable::<U::Format>::release(&mut self.memory, &mut detached);
            let freed = before.wrapping_sub(self.memory.frames_in_use());
            if let Ok(table) = table_of(&mut self.tables, domain) {
                table.frames -= freed;
            }
        } else {
            undo.unproved = true;
            let part = Part { domain, tag, tables: detached };
            self.kept.part(part, undo.all_lost(&walkers));
        }
    }

    fn invalidate_all(
        &mut self,
        unit: UnitIndex,
        domain: DomainId,
        range: IovaRange,
    ) -> Result<(), Fault> {
        let tag = table_of(&mut self.tables, domain)?.tag;
        let hardware = super::step::unit_of(&mut self.units, unit)?;
        hardware
            .invalidate_pages(&mut self.memory, tag, range, true)
            .map_err(|error| Fault::of(unit, error))
    }

    /// Restores an entry. On a lost unit an entry that blocks stays as it is. An entry that allows access is written
    /// back, although the unit may not honour that: the reach of the requester is unproved then.
    fn undo_entry(
        &mut self,
        (unit, source): (UnitIndex, RequesterId),
        (from, to): (Binding, Binding),
        undo: &mut Undo,
    ) {
        let lost = undo.lost.contains(&unit);
        if lost && to == Binding::Blocked {
            return;
        }
        let entry = self.entry(from);
        let written = entry.and_then(|entry| self.write(unit, source, entry));
        let forgotten = if lost {
            Err(Fault { unit: None, error: UnitError::Dead })
        } else {
            self.forget(unit, source, to)
        };
        let proved = undo.proved(written) & undo.proved(forgotten);
        undo.unproved |= !proved && to != Binding::Blocked && to != from;
        if let Binding::Domain(domain) = to
            && proved
            && to != from
            && let Ok(table) = table_of(&mut self.tables, domain)
        {
            table.walkers.leave(unit);
        }
    }
}
