//! Controls: a server that is wrong on purpose, over the same units, caught by the same checks. Sound, it passes
//! them; each flaw is one that kernels have had.

use iommu_protocol::wire::Access;
use iommu_protocol::{Refusal, RequesterId};
use iommud::addr::PhysAddr;
use iommud::hw::radix::{Detached, PageTable};
use iommud::hw::{BufferMemory, Constraints, Entry, Unit as _};
use iommud::topology::capabilities::{DomainTag, PageSizes};

use super::act::{Act, Answer, Client, Event};
use super::ledger::{Ledger, PAGE, Unit};
use super::real::{fail, stop_failing};
use super::scene::{Device, Scene, Start};
use super::subject::{Progress, Subject};
use crate::conformance::vtd::Subject as Backend;
use crate::conformance::{UnderTest, range};
use crate::machine::{Buffers, Machine, Tables};

type Hardware = <Backend as UnderTest>::Unit;
type Pages = PageTable<<Hardware as iommud::hw::Unit>::Format>;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// The order of 2022: record, group and default domain are made in steps with others in between.
    Order2022,
    /// Memory is given back, then flushed.
    FreeBeforeFlush,
    /// A member may attach while its group's default domain is not made yet.
    AttachWithoutDefault,
    /// What a request asks for is noted, and then tried.
    StateBeforeEffect,
}

/// A domain.
#[derive(Clone)]
struct Domain {
    tag: DomainTag,
    pages: Pages,
}

/// The record of a device.
#[derive(Clone, Copy, Debug)]
struct Record {
    id: u32,
    group: Option<usize>,
    session: Option<u32>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    default: Option<usize>,
    owner: Option<Client>,
}

#[derive(Clone, Debug)]
struct Session {
    handle: u32,
    client: Client,
    device: Device,
    domain: Option<usize>,
    attached: bool,
    buffers: Vec<u32>,
    mappings: Vec<(u64, u64)>,
}

/// An event on its way.
#[derive(Clone, Debug)]
struct Going {
    event: Event,
    client: Client,
    /// Steps of probes still to be taken.
    steps: Vec<(Device, u8)>,
    /// What the steps before have found out.
    group: Option<usize>,
    found: bool,
    domain: Option<usize>,
}

#[derive(Clone, Default)]
struct Inside {
    present: Vec<bool>,
    generations: Vec<u32>,
    records: Vec<Option<Record>>,
    groups: Vec<Group>,
    domains: Vec<Option<Domain>>,
    sessions: Vec<Session>,
    bindings: Vec<Option<usize>>,
    going: Vec<Option<Going>>,
    next: u32,
}

/// The control: 0 is sound, 1 to 4 are the flaws in the order of [`Flaw`].
pub struct Racy<const FLAW: u8> {
    machine: Machine,
    memory: Tables,
    buffers: Buffers,
    backend: Backend,
    units: Vec<Option<Hardware>>,
    inside: Inside,
    stream: usize,
}

const fn flaw(number: u8) -> Flaw {
    match number {
        1 => Flaw::Order2022,
        2 => Flaw::FreeBeforeFlush,
        3 => Flaw::AttachWithoutDefault,
        4 => Flaw::StateBeforeEffect,
        _ => Flaw::None,
    }
}

/// The steps of a probe.
const PROBE: [u8; 6] = [0, 1, 2, 3, 4, 5];

impl<const FLAW: u8> Racy<FLAW> {
    const FLAW: Flaw = flaw(FLAW);

    /// Whether others may come in behind this step.
    fn suspends(step: u8) -> bool {
        match Self::FLAW {
            Flaw::Order2022 => true,
            Flaw::AttachWithoutDefault => step == 3,
            _ => false,
        }
    }

