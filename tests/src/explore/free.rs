//! Free choice: in each state any client makes any request, or an event of the machine happens. Breadth first,
//! complete to a given depth.
//!
//! Two states with the same [`name`] count as one. That is verified: every `AGAIN`-th state met again is expanded
//! anyway and must have the same successors as the first.

use std::collections::HashMap;

use super::act::{Act, Client, Stream};
use super::check::{Invariant, broken};
use super::ledger::{Ledger, Unit};
use super::name::name;
use super::scenario::Seen;
use super::scene::Scene;
use super::search::{Explorer, MACHINE, Path};
use super::stats::Found;
use super::subject::Subject;
use crate::machine::Checkpoint;

/// One state of this many that are met again is expanded a second time.
const AGAIN: u64 = 16;

/// Clients that take part.
const CLIENTS: usize = 3;

/// Coverage.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    /// Depth to which every choice was made.
    pub depth: usize,
    /// Different states, including the first.
    pub states: u64,
    /// Choices made and checked.
    pub transitions: u64,
    /// Different sequences of choices of exactly that length.
    pub interleavings: u128,
    /// States expanded again, all with the same successors.
    pub again: u64,
    /// Choices at which each scenario was first seen on the path to a state.
    pub scenarios: [u64; 32],
}

/// A state to expand.
struct Node<S: Subject> {
    software: S::Saved,
    hardware: Checkpoint,
    path: Path,
    trace: Vec<String>,
    name: u64,
    /// Whether it was met before.
    again: bool,
}

/// A search under way.
struct Free<S: Subject> {
    explorer: Explorer<S>,
    covered: Covered,
    /// The successors of each state, by name; empty for states not yet expanded.
    leads: HashMap<u64, Vec<u64>>,
}

/// Makes every choice to depth `depth`.
///
/// # Errors
/// The first broken invariant.
pub fn free<S: Subject>(scene: Scene, depth: usize) -> Result<Covered, Found> {
    let empty = Stream { client: None, events: Vec::new() };
    let (mut explorer, path) = Explorer::<S>::new(scene, vec![empty; CLIENTS + 1])?;
    explorer.learn_beforehand(&path)?;
    let covered = Covered { depth, states: 1, ..Covered::default() };
    let mut free = Free { explorer, covered, leads: HashMap::new() };
    let first = name(&mut free.explorer, &path);
    free.leads.insert(first, Vec::new());
    let mut level = vec![free.node(path, first, false)];
    for left in (0..depth).rev() {
        let mut next = Vec::new();
        for node in level {
            free.expand(&node, left > 0, &mut next)?;
        }
        level = next;
    }
    free.covered.interleavings = ways(&free.leads, first, depth);
    Ok(free.covered)
}

impl<S: Subject> Free<S> {
    fn node(&self, path: Path, name: u64, again: bool) -> Node<S> {
        let Explorer { subject, trace, .. } = &self.explorer;
        let (software, hardware) = (subject.save(), subject.machine().save());
        Node { software, hardware, path, trace: trace.clone(), name, again }
    }

    /// Makes every choice in one state. With `on`, states to expand go into `next`.
    fn expand(&mut self, node: &Node<S>, on: bool, next: &mut Vec<Node<S>>) -> Result<(), Found> {
        let mut leads = Vec::new();
        for (client, act) in choices(&self.explorer.scene, &node.path.ledger) {
            let Explorer { subject, trace, .. } = &mut self.explorer;
            subject.restore(&node.software);
            subject.machine().restore(&node.hardware);
            trace.clone_from(&node.trace);
            let mut path = node.path.clone();
            let saved = (&node.software, &node.hardware);
            self.explorer.step(&mut path, client, client, act.into(), saved)?;
            self.covered.transitions += 1;
            let new = Seen(path.history.seen.0 & !node.path.history.seen.0);
            new.numbers().for_each(|number| self.covered.scenarios[number - 1] += 1);
            let name = name(&mut self.explorer, &path);
            leads.push(name);
            let new = !self.leads.contains_key(&name);
            if new {
                self.covered.states += 1;
                self.leads.insert(name, Vec::new());
            }
            if on && (new || !node.again && self.covered.transitions.is_multiple_of(AGAIN)) {
                next.push(self.node(path, name, !new));
            }
        }
        if !node.again {
            self.leads.insert(node.name, leads);
            return Ok(());
        }
        self.covered.again += 1;
        if self.leads.get(&node.name) == Some(&leads) {
            return Ok(());
        }
        let how = "two states that look the same lead to different ones";
        Err(Found { broken: broken(Invariant::I8, how), trace: node.trace.clone() })
    }
}

