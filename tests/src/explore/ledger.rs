//! The required state, derived from the scene and the answers to clients alone. The server is not queried.

use super::act::{Act, Answer, Client};
use super::scene::{Device, Scene, Start};
pub use super::session::{Mapping, Session};
use crate::machine::{Reach, join};

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// The state of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// The unit does not translate yet.
    Down,
    /// The unit translates.
    Up,
    /// The unit failed and is unreliable.
    Failed,
}

/// A claim that waits for its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its ticket.
    pub ticket: u64,
    /// The client that made it.
    pub client: Client,
    /// The device.
    pub device: Device,
}

/// The state of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// The function is present.
    pub present: bool,
    /// How many times a function appeared at its address.
    pub generation: u32,
    /// Its driver ended, or it disappeared while driven. Nothing has shown since then that the device is quiet.
    pub cut: bool,
    /// It appeared while its group was claimed.
    pub late: bool,
    /// It appeared while its group was claimed, and its owner has claimed nothing since. So its reserved region is
    /// not in the owner's domain.
    pub unmet: bool,
    /// The last client that drove it. Behind a failed unit it may still reach that client's memory.
    pub driven_by: Option<Client>,
}

impl Function {
    const fn on_time(&mut self) {
        (self.late, self.unmet) = (false, false);
    }
}

/// The required state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The units.
    pub units: Vec<Unit>,
    /// Units that have ever translated for the server.
    pub enabled: Vec<bool>,
    /// Units that misbehave or did. For them the server's report is accepted.
    pub troubled: Vec<bool>,
    /// The functions.
    pub functions: Vec<Function>,
    /// Open sessions, oldest first.
    pub sessions: Vec<Session>,
    /// Claims that wait, oldest first.
    pub waiting: Vec<Claim>,
    /// Clients that are alive.
    pub alive: [bool; 4],
    /// Whether the server has a predecessor.
    pub restarted: bool,
    /// Regions that stay in a domain because a failed unit may still use it.
    pub kept: Vec<(u32, Reach)>,
    /// Ids reported for each function in its present life.
    pub ids: Vec<Option<(u32, u32)>>,
}

impl Ledger {
    /// The state of a machine whose server has just started.
    #[must_use]
    pub fn new(scene: &Scene) -> Self {
        let units = scene.units.iter().map(|unit| match unit {
            Start::Up => Unit::Up,
            Start::Late => Unit::Down,
            Start::Dead => Unit::Failed,
        });
        let functions = scene.functions.iter().map(|function| Function {
            present: function.present,
            generation: u32::from(function.present),
            cut: false,
            late: false,
            unmet: false,
            driven_by: None,
        });
        Self {
            units: units.collect(),
            enabled: scene.units.iter().map(|unit| *unit == Start::Up).collect(),
            troubled: scene.units.iter().map(|unit| *unit == Start::Dead).collect(),
            functions: functions.collect(),
            sessions: Vec::new(),
            waiting: Vec::new(),
            alive: [true; 4],
            restarted: false,
            kept: Vec::new(),
            ids: vec![None; scene.functions.len()],
        }
    }

    /// Whether a client can make a request: it is alive and has no claim waiting.
    #[must_use]
    pub fn may_ask(&self, client: Client) -> bool {
        self.alive[client] && !self.waiting.iter().any(|claim| claim.client == client)
    }

    /// The session of a client on a device.
    #[must_use]
    pub fn session(&self, client: Client, device: Device) -> Option<&Session> {
        let mine = |session: &&Session| session.client == client && session.device == device;
        self.sessions.iter().find(mine)
    }

    fn session_mut(&mut self, client: Client, device: Device) -> Option<&mut Session> {
        let mine = |session: &&mut Session| session.client == client && session.device == device;
        self.sessions.iter_mut().find(mine)
    }

    /// The session that drives a device.
    #[must_use]
    pub fn driver(&self, device: Device) -> Option<&Session> {
        self.sessions.iter().find(|s| s.device == device && s.attached && !s.orphan)
    }

    /// The client that owns a group, by a session on one of its members.
    #[must_use]
    pub fn owner(&self, scene: &Scene, group: usize) -> Option<Client> {
        let member =
            |session: &&Session| scene.functions[session.device].group == group && !session.lost;
        self.sessions.iter().find(member).map(|session| session.client)
    }

    /// Whether a member of the group is attached.
    #[must_use]
    pub fn group_attached(&self, scene: &Scene, group: usize) -> bool {
        scene.members(group).any(|member| self.driver(member).is_some())
    }

    /// The unit in front of a device.
    #[must_use]
    pub fn unit(&self, scene: &Scene, device: Device) -> Option<Unit> {
        scene.functions[device].unit.map(|unit| self.units[unit])
    }

    /// Whether a device is unconfined: it has no unit, or its unit never translated for the server. The device
    /// reaches the same memory as before the server started, and the server must report that.
    #[must_use]
    pub fn unconfined(&self, scene: &Scene, device: Device) -> bool {
        scene.functions[device].unit.is_none_or(|unit| !self.enabled[unit])
    }

