//! The invariants, after each entry of a trace.

use std::collections::{BTreeMap, BTreeSet};

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::addr::PhysRange;
use iommud::policy::{ClientId, Event, GroupId, Mode, Registry, SessionId, UnitState};
use iommud::topology::pci::PciFunction;
use iommud::trace::{Entry, Fact, Said, State};
use iommud_model::invariant::{Broken, Invariant, broken, one_default, unviolated, within};
use iommud_model::machine::{Reach, Through};

use super::grants::{Grants, Session};
use super::model::Replica;

/// Requests between two looks at every function.
const SELDOM: usize = 64;

/// What the hardware says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    binding: Option<(u16, u64, u8)>,
    reach: Vec<Reach>,
}

/// The state before an entry is run.
pub(super) struct Before {
    /// The state of policy, and what the CPU did so far; only of an entry that policy refused.
    refused: Option<(String, u64)>,
    /// The client whose request the entry is.
    client: Option<ClientId>,
}

/// What is known from the entries so far.
#[derive(Default)]
pub(super) struct Checks {
    grants: Grants,
    /// The server's own memory.
    own: Vec<PhysRange>,
    /// Functions that are present, in the order in which they came.
    functions: Vec<PciFunction>,
    lives: BTreeMap<PciAddress, u32>,
    readings: BTreeMap<SessionId, Reading>,
    /// Ends of life that were refused and not carried out since.
    ends: BTreeSet<String>,
    /// A unit translates.
    translates: bool,
    since: usize,
}

impl Before {
    pub(super) fn of(run: &Replica, entry: &Entry, checks: &Checks) -> Self {
        let refused = entry.status.state == State::Refused;
        let state = || (format!("{:?}", run.registry), run.machine.steps());
        Self { refused: refused.then(state), client: checks.client(entry) }
    }
}

impl Checks {
    /// I7: each request has one answer. A server may end in its last one.
    pub(super) fn answered_once(&self, entry: &Entry, last: bool) -> Result<(), Broken> {
        if entry.status.state == State::UnderWay && !last {
            return Err(broken(Invariant::I7, "it was never answered, and others were after it"));
        }
        Ok(())
    }

    /// The client whose request an entry is; `None` for an event of the machine.
    fn client(&self, entry: &Entry) -> Option<ClientId> {
        let session = match &entry.said {
            Said::Claim(claim) => return Some(claim.client),
            Said::Allocate(allocate) => allocate.0,
            Said::Import(import) => import.0,
            Said::ImportShared(import) => import.0,
            Said::Hold(hold) => hold.0,
            Said::Batch(session, _) | Said::MapList(session, _) => *session,
            Said::Event(event) => match plain(event) {
                Event::Attach(session)
                | Event::Detach(session)
                | Event::Release(session, _)
                | Event::Close(session) => *session,
                _ => return None,
            },
            Said::Life(_) | Said::Fact(_) | Said::Seal(_) => return None,
        };
        self.grants.session(session).map(|session| session.client)
    }

