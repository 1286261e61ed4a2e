//! S7: each request of a few sequences fails at every allocation, every hardware step and every descriptor of its
//! run, one at a time. S28: a server dies at every hardware step of its take-over, and a third one follows.

use std::collections::BTreeMap;

use super::act::{Act, Answer, Event, Failure, Stream};
use super::ledger::Unit;
use super::plays::Play;
use super::scene::Vendor;
use super::search::{Explorer, MACHINE, Path};
use super::spines::spines;
use super::stats::Found;
use super::subject::Subject;

/// Counts of injected failures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// By the kind of plan: allocations, actions of the CPU, descriptors.
    pub kinds: BTreeMap<&'static str, [u64; 3]>,
    /// Allocations of table frames and buffers that failed.
    pub allocations: u64,
    /// Retries that succeeded.
    pub retries: u64,
    /// Actions of the CPU at which a unit died.
    pub steps: u64,
    /// Descriptors after which a queue stalled.
    pub descriptors: u64,
    /// Actions of the CPU at which a server died during its take-over.
    pub deaths: u64,
    /// Requests refused because of the failure.
    pub refused: u64,
    /// The bystander's events that succeeded after the failure.
    pub bystander: u64,
}

impl Sweep {
    /// Adds the counts of another sweep.
    pub fn add(&mut self, other: &Self) {
        for (kind, more) in &other.kinds {
            let counts = self.kinds.entry(kind).or_default();
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        }
        self.allocations += other.allocations;
        self.retries += other.retries;
        self.steps += other.steps;
        self.descriptors += other.descriptors;
        self.deaths += other.deaths;
        self.refused += other.refused;
        self.bystander += other.bystander;
    }

    /// Failures injected.
    #[must_use]
    pub const fn injected(&self) -> u64 {
        self.allocations + self.steps + self.descriptors + self.deaths
    }
}

/// Names the kind of a plan.
fn kind(deep: bool, act: Act) -> &'static str {
    match act {
        Act::ClaimUnder(..) if deep => "claim that deepens a table",
        Act::Claim(_) | Act::ClaimUnder(..) | Act::ClaimWithin(_) => "claim",
        Act::Attach(_) => "attach",
        Act::Detach(_) => "detach",
        Act::Allocate(..) | Act::Reserve(..) => "allocate",
        Act::Release(_) => "release",
        Act::Map(_) | Act::MapFixed(..) => "map",
        Act::Unmap(_) | Act::UnmapAt(..) => "unmap",
        Act::List(..) => "map list",
        Act::Batch(_) => "batch",
        Act::Grant(..) => "grant",
        Act::Revoke(..) => "revoke",
        Act::Import(..) => "import",
        Act::Storm(_) => "silence",
        Act::Added(_) => "hot-add",
        Act::Removed(_) => "hot-remove",
        Act::Close(_) => "close",
        Act::Die(_) => "death",
        Act::Arrive(_) => "bring-up",
        Act::Restart => "take-over",
        _ => "other",
    }
}

/// Whether an event belongs to the machine.
const fn of_machine(act: Act) -> bool {
    matches!(
        act,
        Act::Removed(_)
            | Act::Added(_)
            | Act::Storm(_)
            | Act::Die(_)
            | Act::Arrive(_)
            | Act::Restart
    )
}

/// Whether an event that failed for lack of memory can simply be retried. The bring-up of a unit cannot.
const fn may_retry(act: Act) -> bool {
    !matches!(act, Act::Arrive(_))
}

/// Chooses points out of `count`: all of them up to `most`. Otherwise the last half of `most`, and as many others
/// spread evenly. A bring-up treats most entries of a new table alike, so a sample suffices.
fn points(count: u64, most: u64) -> Vec<u64> {
    let last = count.saturating_sub(most.div_ceil(2));
    let step = if count <= most { 1 } else { last / (most / 2) };
    (0..count).filter(|at| *at >= last || at.is_multiple_of(step)).collect()
}

/// The cost of an event without failures.
struct Cost {
    allocations: u64,
    steps: u64,
    descriptors: Vec<u64>,
}

/// Sweeps over all sequences.
///
/// # Errors
/// The first broken invariant.
pub fn sweep<S: Subject>(vendor: Vendor, long: bool) -> Result<Sweep, Found> {
    let mut total = Sweep::default();
    for Play { scene, streams, .. } in spines(vendor) {
        // A stream for the events, one for the retry, one for the bystander.
        let events = streams[0].events.clone();
        let empty = Stream { client: None, events: Vec::new() };
        let (mut explorer, mut path) = Explorer::<S>::new(scene, vec![empty; 3])?;
        for event in events {
            total = at(&mut explorer, &mut path, event, (total, most(vendor, long)))?;
        }
    }
    Ok(total)
}

/// The largest number of points at which one event fails in one way.
const fn most(vendor: Vendor, long: bool) -> u64 {
    match (vendor, long) {
        // Each bring-up writes a device table of 65536 entries.
        (Vendor::Amd, false) => 16,
        (Vendor::Amd, true) => 200,
        (Vendor::Vtd, _) => 1000,
    }
}

