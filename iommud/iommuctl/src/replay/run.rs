//! Replays one life of a server.

use iommu_protocol::Refusal;
use iommud::config;
use iommud::engine::Engine;
use iommud::hw::Unit;
use iommud::policy::{Batch, MapList, Registry, UnitIndex};
use iommud::topology::capabilities::UnitCapabilities;
use iommud::trace::{Entry, Fact, Kind, Record, Recorder, Ring, Said, Snapshot, State, Traced};
use iommud_model::machine::Buffers;

use super::checks::{Before, Checks};
use super::model::{self, Modelled, Replica};
use super::report::{Finding, Problem, found};

/// How the replay of a life ended.
pub(super) struct Ended {
    /// Entries without a difference.
    pub(super) events: usize,
    pub(super) finding: Option<Finding>,
}

/// The server's decisions, over the machine of its snapshot.
struct Run<T: Modelled> {
    of: Replica,
    engine: Engine<T::Unit>,
    buffers: Buffers,
    recorder: Recorder,
    /// The software units, as far as the life installs them.
    units: Vec<T>,
    /// Why a step failed in the replay.
    failure: Option<String>,
}

/// Replays the entries of a life, of which the first is its beginning. `records` are those of the file.
pub(super) fn life<T: Modelled>(records: &[Record], entries: &[Entry]) -> Ended {
    let mut events = 0;
    let finding = lived::<T>(records, entries, &mut events).err().map(|found| *found);
    Ended { events, finding }
}

fn lived<T: Modelled>(
    records: &[Record],
    entries: &[Entry],
    events: &mut usize,
) -> Result<(), Box<Finding>> {
    let Some((first, rest)) = entries.split_first() else { return Ok(()) };
    let Said::Life(snapshot) = &first.said else { return Err(found(first, Problem::NoLife)) };
    let longest = entries.iter().map(|entry| entry.records).max().unwrap_or(1);
    let run = Run::<T>::new(snapshot, rest, longest);
    let mut run = run.map_err(|why| found(first, Problem::NotModelled(why)))?;
    let mut checks = Checks::default();
    let done = run.all(records, entries, &mut checks, events);
    // Nobody needs what the machine noticed after the first finding.
    drop(run.of.machine.take_violations());
    done
}

impl<T: Modelled> Run<T> {
    fn new(snapshot: &Snapshot, rest: &[Entry], longest: usize) -> Result<Self, String> {
        let firmware = model::firmware(&snapshot.table)?;
        let config = config::parse(&snapshot.policy).map_err(|error| error.to_string())?;
        let installed = || {
            rest.iter().filter_map(|entry| match &entry.said {
                Said::Fact(Fact::Installed(unit, found)) => Some((*unit, *found)),
                _ => None,
            })
        };
        let bits = installed().map(|(_, found)| found.physical_bits).min().unwrap_or(52);
        let machine = model::machine(snapshot, bits)?;
        let mut units = Vec::new();
        for (description, index) in firmware.units.iter().zip(0..) {
            let own = installed().find(|(unit, _)| *unit == UnitIndex(index));
            let Some((_, like)) = own.or_else(|| installed().next()) else { break };
            let unit = T::like(&like, description).ok_or("a unit that no software unit is like")?;
            unit.add(&machine);
            units.push(unit);
        }
        let ring = Ring::new(vec![[0; 8]; longest.next_power_of_two() + 1].leak());
        let registry = Registry::new(config, firmware, &snapshot.ram, &snapshot.own);
        let engine = Engine::new(machine.tables());
        let (buffers, recorder) = (machine.buffers(), ring.map(Recorder::from).unwrap_or_default());
        let of = Replica { registry, machine };
        Ok(Self { of, engine, buffers, recorder, units, failure: None })
    }

    fn all(
        &mut self,
        records: &[Record],
        entries: &[Entry],
        checks: &mut Checks,
        events: &mut usize,
    ) -> Result<(), Box<Finding>> {
        let (mut number, mut time) = (0_u32, 0);
        for (place, entry) in entries.iter().enumerate() {
            let fail = |problem| Err(found(entry, problem));
            if entry.number != number {
                return fail(Problem::Number { expected: number, found: entry.number });
            }
            number = number.wrapping_add(u32::try_from(entry.records).unwrap_or(0));
            if entry.milliseconds < time && time - entry.milliseconds < u32::MAX / 2 {
                return fail(Problem::Time);
            }
            time = entry.milliseconds;
            // A server ends in an event at most once, and that is its last.
            let last = place + 1 == entries.len();
            checks
                .answered_once(entry, last)
                .map_err(|broken| found(entry, Problem::Broken(broken)))?;
            let before = Before::of(&self.of, entry, checks);
            if let Some(ring) = self.recorder.ring() {
                ring.set_time(time);
            }
            self.again(entry).map_err(|why| found(entry, Problem::NotModelled(why)))?;
            self.compare(records, entry)?;
            checks
                .after(&self.of, entry, before, last)
                .map_err(|broken| found(entry, Problem::Broken(broken)))?;
            *events += 1;
        }
        Ok(())
    }

