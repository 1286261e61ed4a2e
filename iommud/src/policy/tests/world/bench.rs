//! A registry over software hardware: events are decided, carried out and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use super::book::Book;
use super::{OWN, PAGE, RAM, World, one_unit, phys, ready};
use crate::addr::Iova;
use crate::policy::{
    Allocate, Batch, Claim, ClientId, Config, Event, Hold, Import, ImportShared, MapList, Orders,
    Refused, Registry, Request, Step, UnitIndex, UnitState,
};
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;

/// The client of each claimed requester, by requester id, of each unit that is up.
type Owners = BTreeMap<usize, BTreeMap<u16, ClientId>>;

/// A registry, its hardware, and a supply of memory.
pub(in crate::policy::tests) struct Bench {
    pub(in crate::policy::tests) registry: Registry,
    pub(in crate::policy::tests) world: World,
    /// The next free byte of the server's own memory.
    pub(in crate::policy::tests) next: u64,
    /// The client of each buffer.
    pub(in crate::policy::tests) clients: BTreeMap<u32, ClientId>,
    /// Clients to whom a buffer of another one was brought.
    pub(in crate::policy::tests) brought: BTreeSet<(ClientId, u32)>,
    /// Requesters that policy lets through untranslated.
    pub(in crate::policy::tests) passes: BTreeSet<u16>,
    /// Memory of the server, which no device reaches: first and last byte.
    pub(in crate::policy::tests) own: BTreeMap<u64, u64>,
    /// The addresses of the elements of the last batch.
    pub(in crate::policy::tests) addresses: Vec<Iova>,
    /// The facts that the next server would find.
    pub(in crate::policy::tests) book: Book,
    /// Whether every plan is aborted first, and the state compared.
    pub(in crate::policy::tests) thorough: bool,
}

/// A request, and the facts about it that the executor needs.
pub(in crate::policy::tests) trait Tried: Request + Debug {
    fn allocation(&self) -> Option<&Allocate> {
        None
    }

    /// Memory that is being taken from policy belongs to nobody until every unit has invalidated it.
    fn takes_memory(&self) -> bool {
        self.allocation().is_some()
    }
}

impl Tried for Event {
    fn takes_memory(&self) -> bool {
        matches!(self, Self::MemoryTaken(_))
    }
}

impl Tried for Allocate {
    fn allocation(&self) -> Option<&Allocate> {
        Some(self)
    }
}

impl Tried for Claim {}
impl Tried for Import {}
impl Tried for ImportShared {}
impl Tried for Hold {}
impl Tried for Batch<'_> {}
impl Tried for MapList<'_> {}

/// Steps that can neither fail nor be undone.
const fn is_final(step: &Step) -> bool {
    matches!(
        step,
        Step::ReleaseTables { .. }
            | Step::DestroyTable { .. }
            | Step::ReleaseBuffer { .. }
            | Step::ReleaseAbandoned
    )
}

impl Bench {
    /// A machine whose functions are known and whose units are up.
    pub(in crate::policy::tests) fn new(
        config: Config,
        firmware: Firmware,
        functions: &[PciFunction],
    ) -> Self {
        let mut bench = Self::cold(config, firmware);
        for function in functions {
            bench.run(&Event::FunctionAdded(*function)).unwrap();
        }
        for unit in 0..bench.world.units.len() {
            bench.run(&ready(unit)).unwrap();
        }
        bench
    }

    /// A machine without any events yet.
    pub(in crate::policy::tests) fn cold(config: Config, firmware: Firmware) -> Self {
        let units = firmware.units.len();
        let registry = Registry::new(config, firmware, &[phys(0, RAM)], &[phys(OWN, RAM - OWN)]);
        Self {
            registry,
            world: World::new(units),
            next: OWN,
            clients: BTreeMap::new(),
            brought: BTreeSet::new(),
            passes: BTreeSet::new(),
            own: BTreeMap::from([(OWN, RAM - 1)]),
            addresses: Vec::new(),
            book: Book::default(),
            thorough: true,
        }
    }

    pub(in crate::policy::tests) fn compat(functions: &[PciFunction]) -> Self {
        Self::new(Config::default(), one_unit(), functions)
    }

    pub(in crate::policy::tests) fn run<R: Tried>(
        &mut self,
        request: &R,
    ) -> Result<R::Outcome, Refused> {
        if self.thorough {
            let before = self.snapshot();
            match self.registry.decide(request) {
                Ok(plan) => self.registry.abort(plan),
                Err(refused) => {
                    assert_eq!(self.snapshot(), before, "a refusal changes nothing: {request:?}");
                    return Err(refused);
                }
            }
            assert_eq!(self.snapshot(), before, "abort restores everything: {request:?}");
        }
        // After the decision the registry shows the new state, so the owners are looked up before.
        let owners = self.owners();
        let plan = self.registry.decide(request)?;
        if let Some(Allocate(session, request)) = request.allocation() {
            // The memory belongs to the buffer from the first step that lets its device reach it.
            let client = self.registry.session(*session).unwrap().client;
            for segment in &request.segments {
                let (first, last) = (segment.first().0, segment.last().0);
                self.world.buffers.insert(first, (last, request.buffer.0));
            }
            self.clients.insert(request.buffer.0, client);
        }
        self.carry_out(plan.orders(), request.takes_memory(), &owners);
        self.addresses = plan.orders().addresses().to_vec();
        self.registry.record(plan.changes(), &mut self.book);
        let outcome = self.registry.commit(plan);
        self.book.check(&self.registry);
        self.check();
        Ok(outcome)
    }

