//! A registry over such hardware: events are decided, carried out and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use iommu_protocol::ids::RequesterId;
use iommu_protocol::status::Refusal;

use super::{OWN, PAGE, RAM, World, one_unit, phys, ready};
use crate::addr::PhysAddr;
use crate::policy::{
    BatchRequest, ChangePlan, ClientId, Config, Decided, Event, Outcome, Refused, Registry,
    SessionId, Step, UnitIndex, UnitState,
};
use crate::topology::firmware::Firmware;
use crate::topology::pci::PciFunction;

/// A registry, its hardware, and a supply of memory.
pub(in crate::policy::tests) struct Bench {
    pub(in crate::policy::tests) registry: Registry,
    pub(in crate::policy::tests) world: World,
    /// The next free byte of the server's own memory.
    pub(in crate::policy::tests) next: u64,
    /// Whose each buffer is.
    pub(in crate::policy::tests) clients: BTreeMap<u32, ClientId>,
    /// Requesters that policy lets through untranslated.
    pub(in crate::policy::tests) passes: BTreeSet<u16>,
    /// Memory of the server, which no device reaches: first and last byte.
    pub(in crate::policy::tests) own: BTreeMap<u64, u64>,
    /// Every plan is first aborted, and the state compared.
    pub(in crate::policy::tests) thorough: bool,
}

/// Steps that cannot fail, and cannot be undone.
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

    /// A machine where nothing has happened.
    pub(in crate::policy::tests) fn cold(config: Config, firmware: Firmware) -> Self {
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

    pub(in crate::policy::tests) fn compat(functions: &[PciFunction]) -> Self {
        Self::new(Config::default(), one_unit(), functions)
    }

    pub(in crate::policy::tests) fn run(&mut self, event: &Event) -> Result<Outcome, Refused> {
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
        if let Event::Batch(session, items) = event
            && let [item] = items.as_slice()
        {
            return self.run_change(event, *session, item);
        }
        let plan = self.registry.decide(event)?;
        self.carry_out(plan.steps(), plan.pages(), event);
        let outcome = self.registry.commit(plan);
        self.check();
        Ok(outcome)
    }

    /// A batch of one, in the way of requests for one change: it comes to the same.
    fn run_change(
        &mut self,
        event: &Event,
        session: SessionId,
        item: &BatchRequest,
    ) -> Result<Outcome, Refused> {
        let before = self.snapshot();
        let whole = self.registry.decide(event).map(|plan| {
            let steps = plan.steps().to_vec();
            self.registry.abort(plan);
            steps
        });
        let mut plan = ChangePlan::default();
        let decided = match (self.decide_one(session, item, &mut plan), &whole) {
            (Ok(decided), Ok(_)) => decided,
            (Err(refusal), Err(refused)) => {
                assert_eq!((refusal, self.snapshot()), (refused.refusal, before), "{item:?}");
                return Err(*refused);
            }
            (single, _) => panic!("{item:?}: {whole:?}, but by itself {single:?}"),
        };
        if let Decided::Plan(plan) = decided {
            assert_eq!(Ok(plan.steps()), whole.as_deref(), "{item:?}");
            self.carry_out(plan.steps(), plan.pages(), event);
            let outcome = self.registry.commit(plan);
            self.check();
            return Ok(outcome);
        }
        assert_eq!(Ok(plan.written()), whole, "{item:?}");
        self.registry.abort_change(plan);
        assert_eq!(self.snapshot(), before, "abort restores everything: {item:?}");
        let mut plan = ChangePlan::default();
        self.decide_one(session, item, &mut plan)?;
        let iova = plan.iova();
        self.carry_out(&plan.written(), &[], event);
        self.registry.commit_change(plan);
        self.check();
        Ok(Outcome::Single(iova))
    }

    fn decide_one(
        &mut self,
        session: SessionId,
        item: &BatchRequest,
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        match *item {
            BatchRequest::Map(request) => self.registry.decide_map(session, &request, plan),
            BatchRequest::Grant(request) => self.registry.decide_grant(session, &request, plan),
            BatchRequest::Unmap { iova, length } => {
                self.registry.decide_unmap(session, (iova, length), plan)
            }
            BatchRequest::Revoke { slot, offset, length } => {
                self.registry.decide_revoke(session, (slot, offset, length), plan)
            }
        }
    }

    fn carry_out(&mut self, steps: &[Step], pages: &[PhysAddr], event: &Event) {
        let last = steps.iter().rposition(|step| !is_final(step));
        let first = steps.iter().position(is_final);
        assert!(last < first || first.is_none(), "what cannot be undone comes last: {steps:?}");
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
        for (at, step) in steps.iter().enumerate() {
            if let Step::Map { range, phys, .. } = step {
                self.give_back(steps, phys.0, phys.0 + (range.last().0 - range.first().0));
            }
            self.world.step(step, pages);
            // Memory that is being taken from policy is nobody's until every unit has forgotten it.
            let settled = steps[..=at].iter().rposition(|s| matches!(s, Step::Invalidate { .. }))
                >= steps.iter().rposition(|s| matches!(s, Step::Invalidate { .. }));
            let opened = steps[..=at].iter().any(|s| matches!(s, Step::Map { .. }));
            if !taking || settled || opened {
                self.check_reach(step);
            }
        }
    }

    /// From the step that lets policy map it again, memory that the plan releases is the system's. Nobody reaches
    /// it by then.
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

    pub(in crate::policy::tests) fn refused(&mut self, event: &Event) -> Refusal {
        self.run(event).expect_err("a refusal").refusal
    }

    pub(in crate::policy::tests) fn snapshot(&self) -> String {
        format!("{:#?}", self.registry)
    }

    /// What must hold between any two events.
    pub(in crate::policy::tests) fn check(&self) {
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
}
