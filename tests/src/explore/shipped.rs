//! The shipped server over software units, driven through the calls of the scheme.

mod claims;
mod memory;
mod words;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Empty, Operation, QueryResult, ReplyHeader, RequestHeader, Wire};
use iommud::hw::Nanos;
use iommud::policy::ClientId;
use iommud::server::{Caller, Handle, Server};
use iommud::topology::tags::TagRecord;

use super::act::{Act, Answer, Client, Event, Failure};
use super::backend::Backend;
use super::ledger::{Ledger, PAGE, Session, Unit};
use super::scene::{Device, Scene, Start};
use super::subject::{Progress, Subject};
use crate::conformance::UnderTest;
use crate::machine::{Buffers, Machine, Trouble};
use crate::stack::Stack;
use claims::WAIT;
use words::{all_texts, done, nameless_texts, names, number, text};

/// The shipped server.
type Shipped<T> = Server<<T as UnderTest>::Unit, Buffers>;

/// The shipped server over the units of a backend.
///
/// It also plays the platform, which takes the answers to waiting claims. With `CARELESS` 0 it is correct; other
/// values are deliberate flaws:
///
/// - 1 takes the newest answer first.
/// - 2 ignores a client's death.
/// - 3 takes an answer twice.
/// - 4 makes a new server assume that units hold nothing of its predecessor.
/// - 5 drops an end of life when there is no memory.
pub struct Real<T: Backend, const CARELESS: u8 = 0> {
    stack: Stack<T>,
    backend: T,
    /// Nanoseconds that have passed for waiting claims.
    time: u64,
    /// Answers that were not fetched yet.
    answers: Vec<(u64, Answer)>,
    /// The cookie of the next request, unique within a run.
    cookie: u64,
    /// The actions of the CPU after which the next server dies.
    death: Option<u64>,
}

/// A handle that was never returned.
const NO_HANDLE: u32 = 0xdead;

/// Nanoseconds of one `relax` while a unit stalls, so that a wait ends after a few reads of the clock.
const LONG: u64 = 400_000_000;

fn caller(client: Client) -> Caller {
    Caller { client: ClientId(u32::try_from(client).unwrap()), uid: 0 }
}

