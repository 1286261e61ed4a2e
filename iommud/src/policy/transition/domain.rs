//! Domains: their creation, their growth, and their mappings for firmware.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::addr::IovaRange;
use crate::policy::collections::ranges::{
    Piece, Ranges, addresses, difference, hull_of, identity, top_of,
};
use crate::policy::decision::{Decision, full};
use crate::policy::event::Owed;
use crate::policy::ids::{DomainId, GroupId, Key, UnitIndex};
use crate::policy::iova::in_space;
use crate::policy::journal::{Change, Image};
use crate::policy::state::domain::{Domain, Purpose, Shape, Shared, Trust};
use crate::policy::state::objects::{OwnerId, Unit};
use crate::policy::step::{Binding, Payer, Step};
use crate::topology::capabilities::{LevelSet, UnitCapabilities};

/// Creates a domain of policy.
pub(super) fn make_shared(
    decision: &mut Decision<'_>,
    shared: Shared,
) -> Result<DomainId, Refusal> {
    let state = &decision.state;
    let shape = *state.machine.classes.get(shared.class()).ok_or(Refusal::NotReady)?;
    let (purpose, pieces) = match &shared {
        Shared::Compat(_) => (Purpose::Compat, identity(state.compat.iter(), shape.reach())),
        Shared::Reserved(_, pieces) => {
            let within = pieces.iter().filter(|piece| piece.range.last().0 <= shape.reach());
            (Purpose::Reserved, within.copied().collect())
        }
    };
    let id = new_domain(decision, (purpose, Payer::Server), shape, &pieces)?;
    decision.journal.keep(Image::Shared(Box::new(shared.clone())));
    decision.state.machine.shared.insert(shared, id);
    Ok(id)
}

/// Creates a domain that maps these pieces one to one.
fn new_domain(
    decision: &mut Decision<'_>,
    (purpose, payer): (Purpose, Payer),
    shape: Shape,
    pieces: &[Piece],
) -> Result<DomainId, Refusal> {
    let state = &mut decision.state;
    let tag = full(state.tags.next(decision.plan.tag, state.machine.last_tag()))?;
    let mut domain = Domain::new(purpose, tag, shape);
    if purpose != Purpose::Compat {
        domain.reserved = pieces.to_vec();
    }
    if purpose == Purpose::Client {
        exclude(&mut domain, state.excluded.iter().chain(addresses(pieces).iter()));
    }
    let id = DomainId(decision.insert(domain)?);
    decision.journal.note(Change::Tag(tag, false));
    decision.state.tags.set(tag, true);
    decision.plan.tag = Some(tag);
    let format = shape.format;
    decision.step(Step::CreateTable { domain: id, tag, format, payer });
    decision.map_pieces(id, pieces);
    Ok(id)
}

/// Takes from a new domain the addresses that no client gets.
fn exclude(domain: &mut Domain, excluded: impl Iterator<Item = (u64, u64)>) {
    let mut all = Ranges::default();
    excluded.for_each(|(first, last)| all.insert(first, last));
    if let Some(beyond) = domain.shape.last_iova().checked_add(1) {
        all.insert(beyond, u64::MAX);
    }
    for range in in_space(&all) {
        domain.space.allocate_at(range);
    }
}

/// The class of a unit: the first whose tables it can walk, or a new one.
pub(super) fn class(
    decision: &mut Decision<'_>,
    capabilities: &UnitCapabilities,
) -> Result<usize, Refusal> {
    let state = &decision.state;
    let fits = |(index, shape): &(usize, &Shape)| {
        let mut domains = state.machine.shared.iter().filter(|(of, _)| of.class() == *index);
        let holds = |id: &DomainId| {
            state.domains.get(id.0).is_some_and(|d| d.tag.0 <= capabilities.last_tag)
        };
        shape.serves(capabilities) && domains.all(|(_, id)| holds(id))
    };
    if let Some((index, _)) = state.machine.classes.iter().enumerate().find(fits) {
        return Ok(index);
    }
    // `base` has memory that is taken now and comes back to policy, and the regions of firmware.
    let top = state.base.iter().map(|(_, last)| last).max().unwrap_or(0);
    let shape = Shape::common(core::iter::once(capabilities), top);
    let shape = shape.ok_or(Refusal::Unsupported)?.of_policy();
    decision.journal.note(Change::Class);
    decision.state.machine.classes.push(shape);
    Ok(decision.state.machine.classes.len() - 1)
}

