//! Recognises scenarios in the observed events.

use iommu_protocol::Refusal;

use super::act::{Act, Answer, Client, Event as What};
use super::check::Event;
use super::ledger::{Ledger, Unit};
use super::scenario::Seen;
use super::scene::Device;

/// Limit of CPU actions for a bystander's request after a fault storm. Measured without a storm: below 200.
const BOUND: u64 = 1000;

/// The part of an interleaving's history that scenarios need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Scenarios exercised so far.
    pub seen: Seen,
    refusals: Vec<Refusal>,
    not_ready: Vec<(Client, Device)>,
    last_claim: Option<(Client, Device)>,
    looked: Vec<(Client, Device, (u32, u32))>,
    no_memory: Vec<(Client, Act)>,
    failed_claim: Option<Device>,
    died_claimed: Vec<(Client, usize)>,
    timed_out: Vec<(Client, usize)>,
    removed_driven: Vec<Device>,
    reset: Vec<Device>,
    independent_refused: Vec<Client>,
    detached_one: Vec<usize>,
    storm: Option<Device>,
}

/// Measurements of an event besides its answer and the hardware's state.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// CPU actions of the event.
    pub steps: u64,
    /// Buffers in use before and after.
    pub buffers: (usize, usize),
}

impl History {
    /// Records an event that passed all checks.
    pub fn note(&mut self, what: What, event: &Event<'_>, measured: Measured) {
        let Some(answer) = event.answer else { return };
        if let Answer::Refused(refusal) = answer {
            self.refused(what, event, *refusal);
        }
        self.claims(event, answer);
        self.attachments(event, answer);
        self.departures(event, measured);
        self.machine(event, answer);
        self.memory(event, answer, measured);
        if what.failure.is_none() && matches!(event.act, Act::Claim(_)) {
            let Act::Claim(device) = event.act else { return };
            self.last_claim = Some((event.client, device));
        } else {
            self.last_claim = None;
        }
    }

    fn refused(&mut self, what: What, event: &Event<'_>, refusal: Refusal) {
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
        let all = [Refusal::UnitFailed, Refusal::NoUnit, Refusal::NotReady];
        if all.iter().all(|refusal| self.refusals.contains(refusal)) {
            self.seen.add(5);
        }
        let client = event.client;
        match (event.act, refusal) {
            (Act::Attach(_) | Act::Map(_) | Act::Detach(_), Refusal::BadHandle) => self.seen.add(6),
            (Act::Attach(_), Refusal::NotProbed) => self.seen.add(12),
            (Act::Claim(device), Refusal::NotReady) => self.not_ready.push((client, device)),
            (Act::Claim(device), Refusal::NoMemory) => self.failed_claim = Some(device),
            (Act::MapFixed(..) | Act::UnmapAt(..), Refusal::Reserved) => self.seen.add(22),
            (Act::Allocate(..) | Act::Map(_), Refusal::Quota) => self.seen.add(30),
            (Act::Added(_), Refusal::Busy) if event.scene.aliases => self.seen.add(23),
            _ => {}
        }
        if what.failure.is_some() && matches!(refusal, Refusal::NoMemory | Refusal::Full) {
            self.no_memory.push((client, event.act));
        }
        let unit = event.act_device().and_then(|device| event.scene.functions[device].unit);
        if let Some(unit) = unit.filter(|_| refusal == Refusal::UnitFailed)
            && event.after.troubled[unit]
        {
            self.timed_out.push((client, unit));
        }
    }

    fn claims(&mut self, event: &Event<'_>, answer: &Answer) {
        let Event { scene, client, before, .. } = *event;
        let group = |device: Device| scene.functions[device].group;
        match (event.act, answer) {
            (Act::Claim(device), Answer::Refused(refusal)) => {
                let owner = before.owner(scene, group(device));
                let other = owner.is_some_and(|owner| owner != client);
                let denied = matches!(refusal, Refusal::NotOwner | Refusal::Busy);
                if denied
                    && other
                    && self.last_claim.is_some_and(|(by, at)| by != client && at == device)
                {
                    self.seen.add(1);
                }
                let holds = |at: Device| before.session(client, at).is_some();
                if denied && other && !before.sessions.iter().any(|s| s.device == device) {
                    self.seen.add(19);
                }
                if denied && owner == Some(client) && !holds(device) {
                    self.independent_refused.push(client);
                }
            }
            (Act::Claim(device) | Act::ClaimUnder(device, _), Answer::Session { ids, .. }) => {
                if self.not_ready.contains(&(client, device)) {
                    self.seen.add(3);
                }
                if matches!(event.act, Act::ClaimUnder(..))
                    && self.independent_refused.contains(&client)
                {
                    self.seen.add(18);
                }
                let freed = |(who, of): &(Client, usize)| *who != client && *of == group(device);
                if self.died_claimed.iter().any(freed) {
                    self.seen.add(15);
                }
                let same = |(who, at, known): &(Client, Device, (u32, u32))| {
                    *who == client && *at == device && known == ids
                };
                if self.failed_claim.is_some_and(|at| at != device && group(at) == group(device))
                    && self.looked.iter().any(same)
                {
                    self.seen.add(8);
                }
                if self.removed_driven.contains(&device) && ids.1 > 1 {
                    self.seen.add(13);
                }
            }
            (Act::Look(device), Answer::Looked(Some(ids))) => {
                self.looked.push((client, device, *ids))
            }
            _ => {}
        }
    }

