//! Lists the addresses that requesters can reach, without changing anything. Works on the tables alone, or on any
//! mixture of tables and cached items.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::walk::{Context, Target, find_context};
use super::{Config, Vtd, bits};
use crate::machine::{Reach, Through, View};
use crate::paging::{Listing, Start, Upper, read_table};

/// Returns where the translations of a context start; `None` when it passes everything untranslated.
fn start(context: Context) -> Option<Start> {
    let Target::Table { root, levels } = context.target else { return None };
    let root = Upper { table: root, level: levels, read: true, write: true };
    Some(Start { domain: context.domain, root })
}

impl Vtd {
    /// The entries of `source` that the unit may use.
    fn contexts(&self, view: View<'_>, source: u16, through: Through) -> Vec<Context> {
        let mut load = |at| read_table(view, at);
        let mut found = Vec::new();
        if let Ok((_, context)) = find_context(&self.config, self.root, source, &mut load) {
            found.push(context);
        }
        if through == Through::TablesAndCaches
            && let Some(cached) = self.contexts.get(&source)
            && let Ok(context) = cached.entry
            && !found.contains(&context)
        {
            found.push(context);
        }
        found
    }

    fn listing<'a>(&'a self, view: View<'a>, through: Through) -> Listing<'a, Config> {
        let (format, caches) = (&self.config, &self.caches);
        Listing { format, caches, view, through, walked: Cell::new(0) }
    }

    /// Returns a requester's entry by the tables: domain id, root of its page table (0 when requests pass
    /// untranslated), levels. `None` when the entry denies.
    pub(super) fn look_binding(&self, view: View<'_>, source: u16) -> Option<(u16, u64, u8)> {
        let context = self.contexts(view, source, Through::Tables).first().copied()?;
        Some(match context.target {
            Target::Pass => (context.domain, 0, 0),
            Target::Table { root, levels } => (context.domain, root, levels),
        })
    }

    pub(super) fn list_reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach> {
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
        let listing = self.listing(view, through);
        let mut pieces = Vec::new();
        for context in self.contexts(view, source, through) {
            match start(context) {
                Some(start) => listing.pieces(start, &mut pieces),
                None => pieces.push(everything),
            }
        }
        listing.runs(pieces)
    }

    pub(super) fn list_sources(&self, view: View<'_>, through: Through) -> Vec<u16> {
        let mut sources: Vec<u16> = self.present(view).into_keys().collect();
        if through == Through::TablesAndCaches {
            let cached = self.contexts.iter().filter(|(_, cached)| cached.entry.is_ok());
            sources.extend(cached.map(|(source, _)| *source));
            sources.sort_unstable();
            sources.dedup();
        }
        sources
    }

    /// Returns the requesters with a valid entry, by the tables alone.
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
                let mut load = |at| read_table(view, at);
                let found = find_context(&self.config, self.root, source, &mut load);
                if let Ok((_, context)) = found {
                    out.insert(source, context);
                }
            }
        }
        out
    }

    pub(super) fn list_tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)> {
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
        let root = view.memory.walk_frame(view.unit, self.root);
        for (bus, entry) in (0..=255).zip(root.iter().flat_map(|words| words.chunks(2))) {
            if entry[0] & bits::PRESENT != 0 {
                out.push((entry[0] & bits::ADDRESS, format!("the context table of bus {bus:#x}")));
            }
        }
        let mut contexts: Vec<Context> = self.present(view).into_values().collect();
        if through == Through::TablesAndCaches {
            contexts.extend(self.contexts.values().filter_map(|cached| cached.entry.ok()));
        }
        let listing = self.listing(view, through);
        let mut seen = Vec::new();
        for start in contexts.into_iter().filter_map(start) {
            // Walks each root once, however many requesters share it.
            if !seen.contains(&start) {
                seen.push(start);
                listing.tables(start, &mut out);
            }
        }
        out
    }
}
