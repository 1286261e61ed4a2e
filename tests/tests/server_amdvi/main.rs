//! The whole server over the AMD-Vi backend over the software unit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod alias;
#[path = "../server/mod.rs"]
mod server;

/// AMD-Vi.
mod vendor {
    use iommu_protocol::ids::PciAddress;
    use iommud::hw::RegisterIo;
    use iommud_tests::stack::Stack;

    pub(crate) use iommud_tests::conformance::amdvi::{Subject, matrix};

    /// Buffer memory at 64 MiB that may be read and written (48882 section 2.2.3; Linux IOMMU_PTE_PR 0, IOMMU_PTE_FC 60,
    /// IOMMU_PTE_IR 61, IOMMU_PTE_IW 62). Next level 0 is a page of the level's size. Next level 7 (bits 11:9) is one
    /// over several slots: the lowest clear address bit says its size.
    pub(crate) const LEAF_OF_2_MIB: u64 = 0x7000_0000_0400_0001;
    /// 4 MiB over two slots, and 2 MiB.
    pub(crate) const LEAVES_OF_6_MIB: [u64; 3] =
        [0x7000_0000_041f_fe01, 0x7000_0000_041f_fe01, 0x7000_0000_0440_0001];
    /// 8 KiB over two slots, and 4 KiB.
    pub(crate) const LEAVES_OF_12_KIB: [u64; 3] =
        [0x7000_0000_0460_0e01, 0x7000_0000_0460_0e01, 0x7000_0000_0460_2001];
    pub(crate) const FOOTPRINT: &str = "4: 1 of 4 KiB, 1 of 8 KiB, 1 of 2 MiB, 1 of 4 MiB";

    /// The leaf that translates an address of a device, and the level of its table, as the unit walks: device table
    /// (base in register 0, 32 bytes an entry, 2.2.2), mode in bits 11:9, then next levels in the same bits (2.2.3).
    pub(crate) fn leaf(stack: &Stack<Subject>, device: PciAddress, iova: u64) -> (u64, u8) {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let word = |address| stack.machine.with_memory(|memory| memory.cpu_load(address));
        let root = stack.machine.registers(0).read64(0) & ADDRESS;
        let mut entry = word(root + u64::from(device.requester.0) * 32);
        loop {
            let level = u8::try_from(entry >> 9 & 7).unwrap();
            let index = iova >> (3 + 9 * level) & 0x1ff;
            entry = word((entry & ADDRESS) + 8 * index);
            assert_eq!(entry & 1, 1, "{iova:#x} is not mapped");
            if matches!(entry >> 9 & 7, 0 | 7) {
                return (entry, level);
            }
        }
    }

    /// A few units that the server must treat differently.
    pub(crate) fn subjects() -> Vec<Subject> {
        let names = ["server", "qemu", "early, not snooping, absent entries cached"];
        let mut all = matrix();
        all.retain(|subject| names.contains(&subject.name));
        all
    }

    /// Two different units of one machine.
    pub(crate) fn pair() -> [Subject; 2] {
        ["server", "server, not snooping"]
            .map(|name| matrix().into_iter().find(|subject| subject.name == name).unwrap())
    }

    /// The reason of a fault at an absent page: IO_PAGE_FAULT, code 2 (48882 section 2.5.2).
    pub(crate) const fn absent_page(_write: bool) -> u16 {
        2
    }
}
