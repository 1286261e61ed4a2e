//! The views of the registry.

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::RegionKind;

use crate::addr::{INTERRUPT_WINDOW, Iova, IovaRange, PAGE_SIZE};
use crate::policy::config::Config;
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, DomainId, GroupId, SessionId, UnitIndex};
use crate::policy::iova::SPACE_BITS;
use crate::policy::registry::Registry;
use crate::policy::state::domain::Trust;
use crate::policy::state::excluded::windows;
use crate::policy::state::memory::Memory;
use crate::policy::state::objects::{Activity, Unit};
use crate::policy::step::Binding;
use crate::policy::view::{
    Admitted, BufferView, Counts, DomainView, FunctionView, GroupView, RegionView, SessionView,
    UnitState, UnitView,
};
use crate::topology::firmware::Firmware;
use crate::topology::table::FunctionIndex;

impl Registry {
    /// The policy of the machine.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.state.machine.config
    }

    /// The description of the machine by firmware.
    #[must_use]
    pub fn firmware(&self) -> &Firmware {
        &self.state.machine.firmware
    }

    /// All units, in firmware order.
    pub fn units(&self) -> impl Iterator<Item = UnitView> + '_ {
        (0..).map(UnitIndex).map_while(|index| self.unit(index))
    }

    /// One unit.
    #[must_use]
    pub fn unit(&self, index: UnitIndex) -> Option<UnitView> {
        let state = match self.state.machine.unit(index)? {
            Unit::Parsed => UnitState::Parsed,
            Unit::Enabled { capabilities, .. } => UnitState::Enabled(*capabilities),
            Unit::Failed => UnitState::Failed,
        };
        let behind = self.state.machine.sources.of(index).filter(|(source, entry)| {
            let own = |user: &FunctionIndex| {
                self.state.machine.table.get(*user).is_some_and(|f| f.address.requester == *source)
            };
            entry.users.iter().any(own)
        });
        let points_to = |id: u32| {
            let domain = self.state.domains.get(id);
            domain.is_some_and(|d| d.active.iter().any(|(unit, _)| *unit == index))
        };
        let functions = behind.count();
        let domains = self.state.domains.iter().filter(|(id, _)| points_to(*id)).count();
        Some(UnitView { index, state, functions, domains })
    }

    /// Whether every unit is up and makes devices snoop even when they ask not to. Otherwise memory must not hold old
    /// data that only caches hide. False without a unit.
    #[must_use]
    pub fn forces_snoop(&self) -> bool {
        let forces = |unit: &Unit| matches!(unit, Unit::Enabled { capabilities, .. } if capabilities.forces_snoop);
        let units = &self.state.machine.units;
        !units.is_empty() && units.iter().all(forces)
    }

    /// The addresses of all functions, in order.
    pub fn functions(&self) -> impl Iterator<Item = PciAddress> + '_ {
        self.state.machine.table.iter().map(|function| function.address)
    }

    /// One function.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<FunctionView> {
        let (index, known) = self.state.machine.find(address)?;
        let own = known.unit.map(|unit| (unit, address.requester));
        let own = own.map(|key| self.state.machine.sources.get(key));
        let binding = match own {
            Some(source) => source.and_then(|source| source.binding).unwrap_or(Binding::Blocked),
            None => Binding::PassThrough,
        };
        Some(FunctionView {
            function: *self.state.machine.table.get(index)?,
            generation: self.state.machine.generation(address),
            group: known.group,
            unit: known.unit,
            mode: known.mode,
            binding,
            sources: self.state.machine.sources_of(index).collect(),
            session: known.session,
            cut: known.activity == Activity::Unquiesced,
            left_out: self.state.machine.is_left_out(index),
            silenced: own.flatten().is_some_and(|source| source.silenced),
        })
    }

    /// The functions that are blocked only because another member of their group is attached: they have no session, and
    /// policy lets them reach memory otherwise.
    pub fn left_out(&self) -> impl Iterator<Item = PciAddress> + '_ {
        let machine = &self.state.machine;
        self.functions()
            .filter(|at| machine.find(*at).is_some_and(|(index, _)| machine.is_left_out(index)))
    }

    /// The functions that an attach of this session blocks: none unless it is the first of its group.
    #[must_use]
    pub fn left_out_by(&self, session: SessionId) -> Vec<PciAddress> {
        let machine = &self.state.machine;
        let session = self.state.sessions.get(session.0);
        let group = session.and_then(|session| machine.group(session.group));
        let Some(group) = group.filter(|group| group.state.attached == 0) else {
            return Vec::new();
        };
        let members = group.members.iter().filter(|member| machine.would_be_left_out(**member));
        let members = members.filter_map(|member| machine.table.get(*member));
        members.map(|function| function.address).collect()
    }

    /// Whether the function at an address is attached or unquiesced, or was when it went and has not come back. Stays
    /// true until a different function is seen there.
    #[must_use]
    pub fn may_be_driven(&self, address: PciAddress) -> bool {
        self.state.machine.may_be_driven(address)
    }

    /// Whether a function, and all functions behind it, are in unclaimed groups whose members are quiet. Then their
    /// description may be replaced. False when the function is not known.
    #[must_use]
    pub fn is_at_rest(&self, address: PciAddress) -> bool {
        let machine = &self.state.machine;
        machine.find(address).is_some_and(|(index, _)| machine.is_at_rest(index))
    }

    /// Groups that are claimed or may be, and owners whose devices are all gone: each is promised a share.
    #[must_use]
    pub fn claimable(&self) -> usize {
        self.state.claimable()
    }

    /// All groups, in order of their numbers.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.state.machine.groups.iter().map(|(number, _)| GroupId(number))
    }

    /// One group.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<GroupView> {
        let group = self.state.machine.group(id)?;
        let owner = group.state.owner.and_then(|owner| self.state.machine.owner(owner));
        let account = owner.and_then(|owner| self.state.accounts.get(owner.client));
        let members =
            group.members.iter().filter_map(|member| self.state.machine.table.get(*member));
        let mut members: Vec<_> = members.map(|function| function.address).collect();
        members.sort_unstable();
        Some(GroupView {
            id,
            members,
            owner: account.map(|account| account.client),
            domain: owner.and_then(|owner| owner.domain),
            attached: group.state.attached as usize,
        })
    }

    /// One session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionView> {
        let session = self.state.sessions.get(id.0)?;
        let account = self.state.accounts.get(session.client)?;
        let function = session.function.and_then(|index| self.state.machine.function(index));
        let quotas = &self.state.machine.config.quotas;
        let failed = session.unit.and_then(|unit| self.state.machine.unit(unit));
        let domain = session.domain.and_then(|domain| self.domain_view(domain));
        let own = session.domain.and_then(|domain| self.state.domains.get(domain.0));
        Some(SessionView {
            address: session.address,
            generation: session.generation,
            removed: session.function.is_none(),
            group: session.group,
            client: account.client,
            unit: session.unit,
            unit_failed: matches!(failed, Some(Unit::Failed))
                || own.is_some_and(|domain| domain.trust != Trust::Sound),
            attached: function.is_some_and(|function| function.activity == Activity::Attached),
            unquiesced: function.is_some_and(|function| function.activity == Activity::Unquiesced),
            silenced: session
                .unit
                .and_then(|unit| self.state.machine.sources.get((unit, session.address.requester)))
                .is_some_and(|source| source.silenced),
            domain,
            mappings_left: quotas.mappings.saturating_sub(account.mappings),
        })
    }

    /// Bytes of buffers that the client of a session may still have, by its quota and its share.
    #[must_use]
    pub fn memory_left(&self, id: SessionId) -> Option<u64> {
        let number = self.state.sessions.get(id.0)?.client;
        let account = self.state.accounts.get(number)?;
        let quota = self.state.machine.config.quotas.memory.saturating_sub(account.memory);
        let used = self.state.left_behind().charged(number, account);
        Some(quota.min(self.state.share_of(account.domains).saturating_sub(used)))
    }

    fn domain_view(&self, id: DomainId) -> Option<DomainView> {
        let domain = self.state.domains.get(id.0)?;
        Some(DomainView {
            id,
            tag: domain.tag,
            space: IovaRange::inclusive(
                Iova(PAGE_SIZE),
                Iova(domain.shape.last_iova().min((1 << SPACE_BITS) - 1)),
            )?,
            page_sizes: domain.shape.format.page_sizes,
            mappings: domain.mappings.len(),
        })
    }

    /// Whether the faults of a requester are suppressed.
    #[must_use]
    pub fn is_silenced(&self, unit: UnitIndex, source: RequesterId) -> bool {
        self.state.machine.sources.is_silenced((unit, source))
    }

    /// Requesters whose faults are suppressed, and whether a function with the id is known.
    pub fn silenced(&self) -> impl Iterator<Item = (UnitIndex, RequesterId, bool)> + '_ {
        let sources = &self.state.machine.sources;
        let known = sources.iter().filter(|(_, source)| source.silenced);
        let known = known.map(|((unit, source), _)| (unit, source, true));
        known.chain(sources.strangers().iter().map(|(unit, source)| (*unit, *source, false)))
    }

    /// The session that gets the faults of this requester behind this unit. When several functions share the
    /// requester id, attached ones come first.
    #[must_use]
    pub fn session_of(&self, unit: UnitIndex, source: RequesterId) -> Option<SessionId> {
        let users = || {
            let users = self.state.machine.sources.get((unit, source)).map(|source| &source.users);
            users
                .into_iter()
                .flat_map(|users| users.iter())
                .filter_map(|user| self.state.machine.function(*user))
        };
        users()
            .find(|user| user.activity == Activity::Attached && user.session.is_some())
            .or_else(|| users().find(|user| user.session.is_some()))
            .and_then(|user| user.session)
    }

    /// The buffer in a slot of a session.
    #[must_use]
    pub fn buffer(&self, session: SessionId, slot: Slot) -> Option<BufferView> {
        let session = self.state.sessions.get(session.0)?;
        let record =
            self.state.slots.get(session.slots.get(slot.0 as usize).copied().flatten()?)?;
        let buffer = self.state.buffers.get(record.buffer.0)?;
        let (first, mappings) = match session.domain.and_then(|d| self.state.domains.get(d.0)) {
            Some(domain) => {
                let first = domain.mappings.list(&record.mappings).next();
                (first.map(|(_, mapping)| mapping.range.first()), record.mappings.count)
            }
            None => {
                let count = record.direct.values().fold(0, |sum: u32, n| sum.saturating_add(*n));
                let first = match &buffer.memory {
                    Memory::One(range) => Some(Iova(range.first().0)),
                    Memory::Many(_) => None,
                };
                (first, count)
            }
        };
        let reserved = record.granted.as_ref().map(|grants| grants.range.first());
        let iova = reserved.or(first).unwrap_or_default();
        Some(BufferView { id: record.buffer, length: buffer.length, iova, mappings })
    }

    /// I/O virtual addresses that clients may not use in the domains of this session's device.
    #[must_use]
    pub fn regions(&self, session: SessionId) -> Vec<RegionView> {
        let Some(session) = self.state.sessions.get(session.0) else { return Vec::new() };
        let mut found =
            alloc::vec![RegionView { range: INTERRUPT_WINDOW, kind: RegionKind::Interrupt }];
        let owner = self.state.machine.owner(session.owner);
        let groups = owner.map_or(&[][..], |owner| owner.groups.as_slice());
        let members = groups.iter().filter_map(|group| self.state.machine.group(*group));
        for member in members.flat_map(|group| group.members.iter()) {
            for (range, exclusion) in self.state.machine.regions_of(*member) {
                let kind = if exclusion { RegionKind::Exclusion } else { RegionKind::Firmware };
                let region = RegionView { range, kind };
                if !found.contains(&region) {
                    found.push(region);
                }
            }
        }
        for (first, last) in windows(&self.state.excluded).iter() {
            let range = IovaRange::inclusive(Iova(first), Iova(last));
            found.extend(range.map(|range| RegionView { range, kind: RegionKind::Registers }));
        }
        found.sort_unstable_by_key(|region| region.range);
        found
    }

    /// Numbers of live objects.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            functions: self.state.machine.table.len(),
            groups: self.state.machine.groups.len(),
            sessions: self.state.sessions.len(),
            domains: self.state.domains.len(),
            clients: self.state.accounts.len(),
            ..Counts::default()
        };
        for (_, group) in self.state.machine.groups.iter() {
            counts.groups_claimed += usize::from(group.state.owner.is_some());
            counts.attached += group.state.attached as usize;
        }
        for (_, account) in self.state.accounts.iter() {
            counts.mappings += account.mappings as usize;
        }
        for (id, buffer) in self.state.buffers.iter() {
            if self.is_quarantined(BufferId(id)) {
                counts.quarantined += 1;
                counts.quarantined_bytes += buffer.length;
            } else {
                counts.buffers += 1;
                counts.buffer_bytes += buffer.length;
            }
        }
        counts
    }

    /// Whether no session or handle has the buffer, and it cannot be freed.
    fn is_quarantined(&self, id: BufferId) -> bool {
        self.state
            .buffers
            .get(id.0)
            .is_some_and(|buffer| buffer.unproved && buffer.slots == 0 && buffer.holds == 0)
    }

    /// Number of domains that are kept because a failed unit may still use them.
    #[must_use]
    pub fn domains_kept(&self) -> usize {
        let owned = |id: u32| {
            self.state.machine.owners.iter().any(|(_, owner)| owner.domain == Some(DomainId(id)))
        };
        self.state.domains.iter().filter(|(id, domain)| domain.is_suspect() && !owned(*id)).count()
    }

    /// The slot of a buffer in a session.
    #[must_use]
    pub fn slot_of(&self, session: SessionId, buffer: BufferId) -> Option<Slot> {
        self.state.slot_of(session, buffer)
    }

    /// The number that the next buffer must have.
    #[must_use]
    pub fn next_buffer(&self) -> BufferId {
        BufferId(self.state.buffers.next().unwrap_or(u32::MAX))
    }

    /// Whether a buffer of `length` bytes may be allocated for a session now, before memory is looked for, if it lies
    /// in pieces of the pool that its client has already. Without a unit the memory must be one segment, and its own
    /// address must meet the request's alignment, boundary and reach.
    ///
    /// # Errors
    /// The refusal that [`Allocate`](crate::policy::Allocate) would get.
    pub fn admit_within(&self, session: SessionId, length: u64) -> Result<Admitted, Refusal> {
        self.state.admit_within(session, length)
    }

    /// Like [`Registry::admit_within`], for a buffer that takes empty pieces of the pool.
    ///
    /// # Errors
    /// The refusal that [`Allocate`](crate::policy::Allocate) would get.
    pub fn admit_buffer(&self, session: SessionId, length: u64) -> Result<Admitted, Refusal> {
        let admitted = self.state.admit_within(session, length)?;
        self.state.check_buffer_share(admitted.account, self.state.pool.of(length))?;
        Ok(admitted)
    }

    /// Owed work, in a fixed order.
    pub fn owed(&self) -> impl Iterator<Item = Owed> + '_ {
        self.state.owed.iter().copied()
    }

    /// Whether any work is owed.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.state.owed.is_empty()
    }

    /// Whether a buffer or domain is kept that [`crate::policy::Event::Proved`] gives back now or later.
    #[must_use]
    pub fn has_quarantine(&self) -> bool {
        self.state.buffers.iter().any(|(_, buffer)| buffer.unproved)
            || self.state.domains.iter().any(|(_, domain)| domain.is_suspect())
    }
}
