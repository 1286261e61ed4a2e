//! Units coming up and failing; domains, and where entries point.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::collections::ranges::{Piece, Ranges};
use crate::policy::draft::{Draft, Effect, entry, full};
use crate::policy::event::Owed;
use crate::policy::ids::{DomainId, Key, UnitIndex};
use crate::policy::iova::Space;
use crate::policy::registry::Registry;
use crate::policy::state::machine::{MOST_STRANGERS, Machine, TargetBinding};
use crate::policy::state::mappings::Mappings;
use crate::policy::state::objects::{Domain, Purpose, Shape, Shared, Trust, Unit, read_write};
use crate::policy::step::{Binding, Payer, Step};
use crate::topology::capabilities::{LevelSet, PageSizes, TableFormat, UnitCapabilities};

impl Shape {
    /// What all of these units can walk, with as few levels as reach `top`, or else as many as there are.
    /// `None` when they have no depth in common.
    fn common<'a>(units: impl Iterator<Item = &'a UnitCapabilities>, top: u64) -> Option<Self> {
        let mut levels = LevelSet::all();
        let mut page_sizes = PageSizes::all();
        let (mut coherent, mut forces_snoop) = (true, true);
        let (mut physical_bits, mut iova_bits) = (64, 64);
        for unit in units {
            levels &= unit.levels;
            page_sizes &= unit.page_sizes;
            coherent &= unit.coherent;
            forces_snoop &= unit.forces_snoop;
            physical_bits = physical_bits.min(unit.physical_bits);
            iova_bits = iova_bits.min(unit.iova_bits);
        }
        let depths = || (3..=6).filter(|depth| levels.bits() & 1 << depth != 0);
        let shape = |levels| Self {
            format: TableFormat { levels, page_sizes, coherent, forces_snoop },
            physical_bits,
            iova_bits,
        };
        let enough = depths().map(shape).find(|shape| shape.reach() >= top);
        enough.or_else(|| depths().next_back().map(shape))
    }

    /// For domains of policy, which map memory that is not the server's. Devices snoop there, or not, as they do
    /// without a unit; and units that differ in this share the tables.
    const fn of_policy(mut self) -> Self {
        self.format.forces_snoop = false;
        self
    }

    /// With as few more levels, of those that all units can walk, as reach `top`.
    fn deepened(self, levels: LevelSet, top: u64) -> Option<Self> {
        let deeper = (self.format.levels + 1..=6).filter(|depth| levels.bits() & 1 << depth != 0);
        deeper
            .map(|levels| Self { format: TableFormat { levels, ..self.format }, ..self })
            .find(|shape| shape.reach() >= top)
    }

    /// Whether a unit can walk such a table.
    pub(super) fn serves(self, unit: &UnitCapabilities) -> bool {
        unit.levels.bits() & 1 << self.format.levels != 0
            && unit.page_sizes.contains(self.format.page_sizes)
            && (unit.coherent || !self.format.coherent)
            && (unit.forces_snoop || !self.format.forces_snoop)
            && unit.physical_bits >= self.physical_bits
            && unit.iova_bits >= self.iova_bits
    }
}

impl Registry {
    pub(super) fn unit_ready(
        &self,
        draft: &mut Draft,
        unit: UnitIndex,
        capabilities: &UnitCapabilities,
    ) -> Result<(), Refusal> {
        let comes_back = match self.machine.unit(unit).ok_or(Refusal::NotFound)? {
            Unit::Enabled { .. } => return Ok(()),
            Unit::Failed => true,
            Unit::Parsed => false,
        };
        if comes_back {
            // First: a unit that is still not there costs no memory.
            draft.steps.push(Step::Revive { unit });
        }
        let mut after = Box::new(self.machine.clone());
        let class = self.class(&mut after, capabilities)?;
        if let Some(place) = after.units.get_mut(unit.0 as usize) {
            *place = Unit::Enabled { capabilities: *capabilities, class };
        }
        after.enter_named(unit);
        let keys: Vec<Key> = after.sources.of(unit).map(|(source, _)| (unit, source)).collect();
        let at = draft.effects.len();
        let mut late = Vec::new();
        if comes_back {
            self.enter_again(draft, &after, &keys)?;
        } else {
            self.enter_first(draft, &after, &keys, &mut late)?;
        }
        draft.steps.push(Step::Enable { unit });
        // It was flushed: it holds nothing under any tag.
        draft.steps.append(&mut late);
        draft.effects.push(Effect::Flushed(unit, true));
        after.shared.extend(draft.shared.drain(..));
        draft.effects.insert(at, Effect::Machine(after));
        Ok(())
    }

