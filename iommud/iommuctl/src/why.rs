//! Why devices share a group: which function lacks what.

use std::collections::BTreeMap;
use std::fmt;

use iommu_protocol::ids::PciAddress;
use iommud::topology::groups::{REQUIRED, is_isolating, is_tight, ports_beside};
use iommud::topology::pci::{FunctionKind, PciFunction};
use iommud::topology::table::View;

use crate::names;

/// What a function lacks that would keep others apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It has no ACS capability, or it is not known.
    NoAcs,
    /// These ACS controls are off.
    Off(Vec<&'static str>),
    /// What is behind a conventional bridge shares a bus.
    Conventional,
}

/// A reason for which functions are one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Functions of one device reach each other inside of it.
    Functions {
        /// The functions that lack ACS.
        members: Vec<PciAddress>,
        /// What the first of them lacks.
        lack: Lack,
    },
    /// What is behind a bridge reaches what is beside or in front of it.
    Bridge {
        /// The bridge.
        bridge: PciAddress,
        /// Its kind.
        kind: &'static str,
        /// What it lacks.
        lack: Lack,
        /// Members of the group behind it.
        behind: Vec<PciAddress>,
    },
    /// Ports of a switch, because one of them lacks ACS.
    Switch {
        /// The port that lacks it.
        port: PciAddress,
        /// What it lacks.
        lack: Lack,
        /// The other ports in the group.
        others: Vec<PciAddress>,
    },
    /// Requests of several functions arrive under one requester id.
    Requester {
        /// The id.
        id: String,
        /// The functions.
        members: Vec<PciAddress>,
    },
}

/// Names of the ACS controls that isolation needs (PCI Express Base 6.0 section 7.7.11.3).
const CONTROLS: [(u16, &str); 4] = [
    (1, "source validation"),
    (1 << 2, "request redirect"),
    (1 << 3, "completion redirect"),
    (1 << 4, "upstream forwarding"),
];

/// The members of a group.
type Members<'a> = BTreeMap<PciAddress, &'a PciFunction>;

/// What a bridge lacks.
fn lack(bridge: &PciFunction) -> Lack {
    match bridge.kind {
        FunctionKind::ConventionalBridge(_)
        | FunctionKind::ExpressToConventional(_)
        | FunctionKind::ConventionalToExpress(_) => Lack::Conventional,
        _ => acs_lack(bridge),
    }
}

/// Which controls of a function that does not isolate are off.
fn acs_lack(function: &PciFunction) -> Lack {
    let Some(control) = function.acs else { return Lack::NoAcs };
    let off = REQUIRED & function.acs_capability & !control;
    let named = CONTROLS.iter().filter(|(bit, _)| off & bit != 0);
    let controls: Vec<&str> = named.map(|(_, name)| *name).collect();
    // An event collector counts as without ACS, whatever it says.
    if controls.is_empty() { Lack::NoAcs } else { Lack::Off(controls) }
}

/// Why these functions are one group. Empty for a group of one, and where only firmware knows.
///
/// `members` have their requester ids with them, as words.
#[must_use]
pub fn reasons(view: View<'_>, members: &[(PciAddress, Vec<String>)]) -> Vec<Reason> {
    if members.len() < 2 {
        return Vec::new();
    }
    let functions: Members<'_> =
        members.iter().filter_map(|(address, _)| Some((*address, view.find(*address)?))).collect();
    let mut found = devices(&functions);
    found.extend(functions.values().filter_map(|bridge| bridge_reason(view, bridge, &functions)));
    found.extend(functions.values().filter_map(|port| switch_reason(view, port, &functions)));
    found.extend(requesters(members));
    found
}

/// Devices of which several functions are in the group because they lack ACS.
fn devices(members: &Members<'_>) -> Vec<Reason> {
    let mut by_device: BTreeMap<(u16, u16), Vec<&PciFunction>> = BTreeMap::new();
    for function in members.values().filter(|function| !is_isolating(function)) {
        let place = (function.address.segment, function.address.requester.0 >> 3);
        by_device.entry(place).or_default().push(function);
    }
    let several = by_device.into_values().filter(|functions| functions.len() > 1);
    several
        .filter_map(|functions| {
            let first = functions.first()?;
            let members = functions.iter().map(|function| function.address).collect();
            Some(Reason::Functions { members, lack: acs_lack(first) })
        })
        .collect()
}

