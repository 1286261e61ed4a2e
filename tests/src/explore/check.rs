//! Checks the invariants independently of the server. Reads tables and caches of the software units, the memory that
//! the machine has allocated, and the answers to clients.

use iommu_protocol::Refusal;
pub use iommud_model::invariant::{Broken, Invariant, broken};
use iommud_model::invariant::{one_default, unviolated, within};

use super::act::{Act, Answer, Client};
use super::ledger::{Ledger, Unit};
use super::scene::{Device, Scene};
use crate::machine::{Checkpoint, Machine, Reach, Seen, Through, Violation};

/// The hardware's state for one function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Domain id, root of the page table, levels.
    pub binding: Option<(u16, u64, u8)>,
    /// Its reach, through tables and caches in any mixture.
    pub reach: Vec<Reach>,
}

/// Reads the hardware's state for every function that has a unit in front of it.
#[must_use]
pub fn read(scene: &Scene, machine: &Machine) -> Vec<Reading> {
    let one = |device: Device| {
        let Some(unit) = scene.functions[device].unit else {
            return Reading { binding: None, reach: Vec::new() };
        };
        let source = scene.source(device);
        let binding = machine.binding(unit, source);
        Reading { binding, reach: machine.reach(unit, source, Through::TablesAndCaches) }
    };
    (0..scene.functions.len()).map(one).collect()
}

/// An event that has ended, or is suspended.
pub struct Event<'a> {
    /// The machine's scene.
    pub scene: &'a Scene,
    /// The client that caused the event.
    pub client: Client,
    /// The event itself.
    pub act: Act,
    /// Its answer; `None` while it is suspended.
    pub answer: Option<&'a Answer>,
    /// The required state before the event.
    pub before: &'a Ledger,
    /// The required state now.
    pub after: &'a Ledger,
    /// The hardware's state before the event.
    pub was: &'a [Reading],
    /// The hardware's state now.
    pub is: &'a [Reading],
    /// Addresses that devices reached during the event.
    pub seen: &'a [Seen],
    /// Units that translate now.
    pub translating: &'a [bool],
    /// Groups that a suspended event may be changing.
    pub open_groups: &'a [usize],
    /// Whether the server reports unfinished work of an end of life.
    pub owes: bool,
    /// Whether there was before the event.
    pub owed: bool,
}

pub(super) fn where_to(reach: &[Reach], iova: u64) -> impl Iterator<Item = u64> + '_ {
    let covers = move |run: &&Reach| run.iova <= iova && iova <= run.last;
    reach.iter().filter(covers).map(move |run| run.physical + (iova - run.iova))
}

