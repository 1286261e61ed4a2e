//! The walk of configuration space: which functions there are.
//!
//! Register offsets: PCI Local Bus 3.0 section 6.1 (type 0 header), PCI-to-PCI Bridge 1.2 section 3.2 (type 1),
//! PCI Express Base 6.0 sections 7.5.3.2 (PCI Express Capabilities register) and 7.7.11 (ACS).

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;

use crate::topology::pci::{Buses, ConfigSpace, FunctionKind, PciFunction};

/// Capability id of PCI Express.
const CAPABILITY_EXPRESS: u32 = 0x10;
/// Extended capability id of Access Control Services.
const EXTENDED_ACS: u32 = 0x0d;
/// Most capabilities that fit in 192 bytes, 4 each.
const MAX_CAPABILITIES: usize = 48;
/// Most extended capabilities that are followed: a chain that is longer loops.
const MAX_EXTENDED: usize = 96;

/// Which buses a walk begins at. Buses behind bridges are found from there.
#[derive(Clone, Copy, Debug)]
pub enum Roots<'a> {
    /// These buses, of the segment each.
    Known(&'a [(u16, u8)]),
    /// Every bus of a segment that no bridge led to: 32 reads for a bus that is not there.
    All(&'a [u16]),
}

/// Finds every function, in order of segment, then of discovery: a bridge comes before what is behind it.
/// Never follows a bus twice, whatever bus numbers bridges hold.
pub fn walk(config: &mut dyn ConfigSpace, roots: Roots<'_>) -> Vec<PciFunction> {
    let mut found = Vec::new();
    match roots {
        Roots::Known(roots) => {
            let mut segments: Vec<u16> = roots.iter().map(|(segment, _)| *segment).collect();
            segments.sort_unstable();
            segments.dedup();
            for segment in segments {
                let mut walk = Walk::new(config, segment, &mut found);
                roots.iter().filter(|(of, _)| *of == segment).for_each(|(_, bus)| walk.bus(*bus));
            }
        }
        Roots::All(segments) => {
            for segment in segments {
                let mut walk = Walk::new(config, *segment, &mut found);
                (0..=255).for_each(|bus| walk.bus(bus));
            }
        }
    }
    found
}

struct Walk<'a> {
    config: &'a mut dyn ConfigSpace,
    segment: u16,
    seen: [bool; 256],
    found: &'a mut Vec<PciFunction>,
}

impl<'a> Walk<'a> {
    fn new(config: &'a mut dyn ConfigSpace, segment: u16, found: &'a mut Vec<PciFunction>) -> Self {
        Self { config, segment, seen: [false; 256], found }
    }

    /// Looks at a bus and all behind it, with a list of buses to do in place of recursion.
    fn bus(&mut self, root: u8) {
        let mut todo = alloc::vec![root];
        while let Some(bus) = todo.pop() {
            match self.seen.get_mut(usize::from(bus)) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            let first = self.found.len();
            for device in 0..32 {
                self.device(bus, device);
            }
            let bridges = self.found.get(first..).unwrap_or_default().iter().rev();
            todo.extend(bridges.filter_map(PciFunction::buses).map(|buses| buses.secondary));
        }
    }

    /// Function 0 says whether there are others.
    fn device(&mut self, bus: u8, device: u8) {
        let mut multifunction = false;
        for number in 0..8 {
            if number > 0 && !multifunction {
                break;
            }
            let Some(address) = PciAddress::new(self.segment, bus, device, number) else { break };
            let identity = self.config.read(address, 0);
            if is_absent(identity) {
                if number == 0 {
                    break;
                }
                continue;
            }
            let header = self.config.read(address, 0x0c) >> 16;
            if number == 0 {
                multifunction = header & 0x80 != 0;
            }
            let function = self.function(address, identity, header & 0x7f, multifunction);
            self.found.push(function);
        }
    }

    fn function(
        &mut self,
        address: PciAddress,
        identity: u32,
        header: u32,
        multifunction: bool,
    ) -> PciFunction {
        let class = self.config.read(address, 0x08) >> 8;
        // Types 1 (PCI-to-PCI bridge) and 2 (CardBus bridge) hold the bus numbers at the same place.
        let buses = matches!(header, 1 | 2).then(|| {
            let [_, secondary, subordinate, _] = self.config.read(address, 0x18).to_le_bytes();
            Buses { secondary, subordinate }
        });
        let pointer = if header == 2 { 0x14 } else { 0x34 };
        let express = self.express_type(address, pointer);
        let kind = kind(express, buses);
        let mut function = PciFunction {
            address,
            vendor: low(identity),
            device: low(identity >> 16),
            class,
            kind,
            multifunction,
            acs: None,
            acs_capability: 0,
        };
        if needs_acs(kind, multifunction)
            && let Some(register) = self.acs(address)
        {
            function.acs_capability = low(register);
            function.acs = Some(low(register >> 16));
        }
        function
    }

