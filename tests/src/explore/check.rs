//! The invariants, by an independent reading: tables and caches of the software units, the memory that the
//! machine has handed out, the answers that clients got.

use iommu_protocol::Refusal;

use super::act::{Act, Answer, Client};
use super::ledger::{Ledger, Unit};
use super::scene::{Device, Scene};
use crate::machine::{Checkpoint, Machine, Reach, Seen, Through, Violation};

/// What must never be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Each device record is created once; its id does not change while it lives.
    I1,
    /// The partition into groups does not depend on the order of discovery.
    I2,
    /// One default domain per group, made before any member attaches.
    I3,
    /// At no instant is a device let through to memory that was not granted to it.
    I4,
    /// A refused request leaves the state as it was.
    I5,
    /// Freed memory is not reachable.
    I6,
    /// Every request is answered once.
    I7,
    /// A live translation changes on its owner's request only.
    I8,
    /// An event that cannot be refused is carried out, at the latest when there is memory.
    I9,
    /// What was granted can be used by the device when the reply is there.
    Usable,
    /// A rule of the hardware's specification.
    Hardware,
}

/// An invariant was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub how: String,
}

pub(super) fn broken(invariant: Invariant, how: impl Into<String>) -> Broken {
    Broken { invariant, how: how.into() }
}

/// What the hardware holds for one function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Domain id, root of the page table, levels.
    pub binding: Option<(u16, u64, u8)>,
    /// What it reaches, through tables and caches in any mixture.
    pub reach: Vec<Reach>,
}

/// Reads what the hardware holds for every function that a unit stands in front of.
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

/// One event that is over, or suspended.
pub struct Event<'a> {
    /// The machine's scene.
    pub scene: &'a Scene,
    /// Whose event.
    pub client: Client,
    /// What happened.
    pub act: Act,
    /// What came of it; `None` while it is suspended.
    pub answer: Option<&'a Answer>,
    /// What had to be so before.
    pub before: &'a Ledger,
    /// What must be so now.
    pub after: &'a Ledger,
    /// What the hardware held before.
    pub was: &'a [Reading],
    /// What it holds now.
    pub is: &'a [Reading],
    /// Where devices got in between.
    pub seen: &'a [Seen],
    /// Units that translate now.
    pub translating: &'a [bool],
    /// Groups that an event which is suspended now may be changing.
    pub open_groups: &'a [usize],
    /// The server says that an end of life has left something to be done.
    pub owes: bool,
}

pub(super) fn where_to(reach: &[Reach], iova: u64) -> impl Iterator<Item = u64> + '_ {
    let covers = move |run: &&Reach| run.iova <= iova && iova <= run.last;
    reach.iter().filter(covers).map(move |run| run.physical + (iova - run.iova))
}

/// Whether everything in `part` is in `whole`.
fn within(part: &[Reach], whole: &[Reach]) -> bool {
    part.iter().all(|run| {
        whole.iter().any(|all| {
            all.iova <= run.iova
                && run.last <= all.last
                && all.physical + (run.iova - all.iova) == run.physical
                && (all.read || !run.read)
                && (all.write || !run.write)
        })
    })
}

impl Event<'_> {
    /// Checks everything but refusals.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn check(&self, violations: &[Violation]) -> Result<(), Broken> {
        if let Some(violation) = violations.first() {
            let invariant = match violation {
                Violation::FreedInUse { .. }
                | Violation::FreedTwice { .. }
                | Violation::FreedNotZero { .. }
                | Violation::NotATable { .. }
                | Violation::WalkedForeign { .. }
                | Violation::StatusForeign { .. } => Invariant::I6,
                Violation::DeviceInTables { .. }
                | Violation::Passed { .. }
                | Violation::Denied { .. } => Invariant::I4,
                _ => Invariant::Hardware,
            };
            return Err(broken(invariant, format!("{violation:x?}")));
        }
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

    /// I1: what names a device is what named it before, and nobody is given one that another has.
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

    /// I3: members that nobody drives share an entry or are denied; when one attaches, its group has been under
    /// its default domain.
    fn default_domains(&self) -> Result<(), Broken> {
        for group in 0..self.scene.functions.len() {
            if self.after.group_attached(self.scene, group) || self.open_groups.contains(&group) {
                continue;
            }
            let mut domains: Vec<_> = self
                .scene
                .members(group)
                .filter(|at| self.after.functions[*at].present)
                .filter(|at| self.after.unit(self.scene, *at) == Some(Unit::Up))
                .filter_map(|at| self.is[at].binding)
                .collect();
            domains.dedup();
            if domains.len() > 1 {
                let how = format!("group {group} has default domains {domains:x?}");
                return Err(broken(Invariant::I3, how));
            }
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

    /// I4 (and what was granted is there): what a device reaches is what it was granted.
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
        // Cut off at once; under policy when there is memory.
        if self.owes && self.after.driver(device).is_none() && reach.is_empty() {
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

    fn was_granted(&self, device: Device, reach: &[Reach]) -> bool {
        self.before.reach(self.scene, device).is_some_and(|before| within(reach, &before))
    }

    /// Nobody can say what a unit that failed does; but nothing that it may let a device reach is given to
    /// anybody else. A unit that never translated confines nothing, as before the server was there: that must be
    /// said of the devices behind it ([`told`]), and no memory is withheld from others for it.
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

    /// I8: the entry of a device that is driven, and what it reaches, stay as they are while others act.
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

    /// What firmware reserves for a device that is removed leaves the domain that it shared, and nothing else does.
    fn lost_a_region(&self, device: Device) -> bool {
        let Act::Removed(gone) = self.act else { return false };
        let region = self.scene.reserved_of(gone);
        let mut left = self.was[device].clone();
        left.reach.retain(|reach| Some(*reach) != region);
        left == self.is[device]
    }
}

/// What the server says of a device is how it is: not confined when no unit ever was in front of it, else
/// confined, or behind a unit that failed.
///
/// # Errors
/// I4: a device is let through, and its users think that it is not.
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

/// What a device was granted it can use when the reply is there: no unit goes on denying it because it tried
/// before and the absence was cached.
///
/// # Errors
/// The device that is denied, or led elsewhere.
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

/// I5: a refused request leaves the tables of all units that can be relied on, the memory in use and all that
/// the server tells as they were.
///
/// # Errors
/// The invariant.
pub fn unchanged(
    machine: &Machine,
    before: &Checkpoint,
    (was, ledger): (&Ledger, &Ledger),
    refusal: Refusal,
    texts: (&str, &str),
) -> Result<(), Broken> {
    let up = |unit: &usize| ledger.units[*unit] == Unit::Up;
    let units: Vec<usize> = (0..ledger.units.len()).filter(up).collect();
    // What a failed unit may still reach is kept back: then more may be in use than before.
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
