//! Functions that cannot reach their peers although no standard ACS register shows it.
//!
//! The facts are those of Linux 6.18 `drivers/pci/quirks.c` (`pci_dev_acs_enabled`), for machines that can have
//! VT-d or AMD-Vi units. Root ports of Arm, LoongArch and X-Gene machines are left out for that reason.
//!
//! Linux writes registers to establish isolation. The server only reads them: isolation that is not in force counts
//! as none.

use core::ops::RangeInclusive;

use crate::topology::pci::{FunctionKind, PciFunction};

/// How the isolation of a known function is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acs {
    /// It is always in force; nothing has to be written.
    InForce,
    /// The ACS control register is the double word at offset 8 of the capability, not the word at 6.
    ControlAt8,
    /// Registers of the chipset say whether it is in force: see [`crate::topology::walk`].
    Pch,
}

/// The functions that a row is for, beside vendor and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Endpoints integrated in the root complex.
    RootComplexEndpoints,
    /// Root ports.
    RootPorts,
    /// Root ports and downstream ports of switches.
    Ports,
    /// Functions that are no PCI Express port.
    Functions,
    /// Functions of the southbridge: on bus 0, no PCI Express port.
    Southbridge,
}

struct Row {
    vendor: u16,
    devices: &'static [RangeInclusive<u16>],
    of: Of,
    acs: Acs,
    #[cfg_attr(not(test), expect(dead_code, reason = "says why the row is here"))]
    reason: &'static str,
}

const fn row(
    vendor: u16,
    devices: &'static [RangeInclusive<u16>],
    of: Of,
    acs: Acs,
    reason: &'static str,
) -> Row {
    Row { vendor, devices, of, acs, reason }
}

const INTEL: u16 = 0x8086;
const ZHAOXIN: u16 = 0x1d17;