    /// Compares the records of the replay with those of the file.
    fn compare(&mut self, records: &[Record], entry: &Entry) -> Result<(), Box<Finding>> {
        let mut replayed = Vec::new();
        if let Some(ring) = self.recorder.ring() {
            ring.take(|piece| replayed.extend_from_slice(piece));
        }
        let recorded = records.get(entry.index..).unwrap_or_default();
        let recorded = recorded.get(..entry.records).unwrap_or_default();
        let under_way = entry.status.state == State::UnderWay;
        let ended = |(index, record): (usize, &Record)| {
            let mut record = *record;
            // The server did not live to write the outcome.
            match (under_way, index) {
                (true, 0) => record[6..].fill(0),
                (true, _) if entry.kind == Kind::Batch => record[4] = 0,
                _ => {}
            }
            record
        };
        let failure = self.failure.take();
        let mut pairs = recorded.iter().zip(&replayed).enumerate();
        match pairs.find(|(index, (a, b))| ended((*index, a)) != ended((*index, b))) {
            Some((_, (recorded, replayed))) => {
                let (recorded, replayed) = (*recorded, *replayed);
                Err(found(entry, Problem::Different { recorded, replayed, failure }))
            }
            None if recorded.len() != replayed.len() => {
                let recorded = recorded.last().copied().unwrap_or_default();
                let replayed = replayed.last().copied().unwrap_or_default();
                Err(found(entry, Problem::Different { recorded, replayed, failure }))
            }
            None => Ok(()),
        }
    }

    /// Runs an entry again. The error says why that cannot be done.
    fn again(&mut self, entry: &Entry) -> Result<(), String> {
        match &entry.said {
            Said::Life(snapshot) => {
                if let Some(ring) = self.recorder.ring() {
                    snapshot.write(ring);
                }
            }
            Said::Event(event) => {
                if let iommud::policy::Event::MemoryReturned(_) = event {
                    self.of.machine.set_returns(true);
                }
                self.request(event, entry);
            }
            Said::Claim(claim) => self.request(claim, entry),
            Said::Allocate(allocate) => self.request(allocate, entry),
            Said::Import(import) => self.request(import, entry),
            Said::ImportShared(import) => self.request(import, entry),
            Said::Hold(hold) => self.request(hold, entry),
            Said::Batch(session, items) => self.request(&Batch(*session, items), entry),
            Said::MapList(session, list) => self.request(&MapList(*session, list), entry),
            Said::Fact(fact) => self.fact(fact)?,
            Said::Seal(_) => {}
        }
        Ok(())
    }

    /// Decides a request again. What hardware did is taken from the file: a plan that failed is taken back and not run.
    fn request<R: Traced>(&mut self, request: &R, entry: &Entry) {
        self.recorder.begin(request);
        let plan = match self.of.registry.decide(request) {
            Ok(plan) => plan,
            Err(refused) => return self.recorder.refused(refused),
        };
        self.of.registry.take_tags_of(plan.orders());
        let failed = match entry.status.state {
            State::Undone => Some(false),
            State::Quarantined => Some(true),
            State::UnderWay | State::Committed | State::Refused => None,
        };
        if let Some(unproved) = failed {
            let refusal = Refusal::from_code(entry.status.refusal).unwrap_or(Refusal::NoMemory);
            self.recorder.undone(&plan, refusal, unproved);
            return if unproved {
                self.of.registry.quarantine(plan)
            } else {
                self.of.registry.abort(plan)
            };
        }
        if let Said::Allocate(allocate) = &entry.said {
            let (buffer, segments) = (allocate.1.buffer.0, allocate.1.segments.clone());
            if !self.of.machine.adopt_buffer(buffer, segments) {
                self.failure = Some(format!("buffer {buffer} is in use"));
            }
        }
        match self.engine.run(plan.orders(), &mut self.buffers) {
            Ok(()) => {
                self.engine.conclude(plan.orders(), &mut self.buffers);
                self.recorder.committed(request, &plan);
                self.of.registry.commit(plan);
            }
            Err(failure) => {
                self.failure = Some(failure.error.to_string());
                self.recorder.undone(&plan, failure.refusal(), failure.unproved);
                self.of.registry.abort(plan);
            }
        }
    }

    fn fact(&mut self, fact: &Fact) -> Result<(), String> {
        self.recorder.fact(fact);
        match fact {
            Fact::Pool(capacity, granule) => {
                self.of.registry.set_buffer_pool(*capacity, *granule);
            }
            Fact::Tags(held, units, last) => {
                self.of.registry.begin_tags(*held, units.clone(), *last);
            }
            Fact::FoundOff(unit) => self.of.registry.found_off(*unit),
            Fact::CutOff(function) => {
                self.of.registry.cut_off(*function);
            }
            Fact::Lost(unit) => self.of.registry.lose(*unit),
            Fact::Installed(unit, found) => self.install(*unit, found)?,
            Fact::NotAdmitted(session, length, refusal) => {
                let refused = [
                    self.of.registry.admit_within(*session, *length).err(),
                    self.of.registry.admit_buffer(*session, *length).err(),
                ];
                if !refused.contains(&Some(*refusal)) {
                    return Err(format!(
                        "a buffer of {length} bytes was refused: {refusal}; now {refused:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn install(&mut self, unit: UnitIndex, found: &UnitCapabilities) -> Result<(), String> {
        let index = usize::try_from(unit.0).map_err(|error| error.to_string())?;
        let like = self.units.get(index).ok_or("a unit that firmware does not describe")?;
        let hardware = like.bring_up(&self.of.machine, index, self.engine.memory_mut());
        let hardware = hardware.map_err(|error| error.to_string())?;
        if hardware.capabilities() != *found {
            let other = hardware.capabilities();
            return Err(format!("unit {index} had {found:?}, its software unit has {other:?}"));
        }
        self.engine.install(unit, hardware);
        Ok(())
    }
}
