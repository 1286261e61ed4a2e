//! Devices whose requests carry requester ids that are not their own.
//!
//! The facts are those of Linux 6.18 `drivers/pci/quirks.c`; "bug" means a bug of bugzilla.kernel.org.
//!
//! Not here: the NT endpoints of Microsemi Switchtec switches (11f8 and 1055:1001 to 1006). Which ids their
//! requests carry is in a table behind their own registers, which iommud does not read: those ids are denied.

use iommu_protocol::ids::RequesterId;

use crate::topology::pci::PciFunction;

/// Ids beside its own under which the requests of a function may arrive. All are on the function's own bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAlias {
    /// This function number of the same device.
    Function(u8),
    /// These device and function numbers, each as one byte: device in bits 7:3, function in 2:0.
    Fixed(&'static [u8]),
    /// Functions 0 to 4 of every device number.
    FiveOfEveryDevice,
    /// Every device and function number.
    WholeBus,
}

/// One known device.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// The ids.
    pub alias: DmaAlias,
    /// Source of the fact.
    pub source: &'static str,
}

const fn row(vendor: u16, device: u16, alias: DmaAlias, source: &'static str) -> Row {
    Row { vendor, device, alias, source }
}

const MARVELL: u16 = 0x1b4b;
const INTEL: u16 = 0x8086;

/// A private DMA engine of the Intel 80333 behind its address translation unit.
const ADAPTEC: DmaAlias = DmaAlias::Fixed(&[1 << 3]);
/// Content of the bridge's look-up table, from its EEPROM: 10.0, 11.0, 12.3.
const MIC_X200: DmaAlias = DmaAlias::Fixed(&[0x10 << 3, 0x11 << 3, 0x12 << 3 | 3]);

use DmaAlias::{FiveOfEveryDevice, Function, WholeBus};