impl<T: Backend, const CARELESS: u8> Real<T, CARELESS>
where
    T::Unit: Clone,
{
    fn handle(ledger: &Ledger, client: Client, device: Device) -> Handle {
        Handle(ledger.session(client, device).map_or(NO_HANDLE, |session| session.handle))
    }

    /// Sends a request of one structure. The reply must match exactly this request.
    fn call<R: Wire>(
        &mut self,
        handle: Handle,
        operation: Operation,
        body: &impl Wire,
    ) -> Result<R, Refusal> {
        let mut payload = [0; 256];
        let length = RequestHeader::SIZE + put(&mut payload[RequestHeader::SIZE..], body);
        let reply = self.send(handle, operation, &mut payload[..], length)?;
        Ok(R::decode(&payload[ReplyHeader::SIZE..reply]).expect("a result"))
    }

    fn send(
        &mut self,
        handle: Handle,
        operation: Operation,
        payload: &mut [u8],
        length: usize,
    ) -> Result<usize, Refusal> {
        self.cookie += 1;
        let header = RequestHeader {
            version: 1,
            operation: operation.code(),
            length: u32::try_from(length).unwrap(),
            cookie: self.cookie,
        };
        header.encode(payload).unwrap();
        let reply = self.stack.server.call(handle, payload, length)?;
        let header = ReplyHeader::decode(payload).expect("a header");
        assert_eq!((header.cookie, header.operation), (self.cookie, operation.code()), "I7");
        assert_eq!(usize::try_from(header.length), Ok(reply), "I7");
        Refusal::from_code(header.refusal).map_or(Ok(reply), Err)
    }

    fn look(&mut self, scene: &Scene, device: Device) -> Answer {
        let path = format!("devices/{}", scene.address(device));
        let text = text(&mut self.stack.server, &path);
        Answer::Looked(
            text.and_then(|text| Some((number(&text, "group: ")?, number(&text, "generation: ")?))),
        )
    }

    fn storm(&mut self, scene: &Scene, device: Device) {
        let Some(unit) = scene.functions[device].unit else { return };
        for page in 0..100 {
            let iova = 0x10_0000_0000 + page * PAGE;
            let _ = self.stack.machine.access(unit, scene.source(device), iova, 8, true);
            // A unit holds few records. Unless they are taken at once, most are lost, which looks like a pause.
            self.stack.server.tick();
        }
    }

    fn close(&mut self, ledger: &Ledger, ends: impl Fn(&Session) -> bool) {
        for session in ledger.sessions.iter().filter(|session| ends(session)) {
            self.stack.server.close(Handle(session.handle));
        }
    }

    fn request(&mut self, scene: &Scene, ledger: &Ledger, client: Client, act: Act) -> Answer {
        let handle = |device| Self::handle(ledger, client, device);
        match act {
            Act::Claim(device) => self.claim(scene, client, device, None),
            Act::ClaimWithin(device) => self.claim_within(scene, client, device),
            Act::ClaimUnder(device, parent) => {
                self.claim(scene, client, device, Some(handle(parent)))
            }
            Act::Look(device) => self.look(scene, device),
            Act::Attach(device) => done(
                self.call::<Empty>(handle(device), Operation::Attach, &Empty::default()).map(drop),
            ),
            Act::Detach(device) => done(
                self.call::<Empty>(handle(device), Operation::Detach, &Empty::default()).map(drop),
            ),
            Act::Guess(own, victim) => self.guess(scene, ledger, client, own, victim),
            Act::Close(device) => {
                self.close(ledger, |s| s.client == client && s.device == device);
                Answer::Done
            }
            Act::Stall(..)
            | Act::Recover(_)
            | Act::Again(_)
            | Act::Kill(_)
            | Act::Restart
            | Act::Storm(_) => self.happen(scene, ledger, act),
            Act::Die(_) | Act::Expire | Act::Tick | Act::Arrive(_) => {
                self.happen(scene, ledger, act)
            }
            Act::Added(_) | Act::Removed(_) | Act::Reset(_) => self.happen(scene, ledger, act),
            _ => self.of_memory(ledger, client, act),
        }
    }

    fn happen(&mut self, scene: &Scene, ledger: &Ledger, act: Act) -> Answer {
        let machine = self.stack.machine.clone();
        match act {
            Act::Die(client) => self.die(ledger, client),
            Act::Expire => self.time += WAIT,
            Act::Arrive(unit) => {
                let result = self.stack.arrive(&self.backend, unit);
                return result.map_or(Answer::Refused(Refusal::UnitFailed), |()| Answer::Done);
            }
            Act::Reset(device) if !ledger.functions[device].present => {}
            Act::Added(device) | Act::Reset(device) => {
                return done(self.stack.server.function_arrived(scene.functions[device].pci));
            }
            Act::Removed(device) => self.stack.server.function_gone(scene.address(device)),
            Act::Stall(unit, after) => {
                machine.set_relax(LONG);
                machine.trouble(unit, Trouble::StallQueueAfter(after));
            }
            Act::Recover(unit) => {
                machine.trouble(unit, Trouble::None);
                machine.pass_time(LONG);
            }
            Act::Again(unit) => {
                // Refused when the unit is up; there is nothing to reset then.
                let _ = self.stack.write(&format!("units/{unit}"), b"reset");
                if let Some(late) = self.stack.server.recover_units(Nanos(self.time)) {
                    let unit = usize::try_from(late.0).expect("few units");
                    let _ = self.stack.arrive(&self.backend, unit);
                }
            }
            Act::Kill(unit) => {
                machine.set_relax(LONG);
                machine.trouble(unit, Trouble::Dead);
            }
            Act::Restart => {
                machine.orphan_buffers();
                self.stack.setup.functions = (0..scene.functions.len())
                    .filter(|device| ledger.functions[*device].present)
                    .map(|device| scene.functions[device].pci)
                    .collect();
                let down = |unit: &usize| ledger.units[*unit] == Unit::Down;
                self.stack.setup.off = (0..ledger.units.len()).filter(down).collect();
                self.start_next();
            }
            Act::Storm(device) => {
                // Takes all faults. Otherwise a later attach, even a refused one, would take the remaining ones
                // first.
                self.storm(scene, device);
                while self.stack.server.tick() > 0 {}
            }
            Act::Tick => {
                self.stack.server.tick();
            }
            _ => unreachable!("a request"),
        }
        Answer::Done
    }
}

