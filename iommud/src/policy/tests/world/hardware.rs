//! The entries and tables of the machine's units, and everything that they may have cached.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::Access;

use super::PAGE;
use crate::addr::PhysAddr;
use crate::policy::{Binding, BufferId, DomainId, Step, UnitIndex};
use crate::topology::capabilities::DomainTag;

/// The table of one domain, as the hardware has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    tag: u16,
    levels: u8,
    /// Ranges by first byte: last byte, memory, access.
    ranges: BTreeMap<u64, (u64, u64, u32)>,
}

/// One unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy::tests) struct Hardware {
    pub(in crate::policy::tests) enabled: bool,
    pub(in crate::policy::tests) entries: BTreeMap<u16, Binding>,
    /// Levels of the root that an entry points to.
    depths: BTreeMap<u16, u8>,
    /// Requesters whose faults are suppressed.
    pub(in crate::policy::tests) silent: BTreeSet<u16>,
    /// Bindings that may still be in use beside the current one.
    pub(super) stale_entries: BTreeMap<u16, Vec<Binding>>,
    /// Memory that may still be reached through a domain, by tag.
    stale_pages: BTreeMap<u16, BTreeSet<(u64, u64)>>,
}

/// Hardware, and the state expected of it.
#[derive(Clone, Debug, Default)]
pub(in crate::policy::tests) struct World {
    pub(in crate::policy::tests) units: Vec<Hardware>,
    domains: BTreeMap<u32, Tables>,
    /// Memory of live buffers, by first byte: last byte and buffer.
    pub(in crate::policy::tests) buffers: BTreeMap<u64, (u64, u32)>,
    /// Buffers whose memory belongs to the system again, and that are not released yet.
    pub(super) returned: BTreeSet<u32>,
    /// Every step ever run.
    pub(in crate::policy::tests) steps: Vec<Step>,
    pub(in crate::policy::tests) released: Vec<BufferId>,
}

pub(super) fn read_write() -> u32 {
    (Access::READ | Access::WRITE).bits()
}

impl World {
    pub(in crate::policy::tests) fn new(units: usize) -> Self {
        Self { units: vec![Hardware::default(); units], ..Self::default() }
    }

    /// Checks that every entry of a unit points to the root of its domain.
    pub(super) fn check_roots(&self, hardware: &Hardware) {
        for (source, binding) in &hardware.entries {
            if let Binding::Domain(domain) = binding {
                let levels = self.domains[&domain.0].levels;
                assert_eq!(hardware.depths[source], levels, "root of {source:#x}");
            }
        }
    }

    fn unit(&mut self, unit: UnitIndex) -> &mut Hardware {
        &mut self.units[unit.0 as usize]
    }

    fn domain(&mut self, domain: DomainId) -> &mut Tables {
        self.domains.get_mut(&domain.0).expect("a domain that exists")
    }

    /// Memory that a unit may reach for a requester: through every entry and every translation that it may use.
    pub(in crate::policy::tests) fn reach(&self, unit: usize, source: u16) -> Vec<(u64, u64)> {
        let unit = &self.units[unit];
        if !unit.enabled {
            return vec![(0, u64::MAX)];
        }
        let now = unit.entries.get(&source).copied().unwrap_or(Binding::Blocked);
        let stale = unit.stale_entries.get(&source).into_iter().flatten().copied();
        let mut all = Vec::new();
        for binding in stale.chain([now]) {
            match binding {
                Binding::Blocked => {}
                Binding::PassThrough => all.push((0, u64::MAX)),
                Binding::Domain(domain) => {
                    let Some(tables) = self.domains.get(&domain.0) else {
                        panic!("entry of {source:#x} points to {domain:?}, which is gone");
                    };
                    all.extend(
                        tables
                            .ranges
                            .iter()
                            .map(|(first, (last, phys, _))| (*phys, phys + (last - first))),
                    );
                    all.extend(unit.stale_pages.get(&tables.tag).into_iter().flatten());
                }
            }
        }
        all
    }

    /// Whether any unit may reach a byte of this memory, for any requester.
    pub(in crate::policy::tests) fn reachable(&self, first: u64, last: u64) -> bool {
        (0..self.units.len()).filter(|unit| self.units[*unit].enabled).any(|unit| {
            let hardware = &self.units[unit];
            let sources: BTreeSet<u16> =
                hardware.entries.keys().chain(hardware.stale_entries.keys()).copied().collect();
            // Untranslated access is the administrator's choice, and checked elsewhere.
            sources.into_iter().any(|source| {
                let reach = self.reach(unit, source);
                reach.iter().any(|(a, b)| *b < u64::MAX && *a <= last && first <= *b)
            })
        })
    }