const ROWS: &[Row] = &[
    row(
        INTEL,
        &[0..=0xffff],
        Of::RootComplexEndpoints,
        Acs::InForce,
        "VT-d specification 3.16, Root-Complex Peer to Peer Considerations: the root complex decodes peer \
         addresses only after translation",
    ),
    row(
        INTEL,
        &[
            0x3b42..=0x3b51, // Ibex Peak
            0x1c10..=0x1c1f, // Cougar Point
            0x1e10..=0x1e1f, // Panther Point
            0x8c10..=0x8c1f, // Lynx Point-H
            0x9c10..=0x9c1b, // Lynx Point-LP
            0x9c90..=0x9c9b, // Wildcat Point
            0x1d10..=0x1d10, // Patsburg (X79): even ids only
            0x1d12..=0x1d12,
            0x1d14..=0x1d14,
            0x1d16..=0x1d16,
            0x1d18..=0x1d18,
            0x1d1a..=0x1d1a,
            0x1d1c..=0x1d1c,
            0x1d1e..=0x1d1e,
            0x8d10..=0x8d1e, // Wellsburg (X99)
            0x8c90..=0x8c90, // Lynx Point, 9 series: even ids only
            0x8c92..=0x8c92,
            0x8c94..=0x8c94,
            0x8c96..=0x8c96,
            0x8c98..=0x8c98,
            0x8c9a..=0x8c9a,
            0x8c9c..=0x8c9c,
            0x8c9e..=0x8c9e,
        ],
        Of::RootPorts,
        Acs::Pch,
        "root ports without an ACS capability that do the same by chipset registers: bug 1037684 of \
         bugzilla.redhat.com",
    ),
    row(
        INTEL,
        &[
            0xa110..=0xa11f, // Sunrise Point-H
            0xa167..=0xa16a,
            0xa290..=0xa29f, // Union Point
            0xa2e7..=0xa2ee,
            0x9d10..=0x9d1b, // Sunrise Point-LP and its successors for mobile machines
        ],
        Of::RootPorts,
        Acs::ControlAt8,
        "Intel 100 series specification update, erratum 23; 200 series, erratum 22; 7th generation mobile, \
         erratum 22",
    ),
    row(
        INTEL,
        &[
            0x10c6..=0x10c6, // 82598
            0x10db..=0x10db,
            0x10dd..=0x10dd,
            0x10e1..=0x10e1,
            0x10f1..=0x10f1,
            0x10f7..=0x10fc, // 82599
            0x1507..=0x1507,
            0x1514..=0x1514,
            0x151c..=0x151c,
            0x1529..=0x152a,
            0x154d..=0x154d,
            0x154f..=0x154f,
            0x1551..=0x1551,
            0x1558..=0x1558,
            0x1509..=0x1509, // 82580
            0x150e..=0x1511,
            0x1516..=0x1516,
            0x1527..=0x1527,
            0x10c9..=0x10c9, // 82576
            0x10e6..=0x10e8,
            0x150a..=0x150a,
            0x150d..=0x150d,
            0x1518..=0x1518,
            0x1526..=0x1526,
            0x10a7..=0x10a7, // 82575
            0x10a9..=0x10a9,
            0x10d6..=0x10d6,
            0x1521..=0x1524, // I350
            0x105e..=0x1060, // 82571, not the four-port cards: their switch has no ACS
            0x10d9..=0x10d9,
            0x15b7..=0x15b8, // I219
        ],
        Of::Functions,
        Acs::InForce,
        "network controllers: the vendor says that functions do not reach each other",
    ),
    row(
        0x1924,
        &[0x0903..=0x0903, 0x0923..=0x0923, 0x0a03..=0x0a03],
        Of::Functions,
        Acs::InForce,
        "Solarflare network controllers: the vendor says that functions do not reach each other",
    ),
    row(0x19a2, &[0x0710..=0x0710], Of::Functions, Acs::InForce, "Emulex BE3-R, as above"),
    row(0x10df, &[0x0720..=0x0720], Of::Functions, Acs::InForce, "Emulex Skyhawk-R, as above"),
    row(
        0x14e4,
        &[0x16d7..=0x16d7, 0x1750..=0x1752, 0x1760..=0x1763],
        Of::Functions,
        Acs::InForce,
        "Broadcom network controllers: the vendor says that functions do not reach each other",
    ),
    row(
        0x8088,
        &[
            0x0100..=0x010f,
            0x1001..=0x1001,
            0x2001..=0x2001,
            0x5010..=0x5010,
            0x5025..=0x5025,
            0x5040..=0x5040,
            0x5110..=0x5110,
            0x5125..=0x5125,
            0x5140..=0x5140,
        ],
        Of::Functions,
        Acs::InForce,
        "Wangxun network controllers: all requests go upstream first",
    ),
    row(
        0x1002,
        &[0x4383..=0x4385, 0x4399..=0x4399, 0x439c..=0x439d],
        Of::Southbridge,
        Acs::InForce,
        "AMD SBx00 with an AMD-Vi unit: no peer-to-peer between functions; AMD on linux-pci, July to October \
         2012. Without such a unit the machine has none, and groups mean nothing",
    ),
    row(
        0x1022,
        &[0x7809..=0x7809, 0x780f..=0x780f],
        Of::Southbridge,
        Acs::InForce,
        "AMD FCH with an AMD-Vi unit: bug 81841 comment 15",
    ),
    row(
        ZHAOXIN,
        &[0x3038..=0x3038, 0x3104..=0x3104, 0x9083..=0x9083],
        Of::Functions,
        Acs::InForce,
        "Zhaoxin devices: the vendor says that functions do not reach each other",
    ),
    row(
        ZHAOXIN,
        &[0x0710..=0x071e, 0x0721..=0x0721, 0x0723..=0x0752],
        Of::Ports,
        Acs::InForce,
        "Zhaoxin ports without an ACS capability block peer-to-peer between them",
    ),
];

/// The known isolation of a function, if it is in the list.
#[must_use]
pub fn find(function: &PciFunction) -> Option<Acs> {
    let is = |known: &&Row| {
        known.vendor == function.vendor
            && known.of.contains(function)
            && known.devices.iter().any(|ids| ids.contains(&function.device))
    };
    ROWS.iter().find(is).map(|known| known.acs)
}