    fn attachments(&mut self, event: &Event<'_>, answer: &Answer) {
        let Event { scene, client, before, after, .. } = *event;
        if *answer != Answer::Done {
            return;
        }
        match event.act {
            Act::Attach(device) | Act::Detach(device) => {
                let group = scene.functions[device].group;
                let attach = matches!(event.act, Act::Attach(_));
                let driven = before.driver(device).is_some();
                if driven == attach && event.was == event.is {
                    self.seen.add(9);
                }
                let roots: Vec<_> =
                    scene.members(group).filter_map(|at| event.is[at].binding).collect();
                let all = scene.members(group).filter(|at| after.driver(*at).is_some()).count();
                if attach
                    && all > 1
                    && roots.len() == all
                    && roots.iter().all(|root| *root == roots[0])
                {
                    self.seen.add(20);
                }
                if attach && self.reset.contains(&device) {
                    self.seen.add(26);
                }
                if !attach && driven && all > 0 {
                    self.detached_one.push(group);
                }
                if !attach && driven && all == 0 && self.detached_one.contains(&group) {
                    self.seen.add(25);
                }
            }
            Act::Unmap(device) => {
                let domain = before.session(client, device).map(|session| session.domain);
                let units = (0..scene.functions.len())
                    .filter(|at| after.driver(*at).map(|session| session.domain) == domain)
                    .filter_map(|at| scene.functions[at].unit);
                let units: std::collections::BTreeSet<usize> = units.collect();
                if units.len() > 1 && units.iter().all(|unit| after.units[*unit] == Unit::Up) {
                    self.seen.add(24);
                }
            }
            _ => {}
        }
    }

    fn departures(&mut self, event: &Event<'_>, measured: Measured) {
        let Event { scene, before, after, .. } = *event;
        match event.act {
            Act::Removed(device) => {
                let open = before.sessions.iter().find(|s| s.device == device && !s.orphan);
                let denied = event.is[device].reach.is_empty();
                match open {
                    Some(session) if denied && session.attached && !session.mappings.is_empty() => {
                        self.removed_driven.push(device);
                    }
                    Some(session) if denied && !session.attached => self.seen.add(11),
                    _ => {}
                }
            }
            Act::Added(device) => {
                let group = scene.functions[device].group;
                let owned = before.owner(scene, group).is_some();
                if owned && !before.functions[device].present && event.is[device].reach.is_empty() {
                    self.seen.add(14);
                }
            }
            Act::Reset(device) => {
                let open = before.sessions.iter().any(|s| s.device == device && !s.attached);
                if open && event.was == event.is {
                    self.reset.push(device);
                }
            }
            Act::Die(dead) => self.died(event, dead, measured),
            Act::Restart => {
                let driven = (0..scene.functions.len()).any(|at| before.driver(at).is_some());
                if driven && after.units.iter().all(|unit| *unit == Unit::Up) {
                    self.seen.add(28);
                }
            }
            _ => {}
        }
    }

    fn died(&mut self, event: &Event<'_>, dead: Client, measured: Measured) {
        let Event { scene, before, after, .. } = *event;
        let mut buffers = 0;
        for session in before.sessions.iter().filter(|session| session.client == dead) {
            let group = scene.functions[session.device].group;
            if !session.attached {
                self.died_claimed.push((dead, group));
            }
            buffers += session.buffers.len();
            let driven = session.attached && !session.orphan && !session.mappings.is_empty();
            let unit = after.unit(scene, session.device);
            let gone = event.is[session.device].reach.is_empty();
            if driven && unit == Some(Unit::Up) && gone {
                self.seen.add(16);
            }
        }
        let given_back = measured.buffers.0 - measured.buffers.1;
        let kept = buffers > given_back;
        let failed = |session: &&super::ledger::Session| {
            after.unit(scene, session.device) == Some(Unit::Failed)
        };
        let behind = before.sessions.iter().filter(|s| s.client == dead).any(|s| failed(&s));
        if kept && behind {
            self.seen.add(16);
        }
    }