    /// Checks everything after an entry.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub(super) fn after(
        &mut self,
        run: &Replica,
        entry: &Entry,
        before: Before,
        last: bool,
    ) -> Result<(), Broken> {
        unviolated(&run.machine.take_violations())?;
        if entry.status.state == State::UnderWay {
            // The server died in it. Nobody was told of it, so nothing says what was granted.
            return Ok(());
        }
        if let Some((text, steps)) = before.refused {
            unchanged(run, &text, steps)?;
        }
        self.note(run, entry);
        self.record(run, entry)?;
        self.attached(run, entry, before.client)?;
        self.since += 1;
        if last || moves(entry) || self.since >= SELDOM {
            self.since = 0;
            self.groups(run)?;
        }
        if self.translates && (last || is_hot_plug(entry)) {
            self.partition(run)?;
        }
        self.ended(entry, last)
    }

    fn note(&mut self, run: &Replica, entry: &Entry) {
        self.grants.note(entry);
        if let Said::Life(snapshot) = &entry.said {
            self.own.clone_from(&snapshot.own);
        }
        let (Said::Event(event), State::Committed) = (&entry.said, entry.status.state) else {
            return;
        };
        match plain(event) {
            Event::UnitReady(..) => self.translates = true,
            Event::UnitFailed(unit) => self.grants.cut_off(|device| {
                run.registry.function(device).is_some_and(|view| view.unit == Some(*unit))
            }),
            Event::MemoryTaken(range) => self.own.push(*range),
            Event::MemoryReturned(range) => self.own.retain(|own| own != range),
            Event::FunctionAdded(function) => self.added(*function),
            Event::FunctionsAdded(functions) => functions.iter().for_each(|one| self.added(*one)),
            Event::FunctionRemoved(gone) => self.functions.retain(|one| one.address != *gone),
            Event::FunctionsRemoved(gone) => {
                self.functions.retain(|one| !gone.contains(&one.address));
            }
            _ => {}
        }
    }

    fn added(&mut self, function: PciFunction) {
        if self.functions.iter().all(|known| known.address != function.address) {
            *self.lives.entry(function.address).or_insert(0) += 1;
            self.functions.push(function);
        }
    }

    /// I1: a session is on the device's present life, and alone.
    fn record(&self, run: &Replica, entry: &Entry) -> Result<(), Broken> {
        let (Said::Claim(claim), State::Committed) = (&entry.said, entry.status.state) else {
            return Ok(());
        };
        let address = claim.address;
        let expected = self.lives.get(&address).copied().unwrap_or(0);
        let found = run.registry.function(address).map(|view| view.generation);
        if found != Some(expected) {
            let how = format!("{address} has generation {found:?}, not {expected}");
            return Err(broken(Invariant::I1, how));
        }
        let on_it = |(id, session): &(SessionId, &Session)| {
            session.device == address && run.registry.session(*id).is_some_and(|view| !view.removed)
        };
        match self.grants.sessions().filter(on_it).count() {
            1 => Ok(()),
            count => {
                Err(broken(Invariant::I1, format!("{count} sessions hold the record of {address}")))
            }
        }
    }

    /// I4, I8: an attached device reaches exactly its grants, and only its owner changes that.
    fn attached(
        &mut self,
        run: &Replica,
        entry: &Entry,
        client: Option<ClientId>,
    ) -> Result<(), Broken> {
        let mut readings = BTreeMap::new();
        let regions = regions(&run.registry);
        for (id, session) in self.grants.sessions().filter(|(_, session)| session.attached) {
            let Some(now) = read(run, session.device) else { continue };
            let expected = self.grants.reach(session);
            let device = session.device;
            let outside = now.reach.iter().find(|reach| {
                let reach = std::slice::from_ref(*reach);
                !within(reach, &expected) && !within(reach, &regions)
            });
            if let Some(reach) = outside {
                let how = format!("{device} reaches {reach:x?}, was granted {expected:x?}");
                return Err(broken(Invariant::I4, how));
            }
            if !within(&expected, &now.reach) {
                let how = format!("{device} reaches {:x?} of {expected:x?}", now.reach);
                return Err(broken(Invariant::Usable, how));
            }
            let others = client.is_some_and(|client| client != session.client);
            if others && self.readings.get(&id).is_some_and(|was| *was != now) {
                let how = format!("{device}: changed by {}", entry.kind.words());
                return Err(broken(Invariant::I8, how));
            }
            readings.insert(id, now);
        }
        self.readings = readings;
        Ok(())
    }

    /// I3, I4: members of a group without a driver have one entry, and reach no memory of clients or of the server.
    fn groups(&self, run: &Replica) -> Result<(), Broken> {
        let kept: Vec<PhysRange> = self.own.iter().chain(self.grants.memory()).copied().collect();
        for id in run.registry.groups() {
            let Some(group) = run.registry.group(id).filter(|group| group.attached == 0) else {
                continue;
            };
            let mut bindings = Vec::new();
            for member in group.members {
                let Some(reading) = read(run, member) else { continue };
                bindings.extend(reading.binding);
                let off = run.registry.function(member).is_none_or(|view| view.mode == Mode::Off);
                let hit = reading.reach.iter().find(|reach| {
                    kept.iter().any(|range| {
                        reach.physical <= range.last().0
                            && range.first().0 - reach.physical.min(range.first().0)
                                <= reach.last - reach.iova
                    })
                });
                if let Some(reach) = hit.filter(|_| !off) {
                    let how = format!("{member}, which nobody drives, reaches {reach:x?}");
                    return Err(broken(Invariant::I4, how));
                }
            }
            let number = usize::try_from(id.0).unwrap_or(usize::MAX);
            one_default(number, bindings)?;
        }
        Ok(())
    }

    /// I2: another order of discovery gives the same groups.
    fn partition(&self, run: &Replica) -> Result<(), Broken> {
        let registry = &run.registry;
        let (config, firmware) = (registry.config().clone(), registry.firmware().clone());
        let mut other = Registry::new(config, firmware, &[], &[]);
        // Bridges come before what is behind them: buses ascend. On a bus the order is the opposite.
        let mut functions = self.functions.clone();
        functions.sort_by_key(|function| {
            let requester = function.address.requester;
            (function.address.segment, requester.bus(), !requester.0)
        });
        for function in functions {
            if let Ok(plan) = other.decide(&Event::FunctionAdded(function)) {
                other.commit(plan);
            }
        }
        let (a, b) = (groups(registry), groups(&other));
        match a == b {
            true => Ok(()),
            false => Err(broken(Invariant::I2, format!("groups {a:?}, in another order {b:?}"))),
        }
    }

    /// I9: an end of life that was refused is carried out later.
    fn ended(&mut self, entry: &Entry, last: bool) -> Result<(), Broken> {
        if let Said::Event(event) = &entry.said {
            let event = plain(event);
            let key = format!("{event:?}");
            match entry.status.state {
                State::Committed => drop(self.ends.remove(&key)),
                State::Refused if names_nothing(entry.status.refusal) => {
                    self.ends.remove(&key);
                }
                _ if is_end(event) => drop(self.ends.insert(key)),
                _ => {}
            }
            if last && matches!(event, Event::Shutdown) && !self.ends.is_empty() {
                let how = format!("never carried out: {:?}", self.ends);
                return Err(broken(Invariant::I9, how));
            }
        }
        Ok(())
    }
}

