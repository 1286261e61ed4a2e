//! An executor of plans that suspects the worst: a unit has cached everything it could have seen since it was
//! last told to forget. After every single step it asks what each device may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use crate::addr::{Iova, PhysAddr, PhysRange};
use crate::policy::{
    AllocateRequest, BatchRequest, Binding, BufferId, ClientId, Config, DomainId, Event,
    MapRequest, Outcome, Plan, Refused, Registry, SessionId, Step, UnitIndex, UnitState,
};
use crate::topology::capabilities::{DomainTag, LevelSet, PageSizes, UnitCapabilities};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::PciFunction;
use iommu_protocol::ids::Slot;

pub(super) const MIB: u64 = 1 << 20;
/// Memory of the machine under test: 64 MiB, of which the server has the last 16.
pub(super) const RAM: u64 = 64 * MIB;
pub(super) const OWN: u64 = 48 * MIB;
const PAGE: u64 = 4096;

/// What the hardware holds of one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    tag: u16,
    /// Ranges by first byte: last byte, memory, access.
    ranges: BTreeMap<u64, (u64, u64, u32)>,
}

/// One unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    pub(super) enabled: bool,
    pub(super) entries: BTreeMap<u16, Binding>,
    /// Bindings that may still be in use beside the current one.
    stale_entries: BTreeMap<u16, Vec<Binding>>,
    /// Memory that may still be reached through a domain, by tag.
    stale_pages: BTreeMap<u16, BTreeSet<(u64, u64)>>,
}

/// Hardware, and what is expected of it.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) units: Vec<Hardware>,
    domains: BTreeMap<u32, Tables>,
    /// Memory of live buffers, by first byte: last byte and buffer.
    pub(super) buffers: BTreeMap<u64, (u64, u32)>,
    /// Buffers whose memory is the system's again, and that are not released yet.
    returned: BTreeSet<u32>,
    /// Every step ever run.
    pub(super) steps: Vec<Step>,
    pub(super) released: Vec<BufferId>,
}

fn read_write() -> u32 {
    (Access::READ | Access::WRITE).bits()
}

impl World {
    pub(super) fn new(units: usize) -> Self {
        Self { units: vec![Hardware::default(); units], ..Self::default() }
    }

    fn unit(&mut self, unit: UnitIndex) -> &mut Hardware {
        &mut self.units[unit.0 as usize]
    }

    fn domain(&mut self, domain: DomainId) -> &mut Tables {
        self.domains.get_mut(&domain.0).expect("a domain that exists")
    }

