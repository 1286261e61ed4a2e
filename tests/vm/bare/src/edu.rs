//! QEMU's edu device (QEMU docs/specs/edu.rst).

use iommu_protocol::ids::RequesterId;

use crate::cpu::{nanos, pause};
use crate::{pci, phys};

const DEVICE_BUFFER: u64 = 0x40000;
/// The most bytes that one DMA may copy. QEMU before 10 ends the whole machine when a DMA touches the last of the
/// buffer's 4096 bytes.
pub const MAX_COUNT: u64 = 4088;

/// One edu device.
#[derive(Clone, Copy)]
pub struct Edu {
    /// Its requester id.
    pub id: RequesterId,
    bar: u64,
}

impl Edu {
    /// Finds and enables every edu device.
    pub fn all() -> impl Iterator<Item = Self> {
        pci::find(0x1234, 0x11e8).into_iter().map(|id| {
            pci::enable(id);
            Self { id, bar: pci::bar(id, 0) }
        })
    }

    /// The identification register.
    pub fn identification(self) -> u32 {
        phys::read32(self.bar)
    }

    /// Makes the device interrupt once.
    pub fn raise_interrupt(self) {
        phys::write32(self.bar + 0x60, 1);
        phys::write32(self.bar + 0x64, 1);
    }

    /// Copies memory at bus address `address` into the device's buffer.
    pub fn read_memory(self, address: u64, count: u64) {
        self.copy(address, DEVICE_BUFFER, count, 1);
    }

    /// Copies the device's buffer to memory at bus address `address`.
    pub fn write_memory(self, address: u64, count: u64) {
        self.copy(DEVICE_BUFFER, address, count, 3);
    }

    fn copy(self, source: u64, destination: u64, count: u64, command: u64) {
        assert!((1..=MAX_COUNT).contains(&count), "edu can't copy {count} bytes");
        phys::write64(self.bar + 0x80, source);
        phys::write64(self.bar + 0x88, destination);
        phys::write64(self.bar + 0x90, count);
        phys::write64(self.bar + 0x98, command);
        let deadline = nanos() + 1_000_000_000;
        while phys::read64(self.bar + 0x98) & 1 != 0 {
            assert!(nanos() < deadline, "a DMA has not ended after 1 s");
            pause();
        }
    }

    /// Fills the device's buffer with memory at bus address `address`.
    pub fn load_from(self, address: u64) {
        self.read_memory(address, MAX_COUNT);
    }

    /// Fills the device's buffer with `value`, through memory at `scratch`, which the device must be able to reach.
    pub fn load(self, scratch: u64, value: u64) {
        phys::fill(scratch, 4096, value);
        self.read_memory(scratch, MAX_COUNT);
    }
}
