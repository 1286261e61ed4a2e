//! Explores every order of streams of events, depth first, from checkpoints.
//!
//! Nothing is pruned. Every counted interleaving ran to its end, each event through the subject, with each state
//! checked. Shared prefixes run once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::act::{Act, Answer, Client, Event, Failure, Stream};
use super::check::{self, Broken, Invariant, Reading, broken};
use super::history::{History, Measured, note_ids};
use super::ledger::{Ledger, PAGE, Unit};
use super::scene::{BESIDE, BEYOND, BUFFERS, RESERVED, Scene};
use super::stats::{Found, Stats};
use super::subject::{Progress, Subject};
use super::waiting;
use crate::machine::{Checkpoint, Glimpse};

/// The client number under which the machine's own events run.
pub const MACHINE: Client = 3;

/// The state of an interleaving.
#[derive(Clone)]
pub struct Path {
    /// The required state.
    pub ledger: Ledger,
    /// Scenarios seen, and the history that they need.
    pub history: History,
    /// The hardware's state.
    pub reading: Vec<Reading>,
    /// The next event of each stream.
    pub next: Vec<usize>,
    /// Streams whose event is suspended, with the groups it may be changing.
    suspended: Vec<Option<Vec<usize>>>,
}

/// Explores one scene.
pub struct Explorer<S: Subject> {
    /// The scene.
    pub scene: Rc<Scene>,
    /// The software under exploration.
    pub subject: S,
    /// Coverage.
    pub stats: Stats,
    streams: Vec<Stream>,
    /// Addresses that the server assigned. Devices try them at every instant, besides a few of the scene's own.
    addresses: Vec<u64>,
    /// Whether the list of addresses is final.
    learned: bool,
    pub(super) trace: Vec<String>,
}

impl<S: Subject> Explorer<S> {
    /// Starts the subject.
    ///
    /// # Errors
    /// An invariant that is broken at the start.
    pub fn new(scene: Scene, streams: Vec<Stream>) -> Result<(Self, Path), Found> {
        let subject = S::start(&scene);
        let ledger = Ledger::new(&scene);
        let reading = check::read(&scene, subject.machine());
        let count = streams.len();
        let path = Path {
            reading,
            history: History::default(),
            next: vec![0; count],
            suspended: vec![None; count],
            ledger,
        };
        let (stats, addresses, trace) = (Stats::default(), Vec::new(), Vec::new());
        let scene = Rc::new(scene);
        let learned = false;
        let explorer = Self { scene, subject, stats, streams, addresses, learned, trace };
        for (device, reading) in path.reading.iter().enumerate() {
            if let Some(expected) = path.ledger.reach(&explorer.scene, device)
                && expected != reading.reach
            {
                let how = format!("D{} starts with {:x?}", device + 1, reading.reach);
                return Err(explorer.found(broken(Invariant::I4, how)));
            }
        }
        Ok((explorer, path))
    }

