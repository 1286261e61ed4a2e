//! The binding that each entry should have.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::addr::IovaRange;
use crate::policy::collections::ranges::{Piece, Ranges, normal};
use crate::policy::config::Mode;
use crate::policy::ids::{DomainId, GroupId, Key, UnitIndex};
use crate::policy::state::domain::Shared;
use crate::policy::state::machine::Machine;
use crate::policy::state::objects::{Activity, Group, Unit};
use crate::topology::table::FunctionIndex;

/// The binding that an entry should have, before domains are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) enum TargetBinding {
    Blocked,
    PassThrough,
    /// The domain of an owner.
    Domain(DomainId),
    /// A domain of policy.
    Shared(Shared),
}

impl Machine {
    /// The pieces that firmware reserves for a function, without forbidden memory.
    pub(in crate::policy) fn reserved_of(&self, index: FunctionIndex) -> Vec<Piece> {
        self.table.get(index).map_or_else(Vec::new, |function| self.reserved_at(function.address))
    }

    /// The pieces that firmware reserves for any function at an address, without forbidden memory.
    pub(super) fn reserved_at(&self, address: PciAddress) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for region in self.scopes.reserved(&self.firmware, address) {
            let mut left = Ranges::default();
            let range = region.range.page_aligned();
            left.insert(range.first().0, range.last().0);
            for (first, last) in self.forbidden.within(range.first().0, range.last().0) {
                left.remove(first, last);
            }
            let parts = left.iter().flat_map(|part| self.cut_at_regions(part));
            pieces.extend(parts.filter_map(|part| Piece::of_region(part, region)));
        }
        pieces
    }

    /// Cuts a range where any region of firmware begins or ends. No leaf crosses a cut, so that no leaf is split when
    /// a region is removed from a domain. A split would need a table, and the end of a device must need no memory.
    fn cut_at_regions(&self, (first, last): (u64, u64)) -> Vec<(u64, u64)> {
        let regions = self.firmware.reserved.iter().map(|region| region.range.page_aligned());
        let ends = regions.flat_map(|range| [Some(range.first().0), range.last().0.checked_add(1)]);
        let mut cuts: Vec<u64> =
            ends.flatten().filter(|cut| first < *cut && *cut <= last).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut parts = Vec::with_capacity(cuts.len() + 1);
        let mut from = first;
        for cut in cuts {
            parts.push((from, cut - 1));
            from = cut;
        }
        parts.push((from, last));
        parts
    }

    /// The regions that firmware names for a function, and whether they are excluded from all use.
    pub(in crate::policy) fn regions_of(
        &self,
        index: FunctionIndex,
    ) -> impl Iterator<Item = (IovaRange, bool)> {
        let function = self.table.get(index).into_iter();
        function
            .flat_map(|function| self.scopes.reserved(&self.firmware, function.address))
            .map(|region| (region.range.page_aligned().identity(), region.exclusion))
    }

    /// The pieces that firmware reserves for some functions, without overlap.
    pub(in crate::policy) fn reserved_of_all(
        &self,
        functions: impl Iterator<Item = FunctionIndex>,
    ) -> Vec<Piece> {
        if self.firmware.reserved.is_empty() {
            return Vec::new();
        }
        let all: Vec<Piece> = functions.flat_map(|index| self.reserved_of(index)).collect();
        normal(&all)
    }

    /// The binding that an entry should have. Blocked when no function uses it and firmware names no device there.
    pub(in crate::policy) fn target(&self, key: Key) -> TargetBinding {
        let Some(source) = self.sources.get(key) else { return TargetBinding::Blocked };
        let users = || source.users.iter().filter_map(|user| self.function(*user));
        let Some(first) = users().next() else { return self.target_of_named(key) };
        let Some(group) = self.group(first.group) else { return TargetBinding::Blocked };
        if group.state.attached > 0 {
            let domain =
                group.state.owner.and_then(|owner| self.owner(owner)).and_then(|o| o.domain);
            return match domain {
                Some(domain) if users().any(|user| user.activity == Activity::Attached) => {
                    TargetBinding::Domain(domain)
                }
                _ => TargetBinding::Blocked,
            };
        }
        if users().any(|user| user.hot_added) {
            return TargetBinding::Blocked;
        }
        self.target_of_policy(key.0, group, &source.users, group.state.unquiesced > 0)
    }

    /// Whether a function is blocked only because another member of its group is attached.
    pub(in crate::policy) fn is_left_out(&self, index: FunctionIndex) -> bool {
        let group = self.function(index).and_then(|function| self.group(function.group));
        group.is_some_and(|group| group.state.attached > 0) && self.would_be_left_out(index)
    }

    /// Whether a function has no driver, and is blocked when another member of its group is attached. A bridge makes no
    /// requests of its own.
    pub(in crate::policy) fn would_be_left_out(&self, index: FunctionIndex) -> bool {
        let is_bridge = self.table.get(index).is_none_or(|function| function.buses().is_some());
        !is_bridge
            && self.function(index).is_some_and(|function| {
                function.session.is_none()
                    && function.activity == Activity::Quiet
                    && function.mode != Mode::Strict
            })
    }

    /// The domain of policy of a requester whose group is unquiesced; `None` when the requester is blocked.
    pub(in crate::policy) fn target_when_unquiesced(&self, key: Key) -> Option<Shared> {
        let source = self.sources.get(key)?;
        let first = source.users.iter().find_map(|user| self.function(*user))?;
        let group = self.group(first.group)?;
        match self.target_of_policy(key.0, group, &source.users, true) {
            TargetBinding::Shared(shared) => Some(shared),
            _ => None,
        }
    }

    /// The strictest mode of all functions with a requester id decides. For an unquiesced group that is `Strict`,
    /// whatever is configured: regions of firmware stay mapped.
    fn target_of_policy(
        &self,
        unit: UnitIndex,
        group: &Group,
        users: &[FunctionIndex],
        unquiesced: bool,
    ) -> TargetBinding {
        let Some(Unit::Enabled { capabilities, class }) = self.unit(unit) else {
            return TargetBinding::Blocked;
        };
        let members = || group.members.iter().copied();
        let mode = |index: &FunctionIndex| match self.function(*index) {
            Some(function) if !unquiesced => function.mode,
            _ => Mode::Strict,
        };
        match users.iter().map(mode).max().unwrap_or(Mode::Strict) {
            Mode::Off if capabilities.pass_through => TargetBinding::PassThrough,
            Mode::Off | Mode::Compat => TargetBinding::Shared(Shared::Compat(*class)),
            Mode::Strict => {
                let strict = |index: &FunctionIndex| mode(index) == Mode::Strict;
                let own = users.iter().copied().filter(strict);
                if self.reserved_of_all(own).is_empty() {
                    return TargetBinding::Blocked;
                }
                let all = self.reserved_of_all(members().filter(strict));
                TargetBinding::Shared(Shared::Reserved(*class, all))
            }
        }
    }

    /// All entries of the functions of a group.
    pub(in crate::policy) fn keys(&self, group: GroupId, keys: &mut Vec<Key>) {
        let members = self.group(group).map_or(&[][..], |group| &group.members);
        keys.extend(members.iter().flat_map(|member| self.keys_of(*member)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::policy::state::machine::tests::machine;
    use crate::topology::firmware::{Firmware, ReservedRegion};

    /// Regions of firmware are whole pages, and each end of one cuts.
    #[test]
    fn a_range_is_cut_where_regions_begin_and_end() {
        let regions = [(0x0, 0x2fff), (0x2000, 0x4abc), (0x2000, 0x2000), (0xf000, u64::MAX)];
        let region = |(first, last)| ReservedRegion {
            segment: 0,
            range: PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).unwrap(),
            read: true,
            write: true,
            exclusion: false,
            scopes: Vec::new(),
            entries: Vec::new(),
        };
        let reserved = regions.map(region).to_vec();
        let machine = machine(Firmware { reserved, ..Firmware::default() });
        let cut = |first, last| machine.cut_at_regions((first, last));
        let all = [(0, 0x1fff), (0x2000, 0x2fff), (0x3000, 0x4fff), (0x5000, 0xefff)];
        assert_eq!(cut(0, 0xefff), all);
        assert_eq!(cut(0x2000, 0x2fff), [(0x2000, 0x2fff)]);
        assert_eq!(cut(0x1000, 0x2000), [(0x1000, 0x1fff), (0x2000, 0x2000)]);
        assert_eq!(cut(0xe000, u64::MAX), [(0xe000, 0xefff), (0xf000, u64::MAX)]);
        assert_eq!(cut(0x5000, 0x7fff), [(0x5000, 0x7fff)]);
    }
}
