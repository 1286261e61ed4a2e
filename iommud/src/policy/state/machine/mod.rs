//! Units, functions and groups of the machine, and the binding that each entry should have.
//!
//! The binding of a requester id follows from the state of its group:
//!
//! ```text
//!                       claim                      attach of any member
//!          +------------------------> claimed ------------------------------> attached
//!   free --+                             |  ^                                    |
//!    ^     policy of each function       |  +------------------------------------+
//!    |     (off, compat, strict)         |    detach of the last member
//!    |                                   |    policy of each function; hot-added members blocked
//!    +-----------------------------------+
//!       last session closed                   attached: the owner's domain for attached members,
//!                                                       blocked for all others
//! ```
//!
//! A session that ends with its device attached leaves the device unquiesced. Under `compat` a write under way would
//! land at the physical address that equals its I/O virtual one. The group stays blocked until an owner has attached
//! the device again and detached it, which states that it is quiet.
//!
//! A function added to a claimed group is blocked until the group is free. It must not reach memory that the owner of
//! its neighbours does not grant.

mod entries;
mod named;
mod target_binding;
mod topology;

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::status::Refusal;

use crate::policy::collections::ranges::Ranges;
use crate::policy::collections::slab::Slab;
use crate::policy::config::Config;
use crate::policy::ids::{DomainId, GroupId, Key, UnitIndex};
use crate::policy::state::domain::{Shape, Shared};
use crate::policy::state::objects::{Activity, Function, Group, Owner, OwnerId, Session, Unit};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::firmware::Firmware;
use crate::topology::numbers::AddressNumbers;
use crate::topology::pci::Identity;
use crate::topology::pool::Pool;
use crate::topology::scope::Scopes;
use crate::topology::table::{FunctionIndex, FunctionTable};

pub(in crate::policy) use entries::MOST_STRANGERS;
use entries::SourceTable;
pub(in crate::policy) use target_binding::TargetBinding;
pub(in crate::policy) use topology::Added;

/// The units, functions, groups and owners of the machine.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Machine {
    pub(in crate::policy) config: Config,
    pub(in crate::policy) firmware: Firmware,
    /// Memory that is never mapped for a region of firmware: the server's memory, registers, the interrupt window.
    pub(in crate::policy) forbidden: Ranges,
    pub(in crate::policy) units: Vec<Unit>,
    /// Units with an entry that led to a domain of policy and was taken back without an answer. They may hold what the
    /// domain maps until they were flushed, although no entry counts.
    pub(in crate::policy) suspect: BTreeSet<UnitIndex>,
    /// The shape of the tables of each class of units. Units of one class share the domains of policy.
    pub(in crate::policy) classes: Vec<Shape>,
    pub(in crate::policy) table: FunctionTable,
    scopes: Scopes,
    functions: Vec<Option<Function>>,
    /// Number of functions that were added, by address.
    generations: AddressNumbers,
    /// Functions that were attached or unquiesced when they were removed, and the identity of each. `None`: an
    /// earlier server left it driven, and no walk has found it yet. The same function is unquiesced when it comes
    /// back. It is not known to be quiet, and one that a walk missed was at work all the time.
    left_driven: BTreeMap<PciAddress, Option<Identity>>,
    pub(in crate::policy) sources: SourceTable,
    /// Requester ids that functions used in the past. A device that firmware names there is denied.
    taken: BTreeSet<Key>,
    pub(in crate::policy) groups: Pool<Group>,
    pub(in crate::policy) owners: Slab<Owner>,
    /// The domains of policy.
    pub(in crate::policy) shared: BTreeMap<Shared, DomainId>,
}

impl Machine {
    pub(in crate::policy) fn new(config: Config, firmware: Firmware, forbidden: Ranges) -> Self {
        let units = firmware.units.iter().map(|_| Unit::Parsed).collect();
        let table = FunctionTable::default();
        let scopes = Scopes::new(&firmware, table.view());
        let sources = SourceTable::new(firmware.units.len());
        Self {
            config,
            firmware,
            forbidden,
            units,
            suspect: BTreeSet::new(),
            classes: Vec::new(),
            table,
            scopes,
            functions: Vec::new(),
            generations: AddressNumbers::default(),
            left_driven: BTreeMap::new(),
            sources,
            taken: BTreeSet::new(),
            groups: Pool::default(),
            owners: Slab::distinct(),
            shared: BTreeMap::new(),
        }
    }

    pub(in crate::policy) fn unit(&self, unit: UnitIndex) -> Option<&Unit> {
        self.units.get(unit.0 as usize)
    }

    /// Index of the class of a unit that is up.
    pub(in crate::policy) fn class_of(&self, unit: UnitIndex) -> Option<usize> {
        match self.unit(unit)? {
            Unit::Enabled { class, .. } => Some(*class),
            _ => None,
        }
    }

    /// Whether new translations must be published to a unit: it caches absent entries, or it is not up.
    #[inline]
    pub(in crate::policy) fn needs_publishing(&self, unit: UnitIndex) -> bool {
        match self.unit(unit) {
            Some(Unit::Enabled { capabilities, .. }) => capabilities.publishes,
            _ => true,
        }
    }

    pub(in crate::policy) fn function(&self, index: FunctionIndex) -> Option<&Function> {
        self.functions.get(index.0 as usize)?.as_ref()
    }

