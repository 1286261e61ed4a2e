//! Tables that a unit may still walk, because it did not confirm that it forgot them.
//!
//! ```text
//! undone, not confirmed by units --> kept --each of them revived--> freed
//!                                      +----ReleaseAbandoned------> freed
//! ```
//!
//! A unit that was revived has invalidated its whole cache, and nothing that it walks leads to these tables.

use alloc::vec::Vec;

use crate::hw::page_table::Detached;
use crate::policy::{DomainId, UnitIndex};
use crate::topology::capabilities::DomainTag;

/// What is kept, and the units that may walk it. Without a unit it is kept until `ReleaseAbandoned`.
#[derive(Clone)]
struct Kept<T> {
    walked_by: Vec<UnitIndex>,
    tables: T,
}

/// Tables that were unlinked from a domain's. The tag tells the domain from a later one of the same number.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) domain: DomainId,
    pub(super) tag: DomainTag,
    pub(super) tables: Detached,
}

/// Tables that are kept: parts of domains' tables, and whole ones.
#[derive(Clone)]
pub(super) struct KeptTables<T> {
    parts: Vec<Kept<Part>>,
    whole: Vec<Kept<T>>,
}

impl<T> KeptTables<T> {
    /// Nothing.
    pub(super) const fn new() -> Self {
        Self { parts: Vec::new(), whole: Vec::new() }
    }

    /// Keeps tables that were unlinked.
    pub(super) fn part(&mut self, tables: Part, walked_by: &[UnitIndex]) {
        self.parts.push(Kept { walked_by: walked_by.to_vec(), tables });
    }

    /// Keeps the table of a domain.
    pub(super) fn whole(&mut self, tables: T, walked_by: &[UnitIndex]) {
        self.whole.push(Kept { walked_by: walked_by.to_vec(), tables });
    }

    /// Takes out what no unit may walk, once `unit` was revived.
    pub(super) fn revived(&mut self, unit: UnitIndex) -> (Vec<Part>, Vec<T>) {
        (strike(&mut self.parts, unit), strike(&mut self.whole, unit))
    }

    /// Takes out everything.
    pub(super) fn all(&mut self) -> (Vec<Part>, Vec<T>) {
        let Self { parts, whole } = core::mem::replace(self, Self::new());
        let parts = parts.into_iter().map(|kept| kept.tables).collect();
        (parts, whole.into_iter().map(|kept| kept.tables).collect())
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