    /// Writes the entries of a unit that uses none of them yet; what may be opened only when the unit was flushed goes
    /// to `late`.
    fn enter_first(
        &self,
        draft: &mut Draft,
        after: &Machine,
        keys: &[Key],
        late: &mut Vec<Step>,
    ) -> Result<(), Refusal> {
        for &key in keys {
            let now = self.binding(draft, after, key)?;
            let (unit, source, was) = (key.0, key.1, Binding::Blocked);
            let mut opening = entry(unit, source, now);
            if opening.is_some() && self.opens_late(draft, unit, now) {
                late.extend(opening.take());
                late.push(Step::InvalidateEntry { unit, source, was });
            }
            draft.steps.push(opening.unwrap_or(Step::Block { unit, source, was }));
            draft.effects.push(Effect::Bind { key, was, now });
        }
        Ok(())
    }

    /// The class of a unit: the first whose tables it can walk, or a new one.
    fn class(
        &self,
        after: &mut Machine,
        capabilities: &UnitCapabilities,
    ) -> Result<usize, Refusal> {
        let fits = |(index, shape): &(usize, &Shape)| {
            let mut domains = self.machine.shared.iter().filter(|(of, _)| of.class() == *index);
            let holds = |id: &DomainId| {
                self.domains.get(id.0).is_some_and(|d| d.tag.0 <= capabilities.last_tag)
            };
            shape.serves(capabilities) && domains.all(|(_, id)| holds(id))
        };
        if let Some((index, _)) = self.machine.classes.iter().enumerate().find(fits) {
            return Ok(index);
        }
        // Memory that is taken now comes back to policy, and firmware's regions lie within.
        let top = self.base.iter().map(|(_, last)| last).max().unwrap_or(0);
        let shape = Shape::common(core::iter::once(capabilities), top);
        after.classes.push(shape.ok_or(Refusal::Unsupported)?.of_policy());
        Ok(self.machine.classes.len())
    }

    /// A domain that maps these pieces one to one.
    pub(super) fn new_domain(
        &self,
        draft: &mut Draft,
        (purpose, payer): (Purpose, Payer),
        shape: Shape,
        last_tag: u16,
        pieces: &[Piece],
    ) -> Result<DomainId, Refusal> {
        let id = DomainId(full(self.domains.upcoming(draft.domains))?);
        let tag = full(self.tags.next(draft.tag, last_tag))?;
        draft.domains += 1;
        draft.tag = Some(tag);
        let format = shape.format;
        draft.steps.push(Step::CreateTable { domain: id, tag, format, payer });
        draft.map_pieces(id, pieces);
        draft.effects.push(Effect::Domain(Box::new(Domain {
            purpose,
            tag,
            shape,
            space: Space::new(),
            mappings: Mappings::default(),
            reserved: if purpose == Purpose::Compat { Vec::new() } else { pieces.to_vec() },
            active: Vec::new(),
            trust: Trust::Sound,
            left: Vec::new(),
        })));
        Ok(id)
    }

    /// Where an entry is to point in `after`; a domain that this needs is made.
    pub(super) fn binding(
        &self,
        draft: &mut Draft,
        after: &Machine,
        key: Key,
    ) -> Result<Binding, Refusal> {
        let shared = match after.target(key) {
            TargetBinding::Blocked => return Ok(Binding::Blocked),
            TargetBinding::PassThrough => return Ok(Binding::PassThrough),
            TargetBinding::Domain(domain) => return Ok(Binding::Domain(domain)),
            TargetBinding::Shared(shared) => shared,
        };
        let made = || draft.shared.iter().find(|(made, _)| *made == shared).map(|(_, id)| *id);
        if let Some(domain) = after.shared.get(&shared).copied().or_else(made) {
            return Ok(Binding::Domain(domain));
        }
        if draft.frugal {
            draft.effects.push(Effect::Owe(Owed::Entry(key.0, key.1), true));
            return Ok(Binding::Blocked);
        }
        self.make_shared(draft, after, shared).map(Binding::Domain)
    }

    /// Makes a domain of policy.
    pub(super) fn make_shared(
        &self,
        draft: &mut Draft,
        after: &Machine,
        shared: Shared,
    ) -> Result<DomainId, Refusal> {
        let shape = *after.classes.get(shared.class()).ok_or(Refusal::NotReady)?;
        let (purpose, pieces) = match &shared {
            Shared::Compat(_) => (Purpose::Compat, identity(self.compat.iter(), shape.reach())),
            Shared::Reserved(_, pieces) => {
                let within = pieces.iter().filter(|p| p.range.last().0 <= shape.reach());
                (Purpose::Reserved, within.copied().collect())
            }
        };
        let of = (purpose, Payer::Server);
        let id = self.new_domain(draft, of, shape, last_tag(after), &pieces)?;
        draft.shared.push((shared, id));
        Ok(id)
    }