/// The owner's domain, with the regions that firmware reserves for `group`; a new domain for a new owner.
pub(super) fn for_owner(
    decision: &mut Decision<'_>,
    unit: UnitIndex,
    (owner, account): (Option<OwnerId>, u32),
    group: GroupId,
) -> Result<DomainId, Refusal> {
    let machine = &decision.state.machine;
    let owner = owner.and_then(|owner| machine.owner(owner));
    let owned = owner.map_or(&[][..], |owner| owner.groups.as_slice());
    let groups = owned.iter().copied().chain([group]);
    let members = groups.filter_map(|group| machine.group(group));
    let members = members.flat_map(|group| group.members.iter().copied());
    let needed = machine.reserved_of_all(members);
    if let Some(id) = owner.and_then(|owner| owner.domain) {
        widen(decision, unit, id, needed)?;
        return Ok(id);
    }
    let shape = shape_for(decision, unit, &needed)?;
    new_domain(decision, (Purpose::Client, Payer::Account(account)), shape, &needed)
}

/// The shape of a new domain for a device behind `unit`. All units that are up can walk it, or at least those of the
/// unit's class.
fn shape_for(decision: &Decision<'_>, unit: UnitIndex, pieces: &[Piece]) -> Result<Shape, Refusal> {
    let machine = &decision.state.machine;
    let class = machine.class_of(unit).ok_or(Refusal::NotReady)?;
    let needed = top_of(pieces);
    // A table that cannot grow later must reach every region that firmware may ask for in its domain.
    let regions = machine.firmware.reserved.iter().map(|region| region.range.last().0);
    let later = if machine.up().all(|unit| unit.deepens) { None } else { regions.max() };
    let top = later.unwrap_or(0).max(needed);
    let of_class = || machine.classes.get(class).copied();
    let shape = Shape::common(machine.up(), top).or_else(of_class).ok_or(Refusal::Unsupported)?;
    if shape.reach() < needed { Err(Refusal::Unsupported) } else { Ok(shape) }
}

/// Lets a domain in use map the regions that firmware reserves for one more device.
fn widen(
    decision: &mut Decision<'_>,
    unit: UnitIndex,
    id: DomainId,
    needed: Vec<Piece>,
) -> Result<(), Refusal> {
    let domain = decision.state.domain(id)?;
    if domain.trust != Trust::Sound {
        return Err(Refusal::UnitFailed);
    }
    if let Some(Unit::Enabled { capabilities, .. }) = decision.state.machine.unit(unit)
        && !(domain.shape.serves(capabilities) && domain.tag.0 <= capabilities.last_tag)
    {
        return Err(Refusal::Unsupported);
    }
    grow(decision, id, unit, top_of(&needed))?;
    let mut new = addresses(&needed);
    let reserved = addresses(&decision.state.domain(id)?.reserved);
    for (first, last) in reserved.iter().chain(decision.state.excluded.iter()) {
        new.remove(first, last);
    }
    for range in in_space(&new) {
        if !decision.take_addresses(id, range) {
            return Err(Refusal::Reserved);
        }
    }
    change_reserved(decision, id, needed)
}

/// Makes a domain map exactly these pieces for firmware. Addresses that it no longer maps become free at commit.
fn change_reserved(
    decision: &mut Decision<'_>,
    id: DomainId,
    needed: Vec<Piece>,
) -> Result<(), Refusal> {
    let domain = decision.state.domain(id)?;
    let (enter, remove) = difference(&domain.reserved, &needed);
    if enter.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let mut gone = addresses(&domain.reserved);
    for (first, last) in addresses(&needed).iter().chain(decision.state.excluded.iter()) {
        gone.remove(first, last);
    }
    decision.unmap_pieces(id, &remove);
    if let Some(range) = hull_of(&remove) {
        decision.invalidate(id, range);
        decision.release_tables(id);
    }
    decision.map_pieces(id, &enter);
    if let Some(range) = hull_of(&enter) {
        decision.publish(id, range);
    }
    let free: Vec<IovaRange> = in_space(&gone).collect();
    free.into_iter().for_each(|range| decision.journal.note(Change::Free(id, range)));
    decision.set_reserved(id, needed);
    Ok(())
}

