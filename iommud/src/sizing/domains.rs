//! Forecasts the domains of policy and the entries: the start of the machine, decided without hardware.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::facts::Facts;
use super::tables;
use crate::addr::PhysRange;
use crate::policy::{Binding, DomainId, Event, Registry, Step, UnitIndex};
use crate::topology::capabilities::{PageSizes, TableFormat, UnitCapabilities};
use crate::topology::firmware::ScopeKind;
use crate::topology::pci::PciFunction;
use crate::topology::scope::Scopes;
use crate::topology::table::FunctionTable;

/// Bytes of a leaf of 2 MiB.
const LARGE: u64 = 1 << 21;

/// A domain of policy.
#[derive(Debug)]
pub(super) struct Domain {
    id: DomainId,
    format: TableFormat,
    /// The ranges that it maps one to one, lowest first.
    ranges: Vec<(u64, u64)>,
    /// Units with entries that point to it.
    units: BTreeSet<UnitIndex>,
}

/// The results of the start of the machine.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    pub(super) domains: Vec<Domain>,
    /// Buses with entries, of units whose entries lie in a frame for each bus.
    buses: BTreeMap<UnitIndex, BTreeSet<u8>>,
    /// Frames of domains for regions that firmware reserves, should every function need one of its own.
    pub(super) reserved_frames: u64,
}

impl Domain {
    /// Frames of its tables, and of an empty one that it may keep.
    pub(super) fn frames(&self) -> u64 {
        tables::count(self.format.levels, self.format.page_sizes, &self.ranges) + 1
    }

    /// Number of tables that replace large leaves when holes are made: for `pieces` pieces of 2 MiB or more, each
    /// aligned to 2 MiB; for one page of notes; and for the ends of the memory that earlier servers `left`.
    pub(super) fn splits(&self, pieces: u64, left: &[PhysRange]) -> u64 {
        let leaves = |size| tables::leaves(size, self.format.page_sizes, &self.ranges);
        let unaligned = left.iter().map(|range| {
            u64::from(!range.first().is_aligned(LARGE))
                + u64::from((range.last().0 + 1) % LARGE != 0)
        });
        let small = 1 + unaligned.sum::<u64>();
        let tables_of_pages = if leaves(PageSizes::SIZE_2M) > 0 { small } else { 0 };
        tables_of_pages + leaves(PageSizes::SIZE_1G).min(pieces + small)
    }
}