    /// The client of each requester of each unit that is up.
    fn owners(&self) -> Owners {
        let mut owners = Owners::new();
        for (number, hardware) in self.world.units.iter().enumerate() {
            let index = UnitIndex(u32::try_from(number).unwrap());
            if !matches!(self.registry.unit(index).unwrap().state, UnitState::Enabled(_)) {
                continue;
            }
            let client = |source: &u16| {
                let session = self.registry.session_of(index, RequesterId(*source))?;
                Some((*source, self.registry.session(session).unwrap().client))
            };
            owners.insert(number, hardware.entries.keys().filter_map(client).collect());
        }
        owners
    }

    fn carry_out(&mut self, orders: &Orders, taking: bool, owners: &Owners) {
        let steps = orders.steps();
        let last = steps.iter().rposition(|step| !is_final(step));
        let first = steps.iter().position(is_final);
        assert!(last < first || first.is_none(), "what cannot be undone comes last: {steps:?}");
        assert_eq!(orders.fallible(), first.unwrap_or(steps.len()));
        for (at, step) in steps.iter().enumerate() {
            if let Step::Map { range, phys, .. } = step {
                self.give_back(steps, phys.0, phys.0 + (range.last().0 - range.first().0));
            }
            self.world.step(step, orders.pages());
            // Memory that is being taken from policy belongs to nobody until every unit has invalidated it.
            let settled = steps[..=at].iter().rposition(|s| matches!(s, Step::Invalidate { .. }))
                >= steps.iter().rposition(|s| matches!(s, Step::Invalidate { .. }));
            let opened = steps[..=at].iter().any(|s| matches!(s, Step::Map { .. }));
            if !taking || settled || opened {
                self.check_reach(step, owners);
            }
        }
    }

    /// From the step that lets policy map it again, memory that the plan releases belongs to the system. No device
    /// reaches it by then.
    fn give_back(&mut self, steps: &[Step], start: u64, end: u64) {
        for step in steps {
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

    /// Checks that no device reaches the server's memory, the registers, or a buffer of another client.
    fn check_reach(&self, step: &Step, owners: &Owners) {
        for (number, hardware) in self.world.units.iter().enumerate() {
            let Some(owners) = owners.get(&number).filter(|_| hardware.enabled) else { continue };
            for source in hardware.entries.keys().copied() {
                let client = owners.get(&source).copied();
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
            let owns = |client| client == self.clients[buffer];
            let may = client.is_some_and(|of| owns(of) || self.brought.contains(&(of, *buffer)));
            assert!(may, "buffer {buffer} within reach of {what}, of {client:?}");
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

    pub(in crate::policy::tests) fn refused<R: Tried>(&mut self, request: &R) -> Refusal {
        match self.run(request) {
            Ok(_) => panic!("not refused: {request:?}"),
            Err(refused) => refused.refusal,
        }
    }

    pub(in crate::policy::tests) fn snapshot(&self) -> String {
        format!("{:#?}", self.registry)
    }

    /// Checks the invariants between any two events.
    pub(in crate::policy::tests) fn check(&self) {
        self.check_tallies();
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
            world.check_roots(hardware);
        }
        for address in self.registry.functions() {
            let view = self.registry.function(address).unwrap();
            if let Some(unit) = view.unit
                && world.units[unit.0 as usize].enabled
            {
                assert_eq!(world.entry(unit.0 as usize, address), view.binding, "{address}");
                let silent = &world.units[unit.0 as usize].silent;
                assert_eq!(silent.contains(&address.requester.0), view.silenced, "{address}");
            }
        }
    }

    /// Checks that what each session has made and not ended is what it has mapped.
    fn check_tallies(&self) {
        let state = &self.registry.state;
        for (_, session) in state.sessions.iter() {
            let domain = session.domain.and_then(|domain| state.domains.get(domain.0));
            let (mut live, mut bytes) = (0, 0);
            for record in session.slots.iter().flatten().filter_map(|slot| state.slots.get(*slot)) {
                for ((_, length), uses) in &record.direct {
                    live += u64::from(*uses);
                    bytes += length * u64::from(*uses);
                }
                let mappings = domain.into_iter().flat_map(|of| of.mappings.list(&record.mappings));
                for (_, mapping) in mappings {
                    live += 1;
                    bytes += mapping.range.length();
                }
            }
            let tally = session.tally;
            assert_eq!(tally.maps - tally.unmaps, live, "{}", session.address);
            assert_eq!(tally.mapped_bytes - tally.unmapped_bytes, bytes, "{}", session.address);
        }
    }
}