    /// Memory that a unit may reach for a source: through every entry and every translation that it may use.
    pub(super) fn reach(&self, unit: usize, source: u16) -> Vec<(u64, u64)> {
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

    /// Whether any unit may reach a byte of this memory, for any source.
    pub(super) fn reachable(&self, first: u64, last: u64) -> bool {
        (0..self.units.len()).filter(|unit| self.units[*unit].enabled).any(|unit| {
            let hardware = &self.units[unit];
            let sources: BTreeSet<u16> =
                hardware.entries.keys().chain(hardware.stale_entries.keys()).copied().collect();
            // What is let through untranslated is the administrator's choice, and asked about elsewhere.
            sources.into_iter().any(|source| {
                let reach = self.reach(unit, source);
                reach.iter().any(|(a, b)| *b < u64::MAX && *a <= last && first <= *b)
            })
        })
    }

    pub(super) fn step(&mut self, step: &Step) {
        self.steps.push(*step);
        match *step {
            Step::CreateTable { domain, tag: DomainTag(tag), format } => {
                assert!(tag > 1, "tag {tag} is not for domains");
                assert!((3..=6).contains(&format.levels));
                let tables = Tables { tag, ..Tables::default() };
                let twice = self.domains.values().any(|tables| tables.tag == tag);
                assert!(!twice, "tag {tag} given twice");
                assert!(self.domains.insert(domain.0, tables).is_none(), "{domain:?} twice");
            }
            Step::DestroyTable { domain } => self.destroy(domain),
            Step::Map { domain, range, phys, access } => {
                let (first, last) = (range.first().0, range.last().0);
                let tables = self.domain(domain);
                let clear = tables.ranges.range(..=last).next_back();
                assert!(clear.is_none_or(|(_, (end, ..))| *end < first), "{range:?} mapped twice");
                tables.ranges.insert(first, (last, phys.0, access.bits()));
                self.cache_all();
            }
            Step::Unmap { domain, range, phys, access } => {
                let (first, last) = (range.first().0, range.last().0);
                self.cache_all();
                self.domain(domain).unmap(first, last, phys.0, access.bits());
            }
            Step::Publish { .. } | Step::ReleaseTables { .. } => {}
            Step::Invalidate { unit, domain, .. } => {
                let tag = self.domain(domain).tag;
                self.unit(unit).stale_pages.remove(&tag);
                self.cache_all();
            }
            Step::Block { unit, source, was } => {
                let now = self.unit(unit).entries.get(&source.0).copied();
                assert_eq!(now.unwrap_or(Binding::Blocked), was, "what {source:?} was");
                self.write(unit, source, Binding::Blocked);
            }
            Step::Deny { unit, source } => self.write(unit, source, Binding::Blocked),
            Step::Translate { unit, source, domain } => {
                self.domain(domain);
                self.open(unit, source, Binding::Domain(domain));
            }
            Step::PassThrough { unit, source } => self.open(unit, source, Binding::PassThrough),
            Step::InvalidateEntry { unit, source, was } => {
                self.unit(unit).stale_entries.remove(&source.0);
                if let Binding::Domain(domain) = was {
                    let tag = self.domain(domain).tag;
                    self.unit(unit).stale_pages.remove(&tag);
                }
                self.cache_all();
            }
            Step::Enable { unit } => {
                self.unit(unit).enabled = true;
                self.cache_all();
            }
            Step::ReleaseBuffer { buffer } => self.release(buffer),
        }
    }

    /// An entry that denied, and that nothing else is cached of, is opened.
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
        if hardware.enabled && was != now {
            hardware.stale_entries.entry(source.0).or_default().push(was);
        }
        self.cache_all();
    }

    /// Each unit caches every translation that any of its entries, current or cached, leads to.
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

    /// A buffer's memory goes to whoever wants it next. Policy `compat` may reach it again, nobody else.
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

    /// What the tables of a domain hold: first byte, last byte, memory.
    pub(super) fn mapped(&self, domain: DomainId) -> Vec<(u64, u64, u64)> {
        let tables = &self.domains[&domain.0];
        tables.ranges.iter().map(|(first, (last, phys, _))| (*first, *last, *phys)).collect()
    }

    pub(super) fn domain_count(&self) -> usize {
        self.domains.len()
    }

    pub(super) fn entry(&self, unit: usize, source: PciAddress) -> Binding {
        let entries = &self.units[unit].entries;
        entries.get(&source.requester.0).copied().unwrap_or(Binding::Blocked)
    }
}