    fn domain(&mut self, tag_of: Option<(Device, &Scene)>) -> Result<usize, Refusal> {
        let levels = 3;
        let pages =
            Pages::new(&mut self.memory, levels, PageSizes::SIZE_4K | PageSizes::SIZE_2M, true);
        let mut pages = pages.map_err(|_| Refusal::NoMemory)?;
        if let Some((device, scene)) = tag_of {
            for run in scene.policy(device) {
                let range = range(run.iova, run.last - run.iova + 1);
                let mapped =
                    pages.map(&mut self.memory, range, PhysAddr(run.physical), Access::all());
                mapped.map_err(|_| Refusal::NoMemory)?;
            }
        }
        let at = self.inside.domains.len();
        let tag = DomainTag(u16::try_from(at).unwrap() + 2);
        self.inside.domains.push(Some(Domain { tag, pages }));
        Ok(at)
    }

    /// Moves a device's entry, through one that denies.
    fn bind(&mut self, scene: &Scene, device: Device, to: Option<usize>, direct: bool) {
        let Some(unit) = scene.functions[device].unit else { return };
        let Some(hardware) = self.units[unit].as_mut() else { return };
        let source = RequesterId(scene.source(device));
        let old = self.inside.bindings[device].take();
        let old = old.and_then(|at| self.inside.domains[at].as_ref()).map(|domain| domain.tag);
        hardware.write_entry(&mut self.memory, source, Entry::Blocked).expect("an entry");
        hardware.invalidate_entry(&mut self.memory, source, old).expect("a flush");
        let entry = match to.and_then(|at| self.inside.domains[at].as_ref()) {
            Some(domain) => Entry::Translate {
                tag: domain.tag,
                root: domain.pages.root(),
                levels: domain.pages.levels(),
            },
            None if direct => Entry::PassThrough { tag: DomainTag(1) },
            None => return,
        };
        hardware.write_entry(&mut self.memory, source, entry).expect("an entry");
        hardware.invalidate_entry(&mut self.memory, source, None).expect("a flush");
        self.inside.bindings[device] = to;
    }

    /// One step of the probe of a device.
    fn probe(&mut self, scene: &Scene, device: Device, step: u8, going: &mut Going) {
        match step {
            0 => {
                let record = self.inside.records[device];
                going.found = record.is_some();
                going.group = record.and_then(|record| record.group);
            }
            1 if !going.found => {
                self.inside.next += 1;
                let id = self.inside.next;
                self.inside.records[device] = Some(Record { id, group: None, session: None });
            }
            2 if going.group.is_none() => {
                let group = scene.functions[device].group;
                let known = scene.members(group).filter_map(|at| self.inside.records[at]?.group);
                going.group = known.last();
            }
            3 if !going.found => {
                let group = going.group.unwrap_or_else(|| {
                    self.inside.groups.push(Group::default());
                    self.inside.groups.len() - 1
                });
                going.group = Some(group);
                if let Some(record) = &mut self.inside.records[device] {
                    record.group = Some(group);
                }
            }
            4 if !going.found => {
                going.domain = going.group.and_then(|group| self.inside.groups[group].default);
            }
            5 if !going.found => {
                let Some(group) = going.group else { return };
                let member = |session: &Session| {
                    let record = self.inside.records[session.device];
                    session.attached && record.is_some_and(|record| record.group == Some(group))
                };
                let driven = self.inside.sessions.iter().any(member);
                let domain = match going.domain {
                    Some(domain) => domain,
                    None => self.domain(Some((device, scene))).expect("memory"),
                };
                self.inside.groups[group].default = Some(domain);
                if !driven {
                    self.bind(scene, device, Some(domain), false);
                }
            }
            _ => {}
        }
    }

    fn session(&mut self, client: Client, device: Device) -> Result<&mut Session, Refusal> {
        let mine = |s: &&mut Session| s.client == client && s.device == device;
        self.inside.sessions.iter_mut().find(mine).ok_or(Refusal::BadHandle)
    }

    fn claimed(
        &mut self,
        client: Client,
        device: Device,
        group: Option<usize>,
    ) -> Result<Answer, Refusal> {
        let group = group.ok_or(Refusal::NotProbed)?;
        let record = self.inside.records[device].ok_or(Refusal::NotProbed)?;
        // Each path has looked at a group of its own.
        if record.session.is_some() || self.inside.groups[group].owner.is_some() {
            return Err(Refusal::NotOwner);
        }
        let handle = self.inside.next + 100;
        self.inside.next += 1;
        self.inside.records[device] = Some(Record { session: Some(handle), ..record });
        self.inside.groups[group].owner = Some(client);
        let (domain, attached) = (None, false);
        let (buffers, mappings) = (Vec::new(), Vec::new());
        self.inside.sessions.push(Session {
            handle,
            client,
            device,
            domain,
            attached,
            buffers,
            mappings,
        });
        Ok(Answer::Session { handle, ids: (record.id, self.inside.generations[device]) })
    }

