//! The whole server over the VT-d backend over the software unit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod few_domains;
#[path = "../server/mod.rs"]
mod server;
mod unproved;

/// VT-d.
mod vendor {
    use iommu_protocol::ids::PciAddress;
    use iommud::hw::RegisterIo;
    use iommud_tests::stack::Stack;

    pub(crate) use iommud_tests::conformance::vtd::{Subject, matrix};
    use iommud_tests::vtd::Config;

    /// Buffer memory at 64 MiB that may be read and written (VT-d 4.1 section 9.8): R and W in bits 0 and 1, PS in bit
    /// 7 (a leaf at level 2 or 3), SNP in bit 11.
    pub(crate) const LEAF_OF_2_MIB: u64 = 0x0400_0883;
    pub(crate) const LEAVES_OF_6_MIB: [u64; 3] = [0x0400_0883, 0x0420_0883, 0x0440_0883];
    pub(crate) const LEAVES_OF_12_KIB: [u64; 3] = [0x0460_0803, 0x0460_1803, 0x0460_2803];
    pub(crate) const FOOTPRINT: &str = "6: 3 of 4 KiB, 3 of 2 MiB";

    /// The leaf that translates an address of a device, and its level, as the unit walks: RTADDR_REG (11.4.5), root
    /// and context entries (9.1, 9.3), second-level tables (9.8).
    pub(crate) fn leaf(stack: &Stack<Subject>, device: PciAddress, iova: u64) -> (u64, u8) {
        let word = |address| stack.machine.with_memory(|memory| memory.cpu_load(address));
        let (bus, function) = (device.requester.0 >> 8, device.requester.0 & 0xff);
        let root = stack.machine.registers(0).read64(0x20) & !0xfff;
        let context = (word(root + u64::from(bus) * 16) & !0xfff) + u64::from(function) * 16;
        let mut table = word(context) & !0xfff;
        let mut level = u8::try_from(word(context + 8) & 7).unwrap() + 2;
        loop {
            let index = iova >> (3 + 9 * level) & 0x1ff;
            let entry = word(table + 8 * index);
            assert_ne!(entry & 3, 0, "{iova:#x} is not mapped");
            if level == 1 || entry & 0x80 != 0 {
                return (entry, level);
            }
            (table, level) = (entry & !0xfff, level - 1);
        }
    }

    /// A few units that the server must treat differently.
    pub(crate) fn subjects() -> Vec<Subject> {
        let names = ["server", "qemu", "qemu, caching mode"];
        let mut all = matrix();
        all.retain(|subject| names.contains(&subject.name));
        // Without large pages the domain of `compat` alone would have a million entries.
        all.push(Subject {
            name: "early, 2 MiB",
            config: Config { large_2m: true, ..Config::early() },
        });
        all
    }

    /// Two different units of one machine.
    pub(crate) fn pair() -> [Subject; 2] {
        ["server", "qemu, caching mode"]
            .map(|name| matrix().into_iter().find(|subject| subject.name == name).unwrap())
    }

    /// The reason of a fault at an absent page (VT-d 4.1 chapter 7: 5h for writes, 6h for reads).
    pub(crate) const fn absent_page(write: bool) -> u16 {
        if write { 5 } else { 6 }
    }
}