/// All known devices.
pub const ROWS: &[Row] = &[
    row(0x1180, 0xe832, Function(0), "Ricoh card reader, bug 605888 of bugzilla.redhat.com"),
    row(0x1180, 0xe476, Function(0), "Ricoh card reader, bug 605888 of bugzilla.redhat.com"),
    row(0x6766, 0x3d40, Function(0), "Glenfly graphics, quirk_dma_func0_alias"),
    row(0x6766, 0x3d41, Function(0), "Glenfly sound, quirk_dma_func0_alias"),
    row(MARVELL, 0x9120, Function(1), "88SE9120, bug 42679"),
    row(MARVELL, 0x9123, Function(1), "88SE9123, bug 42679"),
    row(MARVELL, 0x9125, Function(1), "88SE9125, bug 42679 comment 136"),
    row(MARVELL, 0x9128, Function(1), "88SE9128, bug 42679"),
    row(MARVELL, 0x9130, Function(1), "88SE9130, bug 42679 comment 14"),
    row(MARVELL, 0x9170, Function(1), "88SE9170, quirk_dma_func1_alias"),
    row(MARVELL, 0x9172, Function(1), "88SE9172, bug 42679 comments 47 and 57"),
    row(MARVELL, 0x917a, Function(1), "88SE917A, bug 42679 comment 59"),
    row(MARVELL, 0x9182, Function(1), "88SE9182, bug 42679 comment 78"),
    row(MARVELL, 0x9183, Function(1), "88SS9183, bug 42679 comment 134"),
    row(MARVELL, 0x91a0, Function(1), "88SE91A0, bug 42679 comment 46"),
    row(MARVELL, 0x9215, Function(1), "88SE9215, bug 42679 comment 135"),
    row(MARVELL, 0x9220, Function(1), "88SE9220, bug 42679 comment 127"),
    row(MARVELL, 0x9230, Function(1), "88SE9230, bug 42679 comment 49"),
    row(MARVELL, 0x9235, Function(1), "88SE9235, quirk_dma_func1_alias"),
    row(0x1103, 0x0642, Function(1), "HighPoint RocketRAID 642L, quirk_dma_func1_alias"),
    row(0x1103, 0x0645, Function(1), "HighPoint RocketRAID 644L, quirk_dma_func1_alias"),
    row(0x197b, 0x2392, Function(1), "JMicron JMB388, bug 497630 of bugs.gentoo.org"),
    row(0x1c28, 0x0122, Function(1), "Plextor M6e (Marvell 88SS9183), bug 42679 comment 117"),
    // Linux looks at the subsystem too (Adaptec 3405 and 3805). One id too many only makes a group larger.
    row(0x9005, 0x0285, ADAPTEC, "Adaptec 3405, 3805: fixed_dma_alias_tbl"),
    row(INTEL, 0x2260, MIC_X200, "MIC x200, quirk_mic_x200_dma_alias"),
    row(INTEL, 0x2264, MIC_X200, "MIC x200, quirk_mic_x200_dma_alias"),
    row(INTEL, 0x2954, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(INTEL, 0x2955, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(INTEL, 0x2956, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(INTEL, 0x2958, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(INTEL, 0x2959, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(INTEL, 0x295a, FiveOfEveryDevice, "Visual Compute Accelerator, quirk_pex_vca_alias"),
    row(0x10b5, 0x87b0, WholeBus, "PLX NT endpoint, quirk_plx_ntb_dma_alias"),
    row(0x10b5, 0x87b1, WholeBus, "PLX NT endpoint, quirk_plx_ntb_dma_alias"),
];

/// A bridge without a PCI Express capability that puts `secondary:00.0` on requests from behind it.
#[derive(Clone, Copy, Debug)]
pub struct BridgeRow {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Source of the fact.
    pub source: &'static str,
}

/// All known bridges of that kind. Requests from behind one may also carry the bridge's own id.
pub const BRIDGES: &[BridgeRow] = &[
    BridgeRow { vendor: 0x1b21, device: 0x1080, source: "ASM1083 and 1085, bug 44881 comment 46" },
    BridgeRow { vendor: 0x10e3, device: 0x8113, source: "Tundra 8113, bug 44881 comment 43" },
    BridgeRow { vendor: 0x1283, device: 0x8892, source: "ITE 8892, bug 73551" },
    BridgeRow { vendor: 0x1283, device: 0x8893, source: "ITE 8893, as the 8892" },
    BridgeRow { vendor: INTEL, device: 0x244e, source: "Intel 82801, bug 44881 comment 49" },
];

/// Whether a bridge is one of [`BRIDGES`].
#[must_use]
pub fn uses_secondary_bus(bridge: &PciFunction) -> bool {
    let is = |known: &BridgeRow| known.vendor == bridge.vendor && known.device == bridge.device;
    BRIDGES.iter().any(is)
}

/// Calls `sink` with each id beside its own that a function's requests may carry; perhaps also with its own.
pub fn ids(function: &PciFunction, sink: &mut dyn FnMut(RequesterId)) {
    let is = |known: &&Row| known.vendor == function.vendor && known.device == function.device;
    let Some(known) = ROWS.iter().find(is) else { return };
    let own = function.address.requester;
    let at = |devfn: u8| RequesterId(u16::from_be_bytes([own.bus(), devfn]));
    match known.alias {
        DmaAlias::Function(number) => sink(at(own.devfn() & !7 | number & 7)),
        DmaAlias::Fixed(all) => all.iter().for_each(|devfn| sink(at(*devfn))),
        DmaAlias::FiveOfEveryDevice => {
            (0..=u8::MAX).filter(|devfn| devfn & 7 < 5).for_each(|devfn| sink(at(devfn)));
        }
        DmaAlias::WholeBus => (0..=u8::MAX).for_each(|devfn| sink(at(devfn))),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::topology::testing::endpoint;

    fn of(vendor: u16, device: u16, number: u8) -> Vec<u16> {
        let function = PciFunction { vendor, device, ..endpoint(3, 2, number) };
        let mut found = Vec::new();
        ids(&function, &mut |id| found.push(id.0));
        found
    }

    #[test]
    fn each_kind_of_alias_is_on_the_own_bus() {
        assert_eq!(of(0x1b4b, 0x9235, 0), [0x0311]);
        assert_eq!(of(0x1103, 0x0645, 0), [0x0311]);
        assert_eq!(of(0x197b, 0x2392, 0), [0x0311]);
        assert_eq!(of(0x1180, 0xe832, 3), [0x0310]);
        assert_eq!(of(0x9005, 0x0285, 0), [0x0308]);
        assert_eq!(of(0x8086, 0x2264, 0), [0x0380, 0x0388, 0x0393]);
        let five = of(0x8086, 0x295a, 0);
        assert_eq!((five.len(), five[5], five[159]), (160, 0x0308, 0x03fc));
        assert_eq!(of(0x10b5, 0x87b1, 0), (0x0300..=0x03ff).collect::<Vec<_>>());
        assert_eq!(of(0x1b4b, 0x9236, 0), vec![0_u16; 0]);
    }

    /// The list of Linux 6.18, written down a second time, by vendor. A row that is lost lets a device write under an id
    /// that nobody blocks.
    #[test]
    fn no_device_of_the_list_is_missing() {
        const KNOWN: [(u16, &[u16]); 10] = [
            (0x1180, &[0xe476, 0xe832]),
            (0x6766, &[0x3d40, 0x3d41]),
            (
                0x1b4b,
                &[
                    0x9120, 0x9123, 0x9125, 0x9128, 0x9130, 0x9170, 0x9172, 0x917a, 0x9182, 0x9183,
                    0x91a0, 0x9215, 0x9220, 0x9230, 0x9235,
                ],
            ),
            (0x1103, &[0x0642, 0x0645]),
            (0x197b, &[0x2392]),
            (0x1c28, &[0x0122]),
            (0x9005, &[0x0285]),
            (0x8086, &[0x2260, 0x2264]),
            (0x8086, &[0x2954, 0x2955, 0x2956, 0x2958, 0x2959, 0x295a]),
            (0x10b5, &[0x87b0, 0x87b1]),
        ];
        let known = KNOWN.iter().flat_map(|(vendor, all)| all.iter().map(|it| (*vendor, *it)));
        let known: Vec<(u16, u16)> = known.collect();
        assert_eq!(known.len(), ROWS.len());
        for (vendor, device) in known {
            assert!(!of(vendor, device, 1).is_empty(), "{vendor:04x}:{device:04x}");
        }
        let bridges: Vec<_> = BRIDGES.iter().map(|row| (row.vendor, row.device)).collect();
        let expected = [
            (0x1b21, 0x1080),
            (0x10e3, 0x8113),
            (0x1283, 0x8892),
            (0x1283, 0x8893),
            (0x8086, 0x244e),
        ];
        assert_eq!(bridges, expected);
    }

    #[test]
    fn each_device_is_known_once_and_from_somewhere() {
        for (at, row) in ROWS.iter().enumerate() {
            let same = |other: &Row| (other.vendor, other.device) == (row.vendor, row.device);
            assert_eq!(ROWS.iter().position(same), Some(at), "{row:?}");
            assert!(!row.source.is_empty(), "{row:?}");
        }
        assert!(BRIDGES.iter().all(|row| !row.source.is_empty()));
    }
}