    fn attach(&mut self, scene: &Scene, client: Client, device: Device) -> Result<(), Refusal> {
        let session = self.session(client, device)?.clone();
        let group = self.inside.records[device].and_then(|record| record.group);
        let group = group.ok_or(Refusal::NotProbed)?;
        if self.inside.groups[group].default.is_none() {
            match Self::FLAW {
                // DMA is set up without a domain: straight to memory.
                Flaw::Order2022 => {
                    self.bind(scene, device, None, true);
                    self.session(client, device)?.attached = true;
                    return Ok(());
                }
                Flaw::AttachWithoutDefault => {}
                _ => return Err(Refusal::NotReady),
            }
        }
        for member in scene.members(scene.functions[device].group) {
            self.bind(scene, member, None, false);
        }
        let domain = match session.domain {
            Some(domain) => domain,
            None => self.domain(None)?,
        };
        let session = self.session(client, device)?;
        session.domain = Some(domain);
        session.attached = true;
        self.bind(scene, device, Some(domain), false);
        Ok(())
    }

    fn detach(&mut self, scene: &Scene, client: Client, device: Device) -> Result<(), Refusal> {
        self.session(client, device)?.attached = false;
        let group = self.inside.records[device].and_then(|record| record.group);
        let default = group.and_then(|group| self.inside.groups[group].default);
        for member in scene.members(scene.functions[device].group) {
            self.bind(scene, member, default, false);
        }
        Ok(())
    }

    fn allocate(&mut self, client: Client, device: Device, pages: u64) -> Result<Answer, Refusal> {
        let count = self.session(client, device)?.buffers.len();
        let domain = self.session(client, device)?.domain.ok_or(Refusal::NotAttached)?;
        let id = self.inside.next;
        self.inside.next += 1;
        let constraints = Constraints { alignment: PAGE, ..Constraints::default() };
        let segments = self.buffers.allocate(id, pages * PAGE, constraints);
        let segments = segments.map_err(|_| Refusal::NoMemory)?;
        let iova = (u64::try_from(count).unwrap() + 1) * 0x20_0000;
        if Self::FLAW == Flaw::StateBeforeEffect {
            self.session(client, device)?.mappings.push((iova, pages * PAGE));
        }
        let mut at = iova;
        let Some(Domain { pages: table, .. }) = self.inside.domains[domain].as_mut() else {
            return Err(Refusal::NotAttached);
        };
        for segment in &segments {
            let to = range(at, segment.length());
            if table.map(&mut self.memory, to, segment.first(), Access::all()).is_err() {
                // Pages mapped before: none, in what is tried here.
                self.buffers.release(id);
                return Err(Refusal::NoMemory);
            }
            at += segment.length();
        }
        let session = self.session(client, device)?;
        if Self::FLAW != Flaw::StateBeforeEffect {
            session.mappings.push((iova, pages * PAGE));
        }
        session.buffers.push(id);
        let memory = segments.iter().map(|range| (range.first().0, range.length())).collect();
        Ok(Answer::Buffer { slot: id, iova, memory })
    }