    /// Moves these entries from where they point now to where they are to point in `after`. An entry that
    /// is new and denies is written too: an absent one does not deny on every unit.
    pub(super) fn rebind(
        &self,
        draft: &mut Draft,
        after: &Machine,
        mut keys: Vec<Key>,
    ) -> Result<(), Refusal> {
        keys.sort_unstable();
        keys.dedup();
        let mut moves = Vec::new();
        for key in keys {
            let before = self.machine.sources.get(key).map(|source| source.binding);
            if after.class_of(key.0).is_none() {
                // A unit that failed is told as far as its tables reach; what it may have cached of the
                // domain goes on counting as used by it.
                if let (Some(Unit::Failed), Some(was)) = (after.unit(key.0), before) {
                    if after.sources.get(key).is_some() {
                        draft.effects.push(Effect::Bind { key, was, now: was });
                    } else {
                        draft.steps.push(Step::Deny { unit: key.0, source: key.1 });
                        draft.effects.push(Effect::Silenced(key, false));
                    }
                }
                continue;
            }
            let was = before.unwrap_or(Binding::Blocked);
            let now = self.binding(draft, after, key)?;
            let noted = after.sources.get(key).map_or(Binding::Blocked, |source| source.binding);
            let gone = was == now && after.sources.get(key).is_none();
            let silent = self.machine.sources.is_silenced(key);
            if before.is_none() && now == Binding::Blocked || gone && silent {
                self.unsilence(draft, key, was);
                draft.steps.push(Step::Block { unit: key.0, source: key.1, was });
                draft.steps.push(Step::InvalidateEntry { unit: key.0, source: key.1, was });
            }
            if was != now {
                self.unsilence(draft, key, was);
                moves.push((key, was, now));
            } else if noted != now {
                draft.effects.push(Effect::Bind { key, was, now });
            }
        }
        draft.move_entries(&moves);
        Ok(())
    }

    /// Stops the reports of a requester's faults. What it may reach, and what is cached of it, is as before. One that
    /// is no function anybody knows of reaches nothing; so many of them can be silenced ([`MOST_STRANGERS`]).
    pub(super) fn storm(&self, draft: &mut Draft, key: Key) -> Result<(), Refusal> {
        self.check_unit(key.0)?;
        let sources = &self.machine.sources;
        if !sources.is_silenced(key) {
            let known = sources.get(key).map(|source| source.binding);
            if known.is_none() && sources.strangers().len() >= MOST_STRANGERS {
                return Err(Refusal::Quota);
            }
            let ((unit, source), was) = (key, known.unwrap_or(Binding::Blocked));
            draft.steps.push(Step::SuppressFaults { unit, source, silent: true, was });
            draft.steps.push(Step::InvalidateEntry { unit, source, was });
            draft.effects.push(Effect::Silenced(key, true));
        }
        Ok(())
    }

    /// The entry of a requester is about to be written, which makes the unit forget it: its faults count again.
    pub(super) fn unsilence(&self, draft: &mut Draft, key: Key, was: Binding) {
        if self.machine.sources.is_silenced(key) {
            let (unit, source) = key;
            draft.steps.push(Step::SuppressFaults { unit, source, silent: false, was });
            draft.effects.push(Effect::Silenced(key, false));
        }
    }

    /// Moves the entries of groups to where they are to point now.
    pub(super) fn rebind_groups(
        &self,
        draft: &mut Draft,
        groups: &[crate::policy::GroupId],
    ) -> Result<(), Refusal> {
        let mut keys = Vec::new();
        groups.iter().for_each(|group| self.machine.keys(*group, &mut keys));
        self.rebind(draft, &self.machine, keys)?;
        let made = draft.shared.drain(..).map(|(shared, id)| Effect::Shared(shared, id));
        draft.effects.extend(made);
        Ok(())
    }

    /// A unit that failed may go on using what it has cached. Clients' devices behind it are denied as far as
    /// its tables reach; the others go on as they are, since nothing is ever given to them.
    pub(super) fn unit_failed(&self, draft: &mut Draft, unit: UnitIndex) -> Result<(), Refusal> {
        if matches!(self.machine.unit(unit).ok_or(Refusal::NotFound)?, Unit::Failed) {
            return Ok(());
        }
        let mut after = Box::new(self.machine.clone());
        if let Some(place) = after.units.get_mut(unit.0 as usize) {
            *place = Unit::Failed;
        }
        let mut groups = Vec::new();
        let mut effects = Vec::new();
        for (id, source) in self.machine.sources.of(unit) {
            for user in source.users.iter() {
                if let Some(function) = self.machine.function(*user).filter(|f| f.attached) {
                    after.set_attached(*user, false);
                    // Nobody has said that it is quiet: when the unit is back, policy may not let it through.
                    after.set_cut(*user, true);
                    groups.push(function.group);
                }
            }
            let Binding::Domain(domain) = source.binding else { continue };
            if self.domain(domain)?.purpose == Purpose::Client {
                draft.steps.push(Step::Deny { unit, source: id });
                effects.push(Effect::Silenced((unit, id), false));
                effects.push(Effect::Taint(domain));
                let (was, now) = (source.binding, Binding::Blocked);
                effects.push(Effect::Bind { key: (unit, id), was, now });
            }
        }
        let mut keys = Vec::new();
        groups.iter().for_each(|group| after.keys(*group, &mut keys));
        keys.retain(|key| key.0 != unit);
        draft.effects.push(Effect::Flushed(unit, false));
        let at = draft.effects.len();
        self.rebind(draft, &after, keys)?;
        after.shared.extend(draft.shared.drain(..));
        draft.effects.insert(at, Effect::Machine(after));
        draft.effects.append(&mut effects);
        Ok(())
    }

