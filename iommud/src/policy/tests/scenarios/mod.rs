//! The scenarios of the ordering contract that policy decides, by number.

mod death;
mod depth;
mod groups;
mod memory;
mod named;
mod pieces;
mod probing;
mod removal;
mod reserved;
mod tags;
mod units;

use std::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::policy::tests::world::*;
use crate::policy::{Binding, Claim, ClientId, Config, Event, Mode, SessionId, Step};
use crate::topology::firmware::{DeviceScope, Firmware, ReservedRegion, ScopeKind};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::testing::{address, bridge, endpoint, function, multi, with_acs};

pub(super) const PAGE: u64 = 4096;

/// Two functions of one device: one group.
pub(super) fn pair() -> [PciFunction; 2] {
    [multi(endpoint(0, 4, 0)), multi(endpoint(0, 4, 1))]
}

pub(super) fn names(firmware: &mut Firmware, unit: usize, device: u8) {
    firmware.units[unit].scopes.push(DeviceScope {
        kind: ScopeKind::Endpoint,
        start_bus: 0,
        path: vec![(device, 0)],
    });
}

/// Unit 0 in front of device 3, unit 1 in front of all others.
pub(super) fn two_units() -> Firmware {
    let mut firmware =
        Firmware { units: vec![unit(0, false), unit(1, true)], ..Firmware::default() };
    names(&mut firmware, 0, 3);
    firmware
}

pub(super) fn reserve(firmware: &mut Firmware, device: u8, first: u64, length: u64) {
    firmware.reserved.push(ReservedRegion {
        segment: 0,
        range: phys(first, length),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![DeviceScope {
            kind: ScopeKind::Endpoint,
            start_bus: 0,
            path: vec![(device, 0)],
        }],
        entries: Vec::new(),
    });
}

pub(super) fn strict() -> Config {
    Config { default: Mode::Strict, ..Config::default() }
}

pub(super) fn claim_event(client: u32, address: PciAddress, parent: Option<SessionId>) -> Claim {
    Claim { client: ClientId(client), address, parent }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    fn extend(taken: &mut Vec<usize>, count: usize, all: &mut Vec<Vec<usize>>) {
        if taken.len() == count {
            all.push(taken.clone());
        }
        for next in 0..count {
            if !taken.contains(&next) {
                taken.push(next);
                extend(taken, count, all);
                taken.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(&mut Vec::new(), count, &mut all);
    all
}

pub(super) fn own_domain(bench: &Bench, session: SessionId) -> Binding {
    Binding::Domain(bench.registry.session(session).unwrap().domain.unwrap().id)
}

pub(super) fn kind(step: &Step) -> &'static str {
    match step {
        Step::CreateTable { .. } => "CreateTable",
        Step::DestroyTable { .. } => "DestroyTable",
        Step::Map { .. } => "Map",
        Step::MapList { .. } => "MapList",
        Step::SuppressFaults { .. } => "Silence",
        Step::Unmap { .. } => "Unmap",
        Step::Grow { .. } => "Grow",
        Step::Deepen { .. } => "Deepen",
        Step::Publish { .. } => "Publish",
        Step::Invalidate { .. } => "Invalidate",
        Step::ReleaseTables { .. } => "ReleaseTables",
        Step::SetEntry { from, to, .. } if from == to && *to != Binding::Blocked => "Renew",
        Step::SetEntry { to, .. } => match to {
            Binding::Blocked => "Block",
            Binding::Domain(_) => "Translate",
            Binding::PassThrough => "PassThrough",
        },
        Step::Deny { .. } => "Deny",
        Step::InvalidateEntry { .. } => "InvalidateEntry",
        Step::Enable { .. } => "Enable",
        Step::ReleaseBuffer { .. } => "ReleaseBuffer",
        Step::Revive { .. } => "Revive",
        Step::ReleaseAbandoned => "ReleaseAbandoned",
    }
}

fn tree() -> Vec<PciFunction> {
    let buses = |secondary, subordinate| Buses { secondary, subordinate };
    vec![
        with_acs(bridge(0, 1, 0, 1, 3)),
        function(address(1, 0, 0), FunctionKind::ExpressToConventional(buses(2, 3))),
        function(address(2, 1, 0), FunctionKind::ConventionalBridge(buses(3, 3))),
        function(address(3, 1, 0), FunctionKind::Conventional),
        multi(endpoint(0, 4, 0)),
        multi(endpoint(0, 4, 1)),
    ]
}

pub(super) fn partition(bench: &Bench) -> Vec<Vec<PciAddress>> {
    let mut groups: Vec<_> =
        bench.registry.groups().map(|group| bench.registry.group(group).unwrap().members).collect();
    groups.sort();
    groups
}
