//! Lists what requesters can reach, without changing anything: by the tables as they stand, or by any
//! mixture of tables and what the caches still hold.

use std::collections::BTreeMap;

use super::caches::shift;
use super::walk::{Context, Slot, Target, decode_slot, find_context};
use super::{Vtd, bits};
use crate::machine::{Reach, Through, View, join};

/// A table to be listed: its address, level, the first I/O virtual address it covers, and what the entries
/// above allow.
#[derive(Clone, Copy)]
struct Table {
    at: u64,
    level: u8,
    iova: u64,
    read: bool,
    write: bool,
}

impl Vtd {
    fn read_table(view: View<'_>, address: u64) -> Option<u64> {
        view.memory.exists(address).then(|| view.memory.walk_load(view.unit, address))
    }

    /// The entries of `source` that the unit may use.
    fn contexts(&self, view: View<'_>, source: u16, through: Through) -> Vec<Context> {
        let mut load = |at| Self::read_table(view, at);
        let mut found = Vec::new();
        if let Ok((_, context)) = find_context(&self.config, self.root, source, &mut load) {
            found.push(context);
        }
        if through == Through::TablesAndCaches
            && let Some(cached) = self.caches.contexts.get(&source)
            && let Ok(context) = cached.entry
            && !found.contains(&context)
        {
            found.push(context);
        }
        found
    }

    /// Calls `visit` for every leaf below a table, `enter` for every table, in order of address.
    ///
    /// # Panics
    /// When there are more tables than any test makes: a stale table that is taken for one of another level
    /// can seem to hold billions.
    fn descend(
        &self,
        view: View<'_>,
        table: Table,
        enter: &mut dyn FnMut(u64, u8),
        visit: &mut dyn FnMut(Reach),
    ) {
        let walked = self.walked.get() + 1;
        self.walked.set(walked);
        assert!(walked < 200_000, "more tables than there can be: a stale one is walked");
        enter(table.at, table.level);
        let span = bits::below(shift(table.level));
        let Some(frame) = view.memory.walk_frame(view.unit, table.at) else { return };
        for (index, entry) in (0..).zip(frame.iter().copied()) {
            if entry == 0 {
                continue;
            }
            let iova = table.iova | index << shift(table.level);
            match decode_slot(&self.config, entry, table.level) {
                Slot::Absent | Slot::Reserved => {}
                Slot::Page(leaf) => visit(Reach {
                    iova,
                    last: iova | span,
                    physical: leaf.physical,
                    read: leaf.read && table.read,
                    write: leaf.write && table.write,
                }),
                Slot::Table(next) => {
                    let (read, write) = (next.read && table.read, next.write && table.write);
                    let level = table.level - 1;
                    let next = Table { at: next.table, level, iova, read, write };
                    self.descend(view, next, enter, visit);
                }
            }
        }
    }

    /// All tables that translations of a context may start from.
    fn starts(&self, context: Context, through: Through) -> Vec<Table> {
        let Target::Table { root, levels } = context.target else { return Vec::new() };
        let mut starts = vec![Table { at: root, level: levels, iova: 0, read: true, write: true }];
        if through == Through::TablesAndCaches {
            let cached = self.caches.uppers.iter().filter(|(key, _)| key.0 == context.domain);
            starts.extend(cached.map(|((_, level, page), upper)| Table {
                at: upper.table,
                level: level - 1,
                iova: page << shift(*level),
                read: upper.read,
                write: upper.write,
            }));
        }
        starts
    }