impl Event<'_> {
    /// Checks all invariants except those about refusals.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn check(&self, violations: &[Violation]) -> Result<(), Broken> {
        unviolated(violations)?;
        self.records()?;
        self.default_domains()?;
        for device in 0..self.scene.functions.len() {
            self.confined(device)?;
            self.undisturbed(device)?;
        }
        self.instants()
    }

    fn is_open(&self, device: Device) -> bool {
        self.open_groups.contains(&self.scene.functions[device].group)
    }

    /// I1: a device keeps its ids, and no session gets a record that another one holds.
    fn records(&self) -> Result<(), Broken> {
        let (device, ids) = match (self.act, self.answer) {
            (
                Act::Claim(at) | Act::ClaimUnder(at, _) | Act::ClaimWithin(at),
                Some(Answer::Session { ids, .. }),
            ) => {
                let here =
                    |session: &&super::ledger::Session| session.device == at && !session.orphan;
                let holders = self.after.sessions.iter().filter(here).count();
                if holders != 1 {
                    let how = format!("{holders} sessions hold the record of D{}", at + 1);
                    return Err(broken(Invariant::I1, how));
                }
                (at, *ids)
            }
            (Act::Look(at), Some(Answer::Looked(Some(ids)))) => (at, *ids),
            _ => return Ok(()),
        };
        let generation = self.before.functions[device].generation;
        if ids.1 != generation {
            let how = format!("D{} has generation {}, not {generation}", device + 1, ids.1);
            return Err(broken(Invariant::I1, how));
        }
        match self.before.ids[device] {
            Some(known) if known != ids && !self.scene.aliases => {
                let how = format!("D{} was known as {known:?} and is {ids:?}", device + 1);
                Err(broken(Invariant::I1, how))
            }
            _ => Ok(()),
        }
    }

    /// I3: members without a driver share an entry or are denied. A member that attaches was under its group's
    /// default domain before.
    fn default_domains(&self) -> Result<(), Broken> {
        for group in 0..self.scene.functions.len() {
            if self.after.group_attached(self.scene, group) || self.open_groups.contains(&group) {
                continue;
            }
            let domains = self
                .scene
                .members(group)
                .filter(|at| self.after.functions[*at].present)
                .filter(|at| self.after.unit(self.scene, *at) == Some(Unit::Up))
                .filter_map(|at| self.is[at].binding);
            one_default(group, domains.collect())?;
        }
        let (Act::Attach(device), Some(Answer::Done)) = (self.act, self.answer) else {
            return Ok(());
        };
        let up = self.before.unit(self.scene, device) == Some(Unit::Up);
        let default = self.before.reach(self.scene, device);
        let under = default.is_none_or(|default| within(&default, &self.was[device].reach));
        if up && self.before.driver(device).is_none() && !under && !self.scene.aliases {
            let how = format!("D{} was attached before its group had a domain", device + 1);
            return Err(broken(Invariant::I3, how));
        }
        Ok(())
    }

    /// I4: a device reaches only its grants. It also reaches all of them; otherwise I3, I5 or I8 is broken.
    fn confined(&self, device: Device) -> Result<(), Broken> {
        let reach = &self.is[device].reach;
        let Some(expected) = self.after.reach(self.scene, device) else {
            return self.behind_failed(device);
        };
        let tolerated = self.is_open(device) && self.was_granted(device, reach);
        if !within(reach, &expected) && !tolerated {
            let how = format!("D{} reaches {reach:x?}, was granted {expected:x?}", device + 1);
            return Err(broken(Invariant::I4, how));
        }
        if self.scene.aliases || self.is_open(device) || *reach == expected {
            return Ok(());
        }
        if self.lacks_memory(device) {
            return Ok(());
        }
        let how = format!("D{} reaches {reach:x?} of {expected:x?}", device + 1);
        let invariant = match (self.after.driver(device), self.answer) {
            (None, _) => Invariant::I3,
            (_, Some(Answer::Refused(_))) => Invariant::I5,
            (Some(_), _) => Invariant::I8,
        };
        Err(broken(invariant, how))
    }

    /// Whether a device that lost its driver is blocked because memory for its policy lacks. It returns to policy when
    /// there is memory.
    fn lacks_memory(&self, device: Device) -> bool {
        let driven = self.after.driver(device).is_some();
        self.owes && !driven && self.is[device].reach.is_empty()
    }

    /// The same, before or after the event.
    pub(super) fn lacks_or_lacked_memory(&self, device: Device) -> bool {
        let driven = self.before.driver(device).is_some();
        let lacked = self.owed && !driven && self.was[device].reach.is_empty();
        lacked || self.lacks_memory(device)
    }

    fn was_granted(&self, device: Device, reach: &[Reach]) -> bool {
        self.before.reach(self.scene, device).is_some_and(|before| within(reach, &before))
    }

    /// The behaviour of a failed unit is unknown, so no memory that it may let a device reach is given to another
    /// client. A unit that never translated confines nothing, as before the server started. The server must report
    /// its devices as unconfined ([`told`]), and it withholds no memory for it.
    fn behind_failed(&self, device: Device) -> Result<(), Broken> {
        let Some(unit) = self.scene.functions[device].unit else { return Ok(()) };
        let never = !self.after.enabled[unit] && !self.translating[unit];
        if self.after.units[unit] != Unit::Failed || never {
            return Ok(());
        }
        let group = self.scene.functions[device].group;
        let owner = self.after.owner(self.scene, group);
        let driver = self.after.functions[device].driven_by;
        for (start, length) in self.after.memory_of_others([owner, driver]) {
            let reach = &self.is[device].reach;
            let hit = reach.iter().find(|run| {
                run.physical < start + length && start <= run.physical + (run.last - run.iova)
            });
            if let Some(run) = hit {
                let how = format!("D{} may reach {run:x?} of another client", device + 1);
                return Err(broken(Invariant::I6, how));
            }
        }
        Ok(())
    }

    /// I8: the entry and the reach of a driven device stay unchanged while other clients act.
    fn undisturbed(&self, device: Device) -> Result<(), Broken> {
        let (Some(before), Some(after)) = (self.before.driver(device), self.after.driver(device))
        else {
            return Ok(());
        };
        let own = match self.act {
            Act::Die(client) => client == after.client,
            Act::Removed(_) | Act::Added(_) | Act::Restart => self.scene.aliases,
            _ => self.client == after.client,
        };
        if before.handle != after.handle || own {
            return Ok(());
        }
        if self.after.unit(self.scene, device) != Some(Unit::Up) {
            return Ok(());
        }
        if self.was[device] != self.is[device] && !self.lost_a_region(device) {
            let (was, is) = (&self.was[device], &self.is[device]);
            let how = format!("D{}: {was:x?} became {is:x?} by {:?}", device + 1, self.act);
            return Err(broken(Invariant::I8, how));
        }
        Ok(())
    }

    /// Whether the device lost only the region that firmware reserves for a removed device of its domain.
    fn lost_a_region(&self, device: Device) -> bool {
        let Act::Removed(gone) = self.act else { return false };
        let region = self.scene.reserved_of(gone);
        let mut left = self.was[device].clone();
        left.reach.retain(|reach| Some(*reach) != region);
        left == self.is[device]
    }
}