/// Removes regions from an owner's domain that firmware reserves for devices no longer with the owner. Adds none:
/// regions of a hot-added member are mapped when it is claimed, which may be refused. The end of a session or device
/// may not be refused.
pub(super) fn narrow(decision: &mut Decision<'_>, id: OwnerId) -> Result<(), Refusal> {
    let machine = &decision.state.machine;
    let Some(owner) = machine.owner(id) else { return Ok(()) };
    let Some(domain) = owner.domain.filter(|_| !machine.firmware.reserved.is_empty()) else {
        return Ok(());
    };
    let known = decision.state.domain(domain)?;
    if known.trust == Trust::Suspect {
        return Ok(());
    }
    let groups = owner.groups.iter().filter_map(|group| machine.group(*group));
    let still = groups.filter(|group| group.state.owner == Some(id));
    let members = still.flat_map(|group| group.members.iter().copied());
    let needed = machine.reserved_of_all(members);
    let had = known.reserved.clone();
    let kept: Vec<Piece> = within(&needed, &addresses(&had)).collect();
    // A page that gets less access is unmapped and mapped again, for which there may be no memory.
    let (narrower, _) = difference(&had, &kept);
    if decision.frugal && !narrower.is_empty() {
        decision.owe(Owed::Regions(domain), true);
        return change_reserved(decision, domain, within(&had, &addresses(&kept)).collect());
    }
    change_reserved(decision, domain, kept)
}

/// The parts of pieces that lie in a set.
fn within<'a>(pieces: &'a [Piece], set: &'a Ranges) -> impl Iterator<Item = Piece> + 'a {
    pieces.iter().flat_map(|piece| {
        let (first, last) = (piece.range.first().0, piece.range.last().0);
        set.within(first, last).filter_map(|part| Piece::identity(part, piece.access()))
    })
}

/// Narrows the mappings of a domain for firmware, now that there may be memory.
pub(super) fn settle_regions(decision: &mut Decision<'_>, id: DomainId) -> Result<(), Refusal> {
    let owners = decision.state.machine.owners.iter();
    let owner = owners.into_iter().find(|(_, owner)| owner.domain == Some(id));
    owner.map(|(owner, _)| OwnerId(owner)).map_or(Ok(()), |owner| narrow(decision, owner))
}

/// Makes the table of an owner's domain reach `top`, for a device behind `unit`. Each entry that points to it follows
/// in one store, so that devices keep their access throughout. A table that has grown stays so until its domain ends.
/// That costs one frame for each level, three at most.
fn grow(
    decision: &mut Decision<'_>,
    id: DomainId,
    unit: UnitIndex,
    top: u64,
) -> Result<(), Refusal> {
    let state = &decision.state;
    let domain = state.domain(id)?;
    if domain.shape.reach() >= top {
        return Ok(());
    }
    let sessions = state.sessions.iter().map(|(_, session)| session);
    let units = sessions.filter(|session| session.domain == Some(id)).filter_map(|s| s.unit);
    let mut levels = LevelSet::all();
    for unit in units.chain([unit]) {
        match state.machine.unit(unit) {
            Some(Unit::Enabled { capabilities, .. }) if capabilities.deepens => {
                levels &= capabilities.levels;
            }
            // No entry of a failed unit points to the domain, and none will.
            Some(Unit::Failed) => {}
            _ => return Err(Refusal::Unsupported),
        }
    }
    let shape = domain.shape.deepened(levels, top).ok_or(Refusal::Unsupported)?;
    let (from, levels) = (domain.shape.format.levels, shape.format.levels);
    let was = Binding::Domain(id);
    let here = |key: &Key| state.machine.class_of(key.0).is_some();
    let bound = state.machine.sources.iter().filter(|(_, source)| source.binding == Some(was));
    let keys: Vec<Key> = bound.map(|(key, _)| key).filter(here).collect();
    decision.step(Step::Grow { domain: id, from, levels });
    for &(unit, source) in &keys {
        decision.step(Step::Deepen { unit, source, domain: id, from });
    }
    for &(unit, source) in &keys {
        decision.step(Step::InvalidateEntry { unit, source, was });
    }
    if let Some(domain) = decision.state.domains.get_mut(id.0) {
        domain.shape.format.levels = levels;
        decision.journal.note(Change::Levels(id, from));
    }
    Ok(())
}
