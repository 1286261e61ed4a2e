//! Controls: a deliberately flawed server over the same units, which the same checks must catch. Without a flaw it
//! passes them. Each flaw is one that kernels have had.

mod requests;

use iommu_protocol::wire::Access;
use iommu_protocol::{Refusal, RequesterId};
use iommud::addr::PhysAddr;
use iommud::hw::page_table::PageTable;
use iommud::hw::{Entry, Unit as _};
use iommud::topology::capabilities::{DomainTag, PageSizes, TableFormat};

use super::act::{Act, Answer, Client, Event};
use super::backend::Backend as _;
use super::ledger::{Ledger, Unit};
use super::scene::{Device, Scene, Start};
use super::shipped::{fail, stop_failing};
use super::subject::{Progress, Subject};
use crate::conformance::vtd::Subject as Backend;
use crate::conformance::{UnderTest, range};
use crate::machine::{Buffers, Machine, Tables};

type Hardware = <Backend as UnderTest>::Unit;
type Pages = PageTable<<Hardware as iommud::hw::Unit>::Format>;

/// The flaw of the control server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No flaw.
    None,
    /// The order of 2022: record, group and default domain are created in steps, with other events in between.
    Order2022,
    /// Memory is freed before its invalidation.
    FreeBeforeFlush,
    /// A member may attach before its group's default domain exists.
    AttachWithoutDefault,
    /// The effect of a request is recorded before it is tried.
    StateBeforeEffect,
}

/// A domain: its tag and its page table.
#[derive(Clone)]
struct Domain {
    tag: DomainTag,
    pages: Pages,
}

/// A device record.
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

/// An event under way.
#[derive(Clone, Debug)]
struct Going {
    event: Event,
    client: Client,
    /// Remaining steps of probes.
    steps: Vec<(Device, u8)>,
    /// Findings of earlier steps.
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

/// The control server: 0 is without a flaw, 1 to 4 are the flaws in the order of [`Flaw`].
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

/// The steps of a probe, in order.
const PROBE: [u8; 6] = [0, 1, 2, 3, 4, 5];

impl<const FLAW: u8> Racy<FLAW> {
    const FLAW: Flaw = flaw(FLAW);

    /// Whether other events may run after this step.
    fn suspends(step: u8) -> bool {
        match Self::FLAW {
            Flaw::Order2022 => true,
            Flaw::AttachWithoutDefault => step == 3,
            _ => false,
        }
    }

    fn domain(&mut self, tag_of: Option<(Device, &Scene)>) -> Result<usize, Refusal> {
        let page_sizes = PageSizes::SIZE_4K | PageSizes::SIZE_2M;
        let format = TableFormat { levels: 3, page_sizes, coherent: true, forces_snoop: false };
        let pages = Pages::new(&mut self.memory, format);
        let mut pages = pages.map_err(|_| Refusal::NoMemory)?;
        if let Some((device, scene)) = tag_of {
            for run in scene.policy(device, &[]) {
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

    /// Moves a device's entry, blocking it in between.
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

    /// Runs one step of the probe of a device.
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

    /// Returns the probes at the start of an event.
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
        let backend = Backend::of(scene);
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

/// A saved state of the control server.
pub struct Saved(Inside);

impl Inside {
    /// The control server's texts: everything but counters.
    fn text(&self) -> String {
        let sessions: Vec<String> =
            self.sessions.iter().map(|session| format!("{session:?}\n")).collect();
        format!("{:?}\n{:?}\n{}", self.records, self.groups, sessions.concat())
    }
}