    pub(in crate::policy) fn function_mut(
        &mut self,
        index: FunctionIndex,
    ) -> Option<&mut Function> {
        self.functions.get_mut(index.0 as usize)?.as_mut()
    }

    /// The function at an address.
    pub(in crate::policy) fn find(
        &self,
        address: PciAddress,
    ) -> Option<(FunctionIndex, &Function)> {
        let index = self.table.index(address)?;
        Some((index, self.function(index)?))
    }

    /// Number of functions that were added at an address.
    pub(in crate::policy) fn generation(&self, address: PciAddress) -> u32 {
        self.generations.get(address).unwrap_or(0)
    }

    /// The requester ids of a function, its own first.
    pub(in crate::policy) fn sources_of(
        &self,
        index: FunctionIndex,
    ) -> impl Iterator<Item = RequesterId> {
        let known = self.function(index).zip(self.table.get(index));
        known.into_iter().flat_map(|(known, pci)| known.aliases.with(pci.address.requester))
    }

    /// All entries of a function.
    pub(in crate::policy) fn keys_of(&self, index: FunctionIndex) -> impl Iterator<Item = Key> {
        let unit = self.function(index).and_then(|function| function.unit);
        let keys = move |unit| self.sources_of(index).map(move |source| (unit, source));
        unit.into_iter().flat_map(keys)
    }

    /// An entry of a function, by its number in [`Machine::keys_of`].
    fn key_of(&self, index: FunctionIndex, number: usize) -> Option<Key> {
        let (known, pci) = (self.function(index)?, self.table.get(index)?);
        Some((known.unit?, known.aliases.nth(pci.address.requester, number)?))
    }

    pub(in crate::policy) fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(group.0)
    }

    pub(in crate::policy) fn owner(&self, owner: OwnerId) -> Option<&Owner> {
        self.owners.get(owner.0)
    }

    pub(in crate::policy) fn set_function(&mut self, index: FunctionIndex, was: Function) {
        if let Some(function) = self.function_mut(index) {
            *function = was;
        }
    }

    pub(in crate::policy) fn set_unit(&mut self, unit: UnitIndex, now: Unit) {
        if let Some(place) = self.units.get_mut(unit.0 as usize) {
            *place = now;
        }
    }

    /// Sets the activity of a function.
    pub(in crate::policy) fn set_activity(&mut self, index: FunctionIndex, activity: Activity) {
        let Some(function) = self.function_mut(index) else { return };
        let was = core::mem::replace(&mut function.activity, activity);
        let group = function.group;
        if let Some(group) = self.groups.get_mut(group.0) {
            group.state.count(was, false);
            group.state.count(activity, true);
        }
    }

    /// Whether the function at an address may be at work for an owner, or was when it was removed.
    pub(in crate::policy) fn may_be_driven(&self, address: PciAddress) -> bool {
        match self.find(address) {
            Some((_, function)) => function.activity != Activity::Quiet,
            None => self.left_driven.contains_key(&address),
        }
    }

    /// Whether nobody relies on a function or on those behind it: no group is claimed, and every device is quiet.
    pub(in crate::policy) fn is_at_rest(&self, index: FunctionIndex) -> bool {
        self.with_behind(index).into_iter().all(|index| {
            let group = self.function(index).and_then(|function| self.group(function.group));
            group.is_none_or(|group| {
                let state = &group.state;
                state.owner.is_none() && state.attached == 0 && state.unquiesced == 0
            })
        })
    }

    /// Records that an earlier server left a function driven. False when it is not known yet: then it is unquiesced
    /// from the moment that a walk finds it.
    pub(in crate::policy) fn note_left_driven(&mut self, address: PciAddress) -> bool {
        let index = self.find(address).map(|(index, _)| index);
        match index {
            Some(index) => self.set_activity(index, Activity::Unquiesced),
            None => drop(self.left_driven.insert(address, None)),
        }
        index.is_some()
    }

    /// Refuses unless a unit is up.
    pub(in crate::policy) fn check_unit(&self, unit: UnitIndex) -> Result<(), Refusal> {
        match self.unit(unit) {
            Some(Unit::Enabled { .. }) => Ok(()),
            Some(Unit::Failed) => Err(Refusal::UnitFailed),
            Some(Unit::Parsed) | None => Err(Refusal::NotReady),
        }
    }

    /// Refuses unless a session's device is present and behind no failed unit.
    pub(in crate::policy) fn check_session(&self, session: &Session) -> Result<(), Refusal> {
        if session.function.is_none() {
            return Err(Refusal::NotProbed);
        }
        session.unit.map_or(Ok(()), |unit| self.check_unit(unit))
    }

    /// The capabilities of the units that are up.
    pub(in crate::policy) fn up(&self) -> impl Iterator<Item = &UnitCapabilities> {
        self.units.iter().filter_map(|unit| match unit {
            Unit::Enabled { capabilities, .. } => Some(capabilities),
            _ => None,
        })
    }

    /// The highest tag that every unit that is up can hold.
    pub(in crate::policy) fn last_tag(&self) -> u16 {
        self.up().map(|unit| unit.last_tag).min().unwrap_or(u16::MAX)
    }

    /// Whether no unit has been up, and nothing is claimed. Then functions are added without writing an entry.
    pub(in crate::policy) fn is_untouched(&self) -> bool {
        self.units.iter().all(|unit| matches!(unit, Unit::Parsed)) && self.owners.len() == 0
    }
}