/// Checks that the server reports each device correctly. A device is unconfined when no unit ever translated in front
/// of it. Otherwise it is confined, or behind a failed unit.
///
/// # Errors
/// I4: a device is unconfined and reported as confined, or the reverse.
pub fn told(
    ledger: &Ledger,
    scene: &Scene,
    mut says: impl FnMut(Device) -> Option<bool>,
) -> Result<(), Broken> {
    for device in 0..scene.functions.len() {
        let unconfined = ledger.unconfined(scene, device);
        if says(device).is_some_and(|said| said != unconfined) {
            let how = format!(
                "D{} is not confined: {unconfined}; the texts say so: {}",
                device + 1,
                !unconfined
            );
            return Err(broken(Invariant::I4, how));
        }
    }
    Ok(())
}

/// Checks that a device can use its grants as soon as the reply is there. A unit that cached the absence of a mapping
/// must not keep denying it.
///
/// # Errors
/// The device that is denied, or reaches other memory.
pub fn usable(ledger: &Ledger, scene: &Scene, machine: &Machine) -> Result<(), Broken> {
    for device in 0..scene.functions.len() {
        let Some(unit) = scene.functions[device].unit else { continue };
        if ledger.driver(device).is_none()
            || ledger.units[unit] != Unit::Up
            || ledger.troubled[unit]
        {
            continue;
        }
        for run in ledger.reach(scene, device).unwrap_or_default() {
            let reached = machine.attempt(unit, scene.source(device), run.iova);
            if reached != Some(run.physical) {
                let how = format!("D{} was granted {run:x?} and reaches {reached:x?}", device + 1);
                return Err(broken(Invariant::Usable, how));
            }
        }
    }
    Ok(())
}

/// I5: a refused request leaves three things unchanged: the tables of all working units, the memory in use, and the
/// server's texts.
///
/// # Errors
/// I5, with the difference.
pub fn unchanged(
    machine: &Machine,
    before: &Checkpoint,
    (was, ledger): (&Ledger, &Ledger),
    refusal: Refusal,
    texts: (&str, &str),
) -> Result<(), Broken> {
    let up = |unit: &usize| ledger.units[*unit] == Unit::Up;
    let units: Vec<usize> = (0..ledger.units.len()).filter(up).collect();
    // Memory that a failed unit may still reach is kept back, so more may be in use than before.
    let lost = was.units != ledger.units
        || ledger.units.contains(&Unit::Failed) && refusal == Refusal::UnitFailed;
    if let Some(how) = machine.difference(before, &units, !lost) {
        return Err(broken(Invariant::I5, format!("{refusal:?}: {how}")));
    }
    if !lost && texts.0 != texts.1 {
        let line = texts.0.lines().zip(texts.1.lines()).find(|(a, b)| a != b);
        return Err(broken(Invariant::I5, format!("{refusal:?}: the texts changed: {line:?}")));
    }
    Ok(())
}