    /// Returns the mappings of a domain: those of its sessions, and the reserved regions of members of their groups.
    fn domain(&self, scene: &Scene, domain: u32) -> Vec<Reach> {
        let mut leaves = Vec::new();
        for session in self.sessions.iter().filter(|session| session.domain == domain) {
            for mapping in &session.mappings {
                let mut iova = mapping.iova;
                for (start, length) in &mapping.memory {
                    leaves.push(Reach {
                        iova,
                        last: iova + length - 1,
                        physical: *start,
                        read: true,
                        write: true,
                    });
                    iova += length;
                }
            }
            // The session's group is gone. A function that appears there belongs to another group and owner.
            if session.lost {
                continue;
            }
            let group = scene.functions[session.device].group;
            let met = |member: &Device| {
                let function = self.functions[*member];
                function.present && !function.unmet
            };
            leaves.extend(scene.members(group).filter(met).filter_map(|at| scene.reserved_of(at)));
        }
        let kept = self.kept.iter().filter(|(of, _)| *of == domain);
        leaves.extend(kept.map(|(_, region)| *region));
        leaves.sort_unstable();
        leaves.dedup();
        let mut runs = Vec::new();
        leaves.into_iter().for_each(|leaf| join(&mut runs, leaf));
        runs
    }

    /// Returns the exact reach that a device must have; `None` without a working unit in front of it.
    #[must_use]
    pub fn reach(&self, scene: &Scene, device: Device) -> Option<Vec<Reach>> {
        if self.unit(scene, device)? != Unit::Up {
            return None;
        }
        let function = self.functions[device];
        let group = scene.functions[device].group;
        Some(if !function.present {
            Vec::new()
        } else if let Some(session) = self.driver(device) {
            self.domain(scene, session.domain)
        } else if self.group_attached(scene, group) || function.late {
            Vec::new()
        } else if self.is_cut_off(scene, group) {
            scene.reserved_of(device).into_iter().collect()
        } else {
            let held: Vec<_> = self.memory_of_others([None, None]).collect();
            scene.policy(device, &held)
        })
    }

    /// Whether a member was driven, and nothing has shown since then that it is quiet.
    fn is_cut_off(&self, scene: &Scene, group: usize) -> bool {
        let mut members = scene.members(group).map(|member| self.functions[member]);
        members.any(|member| member.present && member.cut)
    }