impl Of {
    const fn contains(self, function: &PciFunction) -> bool {
        use FunctionKind::{DownstreamPort, RootComplexEndpoint, RootPort, UpstreamPort};
        let port = matches!(function.kind, RootPort(_) | DownstreamPort(_) | UpstreamPort(_));
        match self {
            Self::RootComplexEndpoints => matches!(function.kind, RootComplexEndpoint),
            Self::RootPorts => matches!(function.kind, RootPort(_)),
            Self::Ports => matches!(function.kind, RootPort(_) | DownstreamPort(_)),
            Self::Functions => !port && function.kind.buses().is_none(),
            Self::Southbridge => !port && function.address.requester.bus() == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::topology::pci::Buses;
    use crate::topology::testing::{address, function};

    const BUSES: Buses = Buses { secondary: 2, subordinate: 2 };

    fn of(vendor: u16, device: u16, bus: u8, kind: FunctionKind) -> Option<Acs> {
        find(&PciFunction { vendor, device, ..function(address(bus, 20, 3), kind) })
    }

    #[test]
    fn a_row_is_about_a_device_of_a_kind_at_a_place() {
        let (rciep, endpoint) = (FunctionKind::RootComplexEndpoint, FunctionKind::Endpoint);
        let (root, down) = (FunctionKind::RootPort(BUSES), FunctionKind::DownstreamPort(BUSES));
        assert_eq!(of(0x8086, 0x02f0, 0, rciep), Some(Acs::InForce));
        assert_eq!(of(0x8086, 0x02f0, 0, endpoint), None);
        assert_eq!(of(0x1022, 0x02f0, 0, rciep), None, "the rule is Intel's");
        assert_eq!(of(0x8086, 0x9c92, 0, root), Some(Acs::Pch));
        assert_eq!(of(0x8086, 0x8c93, 0, root), None, "even ids only");
        assert_eq!(of(0x8086, 0x9d15, 0, root), Some(Acs::ControlAt8));
        assert_eq!(of(0x8086, 0x9d15, 1, down), None);
        assert_eq!(of(0x8086, 0x1521, 3, endpoint), Some(Acs::InForce));
        assert_eq!(of(0x8086, 0x1520, 3, endpoint), None, "a virtual function of the I350");
        assert_eq!(of(0x1d17, 0x0730, 1, down), Some(Acs::InForce));
        assert_eq!(of(0x1d17, 0x0722, 0, root), None);
        let bridge = FunctionKind::ConventionalBridge(BUSES);
        assert_eq!(of(0x1002, 0x4384, 0, bridge), Some(Acs::InForce));
        assert_eq!(of(0x1002, 0x4384, 1, bridge), None, "not in the southbridge");
    }

    /// The ids of a vendor for which functions of this kind, on bus 0, are isolated in this way: first and last of each run.
    fn ids(vendor: u16, kind: FunctionKind, acs: Acs) -> Vec<(u16, u16)> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for device in (0..=u16::MAX).filter(|device| of(vendor, *device, 0, kind) == Some(acs)) {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == device => *last = device,
                _ => runs.push((device, device)),
            }
        }
        runs
    }