    /// Takes a mapping out of tables and caches, and with `give_back` its buffer; in the wrong order if that is
    /// the flaw.
    fn unmap(
        &mut self,
        scene: &Scene,
        client: Client,
        device: Device,
        give_back: bool,
    ) -> Result<(), Refusal> {
        let session = self.session(client, device)?;
        let buffer = give_back.then(|| session.buffers.pop()).flatten();
        let mapping = (!session.mappings.is_empty()).then(|| session.mappings.remove(0));
        let domain = session.domain;
        let early = Self::FLAW == Flaw::FreeBeforeFlush;
        let mut detached = Detached::new();
        let flush = domain.zip(mapping);
        if let Some((domain, (iova, length))) = flush
            && let Some(Domain { pages, .. }) = self.inside.domains[domain].as_mut()
        {
            pages.unmap(&mut self.memory, range(iova, length), &mut detached).expect("mapped");
        }
        if let Some(buffer) = buffer.filter(|_| early) {
            self.buffers.release(buffer);
        }
        if let Some((domain, (iova, length))) = flush
            && let Some(unit) = scene.functions[device].unit
            && let Some(hardware) = self.units[unit].as_mut()
            && let Some(Domain { tag, .. }) = self.inside.domains[domain]
        {
            let range = range(iova, length);
            hardware.invalidate_pages(&mut self.memory, tag, range, true).expect("a flush");
        }
        Pages::release(&mut self.memory, &mut detached);
        if let Some(buffer) = buffer.filter(|_| !early) {
            self.buffers.release(buffer);
        }
        Ok(())
    }

    fn close(&mut self, scene: &Scene, client: Client, device: Device) {
        let Ok(session) = self.session(client, device).cloned() else { return };
        for member in scene.members(scene.functions[device].group) {
            if session.attached {
                self.bind(scene, member, None, false);
            }
        }
        while self.session(client, device).is_ok_and(|session| !session.mappings.is_empty()) {
            let _ = self.unmap(scene, client, device, true);
        }
        while self.session(client, device).is_ok_and(|session| !session.buffers.is_empty()) {
            let _ = self.unmap(scene, client, device, true);
        }
        if let Some(domain) = session.domain.and_then(|at| self.inside.domains[at].take()) {
            domain.pages.destroy(&mut self.memory);
        }
        if let Some(record) = &mut self.inside.records[device] {
            record.session = None;
            if let Some(group) = record.group {
                self.inside.groups[group].owner = None;
            }
        }
        self.inside.sessions.retain(|other| other.handle != session.handle);
    }

    fn finish_event(&mut self, scene: &Scene, going: &Going) -> Result<Answer, Refusal> {
        let client = going.client;
        match going.event.act {
            Act::Claim(device) => return self.claimed(client, device, going.group),
            Act::Attach(device) => self.attach(scene, client, device)?,
            Act::Detach(device) => self.detach(scene, client, device)?,
            Act::Allocate(device, pages) => return self.allocate(client, device, pages),
            Act::Unmap(device) => self.unmap(scene, client, device, false)?,
            Act::Release(device) => self.unmap(scene, client, device, true)?,
            Act::Close(device) => self.close(scene, client, device),
            Act::Die(dead) => {
                for device in 0..scene.functions.len() {
                    self.close(scene, dead, device);
                }
            }
            Act::Look(device) => {
                let record = self.inside.records[device].ok_or(Refusal::NotFound)?;
                return Ok(Answer::Looked(Some((record.id, self.inside.generations[device]))));
            }
            _ => {}
        }
        Ok(Answer::Done)
    }

    /// The probes that an event begins with.
    fn steps(&mut self, scene: &Scene, act: Act) -> Result<Vec<(Device, u8)>, Refusal> {
        let devices: Vec<Device> = match act {
            Act::Claim(device) => {
                if !self.inside.present[device] {
                    return Err(Refusal::NotProbed);
                }
                let unit = scene.functions[device].unit;
                if unit.is_none_or(|unit| self.units[unit].is_none()) {
                    return Err(Refusal::NotReady);
                }
                vec![device]
            }
            Act::Added(device) => {
                if !self.inside.present[device] {
                    self.inside.present[device] = true;
                    self.inside.generations[device] += 1;
                }
                vec![device]
            }
            Act::Arrive(unit) => {
                self.bring_up(unit);
                let behind = |at: &Device| {
                    scene.functions[*at].unit == Some(unit) && self.inside.present[*at]
                };
                (0..scene.functions.len()).filter(behind).collect()
            }
            _ => Vec::new(),
        };
        Ok(devices.into_iter().flat_map(|device| PROBE.map(|step| (device, step))).collect())
    }