/// I5: policy and tables are as before.
fn unchanged(run: &Replica, text: &str, steps: u64) -> Result<(), Broken> {
    if run.machine.steps() != steps {
        return Err(broken(Invariant::I5, "a refused request reached the hardware"));
    }
    if format!("{:?}", run.registry) != text {
        return Err(broken(Invariant::I5, "a refused request changed the state of policy"));
    }
    Ok(())
}

/// Regions that firmware reserves, as they are mapped.
fn regions(registry: &Registry) -> Vec<Reach> {
    let regions = registry.firmware().reserved.iter();
    let reach = regions.map(|region| {
        let range = region.range.page_aligned();
        let (first, last) = (range.first().0, range.last().0);
        Reach { iova: first, last, physical: first, read: true, write: true }
    });
    reach.collect()
}

/// What the hardware says of a device; `None` without a unit that translates.
fn read(run: &Replica, device: PciAddress) -> Option<Reading> {
    let view = run.registry.function(device)?;
    let unit = view.unit?;
    if !matches!(run.registry.unit(unit)?.state, UnitState::Enabled(_)) {
        return None;
    }
    let index = usize::try_from(unit.0).ok()?;
    let source = view.sources.first()?.0;
    Some(Reading {
        binding: run.machine.binding(index, source),
        reach: run.machine.reach(index, source, Through::TablesAndCaches),
    })
}

fn groups(registry: &Registry) -> BTreeSet<Vec<PciAddress>> {
    let members = |id: GroupId| registry.group(id).map(|group| group.members);
    registry.groups().filter_map(members).filter(|members| !members.is_empty()).collect()
}

fn plain(event: &Event) -> &Event {
    match event {
        Event::Frugally(event) => plain(event),
        event => event,
    }
}

/// Whether an entry may move devices between domains.
fn moves(entry: &Entry) -> bool {
    match &entry.said {
        Said::Event(event) => !matches!(event, Event::Release(..) | Event::Drop(_)),
        Said::Claim(_) | Said::Fact(Fact::Lost(_)) => true,
        _ => false,
    }
}

fn is_hot_plug(entry: &Entry) -> bool {
    let Said::Event(event) = &entry.said else { return false };
    matches!(
        plain(event),
        Event::FunctionAdded(_)
            | Event::FunctionsAdded(_)
            | Event::FunctionRemoved(_)
            | Event::FunctionsRemoved(_)
    )
}

/// Whether an event must be carried out in the end.
const fn is_end(event: &Event) -> bool {
    matches!(
        event,
        Event::Close(_)
            | Event::Drop(_)
            | Event::UnitFailed(_)
            | Event::FunctionRemoved(_)
            | Event::FunctionsRemoved(_)
            | Event::Shutdown
    )
}

/// Whether there is nothing to end.
fn names_nothing(code: u16) -> bool {
    matches!(
        Refusal::from_code(code),
        Some(Refusal::BadHandle | Refusal::NotProbed | Refusal::NotFound)
    )
}