    /// Memory of buffers that clients other than these hold.
    pub fn memory_of_others(
        &self,
        clients: [Option<Client>; 2],
    ) -> impl Iterator<Item = (u64, u64)> + '_ {
        let other = move |session: &&Session| !clients.contains(&Some(session.client));
        let others = self.sessions.iter().filter(other);
        others.flat_map(|session| &session.buffers).flat_map(|(_, memory)| memory.iter().copied())
    }

    /// Enters the result of an event.
    pub fn note(&mut self, scene: &Scene, client: Client, act: Act, answer: &Answer) {
        match (act, answer) {
            (_, Answer::Refused(_)) => {}
            (Act::Claim(device) | Act::ClaimWithin(device), Answer::Session { handle, .. }) => {
                self.claimed(scene, client, device, *handle, *handle);
            }
            (Act::ClaimWithin(device), Answer::Waits(ticket)) => {
                self.waiting.push(Claim { ticket: *ticket, client, device });
            }
            (Act::ClaimUnder(device, parent), Answer::Session { handle, .. }) => {
                let domain = self.session(client, parent).map_or(*handle, |parent| parent.domain);
                self.claimed(scene, client, device, *handle, domain);
            }
            (Act::Attach(device), _) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.attached = true;
                    self.functions[device].cut = false;
                    self.functions[device].driven_by = Some(client);
                }
            }
            (Act::Detach(device), _) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.attached = false;
                }
            }
            (Act::Allocate(device, _), Answer::Buffer { slot, iova, memory }) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.buffers.push((*slot, memory.clone()));
                    let (iova, slot, memory) = (*iova, *slot, memory.clone());
                    session.mappings.push(Mapping { iova, slot, memory });
                }
            }
            (
                Act::Map(device) | Act::MapFixed(device, _) | Act::Batch(device),
                Answer::Mapped(new),
            ) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.map(new);
                }
            }
            (Act::List(device, _, pages), Answer::Listed(iova)) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.map_list(*iova, pages);
                }
            }
            (Act::Reserve(device, _), Answer::Reserved { slot, iova, memory }) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.buffers.push((*slot, memory.clone()));
                    session.reserved.push((*slot, *iova));
                }
            }
            (Act::Grant(device, page) | Act::Revoke(device, page), _) => {
                let granted = matches!(act, Act::Grant(..));
                if let Some(session) = self.session_mut(client, device) {
                    session.grant(page, granted);
                }
            }
            (Act::Import(device, owner, owned), Answer::Imported(slot)) => {
                let theirs = self.session(owner, owned).and_then(|owner| owner.buffers.first());
                let memory = theirs.map(|(_, memory)| memory.clone()).unwrap_or_default();
                if let Some(session) = self.session_mut(client, device) {
                    session.buffers.push((*slot, memory));
                }
            }
            (Act::Unmap(device), _) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.mappings.remove(0);
                }
            }
            (Act::UnmapAt(device, iova), _) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.mappings.retain(|mapping| mapping.iova != iova);
                }
            }
            (Act::Release(device), _) => {
                if let Some(session) = self.session_mut(client, device) {
                    session.release();
                }
            }
            (Act::Close(device), _) => {
                self.closed(scene, |s| s.client == client && s.device == device)
            }
            (Act::Die(dead), _) => {
                self.alive[dead] = false;
                self.waiting.retain(|claim| claim.client != dead);
                self.closed(scene, |session| session.client == dead);
            }
            _ => self.happened(scene, act),
        }
    }

    /// A session on a removed device holds no group. When no other session is left, the group is free.
    fn free_if_unused(&mut self, scene: &Scene, group: usize) {
        let of_group = |session: &Session| scene.functions[session.device].group == group;
        if self.sessions.iter().any(|session| of_group(session) && !session.orphan) {
            return;
        }
        self.sessions.iter_mut().filter(|s| of_group(s)).for_each(|session| session.lost = true);
        scene.members(group).for_each(|member| self.functions[member].on_time());
    }

    fn happened(&mut self, scene: &Scene, act: Act) {
        match act {
            Act::Added(device) if !self.functions[device].present => {
                let claimed = self.owner(scene, scene.functions[device].group).is_some();
                let generation = self.functions[device].generation + 1;
                // It may be the same device as before, still running.
                let cut = self.functions[device].cut;
                let (present, late, unmet) = (true, claimed, claimed);
                // A failing unit may keep its old entry for this requester.
                let untold = scene.functions[device].unit.is_some_and(|unit| self.troubled[unit]);
                let driven_by = self.functions[device].driven_by.filter(|_| untold);
                self.functions[device] =
                    Function { present, generation, cut, late, unmet, driven_by };
                self.ids[device] = None;
            }
            Act::Removed(device) => {
                self.functions[device].cut |= self.driver(device).is_some();
                self.functions[device].present = false;
                self.functions[device].on_time();
                self.ids[device] = None;
                for session in self.sessions.iter_mut().filter(|s| s.device == device) {
                    session.orphan = true;
                }
                self.free_if_unused(scene, scene.functions[device].group);
            }
            Act::Restart => {
                // Driven devices stay cut off, because nothing has shown that they are quiet.
                let driven = |device| self.driver(device).is_some();
                let cut: Vec<bool> = (0..self.functions.len()).map(driven).collect();
                self.sessions.clear();
                self.waiting.clear();
                self.ids.fill(None);
                for (function, cut) in self.functions.iter_mut().zip(cut) {
                    function.generation = u32::from(function.present);
                    function.cut |= cut;
                    function.on_time();
                }
            }
            Act::Stall(unit, _) | Act::Kill(unit) => self.troubled[unit] = true,
            _ => {}
        }
    }

    /// Enters the answer to a waiting claim.
    pub fn answered(&mut self, scene: &Scene, claim: Claim, answer: &Answer) {
        self.waiting.retain(|waiting| *waiting != claim);
        if let Answer::Session { handle, ids } = answer {
            self.claimed(scene, claim.client, claim.device, *handle, *handle);
            self.ids[claim.device] = Some(*ids);
        }
    }

    fn claimed(&mut self, scene: &Scene, client: Client, device: Device, handle: u32, domain: u32) {
        self.sessions.push(Session {
            handle,
            client,
            device,
            domain,
            attached: false,
            orphan: false,
            lost: false,
            buffers: Vec::new(),
            reserved: Vec::new(),
            mappings: Vec::new(),
        });
        // A claim maps the reserved regions of all members of the owner's groups.
        let owned = self.sessions.iter().filter(|session| session.domain == domain);
        for group in owned.map(|session| scene.functions[session.device].group) {
            scene.members(group).for_each(|member| self.functions[member].unmet = false);
        }
    }

    /// Closes sessions. A device that was attached stays cut off. A group without sessions is free.
    fn closed(&mut self, scene: &Scene, ends: impl Fn(&Session) -> bool) {
        let ended: Vec<Session> = self.sessions.iter().filter(|s| ends(s)).cloned().collect();
        self.sessions.retain(|session| !ends(session));
        for session in ended {
            if session.attached && !session.orphan {
                self.functions[session.device].cut = true;
            }
            let group = scene.functions[session.device].group;
            let driven = self.functions[session.device].driven_by == Some(session.client);
            if driven && self.unit(scene, session.device) == Some(Unit::Failed) {
                let regions = scene.members(group).filter_map(|member| scene.reserved_of(member));
                self.kept.extend(regions.map(|region| (session.domain, region)));
            }
            if self.owner(scene, group).is_none() {
                scene.members(group).for_each(|member| self.functions[member].on_time());
            }
        }
    }
}
