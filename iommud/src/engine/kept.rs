//! Tables that a unit may still walk, because it did not confirm that it forgot them.
//!
//! ```text
//! undone, not confirmed by units --> kept --each of them revived--> freed
//!                                      +----ReleaseAbandoned------> freed
//! ```
//!
//! A unit that was revived has invalidated its whole cache, and nothing that it walks leads to these tables.

use alloc::vec::Vec;

use super::{Engine, Table};
use crate::hw::Unit;
use crate::hw::page_table::{Detached, PageTable};
use crate::policy::UnitIndex;

/// What is kept, and the units that may walk it. Without a unit it is kept until `ReleaseAbandoned`.
#[derive(Clone)]
struct Kept<T> {
    walked_by: Vec<UnitIndex>,
    tables: T,
}

/// Tables that are kept.
pub(super) struct KeptTables<U: Unit> {
    parts: Vec<Kept<Detached>>,
    /// Of whole domains.
    whole: Vec<Kept<Table<U>>>,
}

impl<U: Unit> Clone for KeptTables<U> {
    fn clone(&self) -> Self {
        let whole = self.whole.iter();
        let whole = whole
            .map(|kept| Kept { walked_by: kept.walked_by.clone(), tables: kept.tables.clone() });
        Self { parts: self.parts.clone(), whole: whole.collect() }
    }
}

impl<U: Unit> KeptTables<U> {
    /// Nothing.
    pub(super) const fn new() -> Self {
        Self { parts: Vec::new(), whole: Vec::new() }
    }

    /// Keeps tables that were unlinked.
    pub(super) fn part(&mut self, tables: Detached, walked_by: &[UnitIndex]) {
        self.parts.push(Kept { walked_by: walked_by.to_vec(), tables });
    }

    /// Keeps the table of a domain.
    pub(super) fn whole(&mut self, tables: Table<U>, walked_by: &[UnitIndex]) {
        self.whole.push(Kept { walked_by: walked_by.to_vec(), tables });
    }
}

/// Takes out what no unit may walk once `unit` was revived.
fn strike<T>(kept: &mut Vec<Kept<T>>, unit: UnitIndex) -> Vec<T> {
    let of_it = |kept: &mut Kept<T>| {
        let before = kept.walked_by.len();
        kept.walked_by.retain(|other| *other != unit);
        kept.walked_by.is_empty() && before > 0
    };
    kept.extract_if(.., of_it).map(|kept| kept.tables).collect()
}

impl<U: Unit> Engine<U> {
    /// Frees what was kept because of a unit that was revived.
    pub(super) fn free_after_revival(&mut self, unit: UnitIndex) {
        let parts = strike(&mut self.kept.parts, unit);
        let whole = strike(&mut self.kept.whole, unit);
        self.free(parts, whole);
    }

    /// Frees all that is kept: no unit may walk it any more.
    pub(super) fn release_abandoned(&mut self) {
        let KeptTables { parts, whole } = core::mem::replace(&mut self.kept, KeptTables::new());
        let parts = parts.into_iter().map(|kept| kept.tables).collect();
        self.free(parts, whole.into_iter().map(|kept| kept.tables).collect());
    }

    fn free(&mut self, parts: Vec<Detached>, whole: Vec<Table<U>>) {
        for mut detached in parts {
            PageTable::<U::Format>::release(&mut self.memory, &mut detached);
        }
        for table in whole {
            table.destroy(&mut self.memory);
        }
    }
}