    fn bring_up(&mut self, unit: usize) {
        let mut hardware =
            self.backend.bring_up(&self.machine, unit, &mut self.memory).expect("a unit");
        hardware.enable(&mut self.memory).expect("a unit");
        self.units[unit] = Some(hardware);
    }

    fn go_on(&mut self, scene: &Scene, mut going: Going) -> Progress {
        while !going.steps.is_empty() {
            let (device, step) = going.steps.remove(0);
            self.probe(scene, device, step, &mut going);
            if Self::suspends(step) {
                let stream = self.stream;
                self.inside.going[stream] = Some(going);
                return Progress::Suspended;
            }
        }
        if let Some(failure) = going.event.failure {
            fail(&self.machine, failure);
        }
        let answer = self.finish_event(scene, &going).unwrap_or_else(Answer::Refused);
        stop_failing(&self.machine);
        Progress::Done(answer)
    }
}

impl<const FLAW: u8> Subject for Racy<FLAW> {
    type Saved = (Saved, Vec<Option<Hardware>>, Tables);

    fn start(scene: &Scene) -> Self {
        let backend = scene.subject();
        let machine = Machine::new(scene.setup().layout);
        for _ in &scene.units {
            let _ = backend.add(&machine);
        }
        let memory = machine.tables();
        let count = scene.functions.len();
        let inside = Inside {
            present: scene.functions.iter().map(|function| function.present).collect(),
            generations: scene.functions.iter().map(|f| u32::from(f.present)).collect(),
            records: vec![None; count],
            bindings: vec![None; count],
            going: vec![None; 8],
            ..Inside::default()
        };
        let buffers = machine.buffers();
        let units = scene.units.iter().map(|_| None).collect();
        let mut racy = Self { machine, memory, buffers, backend, units, inside, stream: 0 };
        for unit in 0..scene.units.len() {
            if scene.units[unit] == Start::Up {
                racy.bring_up(unit);
            }
        }
        racy
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn save(&self) -> Self::Saved {
        (Saved(self.inside.clone()), self.units.clone(), self.memory.clone())
    }

    fn restore(&mut self, saved: &Self::Saved) {
        self.inside = saved.0.0.clone();
        self.units.clone_from(&saved.1);
        self.memory = saved.2.clone();
    }

    fn begin(&mut self, scene: &Scene, _: &Ledger, client: Client, event: Event) -> Progress {
        match self.steps(scene, event.act) {
            Ok(steps) => {
                let (group, found, domain) = (None, false, None);
                self.go_on(scene, Going { event, client, steps, group, found, domain })
            }
            Err(refusal) => Progress::Done(Answer::Refused(refusal)),
        }
    }

    fn resume(&mut self, scene: &Scene, stream: usize) -> Progress {
        let going = self.inside.going[stream].take().expect("something suspended");
        self.go_on(scene, going)
    }

    fn of_stream(&mut self, stream: usize) {
        self.stream = stream;
    }

    fn texts(&mut self) -> String {
        self.inside.text()
    }

    fn texts_of(saved: &Self::Saved) -> String {
        saved.0.0.text()
    }

    fn units(&mut self) -> Vec<Unit> {
        self.units.iter().map(|unit| if unit.is_some() { Unit::Up } else { Unit::Down }).collect()
    }

    fn partition(&mut self, _: &Scene) -> Vec<Vec<Device>> {
        let groups = 0..self.inside.groups.len();
        let members = |group| {
            let of = |at: &Device| {
                self.inside.records[*at].is_some_and(|record| record.group == Some(group))
            };
            (0..self.inside.records.len()).filter(of).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = groups.map(members).filter(|group| !group.is_empty()).collect();
        all.sort_unstable();
        all
    }

    fn quarantined(&mut self) -> bool {
        false
    }
}

/// What the control knows, put aside.
pub struct Saved(Inside);

impl Inside {
    /// What it tells: everything but counters.
    fn text(&self) -> String {
        let sessions: Vec<String> =
            self.sessions.iter().map(|session| format!("{session:?}\n")).collect();
        format!("{:?}\n{:?}\n{}", self.records, self.groups, sessions.concat())
    }
}
