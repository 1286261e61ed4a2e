//! S7: each request of a few sequences fails at every allocation, every hardware step and every descriptor it
//! takes, one after another.

use super::act::{Act, Answer, Event, Failure, Stream};
use super::ledger::Unit;
use super::plays::{Play, spines};
use super::scene::Vendor;
use super::search::{Explorer, MACHINE, Path};
use super::stats::Found;
use super::subject::Subject;

/// What was injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Allocations of table frames and buffers that failed.
    pub allocations: u64,
    /// Retries that succeeded.
    pub retries: u64,
    /// Actions of the CPU at which a unit died.
    pub steps: u64,
    /// Descriptors behind which a queue stopped.
    pub descriptors: u64,
    /// Requests that were refused for it.
    pub refused: u64,
    /// Events of the bystander that were granted after it.
    pub bystander: u64,
}

impl Sweep {
    /// Adds what was injected elsewhere.
    pub const fn add(&mut self, other: Self) {
        self.allocations += other.allocations;
        self.retries += other.retries;
        self.steps += other.steps;
        self.descriptors += other.descriptors;
        self.refused += other.refused;
        self.bystander += other.bystander;
    }

    /// Failures injected.
    #[must_use]
    pub const fn injected(&self) -> u64 {
        self.allocations + self.steps + self.descriptors
    }
}

/// What an event takes when nothing goes wrong.
struct Cost {
    allocations: u64,
    steps: u64,
    descriptors: Vec<u64>,
}

/// Sweeps over all sequences.
///
/// # Errors
/// The first invariant that is broken.
pub fn sweep<S: Subject>(vendor: Vendor) -> Result<Sweep, Found> {
    let mut total = Sweep::default();
    for Play { scene, streams, .. } in spines(vendor) {
        // A stream for the events, one for the retry, one for the bystander.
        let events = streams[0].events.clone();
        let empty = Stream { client: None, events: Vec::new() };
        let (mut explorer, mut path) = Explorer::<S>::new(scene, vec![empty; 3])?;
        for event in events {
            total = at(&mut explorer, &mut path, event, total)?;
        }
    }
    Ok(total)
}

fn descriptors<S: Subject>(explorer: &Explorer<S>) -> Vec<u64> {
    let machine = explorer.subject.machine();
    (0..explorer.scene.units.len()).map(|unit| machine.executed(unit)).collect()
}

/// Sweeps one event, then lets it happen.
fn at<S: Subject>(
    explorer: &mut Explorer<S>,
    path: &mut Path,
    event: Event,
    mut total: Sweep,
) -> Result<Sweep, Found> {
    let client = if matches!(event.act, Act::Removed(_) | Act::Added(_)) { MACHINE } else { 0 };
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
    for failure in failures(&cost, event.act) {
        back(explorer);
        let mut failed = path.clone();
        let what = Event { failure: Some(failure), ..event };
        let answer = explorer.step(&mut failed, 0, client, what, (&software, &hardware))?;
        let refused = matches!(answer, Some(Answer::Refused(_)));
        total.refused += u64::from(refused);
        match failure {
            Failure::Table(_) | Failure::Buffer => {
                total.allocations += 1;
                let again = explorer.again(&mut failed, 1, client, event)?;
                let retried = !matches!(again, Some(Answer::Refused(_)));
                assert!(!refused || retried || !granted, "{event:?} after {failure:?}: {again:?}");
                total.retries += u64::from(refused && retried);
            }
            Failure::Dies(unit, _) | Failure::Stalls(unit, _) => {
                match failure {
                    Failure::Dies(..) => total.steps += 1,
                    _ => total.descriptors += 1,
                }
                total.bystander += bystander(explorer, &mut failed, unit)?;
            }
        }
    }
    back(explorer);
    explorer.step(path, 0, client, event, (&software, &hardware))?;
    Ok(total)
}

fn failures(cost: &Cost, act: Act) -> Vec<Failure> {
    let mut all: Vec<Failure> = (0..cost.allocations).map(Failure::Table).collect();
    if matches!(act, Act::Allocate(..)) {
        all.push(Failure::Buffer);
    }
    for (unit, count) in cost.descriptors.iter().enumerate() {
        all.extend((0..cost.steps).map(|step| Failure::Dies(unit, step)));
        all.extend((0..*count).map(|after| Failure::Stalls(unit, after)));
    }
    all
}

/// Another client is served behind the other unit, and the end of the first one breaks nothing.
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
            assert!(granted, "a bystander's {act:?}: {answer:?}");
            served += 1;
        }
    }
    explorer.again(path, 1, MACHINE, Act::Die(0).into())?;
    Ok(served)
}
