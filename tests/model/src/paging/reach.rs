//! Lists the addresses that a domain's tables lead to, without changing anything. Works on the tables alone, or on
//! any mixture of tables and cached items.

use std::cell::Cell;

use super::{Caches, Format, Slot, Upper, below, shift};
use crate::machine::{Reach, Through, View, join};

/// A listing under way.
pub(crate) struct Listing<'a, F> {
    pub(crate) format: &'a F,
    pub(crate) caches: &'a Caches,
    pub(crate) view: View<'a>,
    pub(crate) through: Through,
    /// Tables visited by this listing.
    pub(crate) walked: Cell<usize>,
}

/// A table to be listed, and the first I/O virtual address it translates.
#[derive(Clone, Copy)]
struct Table {
    at: Upper,
    iova: u64,
}

/// Where the translations of a requester start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) domain: u16,
    pub(crate) root: Upper,
}

impl<F: Format> Listing<'_, F> {
    /// Visits a table and all tables below it, in order of address. Calls `visit` for every leaf and `enter` for
    /// every table.
    ///
    /// # Panics
    /// Panics at more tables than any test makes. A stale table taken for one of another level can seem to hold
    /// billions.
    fn descend(&self, table: Table, enter: &mut dyn FnMut(u64, u8), visit: &mut dyn FnMut(Reach)) {
        let walked = self.walked.get() + 1;
        self.walked.set(walked);
        assert!(walked < 200_000, "more tables than there can be: a stale one is walked");
        let Upper { table: frame, level, read, write } = table.at;
        enter(frame, level);
        let span = below(shift(level));
        let Some(words) = self.view.memory.walk_frame(self.view.unit, frame) else { return };
        for (index, entry) in (0..).zip(words.iter().copied()) {
            if entry == 0 {
                continue;
            }
            let iova = table.iova | index << shift(level);
            match self.format.decode(entry, level) {
                Slot::Absent | Slot::Reserved => {}
                Slot::Page { leaf, bits } => visit(Reach {
                    iova,
                    last: iova | span,
                    physical: leaf.physical | iova & below(bits),
                    read: leaf.read && read,
                    write: leaf.write && write,
                }),
                Slot::Table(next) => {
                    let at = Upper { read: next.read && read, write: next.write && write, ..next };
                    self.descend(Table { at, iova }, enter, visit);
                }
            }
        }
    }

    /// Returns all tables from which translations of a domain may start.
    fn starts(&self, start: Start) -> Vec<Table> {
        let mut starts = vec![Table { at: start.root, iova: 0 }];
        if self.through == Through::TablesAndCaches {
            let cached = self.caches.uppers(start.domain);
            starts.extend(cached.map(|(iova, at)| Table { at, iova }));
        }
        starts
    }

    /// Appends everything that a domain reaches, piece by piece.
    pub(crate) fn pieces(&self, start: Start, out: &mut Vec<Reach>) {
        for table in self.starts(start) {
            self.descend(table, &mut |_, _| {}, &mut |leaf| out.push(leaf));
        }
        if self.through == Through::TablesAndCaches {
            for (iova, bits, leaf) in self.caches.leaves(start.domain) {
                // Splits the page into pieces of one entry, like the listing of tables.
                let piece = 12 + (bits - 12) / 9 * 9;
                out.extend((0..1_u64 << (bits - piece)).map(|part| {
                    let (iova, physical) = (iova | part << piece, leaf.physical | part << piece);
                    let last = iova | below(piece);
                    Reach { iova, last, physical, read: leaf.read, write: leaf.write }
                }));
            }
        }
    }

    /// Joins pieces to runs.
    pub(crate) fn runs(&self, mut pieces: Vec<Reach>) -> Vec<Reach> {
        if self.through == Through::TablesAndCaches {
            pieces.sort_unstable();
            pieces.dedup();
        }
        let mut runs = Vec::new();
        for piece in pieces.into_iter().filter(|piece| piece.read || piece.write) {
            join(&mut runs, piece);
        }
        runs
    }

    /// Appends the frames of a domain's tables, each with a description.
    pub(crate) fn tables(&self, start: Start, out: &mut Vec<(u64, String)>) {
        for table in self.starts(start) {
            let mut enter = |at, level| {
                out.push((at, format!("level {level} of domain {}", start.domain)));
            };
            self.descend(table, &mut enter, &mut |_| {});
        }
    }
}
