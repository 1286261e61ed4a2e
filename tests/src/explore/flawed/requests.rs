//! The control server's requests.

use iommu_protocol::Refusal;
use iommu_protocol::wire::Access;
use iommud::hw::page_table::Detached;
use iommud::hw::{BufferMemory, Constraints, Unit as _};

use super::{Domain, Flaw, Going, Pages, Racy, Record, Session};
use crate::conformance::range;
use crate::explore::act::{Act, Answer, Client};
use crate::explore::ledger::PAGE;
use crate::explore::scene::{Device, Scene};

impl<const FLAW: u8> Racy<FLAW> {
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
        // Each path has looked up a group of its own.
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
                // DMA is set up without a domain, so it goes straight to memory.
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
        let domain = self.session(client, device)?.domain.ok_or(Refusal::BadHandle)?;
        let id = self.inside.next;
        self.inside.next += 1;
        let constraints = Constraints { alignment: PAGE, ..Constraints::default() };
        let segments = self.buffers.allocate(id, pages * PAGE, constraints);
        let segments = segments.map_err(|_| Refusal::Full)?;
        let iova = (u64::try_from(count).unwrap() + 1) * 0x20_0000;
        if Self::FLAW == Flaw::StateBeforeEffect {
            self.session(client, device)?.mappings.push((iova, pages * PAGE));
        }
        let mut at = iova;
        let Some(Domain { pages: table, .. }) = self.inside.domains[domain].as_mut() else {
            return Err(Refusal::BadHandle);
        };
        for segment in &segments {
            let to = range(at, segment.length());
            if table.map(&mut self.memory, to, segment.first(), Access::all()).is_err() {
                // No earlier segment of this buffer is mapped in these plays, so nothing is unmapped.
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

    /// Removes a mapping from tables and caches, and frees its buffer with `give_back`. The flaw `FreeBeforeFlush`
    /// does this in the wrong order.
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

    pub(super) fn finish_event(&mut self, scene: &Scene, going: &Going) -> Result<Answer, Refusal> {
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
}