    pub(super) fn list_reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach> {
        self.walked.set(0);
        let everything = Reach {
            iova: 0,
            last: bits::below(self.config.host_width),
            physical: 0,
            read: true,
            write: true,
        };
        if self.status & bits::global::TRANSLATION == 0 {
            return vec![everything];
        }
        let mut leaves = Vec::new();
        for context in self.contexts(view, source, through) {
            if context.target == Target::Pass {
                leaves.push(everything);
            }
            for start in self.starts(context, through) {
                self.descend(view, start, &mut |_, _| {}, &mut |leaf| leaves.push(leaf));
            }
            if through == Through::TablesAndCaches {
                let cached = self.caches.leaves.iter().filter(|(key, _)| key.0 == context.domain);
                leaves.extend(cached.map(|((_, level, page), leaf)| {
                    let iova = page << shift(*level);
                    let last = iova | bits::below(shift(*level));
                    let (read, write) = (leaf.read, leaf.write);
                    Reach { iova, last, physical: leaf.physical, read, write }
                }));
            }
        }
        if through == Through::TablesAndCaches {
            leaves.sort_unstable();
            leaves.dedup();
        }
        let mut runs = Vec::new();
        for leaf in leaves.into_iter().filter(|leaf| leaf.read || leaf.write) {
            join(&mut runs, leaf);
        }
        runs
    }

    pub(super) fn list_sources(&self, view: View<'_>, through: Through) -> Vec<u16> {
        let mut sources: Vec<u16> = self.present(view).into_keys().collect();
        if through == Through::TablesAndCaches {
            let cached = self.caches.contexts.iter().filter(|(_, cached)| cached.entry.is_ok());
            sources.extend(cached.map(|(source, _)| *source));
            sources.sort_unstable();
            sources.dedup();
        }
        sources
    }

    /// Requesters with a valid entry, by the tables alone.
    fn present(&self, view: View<'_>) -> BTreeMap<u16, Context> {
        let mut out = BTreeMap::new();
        if self.status & bits::global::ROOT_POINTER == 0 {
            return out;
        }
        let table = |at| view.memory.walk_frame(view.unit, at);
        let Some(root) = table(self.root) else { return out };
        for (bus, root) in (0..=255_u8).zip(root.chunks(2)) {
            if root[0] & bits::PRESENT == 0 {
                continue;
            }
            let Some(entries) = table(root[0] & bits::ADDRESS) else { continue };
            for (devfn, entry) in (0..=255_u8).zip(entries.chunks(2)) {
                if entry[0] & bits::PRESENT == 0 {
                    continue;
                }
                let source = u16::from_be_bytes([bus, devfn]);
                let mut load = |at| Self::read_table(view, at);
                let found = find_context(&self.config, self.root, source, &mut load);
                if let Ok((_, context)) = found {
                    out.insert(source, context);
                }
            }
        }
        out
    }

    pub(super) fn list_tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)> {
        self.walked.set(0);
        let mut out = Vec::new();
        if self.queue.on && through == Through::TablesAndCaches {
            let frames = self.queue.size() / 4096;
            let base = self.queue.address & bits::ADDRESS;
            out.extend((0..frames).map(|at| (base + 4096 * at, "the queue".to_string())));
        }
        if self.status & bits::global::ROOT_POINTER == 0 {
            return out;
        }
        out.push((self.root, "the root table".to_string()));
        for bus in 0..=255_u64 {
            let entry = Self::read_table(view, self.root + 16 * bus).unwrap_or(0);
            if entry & bits::PRESENT != 0 {
                out.push((entry & bits::ADDRESS, format!("the context table of bus {bus:#x}")));
            }
        }
        let mut contexts: Vec<Context> = self.present(view).into_values().collect();
        if through == Through::TablesAndCaches {
            contexts.extend(self.caches.contexts.values().filter_map(|cached| cached.entry.ok()));
        }
        let mut seen = Vec::new();
        for context in contexts {
            // One root is walked once, however many requesters share it.
            if seen.contains(&(context.domain, context.target)) {
                continue;
            }
            seen.push((context.domain, context.target));
            for start in self.starts(context, through) {
                let mut enter = |at, level| {
                    out.push((at, format!("level {level} of domain {}", context.domain)));
                };
                self.descend(view, start, &mut enter, &mut |_| {});
            }
        }
        out
    }
}