impl<T: Backend, const CARELESS: u8> Real<T, CARELESS> {
    /// Starts the next server. When it is to die, starts another one after it.
    fn start_next(&mut self) {
        if CARELESS == 4 {
            self.stack.notes.restore_tags(Some(TagRecord::default()));
        }
        let backend = std::slice::from_ref(&self.backend);
        if let Some(after) = self.death.take() {
            self.stack.reboot_dying(backend, after);
        }
        self.stack.reboot(backend);
    }
}

/// Writes a structure and returns its size.
fn put<W: Wire>(out: &mut [u8], body: &W) -> usize {
    body.encode(out).unwrap();
    W::SIZE
}

/// Injects a failure from now on.
pub(super) fn fail(machine: &Machine, failure: Failure) {
    match failure {
        Failure::Table(after) => machine.fail_table_allocations(after, 1),
        Failure::Buffer => machine.fail_buffer_allocations(0, 1),
        Failure::Exhausted => {
            machine.fail_table_allocations(0, u64::MAX);
            machine.fail_buffer_allocations(0, u64::MAX);
        }
        Failure::Dies(unit, after) => {
            machine.set_relax(LONG);
            machine.trouble_after(after, unit, Trouble::Dead);
        }
        Failure::Stalls(unit, after) => {
            machine.set_relax(LONG);
            machine.trouble(unit, Trouble::StallQueueAfter(after));
        }
        // The machine has no part in this failure.
        Failure::ServerDies(_) => {}
    }
}

/// Ends injected failures. A dead unit stays dead, and a stalled queue stays stalled.
pub(super) fn stop_failing(machine: &Machine) {
    machine.fail_table_allocations(0, 0);
    machine.fail_buffer_allocations(0, 0);
    machine.spare();
}