impl Forecast {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let mut forecast = Self::default();
        let config = facts.config.clone();
        let mut registry = Registry::new(config, facts.firmware.clone(), facts.ram, &[]);
        for function in facts.functions {
            forecast.carry_out(&mut registry, &Event::FunctionAdded(*function));
        }
        for (index, survey) in (0..).zip(facts.surveys) {
            let unit = UnitIndex(index);
            let event = match survey {
                Some(survey) => Event::UnitReady(unit, survey.capabilities),
                None => Event::UnitFailed(unit),
            };
            forecast.carry_out(&mut registry, &event);
        }
        forecast.firmware_names(facts);
        forecast.functions_need(facts);
        forecast.buses.retain(|unit, _| survey(facts, *unit).is_some_and(|s| s.frame_per_bus));
        forecast
    }

    /// Decides an event and records its steps.
    fn carry_out(&mut self, registry: &mut Registry, event: &Event) {
        let Ok(plan) = registry.decide(event) else { return };
        for step in plan.orders().steps() {
            self.note(step);
        }
        registry.commit(plan);
    }

    fn note(&mut self, step: &Step) {
        match *step {
            Step::CreateTable { domain: id, format, .. } => {
                let (ranges, units) = (Vec::new(), BTreeSet::new());
                self.domains.push(Domain { id, format, ranges, units });
            }
            Step::Map { domain, range, .. } => {
                if let Some(domain) = self.domain(domain) {
                    domain.ranges.push((range.first().0, range.last().0));
                }
            }
            Step::SetEntry { unit, source, to, .. } => {
                self.enter(unit, source.bus());
                if let Binding::Domain(domain) = to
                    && let Some(domain) = self.domain(domain)
                {
                    domain.units.insert(unit);
                }
            }
            Step::SuppressFaults { unit, source, .. } => self.enter(unit, source.bus()),
            _ => {}
        }
    }

    fn domain(&mut self, id: DomainId) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.id == id)
    }

    fn enter(&mut self, unit: UnitIndex, bus: u8) {
        self.buses.entry(unit).or_default().insert(bus);
    }

    /// Adds the entries of requesters that firmware names and that are no functions.
    fn firmware_names(&mut self, facts: &Facts<'_>) {
        for (index, unit) in (0..).zip(&facts.firmware.units) {
            let function = |kind| matches!(kind, ScopeKind::Endpoint | ScopeKind::Bridge);
            for scope in unit.scopes.iter().filter(|scope| !function(scope.kind)) {
                self.enter(UnitIndex(index), scope.start_bus);
            }
        }
    }

    /// Adds the entries of all buses behind bridges, where devices may be plugged in. A function for which firmware
    /// reserves regions has a domain of them when its driver dies.
    fn functions_need(&mut self, facts: &Facts<'_>) {
        let mut table = FunctionTable::default();
        for function in facts.functions {
            table.insert(*function);
        }
        let scopes = Scopes::new(facts.firmware, table.view());
        for function in facts.functions {
            let unit = scopes.unit(facts.firmware, function);
            let Some(unit) = unit.and_then(|unit| u32::try_from(unit).ok()).map(UnitIndex) else {
                continue;
            };
            if let Some(buses) = function.buses() {
                (buses.secondary..=buses.subordinate).for_each(|bus| self.enter(unit, bus));
            }
            if let Some(survey) = survey(facts, unit) {
                let regions = regions(facts, &scopes, function);
                self.reserved_frames += domain_of(&survey.capabilities, &regions);
            }
        }
    }

    /// Frames of context tables of a unit.
    pub(super) fn buses_of(&self, unit: usize) -> u64 {
        let buses = self.buses.iter().find(|(of, _)| usize::try_from(of.0) == Ok(unit));
        buses.map_or(0, |(_, buses)| tables::frames(buses.len()))
    }

    /// Frames of the domains that entries of a unit point to.
    pub(super) fn domains_behind(&self, unit: usize) -> u64 {
        let here =
            |domain: &&Domain| domain.units.iter().any(|of| usize::try_from(of.0) == Ok(unit));
        self.domains.iter().filter(here).map(Domain::frames).sum()
    }
}

fn survey<'a>(facts: &Facts<'a>, unit: UnitIndex) -> Option<&'a crate::hw::Survey> {
    facts.surveys.get(usize::try_from(unit.0).ok()?)?.as_ref()
}

/// The regions that firmware reserves for a function, in whole pages, lowest first; and whether they overlap.
fn regions(facts: &Facts<'_>, scopes: &Scopes, function: &PciFunction) -> (Vec<(u64, u64)>, bool) {
    let reserved = scopes.reserved(facts.firmware, function.address);
    let pages = reserved.map(|region| region.range.page_aligned());
    let mut all: Vec<_> = pages.map(|range| (range.first().0, range.last().0)).collect();
    all.sort_unstable();
    let count = all.len();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let overlap = merged.len() < count;
    (merged, overlap)
}

/// Frames of a domain of these regions, for a unit that walks its deepest page tables; none without regions.
fn domain_of(capabilities: &UnitCapabilities, (regions, overlap): &(Vec<(u64, u64)>, bool)) -> u64 {
    if regions.is_empty() {
        return 0;
    }
    let deepest = (3..=6).rev().find(|depth| capabilities.levels.bits() & 1 << depth != 0);
    // Where regions overlap their accesses may differ, and leaves end where accesses change.
    let sizes = if *overlap { PageSizes::SIZE_4K } else { capabilities.page_sizes };
    tables::count(deepest.unwrap_or(3), sizes, regions) + 1
}