    /// Carries out a step; `pages` is the memory of a `MapList`.
    pub(in crate::policy::tests) fn step(&mut self, step: &Step, pages: &[PhysAddr]) {
        self.steps.push(*step);
        match *step {
            Step::CreateTable { domain, tag: DomainTag(tag), format, .. } => {
                assert!(tag > 1, "tag {tag} is not for domains");
                assert!((3..=6).contains(&format.levels));
                let tables = Tables { tag, levels: format.levels, ..Tables::default() };
                let twice = self.domains.values().any(|tables| tables.tag == tag);
                assert!(!twice, "tag {tag} given twice");
                assert!(self.domains.insert(domain.0, tables).is_none(), "{domain:?} twice");
            }
            Step::DestroyTable { domain } => self.destroy(domain),
            Step::Grow { domain, from, levels } => {
                let tables = self.domain(domain);
                assert!(tables.levels == from && from < levels && levels <= 6, "{step:?}");
                tables.levels = levels;
            }
            Step::Deepen { unit, source, domain, from } => {
                let levels = self.domain(domain).levels;
                let hardware = self.unit(unit);
                assert_eq!(hardware.entries.get(&source.0), Some(&Binding::Domain(domain)));
                assert_eq!(hardware.depths.insert(source.0, levels), Some(from));
                // The root that it pointed to is in use until the unit has invalidated the entry.
                hardware.stale_entries.entry(source.0).or_default().push(Binding::Domain(domain));
                self.cache_all();
            }
            Step::Map { domain, range, phys, access } => {
                let (first, last) = (range.first().0, range.last().0);
                let tables = self.domain(domain);
                let beyond = last.checked_shr(12 + 9 * u32::from(tables.levels)).unwrap_or(0);
                assert_eq!(beyond, 0, "{range:?} is out of reach");
                let clear = tables.ranges.range(..=last).next_back();
                assert!(clear.is_none_or(|(_, (end, ..))| *end < first), "{range:?} mapped twice");
                tables.ranges.insert(first, (last, phys.0, access.bits()));
                self.cache_all();
            }
            Step::MapList { domain, range, access } => {
                assert_eq!(range.length(), PAGE * pages.len() as u64, "a page for each");
                for (number, phys) in (0..).zip(pages) {
                    let first = range.first().0 + number * PAGE;
                    let last = first + PAGE - 1;
                    let tables = self.domain(domain);
                    let clear = tables.ranges.range(..=last).next_back();
                    assert!(clear.is_none_or(|(_, (end, ..))| *end < first), "{first:#x} twice");
                    tables.ranges.insert(first, (last, phys.0, access.bits()));
                }
                self.cache_all();
            }
            Step::Unmap { domain, range } => {
                self.cache_all();
                self.domain(domain).unmap(range.first().0, range.last().0);
            }
            Step::Publish { .. } | Step::ReleaseTables { .. } => {}
            Step::Invalidate { unit, domain, .. } => {
                let tag = self.domain(domain).tag;
                self.unit(unit).stale_pages.remove(&tag);
                self.cache_all();
            }
            Step::SetEntry { unit, source, from, to } => self.set(unit, source, from, to),
            Step::Deny { unit, source } => self.write(unit, source, Binding::Blocked),
            Step::InvalidateEntry { unit, source, was } => {
                self.unit(unit).stale_entries.remove(&source.0);
                if let Binding::Domain(domain) = was {
                    let tag = self.domain(domain).tag;
                    self.unit(unit).stale_pages.remove(&tag);
                }
                self.cache_all();
            }
            Step::SuppressFaults { unit, source, silent, was } => {
                let hardware = self.unit(unit);
                let now = hardware.entries.get(&source.0).copied();
                assert_eq!(now.unwrap_or(Binding::Blocked), was, "what {source:?} was");
                let changed = if silent {
                    hardware.silent.insert(source.0)
                } else {
                    hardware.silent.remove(&source.0)
                };
                assert!(changed, "{source:?} was so already");
            }
            Step::Revive { unit } => {
                let hardware = self.unit(unit);
                hardware.stale_entries.clear();
                hardware.stale_pages.clear();
                self.cache_all();
            }
            Step::ReleaseAbandoned => {}
            Step::Enable { unit } => {
                self.unit(unit).enabled = true;
                self.cache_all();
            }
            Step::ReleaseBuffer { buffer } => self.release(buffer),
        }
    }

    fn set(&mut self, unit: UnitIndex, source: RequesterId, from: Binding, to: Binding) {
        let now = self.unit(unit).entries.get(&source.0).copied().unwrap_or(Binding::Blocked);
        // An entry that is written anew may have been denied since.
        let expected = now == from || from == to && now == Binding::Blocked;
        assert!(expected, "{source:?} was {now:?}, not {from:?}");
        if let Binding::Domain(domain) = to {
            let levels = self.domain(domain).levels;
            self.unit(unit).depths.insert(source.0, levels);
        }
        if from == to || to == Binding::Blocked {
            self.write(unit, source, to);
        } else {
            self.open(unit, source, to);
        }
    }