impl<T: Backend, const CARELESS: u8> Subject for Real<T, CARELESS>
where
    T::Unit: Clone,
{
    type Saved = (Shipped<T>, u64, (Vec<PciAddress>, Option<TagRecord>), u64);

    fn start(scene: &Scene) -> Self {
        let backend = T::of(scene);
        let dead = scene.units.iter().position(|unit| *unit == Start::Dead);
        let stack =
            Stack::start_prepared(std::slice::from_ref(&backend), scene.setup(), |machine| {
                machine.set_relax(if dead.is_some() { LONG } else { 1_000 });
                machine.set_returns(scene.takes);
                if let Some(unit) = dead {
                    machine.trouble(unit, Trouble::Dead);
                }
            });
        Self { stack, backend, time: 0, answers: Vec::new(), cookie: 0, death: None }
    }

    fn machine(&self) -> &Machine {
        &self.stack.machine
    }

    fn save(&self) -> Self::Saved {
        let notes = (self.stack.notes.noted(), self.stack.notes.tags());
        (self.stack.server.clone(), self.cookie, notes, self.time)
    }

    fn restore(&mut self, saved: &Self::Saved) {
        self.stack.server = saved.0.clone();
        self.cookie = saved.1;
        self.stack.notes.restore(&saved.2.0);
        self.stack.notes.restore_tags(saved.2.1);
        self.time = saved.3;
    }

    fn begin(&mut self, scene: &Scene, ledger: &Ledger, client: Client, event: Event) -> Progress {
        stop_failing(&self.stack.machine);
        if let Some(failure) = event.failure {
            fail(&self.stack.machine, failure);
        }
        if let Some(Failure::ServerDies(after)) = event.failure {
            self.death = Some(after);
        }
        let dropped = CARELESS == 5 && event.failure == Some(Failure::Exhausted);
        let answer =
            if dropped { Answer::Done } else { self.request(scene, ledger, client, event.act) };
        // All memory stays gone while the result is looked at: else what is left over would be done in a moment.
        if event.failure != Some(Failure::Exhausted) {
            stop_failing(&self.stack.machine);
        }
        self.take_answers();
        Progress::Done(answer)
    }

    fn answers(&mut self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut self.answers)
    }

    fn texts(&mut self) -> String {
        all_texts(&mut self.stack.server)
    }

    fn tells(&mut self, ledger: &Ledger) -> String {
        let mut all = nameless_texts(&mut self.stack.server);
        let mut sessions: Vec<&Session> = ledger.sessions.iter().collect();
        sessions.sort_unstable_by_key(|session| (session.client, session.device));
        for session in sessions {
            let query: Result<QueryResult, _> =
                self.call(Handle(session.handle), Operation::Query, &Empty::default());
            let query = query.map(|query| QueryResult { group: 0, ..query });
            all.push_str(&format!("{query:?}\n"));
        }
        all
    }

    fn texts_of(saved: &Self::Saved) -> String {
        all_texts(&mut saved.0.clone())
    }

    fn units(&mut self) -> Vec<Unit> {
        let status = text(&mut self.stack.server, "status").unwrap_or_default();
        let lines = status.lines().filter(|line| line.starts_with("unit "));
        lines
            .map(|line| match () {
                () if line.contains(" failed(") => Unit::Failed,
                () if line.ends_with(" enabled") => Unit::Up,
                () => Unit::Down,
            })
            .collect()
    }

    fn partition(&mut self, scene: &Scene) -> Vec<Vec<Device>> {
        let server = &mut self.stack.server;
        let mut groups: Vec<Vec<Device>> = names(server, "groups")
            .iter()
            .map(|name| {
                let text = text(server, &format!("groups/{name}")).unwrap_or_default();
                let members = text.lines().filter_map(|line| line.strip_prefix("member: "));
                let device = |member: &str| {
                    let address = |at: &Device| scene.address(*at).to_string() == member;
                    (0..scene.functions.len()).find(address)
                };
                members.filter_map(device).collect()
            })
            .collect();
        groups.retain(|group| !group.is_empty());
        groups.iter_mut().for_each(|group| group.sort_unstable());
        groups.sort_unstable();
        groups
    }

    fn says_unconfined(&mut self, scene: &Scene, device: Device) -> Option<bool> {
        let server = &mut self.stack.server;
        let said = text(server, &format!("devices/{}", scene.address(device)))?;
        let said = said.contains("NOT CONFINED");
        let status = text(server, "status").unwrap_or_default();
        let unit = scene.functions[device].unit;
        let behind = unit.map(|unit| format!("NOT CONFINED behind unit {unit}"));
        let everywhere = status.contains("NOT CONFINED, every device");
        let warned = everywhere || behind.is_none_or(|behind| status.contains(&behind));
        Some(said && warned)
    }

    fn owes(&mut self) -> bool {
        self.stack.server.has_unfinished()
    }

    fn quarantined(&mut self) -> bool {
        let metrics = text(&mut self.stack.server, "metrics").unwrap_or_default();
        number(&metrics, "quarantined_bytes ").is_some_and(|bytes| bytes > 0)
    }
}