fn bridge_reason(view: View<'_>, bridge: &PciFunction, members: &Members<'_>) -> Option<Reason> {
    let buses = bridge.buses()?;
    if is_tight(view, bridge) || is_port_of_loose_switch(view, bridge) {
        return None;
    }
    let inside = |address: &&PciAddress| {
        address.segment == bridge.address.segment && buses.contains(address.requester.bus())
    };
    let behind: Vec<PciAddress> = members.keys().filter(inside).copied().collect();
    let kind = bridge.kind.words();
    let found = !behind.is_empty();
    found.then(|| Reason::Bridge { bridge: bridge.address, kind, lack: lack(bridge), behind })
}

/// A downstream port that isolates, beside one that does not.
fn is_port_of_loose_switch(view: View<'_>, port: &PciFunction) -> bool {
    matches!(port.kind, FunctionKind::DownstreamPort(_))
        && is_isolating(port)
        && !is_tight(view, port)
}

fn switch_reason(view: View<'_>, port: &PciFunction, members: &Members<'_>) -> Option<Reason> {
    if !matches!(port.kind, FunctionKind::DownstreamPort(_)) || is_isolating(port) {
        return None;
    }
    let beside = ports_beside(view, port).map(|other| other.address);
    let others: Vec<PciAddress> = beside.filter(|other| members.contains_key(other)).collect();
    let found = !others.is_empty();
    found.then(|| Reason::Switch { port: port.address, lack: lack(port), others })
}

/// Requester ids that several members have.
fn requesters(members: &[(PciAddress, Vec<String>)]) -> Vec<Reason> {
    let mut users: BTreeMap<&str, Vec<PciAddress>> = BTreeMap::new();
    for (address, ids) in members {
        for id in ids {
            users.entry(id).or_default().push(*address);
        }
    }
    let several = users.into_iter().filter(|(_, members)| members.len() > 1);
    several.map(|(id, members)| Reason::Requester { id: id.to_owned(), members }).collect()
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAcs => f.write_str("has no ACS"),
            Self::Off(controls) => write!(f, "has ACS with {} off", controls.join(", ")),
            Self::Conventional => f.write_str("leads to a bus that its devices share"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Functions { members, lack } => {
                write!(f, "{} are one device, which {lack}", list(members))
            }
            Self::Bridge { bridge, kind, lack, behind } => {
                let bridge = names::address(*bridge);
                write!(f, "{bridge} ({kind}) {lack}: {} behind it", list(behind))
            }
            Self::Switch { port, lack, others } => {
                let port = names::address(*port);
                write!(
                    f,
                    "{port} (downstream port) {lack}: its switch joins it to {}",
                    list(others)
                )
            }
            Self::Requester { id, members } => {
                write!(f, "requests of {} arrive as {id}", list(members))
            }
        }
    }
}