    /// Opens an entry that denied, and of which nothing else is cached.
    fn open(&mut self, unit: UnitIndex, source: RequesterId, now: Binding) {
        let hardware = self.unit(unit);
        let was = hardware.entries.get(&source.0).copied().unwrap_or(Binding::Blocked);
        assert_eq!(was, Binding::Blocked, "{source:?} is opened without having been blocked");
        let stale = hardware.stale_entries.get(&source.0);
        let denied = stale.into_iter().flatten().all(|binding| *binding == Binding::Blocked);
        assert!(denied, "{source:?} is opened while {stale:?} may be cached");
        self.write(unit, source, now);
    }

    fn write(&mut self, unit: UnitIndex, source: RequesterId, now: Binding) {
        let hardware = self.unit(unit);
        let was = hardware.entries.insert(source.0, now).unwrap_or(Binding::Blocked);
        hardware.silent.remove(&source.0);
        if hardware.enabled && was != now {
            hardware.stale_entries.entry(source.0).or_default().push(was);
        }
        self.cache_all();
    }

    /// Makes each unit cache every translation that any of its entries, current or cached, leads to.
    fn cache_all(&mut self) {
        let Self { units, domains, .. } = self;
        for unit in units.iter_mut().filter(|unit| unit.enabled) {
            let stale = unit.stale_entries.values().flatten();
            let used: BTreeSet<u32> = unit
                .entries
                .values()
                .chain(stale)
                .filter_map(|binding| match binding {
                    Binding::Domain(domain) => Some(domain.0),
                    _ => None,
                })
                .collect();
            for tables in used.iter().filter_map(|domain| domains.get(domain)) {
                let cached = unit.stale_pages.entry(tables.tag).or_default();
                for (first, (last, phys, _)) in &tables.ranges {
                    cached.insert((*phys, phys + (last - first)));
                }
            }
        }
    }

    fn destroy(&mut self, domain: DomainId) {
        let tag = self.domain(domain).tag;
        for unit in self.units.iter().filter(|unit| unit.enabled) {
            let stale = unit.stale_entries.values().flatten();
            let used = unit.entries.values().chain(stale).any(|b| *b == Binding::Domain(domain));
            assert!(!used, "{domain:?} is destroyed while an entry may lead to it");
            let cached = unit.stale_pages.get(&tag).is_some_and(|pages| !pages.is_empty());
            assert!(!cached, "{domain:?} is destroyed while its translations may be cached");
        }
        self.domains.remove(&domain.0);
    }

    /// Gives the memory of a buffer to the system. Policy `compat` may reach it again, nobody else.
    fn release(&mut self, buffer: BufferId) {
        let mine: Vec<(u64, u64)> = self
            .buffers
            .iter()
            .filter(|(_, (_, id))| *id == buffer.0)
            .map(|(first, (last, _))| (*first, *last))
            .collect();
        let returned = self.returned.remove(&buffer.0);
        assert!(returned || !mine.is_empty(), "{buffer:?} released twice");
        for (first, last) in mine {
            self.buffers.remove(&first);
            assert!(!self.reachable(first, last), "{buffer:?} is released while reachable");
        }
        self.released.push(buffer);
    }

    /// The ranges in the table of a domain: first byte, last byte, memory.
    pub(in crate::policy::tests) fn mapped(&self, domain: DomainId) -> Vec<(u64, u64, u64)> {
        let tables = &self.domains[&domain.0];
        tables.ranges.iter().map(|(first, (last, phys, _))| (*first, *last, *phys)).collect()
    }

    pub(in crate::policy::tests) fn domain_count(&self) -> usize {
        self.domains.len()
    }

    pub(in crate::policy::tests) fn entry(&self, unit: usize, source: PciAddress) -> Binding {
        let entries = &self.units[unit].entries;
        entries.get(&source.requester.0).copied().unwrap_or(Binding::Blocked)
    }
}

impl Tables {
    /// Removes `first` to `last`, all of which is mapped, in one piece or several.
    fn unmap(&mut self, first: u64, last: u64) {
        let mut from = first;
        while from <= last {
            let (&at, &(end, base, bits)) =
                self.ranges.range(..=from).next_back().expect("a mapping to unmap");
            assert!(end >= from, "{from:#x} is not mapped");
            self.ranges.remove(&at);
            if at < from {
                self.ranges.insert(at, (from - 1, base, bits));
            }
            if end > last {
                self.ranges.insert(last + 1, (end, base + (last + 1 - at), bits));
            }
            from = end.saturating_add(1);
        }
    }
}