    fn machine(&mut self, event: &Event<'_>, answer: &Answer) {
        let Event { scene, before, after, .. } = *event;
        match event.act {
            Act::Added(device) if *answer == Answer::Done => self.appeared(event, device),
            Act::Arrive(unit)
                if after.units[unit] == Unit::Up && before.units[unit] == Unit::Down =>
            {
                let behind = |at: &Device| {
                    scene.functions[*at].unit == Some(unit) && after.functions[*at].present
                };
                let mut devices = 0..scene.functions.len();
                if devices.clone().any(|at| !behind(&at) && before.driver(at).is_some()) {
                    self.seen.add(4);
                }
                if devices.clone().any(|at| behind(&at)) {
                    self.seen.add(29);
                }
                if devices.any(|at| behind(&at) && self.not_ready.iter().any(|(_, of)| *of == at)) {
                    self.seen.add(10);
                }
            }
            Act::Recover(unit) => {
                let dead = |(client, at): &(Client, usize)| *at == unit && !after.alive[*client];
                if self.timed_out.iter().any(dead) {
                    self.seen.add(17);
                }
            }
            Act::Storm(device) => self.storm = Some(device),
            _ => {}
        }
    }

    fn appeared(&mut self, event: &Event<'_>, device: Device) {
        let Event { scene, after, .. } = *event;
        let group = scene.functions[device].group;
        let members: Vec<Device> = scene.members(group).collect();
        if members.len() < 2 || !members.iter().all(|at| after.functions[*at].present) {
            return;
        }
        if scene.aliases {
            self.seen.add(23);
        } else if !event.before.functions[device].present {
            self.seen.add(2);
        }
    }

    fn memory(&mut self, event: &Event<'_>, answer: &Answer, measured: Measured) {
        let Event { scene, client, .. } = *event;
        let failed = matches!(answer, Answer::Refused(_) | Answer::Accepted(_));
        if failed {
            return;
        }
        if let (Act::Guess(_, victim), Answer::AllRefused) = (event.act, answer)
            && event.before.sessions.iter().any(|s| s.client == victim && !s.mappings.is_empty())
        {
            self.seen.add(21);
        }
        if matches!(event.act, Act::Batch(_)) {
            self.seen.add(32);
        }
        if self.no_memory.contains(&(client, event.act)) {
            self.seen.add(7);
        }
        let Some(device) = event.act_device() else { return };
        let unit = scene.functions[device].unit;
        let other = |(by, at): &(Client, usize)| *by != client && Some(*at) != unit;
        let served =
            matches!(event.act, Act::Attach(_) | Act::Allocate(..) | Act::Map(_) | Act::Unmap(_));
        if served && self.timed_out.iter().any(other) {
            self.seen.add(27);
        }
        let stormed = self.storm.is_some_and(|at| at != device);
        if served && stormed && measured.steps <= BOUND {
            self.seen.add(31);
        }
    }
}

impl Event<'_> {
    /// The device of a request.
    #[must_use]
    pub fn act_device(&self) -> Option<Device> {
        device_of(self.act)
    }
}

/// Returns the device of a request.
#[must_use]
pub const fn device_of(act: Act) -> Option<Device> {
    match act {
        Act::Claim(device)
        | Act::ClaimUnder(device, _)
        | Act::ClaimWithin(device)
        | Act::Look(device)
        | Act::Attach(device)
        | Act::Detach(device)
        | Act::Allocate(device, _)
        | Act::Map(device)
        | Act::MapFixed(device, _)
        | Act::Unmap(device)
        | Act::UnmapAt(device, _)
        | Act::Release(device)
        | Act::Batch(device)
        | Act::List(device, ..)
        | Act::Reserve(device, _)
        | Act::Grant(device, _)
        | Act::Revoke(device, _)
        | Act::Import(device, ..)
        | Act::Guess(device, _)
        | Act::Close(device) => Some(device),
        _ => None,
    }
}

/// Enters the ids from an answer in the ledger.
pub(super) fn note_ids(ledger: &mut Ledger, act: Act, answer: &Answer) {
    match (act, answer) {
        (Act::Claim(at) | Act::ClaimUnder(at, _), Answer::Session { ids, .. })
        | (Act::Look(at), Answer::Looked(Some(ids))) => ledger.ids[at] = Some(*ids),
        _ => {}
    }
}