fn descriptors<S: Subject>(explorer: &Explorer<S>) -> Vec<u64> {
    let machine = explorer.subject.machine();
    (0..explorer.scene.units.len()).map(|unit| machine.executed(unit)).collect()
}

/// Sweeps one event, then runs it without a failure.
fn at<S: Subject>(
    explorer: &mut Explorer<S>,
    path: &mut Path,
    event: Event,
    (mut total, most): (Sweep, u64),
) -> Result<Sweep, Found> {
    let client = if of_machine(event.act) { MACHINE } else { 0 };
    let kind = kind(explorer.scene.deep, event.act);
    let software = explorer.subject.save();
    let hardware = explorer.subject.machine().save();
    let events = explorer.trace.len();
    let back = |explorer: &mut Explorer<S>| {
        explorer.trace.truncate(events);
        explorer.subject.restore(&software);
        explorer.subject.machine().restore(&hardware);
    };
    let machine = explorer.subject.machine().clone();
    let (allocations, steps) = (machine.table_allocations(), machine.steps());
    let before = descriptors(explorer);
    let mut done = path.clone();
    let normal = explorer.step(&mut done, 0, client, event, (&software, &hardware))?;
    let after = descriptors(explorer);
    let cost = Cost {
        allocations: machine.table_allocations() - allocations,
        steps: machine.steps() - steps,
        descriptors: after.iter().zip(before).map(|(after, before)| after - before).collect(),
    };
    let granted = !matches!(normal, Some(Answer::Refused(_)));
    for failure in failures(&cost, event.act, most) {
        back(explorer);
        let mut failed = path.clone();
        let what = Event { failure: Some(failure), ..event };
        let answer = explorer.step(&mut failed, 0, client, what, (&software, &hardware))?;
        let refused = matches!(answer, Some(Answer::Refused(_)));
        total.refused += u64::from(refused);
        match failure {
            Failure::Table(_) | Failure::Buffer | Failure::Exhausted => {
                total.allocations += 1;
                total.kinds.entry(kind).or_default()[0] += 1;
                if !may_retry(event.act) {
                    continue;
                }
                let again = explorer.again(&mut failed, 1, client, event)?;
                let retried = !matches!(again, Some(Answer::Refused(_)));
                assert!(!refused || retried || !granted, "{event:?} after {failure:?}: {again:?}");
                total.retries += u64::from(refused && retried);
            }
            Failure::ServerDies(_) => {
                total.deaths += 1;
                explorer.again(&mut failed, 1, MACHINE, Act::Die(0).into())?;
            }
            Failure::Dies(unit, _) | Failure::Stalls(unit, _) => {
                let counts = total.kinds.entry(kind).or_default();
                if let Failure::Dies(..) = failure {
                    total.steps += 1;
                    counts[1] += 1;
                } else {
                    total.descriptors += 1;
                    counts[2] += 1;
                }
                total.bystander += bystander(explorer, &mut failed, unit)?;
            }
        }
    }
    back(explorer);
    explorer.step(path, 0, client, event, (&software, &hardware))?;
    Ok(total)
}

fn failures(cost: &Cost, act: Act, most: u64) -> Vec<Failure> {
    let mut all: Vec<Failure> =
        points(cost.allocations, most).into_iter().map(Failure::Table).collect();
    if matches!(act, Act::Allocate(..) | Act::Reserve(..)) {
        all.push(Failure::Buffer);
    }
    if act == Act::Restart {
        all.extend(points(cost.steps, most).into_iter().map(Failure::ServerDies));
    }
    for (unit, count) in cost.descriptors.iter().enumerate() {
        all.extend(points(cost.steps, most).into_iter().map(|step| Failure::Dies(unit, step)));
        all.extend(points(*count, most).into_iter().map(|after| Failure::Stalls(unit, after)));
    }
    all
}

/// Serves another client behind the other unit, then ends the first client. Neither may break an invariant.
fn bystander<S: Subject>(
    explorer: &mut Explorer<S>,
    path: &mut Path,
    lost: usize,
) -> Result<u64, Found> {
    let scene = std::rc::Rc::clone(&explorer.scene);
    let free = |at: &usize| {
        let ledger = &path.ledger;
        let owner = ledger.owner(&scene, scene.functions[*at].group);
        let other = scene.functions[*at].unit != Some(lost) && owner.is_none();
        other && ledger.functions[*at].present && ledger.unit(&scene, *at) == Some(Unit::Up)
    };
    let mut served = 0;
    if let Some(device) = (0..scene.functions.len()).find(free) {
        for act in [Act::Claim(device), Act::Attach(device), Act::Allocate(device, 1)] {
            let answer = explorer.again(path, 2, 2, act.into())?;
            let granted = !matches!(answer, Some(Answer::Refused(_)));
            // Memory that policy maps cannot be allocated while a failed unit may still use it.
            let kept = scene.takes && matches!(act, Act::Allocate(..));
            assert!(granted || kept, "a bystander's {act:?}: {answer:?}");
            served += u64::from(granted);
        }
    }
    explorer.again(path, 1, MACHINE, Act::Die(0).into())?;
    Ok(served)
}