/// `a`, `a and b`, or `a, b and c`; beyond four the rest is counted.
fn list(addresses: &[PciAddress]) -> String {
    let shown: Vec<String> = addresses.iter().take(4).map(|of| names::address(*of)).collect();
    let rest = addresses.len() - shown.len();
    match (shown.as_slice(), rest) {
        ([], _) => "nothing".to_owned(),
        ([one], 0) => one.clone(),
        ([init @ .., last], 0) => format!("{} and {last}", init.join(", ")),
        (shown, rest) => format!("{} and {rest} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommud::topology::pci::Buses;
    use iommud::topology::table::FunctionTable;

    fn address(bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress::new(0, bus, device, function).unwrap()
    }

    fn function(address: PciAddress, kind: FunctionKind) -> PciFunction {
        PciFunction {
            address,
            vendor: 0x8086,
            device: 1,
            class: 0,
            kind,
            multifunction: false,
            acs: None,
            acs_capability: 0,
            hot_plug: false,
        }
    }

    fn said(functions: &[PciFunction], members: &[PciAddress]) -> Vec<String> {
        let mut table = FunctionTable::default();
        for function in functions {
            table.insert(*function);
        }
        let members: Vec<_> = members.iter().map(|of| (*of, Vec::new())).collect();
        reasons(table.view(), &members).iter().map(ToString::to_string).collect()
    }

    const fn buses(secondary: u8, subordinate: u8) -> Buses {
        Buses { secondary, subordinate }
    }

    #[test]
    fn a_root_port_without_acs_is_named() {
        let port = function(address(0, 0x1c, 0), FunctionKind::RootPort(buses(1, 1)));
        let device = function(address(1, 0, 0), FunctionKind::Endpoint);
        let members = [port.address, device.address];
        assert_eq!(
            said(&[port, device], &members),
            ["0000:00:1c.0 (root port) has no ACS: 0000:01:00.0 behind it"]
        );
        let acs = PciFunction { acs: Some(0x1c), acs_capability: 0x1d, ..port };
        assert_eq!(
            said(&[acs, device], &members),
            ["0000:00:1c.0 (root port) has ACS with source validation off: 0000:01:00.0 behind it"]
        );
        let tight = PciFunction { acs: Some(0x1d), acs_capability: 0x1d, ..port };
        assert_eq!(said(&[tight, device], &members), Vec::<String>::new());
    }

    #[test]
    fn functions_of_a_device_are_named_together() {
        let several = |number| PciFunction {
            multifunction: true,
            ..function(address(0, 0x1f, number), FunctionKind::RootComplexEndpoint)
        };
        let functions = [several(0), several(2), several(3)];
        let members = functions.map(|function| function.address);
        assert_eq!(
            said(&functions, &members),
            ["0000:00:1f.0, 0000:00:1f.2 and 0000:00:1f.3 are one device, which has no ACS"]
        );
        assert_eq!(said(&functions, &members[..1]), Vec::<String>::new(), "a group of one");
    }

    #[test]
    fn an_event_collector_counts_as_without_acs() {
        let several = |number, kind| PciFunction {
            multifunction: true,
            acs: Some(0x1d),
            acs_capability: 0x1d,
            ..function(address(0, 0x1f, number), kind)
        };
        let functions =
            [several(0, FunctionKind::EventCollector), several(1, FunctionKind::EventCollector)];
        let members = functions.map(|function| function.address);
        assert_eq!(
            said(&functions, &members),
            ["0000:00:1f.0 and 0000:00:1f.1 are one device, which has no ACS"]
        );
    }

    #[test]
    fn the_port_of_a_switch_that_lacks_acs_is_named_and_not_its_neighbour() {
        let loose = function(address(2, 0, 0), FunctionKind::DownstreamPort(buses(3, 3)));
        let sound = PciFunction {
            acs: Some(0x1d),
            acs_capability: 0x1d,
            ..function(address(2, 1, 0), FunctionKind::DownstreamPort(buses(4, 4)))
        };
        let devices = [
            function(address(3, 0, 0), FunctionKind::Endpoint),
            function(address(4, 0, 0), FunctionKind::Endpoint),
        ];
        let functions = [loose, sound, devices[0], devices[1]];
        let members = functions.map(|function| function.address);
        assert_eq!(
            said(&functions, &members),
            [
                "0000:02:00.0 (downstream port) has no ACS: 0000:03:00.0 behind it",
                "0000:02:00.0 (downstream port) has no ACS: its switch joins it to 0000:02:01.0",
            ]
        );
    }

    #[test]
    fn conventional_bridges_and_shared_requester_ids() {
        let bridge = function(address(0, 0x1e, 0), FunctionKind::ConventionalBridge(buses(5, 5)));
        let devices = [0, 1].map(|n| function(address(5, n, 0), FunctionKind::Conventional));
        let mut table = FunctionTable::default();
        for function in [bridge, devices[0], devices[1]] {
            table.insert(function);
        }
        let members = [
            (bridge.address, Vec::new()),
            (devices[0].address, vec!["05:00.0".to_owned(), "00:1e.0".to_owned()]),
            (devices[1].address, vec!["05:01.0".to_owned(), "00:1e.0".to_owned()]),
        ];
        let said: Vec<String> =
            reasons(table.view(), &members).iter().map(ToString::to_string).collect();
        let lead = "0000:00:1e.0 (conventional bridge) leads to a bus that its devices share";
        assert_eq!(
            said,
            [
                format!("{lead}: 0000:05:00.0 and 0000:05:01.0 behind it"),
                "requests of 0000:05:00.0 and 0000:05:01.0 arrive as 00:1e.0".to_owned(),
            ]
        );
    }
}