    /// The list of Linux 6.18, written down a second time. An id too many calls functions isolated that are not; an id
    /// too few makes groups larger.
    #[test]
    fn no_id_is_missing_and_none_too_many() {
        let (root, endpoint) = (FunctionKind::RootPort(BUSES), FunctionKind::Endpoint);
        let one = |ids: &[u16]| ids.iter().map(|id| (*id, *id)).collect::<Vec<_>>();
        let mut pch = vec![
            (0x1c10, 0x1c1f),
            (0x1e10, 0x1e1f),
            (0x3b42, 0x3b51),
            (0x8c10, 0x8c1f),
            (0x8d10, 0x8d1e),
            (0x9c10, 0x9c1b),
            (0x9c90, 0x9c9b),
        ];
        pch.extend(one(&[0x1d10, 0x1d12, 0x1d14, 0x1d16, 0x1d18, 0x1d1a, 0x1d1c, 0x1d1e]));
        pch.extend(one(&[0x8c90, 0x8c92, 0x8c94, 0x8c96, 0x8c98, 0x8c9a, 0x8c9c, 0x8c9e]));
        pch.sort_unstable();
        assert_eq!(ids(0x8086, root, Acs::Pch), pch);
        let sunrise = [
            (0x9d10, 0x9d1b),
            (0xa110, 0xa11f),
            (0xa167, 0xa16a),
            (0xa290, 0xa29f),
            (0xa2e7, 0xa2ee),
        ];
        assert_eq!(ids(0x8086, root, Acs::ControlAt8), sunrise);
        assert_eq!(ids(0x8086, root, Acs::InForce), []);
        let mut nics = one(&[
            0x10a7, 0x10a9, 0x10c6, 0x10c9, 0x10d6, 0x10d9, 0x10db, 0x10dd, 0x10e1, 0x10f1, 0x1507,
            0x1514, 0x1516, 0x1518, 0x151c, 0x154d, 0x154f, 0x1551, 0x1558,
        ]);
        nics.extend([
            (0x105e, 0x1060),
            (0x10e6, 0x10e8),
            (0x10f7, 0x10fc),
            (0x150d, 0x1511),
            (0x1509, 0x150a),
        ]);
        nics.extend([(0x1521, 0x1524), (0x1526, 0x1527), (0x1529, 0x152a), (0x15b7, 0x15b8)]);
        nics.sort_unstable();
        assert_eq!(ids(0x8086, endpoint, Acs::InForce), nics);
        let in_force = |vendor, kind| ids(vendor, kind, Acs::InForce);
        assert_eq!(in_force(0x1924, endpoint), one(&[0x0903, 0x0923, 0x0a03]));
        assert_eq!(in_force(0x19a2, endpoint), one(&[0x0710]));
        assert_eq!(in_force(0x10df, endpoint), one(&[0x0720]));
        let broadcom = [(0x16d7, 0x16d7), (0x1750, 0x1752), (0x1760, 0x1763)];
        assert_eq!(in_force(0x14e4, endpoint), broadcom);
        let mut wangxun = vec![(0x0100, 0x010f)];
        wangxun.extend(one(&[0x1001, 0x2001, 0x5010, 0x5025, 0x5040, 0x5110, 0x5125, 0x5140]));
        assert_eq!(in_force(0x8088, endpoint), wangxun);
        let sb = [(0x4383, 0x4385), (0x4399, 0x4399), (0x439c, 0x439d)];
        assert_eq!(in_force(0x1002, endpoint), sb);
        assert_eq!(in_force(0x1022, endpoint), one(&[0x7809, 0x780f]));
        assert_eq!(in_force(0x1d17, endpoint), one(&[0x3038, 0x3104, 0x9083]));
        let ports = [(0x0710, 0x071e), (0x0721, 0x0721), (0x0723, 0x0752)];
        assert_eq!(in_force(0x1d17, root), ports);
        let rciep = FunctionKind::RootComplexEndpoint;
        let vendors = (0..=u16::MAX).filter(|vendor| of(*vendor, 0x1234, 0, rciep).is_some());
        assert_eq!(vendors.collect::<Vec<_>>(), [0x8086]);
        let known = [0x8086, 0x1924, 0x19a2, 0x10df, 0x14e4, 0x8088, 0x1002, 0x1022, 0x1d17];
        assert!(ROWS.iter().all(|row| known.contains(&row.vendor)));
    }

    #[test]
    fn every_row_has_a_reason_and_ranges_that_are_not_empty() {
        for row in ROWS {
            assert!(!row.reason.is_empty());
            assert!(row.devices.iter().all(|ids| !ids.is_empty()), "{}", row.reason);
        }
    }
}