/// Counts the sequences of `depth` choices.
fn ways(leads: &HashMap<u64, Vec<u64>>, first: u64, depth: usize) -> u128 {
    let mut level = HashMap::from([(first, 1_u128)]);
    for _ in 0..depth {
        let mut next = HashMap::new();
        for (name, ways) in &level {
            for to in &leads[name] {
                *next.entry(*to).or_insert(0) += ways;
            }
        }
        level = next;
    }
    level.values().sum()
}

/// Returns all possible next events, with restrictions. Requests need a session (those without one are in the plays,
/// S6). Each session has at most one buffer. At most one unit fails. One client stands for all that hold nothing and
/// have driven nothing.
fn choices(scene: &Scene, ledger: &Ledger) -> Vec<(Client, Act)> {
    let mut all = Vec::new();
    let devices = 0..scene.functions.len();
    let mut stranger = false;
    for client in (0..CLIENTS).filter(|client| ledger.alive[*client]) {
        let waits = ledger.waiting.iter().any(|claim| claim.client == client);
        let holds = waits || ledger.sessions.iter().any(|session| session.client == client);
        let drove = ledger.functions.iter().any(|function| function.driven_by == Some(client));
        if !holds && !drove && std::mem::replace(&mut stranger, true) {
            continue;
        }
        for device in devices.clone().filter(|_| !waits) {
            all.extend(requests(scene, ledger, client, device).map(|act| (client, act)));
        }
        if holds {
            all.push((MACHINE, Act::Die(client)));
        }
    }
    if !ledger.waiting.is_empty() {
        all.push((MACHINE, Act::Expire));
    }
    for (unit, state) in ledger.units.iter().enumerate() {
        if *state == Unit::Down && !ledger.troubled[unit] {
            all.push((MACHINE, Act::Arrive(unit)));
        }
        if !ledger.troubled.contains(&true) {
            all.push((MACHINE, Act::Kill(unit)));
        }
    }
    for device in devices {
        let present = ledger.functions[device].present;
        all.push((MACHINE, if present { Act::Removed(device) } else { Act::Added(device) }));
        let claimed = |session: &super::ledger::Session| session.device == device;
        if present && ledger.sessions.iter().any(claimed) && ledger.driver(device).is_none() {
            all.push((MACHINE, Act::Reset(device)));
        }
    }
    // A restart needs a driven device; otherwise the next server has nothing to take over. It happens once: the
    // tables of dead servers stay, which makes every state different.
    let driven = !ledger.restarted && ledger.sessions.iter().any(|session| session.attached);
    if driven
        && ledger.units.iter().all(|unit| *unit == Unit::Up)
        && !ledger.troubled.contains(&true)
    {
        all.push((MACHINE, Act::Restart));
    }
    all
}

/// Returns the requests that a client may make on a device.
fn requests(
    scene: &Scene,
    ledger: &Ledger,
    client: Client,
    device: usize,
) -> impl Iterator<Item = Act> + use<> {
    let mut acts = Vec::new();
    match ledger.session(client, device) {
        None => {
            acts.push(Act::Claim(device));
            if ledger.unit(scene, device) == Some(Unit::Down) {
                acts.push(Act::ClaimWithin(device));
            }
            let other = |at: &usize| *at != device && ledger.session(client, *at).is_some();
            let others = (0..scene.functions.len()).filter(other);
            acts.extend(others.map(|parent| Act::ClaimUnder(device, parent)));
        }
        Some(session) => {
            acts.extend([Act::Attach(device), Act::Detach(device)]);
            if session.buffers.is_empty() {
                acts.push(Act::Allocate(device, 1));
            }
            if !session.mappings.is_empty() {
                acts.push(Act::Unmap(device));
            }
            acts.push(Act::Close(device));
        }
    }
    acts.into_iter()
}
