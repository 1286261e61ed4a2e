//! The trait through which the controller's registers are reached.

use iommu_client::platform::Memory;

/// Registers of a controller. Offsets in bytes; `None` outside of them.
pub trait Registers {
    /// Reads 32 bits.
    fn read32(&self, offset: u64) -> Option<u32>;
    /// Reads 64 bits.
    fn read64(&self, offset: u64) -> Option<u64>;
    /// Writes 32 bits. Earlier stores to memory are visible to the controller before this write.
    fn write32(&mut self, offset: u64, value: u32) -> Option<()>;
    /// Writes 64 bits.
    fn write64(&mut self, offset: u64, value: u64) -> Option<()>;
}

impl Registers for Memory {
    fn read32(&self, offset: u64) -> Option<u32> {
        self.read_u32(offset)
    }

    fn read64(&self, offset: u64) -> Option<u64> {
        self.read_u64(offset)
    }

    fn write32(&mut self, offset: u64, value: u32) -> Option<()> {
        // Stores to the rings come before the doorbell that announces them.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.write_u32(offset, value)
    }

    fn write64(&mut self, offset: u64, value: u64) -> Option<()> {
        self.write_u64(offset, value)
    }
}