    /// Device/port type of the PCI Express capability; `None` for a conventional function.
    fn express_type(&mut self, address: PciAddress, pointer: u16) -> Option<u32> {
        let status = self.config.read(address, 0x04) >> 16;
        if status & 0x10 == 0 {
            return None;
        }
        let mut at = self.config.read(address, pointer) & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if at < 0x40 {
                return None;
            }
            let word = self.config.read(address, low(at));
            if word & 0xff == CAPABILITY_EXPRESS {
                return Some(word >> 20 & 0xf);
            }
            if word & 0xff == 0xff {
                return None;
            }
            at = word >> 8 & 0xfc;
        }
        None
    }

    /// The ACS capability (low half) and control (high half) registers.
    fn acs(&mut self, address: PciAddress) -> Option<u32> {
        let mut at = 0x100;
        for _ in 0..MAX_EXTENDED {
            let word = self.config.read(address, low(at));
            if word == 0 || word == u32::MAX {
                return None;
            }
            if word & 0xffff == EXTENDED_ACS {
                let register = self.config.read(address, low(at + 4));
                return (register != u32::MAX).then_some(register);
            }
            at = word >> 20 & 0xffc;
            if at < 0x100 {
                return None;
            }
        }
        None
    }
}

/// The low 16 bits.
const fn low(word: u32) -> u16 {
    let [a, b, _, _] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// No function answers, or what answers has no identity.
const fn is_absent(identity: u32) -> bool {
    matches!(low(identity), 0 | 0xffff) || identity == 0xffff_0001
}

/// The kind of a function from its device/port type and whether its header is a bridge's. Where the two
/// contradict each other, the kind that isolates least.
const fn kind(express: Option<u32>, buses: Option<Buses>) -> FunctionKind {
    match (express, buses) {
        (Some(4), Some(buses)) => FunctionKind::RootPort(buses),
        (Some(5), Some(buses)) => FunctionKind::UpstreamPort(buses),
        (Some(6), Some(buses)) => FunctionKind::DownstreamPort(buses),
        (Some(7), Some(buses)) => FunctionKind::ExpressToConventional(buses),
        (Some(8), Some(buses)) => FunctionKind::ConventionalToExpress(buses),
        (_, Some(buses)) => FunctionKind::ConventionalBridge(buses),
        (Some(0 | 1), None) => FunctionKind::Endpoint,
        (Some(9), None) => FunctionKind::RootComplexEndpoint,
        (Some(10), None) => FunctionKind::EventCollector,
        (_, None) => FunctionKind::Conventional,
    }
}

/// Whether ACS makes a difference: see [`crate::topology::groups::is_isolating`].
const fn needs_acs(kind: FunctionKind, multifunction: bool) -> bool {
    match kind {
        FunctionKind::RootPort(_) | FunctionKind::DownstreamPort(_) => true,
        FunctionKind::Endpoint
        | FunctionKind::RootComplexEndpoint
        | FunctionKind::UpstreamPort(_) => multifunction,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::address;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    /// Configuration space from words written down by hand.
    #[derive(Default)]
    struct Fake {
        words: BTreeMap<(PciAddress, u16), u32>,
        reads: usize,
    }

    impl ConfigSpace for Fake {
        fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
            assert!(offset.is_multiple_of(4) && offset < 4096);
            self.reads += 1;
            let present = self.words.contains_key(&(address, 0));
            self.words.get(&(address, offset)).copied().unwrap_or(if present {
                0
            } else {
                u32::MAX
            })
        }
    }

    impl Fake {
        fn put(&mut self, at: PciAddress, words: &[(u16, u32)]) {
            self.words.extend(words.iter().map(|(offset, word)| ((at, *offset), *word)));
        }
    }

    const ROOT: Roots<'_> = Roots::Known(&[(0, 0)]);

    // Words that QEMU 7.2 (q35, after SeaBIOS) shows with the monitor's `xp` in the window at 0xb0000000: edu, a
    // conventional endpoint; pcie-root-port, with PCI Express at 0x54 and ACS at 0x148, not enabled.
    fn edu(config: &mut Fake, at: PciAddress) {
        config.put(
            at,
            &[
                (0, 0x11e8_1234),
                (4, 0x0010_0103),
                (8, 0x00ff_0010),
                (0x34, 0x40),
                (0x40, 0x0080_0005),
            ],
        );
    }

    fn root_port(config: &mut Fake, at: PciAddress, secondary: u32, control: u32) {
        config.put(
            at,
            &[
                (0, 0x000c_1b36),
                (4, 0x0010_0103),
                (8, 0x0604_0000),
                (0x0c, 0x0001_0000),
                (0x18, secondary << 16 | secondary << 8),
                (0x34, 0x54),
                (0x54, 0x0142_4810),
                (0x100, 0x1482_0001),
                (0x148, 0x0001_000d),
                (0x14c, control << 16 | 0x005f),
            ],
        );
    }

    #[test]
    fn a_conventional_endpoint_is_read_exactly() {
        let mut config = Fake::default();
        edu(&mut config, address(0, 4, 0));
        let found = walk(&mut config, ROOT);
        assert_eq!(
            found,
            [PciFunction {
                address: address(0, 4, 0),
                vendor: 0x1234,
                device: 0x11e8,
                class: 0x00_ff00,
                kind: FunctionKind::Conventional,
                multifunction: false,
                acs: None,
                acs_capability: 0,
            }]
        );
        assert_eq!(config.reads, 31 + 6, "one read for what is absent, 6 for the device");
    }

    #[test]
    fn what_is_behind_a_port_is_found_after_it() {
        let mut config = Fake::default();
        root_port(&mut config, address(0, 1, 0), 5, 0x1d);
        edu(&mut config, address(5, 0, 0));
        let found = walk(&mut config, ROOT);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].kind, FunctionKind::RootPort(Buses { secondary: 5, subordinate: 5 }));
        assert_eq!((found[0].acs, found[0].acs_capability), (Some(0x1d), 0x5f));
        assert_eq!(found[1].address, address(5, 0, 0));
    }

    #[test]
    fn functions_beyond_0_are_looked_for_only_where_function_0_says_so() {
        let mut config = Fake::default();
        for number in [0, 2, 7] {
            edu(&mut config, address(0, 31, number));
            edu(&mut config, address(0, 30, number));
        }
        config.put(address(0, 31, 0), &[(0x0c, 0x0080_0000)]);
        edu(&mut config, address(0, 29, 3));
        let found: Vec<_> = walk(&mut config, ROOT).into_iter().collect();
        let seen: Vec<_> = found.iter().map(|f| (f.address, f.multifunction)).collect();
        let expected = [(30, 0, false), (31, 0, true), (31, 2, true), (31, 7, true)]
            .map(|(device, number, multi)| (address(0, device, number), multi));
        assert_eq!(seen, expected);
    }

    #[test]
    fn every_bus_or_only_the_named_ones() {
        let mut config = Fake::default();
        edu(&mut config, address(0x40, 0, 0));
        assert_eq!(walk(&mut config, ROOT), []);
        assert_eq!(walk(&mut config, Roots::Known(&[(0, 0), (0, 0x40)])).len(), 1);
        config.reads = 0;
        assert_eq!(walk(&mut config, Roots::All(&[0])).len(), 1);
        assert_eq!(config.reads, 256 * 32 + 5);
    }

    #[test]
    fn bridges_in_a_circle_and_twice_the_same_bus_are_walked_once() {
        let mut config = Fake::default();
        root_port(&mut config, address(0, 1, 0), 1, 0);
        root_port(&mut config, address(0, 2, 0), 1, 0);
        root_port(&mut config, address(1, 0, 0), 0, 0);
        root_port(&mut config, address(1, 1, 0), 1, 0);
        assert_eq!(walk(&mut config, Roots::All(&[0])).len(), 4);
    }

    #[test]
    fn capability_chains_in_a_circle_end() {
        let mut config = Fake::default();
        let at = address(0, 1, 0);
        root_port(&mut config, at, 1, 0);
        config.put(at, &[(0x54, 0x0142_5405), (0x148, 0x1481_0003)]);
        let found = walk(&mut config, ROOT);
        assert!(matches!(found[0].kind, FunctionKind::ConventionalBridge(_)));
        config.put(at, &[(0x54, 0x0142_0010)]);
        assert_eq!(walk(&mut config, ROOT)[0].acs, None);
        assert!(config.reads < 400);
    }

    #[test]
    fn contradictions_are_read_as_what_isolates_least() {
        assert_eq!(kind(Some(4), None), FunctionKind::Conventional);
        let buses = Buses { secondary: 1, subordinate: 1 };
        assert_eq!(kind(Some(0), Some(buses)), FunctionKind::ConventionalBridge(buses));
        assert_eq!(kind(Some(15), None), FunctionKind::Conventional);
    }

    #[test]
    fn reads_stay_below_13_a_function_on_a_full_machine() {
        let mut config = Fake::default();
        for device in 0..8 {
            root_port(&mut config, address(0, device, 0), u32::from(device) * 8 + 1, 0x1d);
            for below in 0..32 {
                let at = address(device * 8 + 1, below, 0);
                edu(&mut config, at);
                config.put(at, &[(0x34, 0x40), (0x40, 0x0080_5005), (0x50, 0x0002_0010)]);
            }
        }
        let found = walk(&mut config, ROOT).len();
        assert_eq!(found, 8 + 256);
        assert!(config.reads <= 13 * found, "{} reads", config.reads);
    }

    struct Noise(u64, u32);

    impl ConfigSpace for Noise {
        fn read(&mut self, _: PciAddress, offset: u16) -> u32 {
            assert!(offset.is_multiple_of(4) && offset < 4096);
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let word = u32::try_from(self.0 >> 32).unwrap();
            if word % 16 < self.1 { word } else { u32::MAX }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_content_is_survived(seed: u64, density in 0_u32..=2) {
            let found = walk(&mut Noise(seed, density), ROOT);
            prop_assert!(found.len() <= 65536);
        }
    }
}