    /// The shape of a new domain for a device behind `unit`: what all units that are up can walk, or at least
    /// those of its class.
    pub(super) fn shape_for(&self, unit: UnitIndex, pieces: &[Piece]) -> Result<Shape, Refusal> {
        let class = self.machine.class_of(unit).ok_or(Refusal::NotReady)?;
        let needed = top_of(pieces);
        let up = || {
            self.machine.units.iter().filter_map(|unit| match unit {
                Unit::Enabled { capabilities, .. } => Some(capabilities),
                _ => None,
            })
        };
        // A table that cannot become deeper is made for whatever firmware may ask of its domain later.
        let regions = self.machine.firmware.reserved.iter().map(|region| region.range.last().0);
        let later = if up().all(|unit| unit.deepens) { None } else { regions.max() };
        let top = later.unwrap_or(0).max(needed);
        let of_class = || self.machine.classes.get(class).copied();
        let shape = Shape::common(up(), top).or_else(of_class).ok_or(Refusal::Unsupported)?;
        if shape.reach() < needed { Err(Refusal::Unsupported) } else { Ok(shape) }
    }

    /// Makes the table of an owner's domain reach `top`, for a device behind `unit`. The entries that point to it
    /// follow, each in one store: what its devices reach they reach throughout. A table that became deeper stays so
    /// until its domain ends: that costs a frame for each level, three at most.
    pub(super) fn deepen(
        &self,
        draft: &mut Draft,
        id: DomainId,
        unit: UnitIndex,
        top: u64,
    ) -> Result<(), Refusal> {
        let domain = self.domain(id)?;
        if domain.shape.reach() >= top {
            return Ok(());
        }
        let sessions = self.sessions.iter().map(|(_, session)| session);
        let units = sessions.filter(|session| session.domain == Some(id)).filter_map(|s| s.unit);
        let mut levels = LevelSet::all();
        for unit in units.chain([unit]) {
            match self.machine.unit(unit) {
                Some(Unit::Enabled { capabilities, .. }) if capabilities.deepens => {
                    levels &= capabilities.levels;
                }
                // Nothing of it points to the domain, nor will.
                Some(Unit::Failed) => {}
                _ => return Err(Refusal::Unsupported),
            }
        }
        let shape = domain.shape.deepened(levels, top).ok_or(Refusal::Unsupported)?;
        let (from, levels) = (domain.shape.format.levels, shape.format.levels);
        draft.steps.push(Step::Grow { domain: id, from, levels });
        let here = |key: &Key| self.machine.class_of(key.0).is_some();
        let bound = self.machine.sources.iter().filter(|(_, s)| s.binding == Binding::Domain(id));
        let keys: Vec<Key> = bound.map(|(key, _)| key).filter(here).collect();
        let follow = |&(unit, source): &Key| Step::Deepen { unit, source, domain: id, from };
        draft.steps.extend(keys.iter().map(follow));
        let was = Binding::Domain(id);
        let forget = |&(unit, source): &Key| Step::InvalidateEntry { unit, source, was };
        draft.steps.extend(keys.iter().map(forget));
        draft.effects.push(Effect::Deepen(id, levels));
        Ok(())
    }
}

/// The last address of some pieces.
pub(super) fn top_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.range.last().0).max().unwrap_or(0)
}

/// The highest tag that every unit that is up can hold.
pub(super) fn last_tag(machine: &Machine) -> u16 {
    let up = machine.units.iter().filter_map(|unit| match unit {
        Unit::Enabled { capabilities, .. } => Some(capabilities.last_tag),
        _ => None,
    });
    up.min().unwrap_or(u16::MAX)
}

/// Pieces for all access, one to one, as far as a table reaches.
pub(super) fn identity(ranges: impl Iterator<Item = (u64, u64)>, reach: u64) -> Vec<Piece> {
    let mut all = Ranges::default();
    ranges.for_each(|(first, last)| all.insert(first, last));
    all.within(0, reach).filter_map(|part| Piece::identity(part, read_write())).collect()
}
