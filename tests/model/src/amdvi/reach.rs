//! Lists the addresses that requesters can reach, without changing anything. Works on the tables alone, or on any
//! mixture of tables and cached items.

use std::cell::Cell;

use super::walk::{Device, Target};
use super::{Amdvi, Config, bits};
use crate::machine::{Reach, Through, View};
use crate::paging::{Listing, Start, Upper};

/// Returns where the translations of a device start, if it has a page table.
fn start(device: &Device) -> Option<Start> {
    let Target::Table { root, levels } = device.target else { return None };
    let root = Upper { table: root, level: levels, read: true, write: true };
    Some(Start { domain: device.domain, root })
}

impl Amdvi {
    fn listing<'a>(&'a self, view: View<'a>, through: Through) -> Listing<'a, Config> {
        let (format, caches) = (&self.config, &self.caches);
        Listing { format, caches, view, through, walked: Cell::new(0) }
    }

    /// Returns the entries of `source` that the unit may use and that allow any access.
    fn open(&self, view: View<'_>, source: u16, through: Through) -> Vec<Device> {
        let mut found: Vec<Device> = self.look(view, source).into_iter().collect();
        if through == Through::TablesAndCaches
            && let Some(cached) = self.devices.get(&source)
            && !found.contains(cached)
        {
            found.push(*cached);
        }
        found.retain(Device::opens);
        found
    }

    /// Returns a requester's entry by the tables: domain id, root of its page table (0 when requests pass
    /// untranslated), levels. `None` when the entry denies.
    pub(super) fn look_binding(&self, view: View<'_>, source: u16) -> Option<(u16, u64, u8)> {
        let device = self.look(view, source).filter(Device::opens)?;
        match device.target {
            Target::Table { root, levels } => Some((device.domain, root, levels)),
            _ => Some((device.domain, 0, 0)),
        }
    }

    pub(super) fn list_reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach> {
        let everything = Reach {
            iova: 0,
            last: bits::below(self.config.host_width),
            physical: 0,
            read: true,
            write: true,
        };
        if !self.enabled() {
            return vec![everything];
        }
        let listing = self.listing(view, through);
        let mut pieces = Vec::new();
        for device in self.open(view, source, through) {
            let before = pieces.len();
            match start(&device) {
                Some(start) => listing.pieces(start, &mut pieces),
                None => pieces.push(everything),
            }
            for piece in &mut pieces[before..] {
                piece.read &= device.read;
                piece.write &= device.write;
            }
        }
        listing.runs(pieces)
    }

    pub(super) fn list_sources(&self, view: View<'_>, through: Through) -> Vec<u16> {
        let mut sources = self.candidates(view);
        if through == Through::TablesAndCaches {
            sources.extend(self.devices.keys());
            sources.sort_unstable();
            sources.dedup();
        }
        sources.retain(|source| !self.open(view, *source, through).is_empty());
        sources
    }

    pub(super) fn list_tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)> {
        let mut out = Vec::new();
        let mut add = |base: u64, bytes: u64, what: &str| {
            let base = base & bits::ADDRESS;
            out.extend((0..bytes.div_ceil(4096)).map(|at| (base + 4096 * at, what.to_string())));
        };
        if self.enabled() {
            add(self.table, 32 * self.entries(), "the device table");
        }
        if through == Through::TablesAndCaches {
            if self.ring.running {
                add(self.ring.base, self.ring.size(), "the command ring");
            }
            if self.events.running {
                add(self.events.base, self.events.size(), "the event log");
            }
            if self.requests.running {
                add(self.requests.base, self.requests.size(), "the log of page requests");
            }
        }
        if !self.enabled() {
            return out;
        }
        let listing = self.listing(view, through);
        let mut seen = Vec::new();
        for source in self.list_sources(view, through) {
            for start in self.open(view, source, through).iter().filter_map(start) {
                // Walks each root once, however many requesters share it.
                if !seen.contains(&start) {
                    seen.push(start);
                    listing.tables(start, &mut out);
                }
            }
        }
        out
    }
}