    /// Explores every order of streams of events.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn explore(scene: Scene, streams: Vec<Stream>) -> Result<Stats, Found> {
        let (mut explorer, path) = Self::new(scene, streams)?;
        explorer.descend(&path)?;
        Ok(explorer.stats)
    }

    pub(super) fn found(&self, broken: Broken) -> Found {
        Found { broken, trace: self.trace.clone() }
    }

    fn descend(&mut self, path: &Path) -> Result<(), Found> {
        let ready: Vec<usize> = (0..self.streams.len())
            .filter(|at| path.next[*at] < self.streams[*at].events.len())
            .filter(|at| self.streams[*at].client.is_none_or(|client| path.ledger.may_ask(client)))
            .collect();
        if ready.is_empty() {
            return self.leaf(path);
        }
        let (software, hardware) = (self.subject.save(), self.subject.machine().save());
        for (nth, stream) in ready.into_iter().enumerate() {
            if nth > 0 {
                self.subject.restore(&software);
                self.subject.machine().restore(&hardware);
            }
            let mut next = path.clone();
            let traced = self.trace.len();
            let client = self.streams[stream].client.unwrap_or(MACHINE);
            let event = self.streams[stream].events[path.next[stream]];
            self.step(&mut next, stream, client, event, (&software, &hardware))?;
            self.descend(&next)?;
            self.trace.truncate(traced);
        }
        Ok(())
    }

    /// Runs one event, with all checks. `saved` is the state before it.
    ///
    /// # Errors
    /// The broken invariant.
    pub fn step(
        &mut self,
        path: &mut Path,
        stream: usize,
        client: Client,
        event: Event,
        saved: (&S::Saved, &Checkpoint),
    ) -> Result<Option<Answer>, Found> {
        let machine = self.subject.machine().clone();
        let (steps, instants) = (machine.steps(), machine.instants());
        let buffers = machine.buffers_in_use().len();
        let owed = self.subject.owes();
        machine.set_glimpses(self.glimpses());
        self.subject.of_stream(stream);
        let progress = match path.suspended[stream].take() {
            None => self.subject.begin(&self.scene, &path.ledger, client, event),
            Some(_) => self.subject.resume(&self.scene, stream),
        };
        let seen = machine.take_glimpses();
        self.stats.events += 1;
        self.stats.instants += machine.instants() - instants;
        let who = if client == MACHINE { "the machine".into() } else { format!("C{}", client + 1) };
        self.trace.push(format!("{who}: {event:?} -> {progress:?}"));
        let answer = match progress {
            Progress::Done(answer) => Some(answer),
            Progress::Suspended => None,
        };
        let before = path.ledger.clone();
        let result = self.account(path, stream, client, event, answer.as_ref());
        result.map_err(|broken| self.found(broken))?;
        let answers = self.subject.answers();
        for (ticket, answer) in &answers {
            self.trace.push(format!("  claim {ticket}: {answer:?}"));
        }
        let scene = Rc::clone(&self.scene);
        let granted = waiting::enter(&mut path.ledger, &scene, &answers)
            .and_then(|granted| {
                waiting::check(&path.ledger, &scene, client, event.act).map(|()| granted)
            })
            .map_err(|broken| self.found(broken))?;
        if granted {
            path.history.seen.add(3);
        }
        let is = check::read(&scene, &machine);
        let open_groups: Vec<usize> = path.suspended.iter().flatten().flatten().copied().collect();
        let translating: Vec<bool> =
            (0..scene.units.len()).map(|unit| machine.translates(unit)).collect();
        let checked = check::Event {
            scene: &scene,
            client,
            act: event.act,
            answer: answer.as_ref(),
            before: &before,
            after: &path.ledger,
            was: &path.reading,
            is: &is,
            seen: &seen,
            translating: &translating,
            open_groups: &open_groups,
            owed,
            owes: self.subject.owes(),
        };
        checked.check(&machine.take_violations()).map_err(|broken| self.found(broken))?;
        if let Some(Answer::Refused(refusal)) = &answer {
            let texts = (S::texts_of(saved.0), self.subject.texts());
            let texts = (texts.0.as_str(), texts.1.as_str());
            check::unchanged(&machine, saved.1, (&before, &path.ledger), *refusal, texts)
                .map_err(|broken| self.found(broken))?;
        }
        if open_groups.is_empty() && !scene.aliases {
            check::usable(&path.ledger, &scene, &machine).map_err(|broken| self.found(broken))?;
        }
        if path.ledger.units.iter().any(|unit| *unit != Unit::Up) {
            let says = |device| self.subject.says_unconfined(&scene, device);
            check::told(&path.ledger, &scene, says).map_err(|broken| self.found(broken))?;
        }
        if let Some(Answer::Accepted(what)) = &answer {
            let how = format!("{what} of another client was accepted");
            return Err(self.found(broken(Invariant::I8, how)));
        }
        if matches!(event.act, Act::Added(_) | Act::Removed(_)) && open_groups.is_empty() {
            self.partition(&path.ledger).map_err(|broken| self.found(broken))?;
        }
        let measured = Measured {
            steps: machine.steps() - steps,
            buffers: (buffers, machine.buffers_in_use().len()),
        };
        path.history.note(event, &checked, measured);
        path.reading = is;
        if let Some(answer) = &answer {
            self.learn(answer);
        }
        let fingerprint = self.fingerprint(path);
        self.stats.states.insert(fingerprint);
        Ok(answer)
    }

    /// Runs one event from the present state, which it saves for the checks.
    ///
    /// # Errors
    /// The broken invariant.
    pub fn again(
        &mut self,
        path: &mut Path,
        stream: usize,
        client: Client,
        event: Event,
    ) -> Result<Option<Answer>, Found> {
        let saved = (self.subject.save(), self.subject.machine().save());
        self.step(path, stream, client, event, (&saved.0, &saved.1))
    }

    /// Learns the addresses that a first client gets on each device, and no others later. The addresses that devices
    /// try must not depend on earlier exploration.
    ///
    /// # Errors
    /// The broken invariant.
    pub fn learn_beforehand(&mut self, path: &Path) -> Result<(), Found> {
        let saved = (self.subject.save(), self.subject.machine().save());
        let mut path = path.clone();
        for unit in 0..self.scene.units.len() {
            if path.ledger.units[unit] == Unit::Down {
                self.again(&mut path, MACHINE, MACHINE, Act::Arrive(unit).into())?;
            }
        }
        for device in 0..self.scene.functions.len() {
            for act in [Act::Claim(device), Act::Allocate(device, 1), Act::Close(device)] {
                self.again(&mut path, 0, 0, act.into())?;
            }
        }
        self.subject.restore(&saved.0);
        self.subject.machine().restore(&saved.1);
        self.trace.clear();
        self.learned = true;
        Ok(())
    }

    /// Enters the result of an event in the ledger.
    fn account(
        &mut self,
        path: &mut Path,
        stream: usize,
        client: Client,
        event: Event,
        answer: Option<&Answer>,
    ) -> Result<(), Broken> {
        let Some(answer) = answer else {
            path.suspended[stream] = Some((0..self.scene.functions.len()).collect());
            if let Act::Added(_) = event.act {
                path.ledger.note(&self.scene, client, event.act, &Answer::Done);
            }
            return Ok(());
        };
        let ledger = &mut path.ledger;
        if let Some(Failure::Dies(unit, _) | Failure::Stalls(unit, _)) = event.failure {
            ledger.troubled[unit] = true;
        }
        if let Act::Stall(unit, _) | Act::Kill(unit) = event.act {
            ledger.troubled[unit] = true;
        }
        match (event.act, event.failure) {
            (Act::Restart, failure) => {
                // The next server must bring every unit up. Without memory, units may stay down.
                let without = matches!(failure, Some(Failure::Table(_) | Failure::Exhausted));
                ledger.begin_again(without);
            }
            (Act::Arrive(unit), Some(Failure::Table(_) | Failure::Exhausted)) => {
                ledger.troubled[unit] = true;
            }
            _ => {}
        }
        if ledger.troubled.contains(&true)
            || matches!(event.act, Act::Arrive(_) | Act::Again(_) | Act::Restart)
        {
            let units = self.subject.units();
            for (at, unit) in units.iter().enumerate() {
                if *unit == Unit::Failed && !ledger.troubled[at] {
                    let how = format!("unit {at} is called failed and is well");
                    return Err(broken(Invariant::I8, how));
                }
            }
            ledger.note_units(&units);
        }
        ledger.note(&self.scene, client, event.act, answer);
        ledger.note_cut_off(&self.scene);
        path.next[stream] += 1;
        note_ids(ledger, event.act, answer);
        Ok(())
    }

    /// I2: the partition matches the scene's groups, whatever the order of discovery.
    fn partition(&mut self, ledger: &Ledger) -> Result<(), Broken> {
        if self.scene.aliases && !ledger.functions.iter().all(|function| function.present) {
            return Ok(());
        }
        let mut expected: Vec<Vec<usize>> = (0..self.scene.functions.len())
            .map(|group| {
                let members = self.scene.members(group);
                members.filter(|at| ledger.functions[*at].present).collect::<Vec<_>>()
            })
            .filter(|members| !members.is_empty())
            .collect();
        expected.sort_unstable();
        let told = self.subject.partition(&self.scene);
        if told == expected {
            return Ok(());
        }
        Err(broken(Invariant::I2, format!("groups are {told:?}, not {expected:?}")))
    }

    fn glimpses(&self) -> Vec<Glimpse> {
        let mut all = Vec::new();
        for device in 0..self.scene.functions.len() {
            let Some(unit) = self.scene.functions[device].unit else { continue };
            let source = self.scene.source(device);
            let tables = self.scene.vendor.tables().0;
            let mut tried = vec![RESERVED.0, tables, BUFFERS.0, 0x8_0000];
            if self.scene.takes {
                tried.push(BESIDE);
            }
            if self.scene.deep {
                tried.push(BEYOND.0);
            }
            for iova in tried.iter().chain(&self.addresses) {
                all.push(Glimpse { unit, source, iova: *iova });
            }
        }
        all
    }

    fn learn(&mut self, answer: &Answer) {
        let new: Vec<u64> = match answer {
            Answer::Buffer { iova, .. } => vec![*iova],
            Answer::Listed(iova) | Answer::Reserved { iova, .. } => vec![*iova, iova + PAGE],
            Answer::Mapped(mapped) => mapped.iter().map(|(iova, _)| *iova).collect(),
            _ => Vec::new(),
        };
        for iova in new {
            if !self.learned && self.addresses.len() < 4 && !self.addresses.contains(&iova) {
                self.addresses.push(iova);
            }
        }
    }

    fn fingerprint(&self, path: &Path) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.scene.name.hash(&mut hasher);
        for reading in &path.reading {
            reading.binding.is_some().hash(&mut hasher);
            for run in &reading.reach {
                (run.iova, run.last, run.physical, run.read, run.write).hash(&mut hasher);
            }
        }
        let ledger = &path.ledger;
        (&ledger.units, &ledger.functions, &ledger.alive).hash(&mut hasher);
        for session in &ledger.sessions {
            let flags = (session.attached, session.orphan);
            (session.client, session.device, flags, &session.mappings).hash(&mut hasher);
        }
        let machine = self.subject.machine();
        (machine.table_frames(), machine.buffers_in_use().len()).hash(&mut hasher);
        path.suspended.iter().map(Option::is_some).collect::<Vec<_>>().hash(&mut hasher);
        hasher.finish()
    }

    /// Ends an interleaving: all clients die, and no memory stays in use.
    pub(super) fn leaf(&mut self, path: &Path) -> Result<(), Found> {
        self.stats.complete(path.history.seen);
        if !path.ledger.waiting.is_empty() {
            // Every waiting claim is answered by its deadline.
            self.again(&mut path.clone(), 0, MACHINE, Act::Expire.into())?;
        }
        if path.ledger.troubled.contains(&true) {
            return Ok(());
        }
        self.subject.finish(&self.scene, &path.ledger);
        let machine = self.subject.machine();
        let violations = machine.take_violations();
        let left = machine.buffers_in_use();
        if !violations.is_empty() || !left.is_empty() {
            let how = format!("at the end: {violations:x?}, buffers {left:?}");
            return Err(self.found(broken(Invariant::I6, how)));
        }
        let mut ledger = path.ledger.clone();
        for client in 0..4 {
            ledger.note(&self.scene, client, Act::Die(client), &Answer::Done);
        }
        for (device, reading) in check::read(&self.scene, machine).iter().enumerate() {
            let expected = ledger.reach(&self.scene, device);
            if expected.is_some_and(|expected| expected != reading.reach) && !self.scene.aliases {
                let how = format!("at the end D{} reaches {:x?}", device + 1, reading.reach);
                return Err(self.found(broken(Invariant::I4, how)));
            }
        }
        Ok(())
    }
}