impl Tables {
    /// Cuts `first` to `last` out, which is mapped to `phys` and what follows, in one piece or several.
    fn unmap(&mut self, first: u64, last: u64, phys: u64, access: u32) {
        let mut from = first;
        while from <= last {
            let (&at, &(end, base, bits)) =
                self.ranges.range(..=from).next_back().expect("a mapping to unmap");
            assert!(end >= from, "{from:#x} is not mapped");
            let expected = (phys + (from - first), access);
            assert_eq!((base + (from - at), bits), expected, "what was mapped at {from:#x}");
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

/// A registry, its hardware, and a supply of memory.
pub(super) struct Bench {
    pub(super) registry: Registry,
    pub(super) world: World,
    /// The next free byte of the server's own memory.
    pub(super) next: u64,
    /// Whose each buffer is.
    pub(super) clients: BTreeMap<u32, ClientId>,
    /// Requesters that policy lets through untranslated.
    pub(super) passes: BTreeSet<u16>,
    /// Memory of the server, which no device reaches: first and last byte.
    pub(super) own: BTreeMap<u64, u64>,
    /// Every plan is first aborted, and the state compared.
    pub(super) thorough: bool,
}

/// Steps that cannot fail, and cannot be undone.
const fn is_final(step: &Step) -> bool {
    matches!(
        step,
        Step::ReleaseTables { .. } | Step::DestroyTable { .. } | Step::ReleaseBuffer { .. }
    )
}

pub(super) fn capabilities() -> UnitCapabilities {
    UnitCapabilities {
        levels: LevelSet::THREE | LevelSet::FOUR,
        page_sizes: PageSizes::SIZE_4K | PageSizes::SIZE_2M,
        coherent: true,
        caches_absent: false,
        last_tag: 255,
        pass_through: true,
        physical_bits: 46,
        iova_bits: 48,
    }
}

pub(super) fn phys(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// A unit with its registers above the memory of the machine.
pub(super) fn unit(number: u64, include_all: bool) -> UnitDescription {
    UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(phys(0xfed9_0000 + number * PAGE, PAGE)),
        include_all,
        scopes: Vec::new(),
        entries: Vec::new(),
    }
}

pub(super) fn one_unit() -> Firmware {
    Firmware { units: vec![unit(0, true)], ..Firmware::default() }
}

impl Bench {
    /// A machine whose functions are known and whose units are up.
    pub(super) fn new(config: Config, firmware: Firmware, functions: &[PciFunction]) -> Self {
        let mut bench = Self::cold(config, firmware);
        for function in functions {
            bench.run(&Event::FunctionAdded(*function)).unwrap();
        }
        for unit in 0..bench.world.units.len() {
            bench.run(&ready(unit)).unwrap();
        }
        bench
    }

    /// A machine where nothing has happened.
    pub(super) fn cold(config: Config, firmware: Firmware) -> Self {
        let units = firmware.units.len();
        let registry = Registry::new(config, firmware, &[phys(0, RAM)], &[phys(OWN, RAM - OWN)]);
        Self {
            registry,
            world: World::new(units),
            next: OWN,
            clients: BTreeMap::new(),
            passes: BTreeSet::new(),
            own: BTreeMap::from([(OWN, RAM - 1)]),
            thorough: true,
        }
    }

    pub(super) fn compat(functions: &[PciFunction]) -> Self {
        Self::new(Config::default(), one_unit(), functions)
    }

    pub(super) fn run(&mut self, event: &Event) -> Result<Outcome, Refused> {
        if self.thorough {
            let before = self.snapshot();
            match self.registry.decide(event) {
                Ok(plan) => self.registry.abort(plan),
                Err(refused) => {
                    assert_eq!(self.snapshot(), before, "a refusal changes nothing: {event:?}");
                    return Err(refused);
                }
            }
            assert_eq!(self.snapshot(), before, "abort restores everything: {event:?}");
        }
        let plan = self.registry.decide(event)?;
        self.carry_out(&plan, event);
        let outcome = self.registry.commit(plan);
        self.check();
        Ok(outcome)
    }

    fn carry_out(&mut self, plan: &Plan, event: &Event) {
        let last = plan.steps().iter().rposition(|step| !is_final(step));
        let first = plan.steps().iter().position(is_final);
        assert!(last < first || first.is_none(), "what cannot be undone comes last: {plan:?}");
        if let Event::Allocate(session, request) = event {
            // The memory is the buffer's from the first step that lets its device reach it.
            let client = self.registry.session(*session).unwrap().client;
            for segment in &request.segments {
                let (first, last) = (segment.first().0, segment.last().0);
                self.world.buffers.insert(first, (last, request.buffer.0));
            }
            self.clients.insert(request.buffer.0, client);
        }
        let taking = matches!(event, Event::Allocate(..) | Event::MemoryTaken(_));
        for (at, step) in plan.steps().iter().enumerate() {
            if let Step::Map { range, phys, .. } = step {
                self.give_back(plan, phys.0, phys.0 + (range.last().0 - range.first().0));
            }
            self.world.step(step);
            // Memory that is being taken from policy is nobody's until every unit has forgotten it.
            let settled =
                plan.steps()[..=at].iter().rposition(|s| matches!(s, Step::Invalidate { .. }))
                    >= plan.steps().iter().rposition(|s| matches!(s, Step::Invalidate { .. }));
            let opened = plan.steps()[..=at].iter().any(|s| matches!(s, Step::Map { .. }));
            if !taking || settled || opened {
                self.check_reach(step);
            }
        }
    }

    /// From the step that lets policy map it again, memory that the plan releases is the system's. Nobody reaches
    /// it by then.
    fn give_back(&mut self, plan: &Plan, start: u64, end: u64) {
        for step in plan.steps() {
            let Step::ReleaseBuffer { buffer } = step else { continue };
            for (first, (last, id)) in self.world.buffers.clone() {
                if id == buffer.0 && first < OWN && start <= last && end >= first {
                    assert!(!self.world.reachable(first, last), "{buffer:?} is given back");
                    self.world.buffers.remove(&first);
                    self.world.returned.insert(id);
                }
            }
        }
    }

    /// No device reaches the server's memory, the registers, or a buffer of another client.
    fn check_reach(&self, step: &Step) {
        for (number, hardware) in self.world.units.iter().enumerate() {
            let index = UnitIndex(u32::try_from(number).unwrap());
            let up = matches!(self.registry.unit(index).unwrap().state, UnitState::Enabled(_));
            if !(up && hardware.enabled) {
                continue;
            }
            for source in hardware.entries.keys().copied() {
                let client = self
                    .registry
                    .session_of(index, RequesterId(source))
                    .map(|session| self.registry.session(session).unwrap().client);
                for (first, last) in self.world.reach(number, source) {
                    if (first, last) == (0, u64::MAX) {
                        assert!(self.passes.contains(&source), "{source:#x} passes after {step:?}");
                        continue;
                    }
                    self.check_range(first, last, client, &format!("{source:#x} after {step:?}"));
                }
            }
        }
    }

    fn check_range(&self, first: u64, last: u64, client: Option<ClientId>, what: &str) {
        let buffers = self.world.buffers.range(..=last).filter(|(_, (end, _))| *end >= first);
        let mut covered = 0;
        for (start, (end, buffer)) in buffers {
            covered += end.min(&last) - start.max(&first) + 1;
            assert_eq!(
                client,
                Some(self.clients[buffer]),
                "buffer {buffer} within reach of {what}"
            );
        }
        for (start, end) in self.own.iter().filter(|(start, end)| **start <= last && **end >= first)
        {
            let own = end.min(&last) - start.max(&first) + 1;
            assert!(covered >= own, "the server's memory within reach of {what}");
        }
        let registers = (0xfed9_0000, 0xfed9_0000 + PAGE * self.world.units.len() as u64 - 1);
        assert!(last < registers.0 || first > registers.1, "registers within reach of {what}");
        assert!(last < 0xfee0_0000 || first > 0xfeef_ffff, "interrupts within reach of {what}");
    }

    pub(super) fn refused(&mut self, event: &Event) -> Refusal {
        self.run(event).expect_err("a refusal").refusal
    }

    pub(super) fn snapshot(&self) -> String {
        format!("{:#?}", self.registry)
    }

    /// What must hold between any two events.
    pub(super) fn check(&self) {
        let world = &self.world;
        for (unit, hardware) in world.units.iter().enumerate() {
            let failed = self
                .registry
                .unit(UnitIndex(u32::try_from(unit).unwrap()))
                .is_some_and(|unit| unit.state == UnitState::Failed);
            if failed || !hardware.enabled {
                continue;
            }
            assert!(
                hardware.stale_entries.values().all(Vec::is_empty),
                "stale entries: {:?}",
                hardware.stale_entries
            );
        }
        for address in self.registry.functions() {
            let view = self.registry.function(address).unwrap();
            if let Some(unit) = view.unit
                && world.units[unit.0 as usize].enabled
            {
                assert_eq!(world.entry(unit.0 as usize, address), view.binding, "{address}");
            }
        }
    }

    // Events, for short.

    pub(super) fn claim(&mut self, client: u32, address: PciAddress) -> SessionId {
        self.claim_under(client, address, None).unwrap()
    }

    pub(super) fn claim_under(
        &mut self,
        client: u32,
        address: PciAddress,
        parent: Option<SessionId>,
    ) -> Result<SessionId, Refused> {
        let client = ClientId(client);
        match self.run(&Event::Claim { client, address, parent })? {
            Outcome::Session(session) => Ok(session),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn allocate(
        &mut self,
        session: SessionId,
        length: u64,
        flags: AllocateFlags,
    ) -> Result<(Slot, u64, BufferId), Refused> {
        let first = self.next;
        let event = self.allocation(session, &[phys(first, length)], flags);
        self.next += length;
        self.allocated(&event)
    }

    pub(super) fn allocation(
        &self,
        session: SessionId,
        segments: &[PhysRange],
        flags: AllocateFlags,
    ) -> Event {
        Event::Allocate(
            session,
            AllocateRequest {
                buffer: self.registry.next_buffer(),
                segments: segments.to_vec(),
                length: segments.iter().map(|segment| segment.length()).sum(),
                alignment: 0,
                boundary: 0,
                access: Access::READ | Access::WRITE,
                flags,
            },
        )
    }

    /// Runs an allocation; the memory counts as the buffer's from then on.
    pub(super) fn allocated(&mut self, event: &Event) -> Result<(Slot, u64, BufferId), Refused> {
        let Event::Allocate(_, request) = event else { panic!("{event:?}") };
        let Outcome::Buffer { slot, iova } = self.run(event)? else { panic!("a buffer") };
        for segment in &request.segments {
            self.world.buffers.insert(segment.first().0, (segment.last().0, request.buffer.0));
        }
        Ok((slot, iova.0, request.buffer))
    }

    pub(super) fn buffer(&mut self, session: SessionId, pages: u64) -> (Slot, u64, BufferId) {
        self.allocate(session, pages * PAGE, AllocateFlags::empty()).unwrap()
    }

    pub(super) fn batch(
        &mut self,
        session: SessionId,
        items: &[BatchRequest],
    ) -> Result<Vec<u64>, Refused> {
        match self.run(&Event::Batch(session, items.to_vec()))? {
            Outcome::Single(iova) => Ok(vec![iova.0]),
            Outcome::Batch(all) => Ok(all.into_iter().map(|iova| iova.0).collect()),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn ready(unit: usize) -> Event {
    Event::UnitReady(UnitIndex(u32::try_from(unit).unwrap()), capabilities())
}

pub(super) fn map(slot: Slot, page: u64, pages: u64) -> BatchRequest {
    BatchRequest::Map(request(slot, page, pages))
}

pub(super) fn fixed(slot: Slot, page: u64, pages: u64, iova: u64) -> BatchRequest {
    let request =
        MapRequest { iova: Iova(iova), flags: MapFlags::FIXED, ..request(slot, page, pages) };
    BatchRequest::Map(request)
}

pub(super) fn request(slot: Slot, page: u64, pages: u64) -> MapRequest {
    MapRequest {
        slot,
        offset: page * PAGE,
        length: pages * PAGE,
        iova: Iova(0),
        access: Access::from_bits_truncate(read_write()),
        flags: MapFlags::empty(),
    }
}

pub(super) fn unmap(iova: u64, pages: u64) -> BatchRequest {
    BatchRequest::Unmap { iova: Iova(iova), length: pages * PAGE }
}
