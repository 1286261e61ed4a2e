//! Registers of a unit.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use super::mapping::{Mapping, Sharing};
use super::order::fence;
use crate::addr::{PAGE_SIZE, PhysRange};
use crate::hw::RegisterIo;

/// The registers of one unit, uncached. An access that is not aligned to its size is treated like one outside.
#[derive(Debug)]
pub struct Registers {
    mapping: Mapping,
    /// Bytes from the start of the mapping to the first register.
    skew: usize,
    /// Bytes from the first register to the end.
    length: usize,
}

impl Registers {
    /// Maps `range` of `memory`. The file's offsets are physical addresses, and its mappings are uncached.
    ///
    /// # Errors
    /// The error of the system's mmap.
    pub fn over(memory: BorrowedFd<'_>, range: PhysRange) -> io::Result<Self> {
        let start = range.first().0 & !(PAGE_SIZE - 1);
        let skew = to_usize(range.first().0 - start)?;
        let length = to_usize(range.length())?;
        let whole = (skew + length).next_multiple_of(to_usize(PAGE_SIZE)?);
        let mapping = Mapping::new(memory, start, whole, Sharing::Shared)?;
        Ok(Self { mapping, skew, length })
    }

    /// The offset in the mapping of the register at `offset`. `None` when `size` bytes from there are not all
    /// registers.
    fn at(&self, offset: u32, size: usize) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        (offset.checked_add(size)? <= self.length).then_some(self.skew + offset)
    }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl RegisterIo for Registers {
    fn read32(&mut self, offset: u32) -> u32 {
        self.at(offset, 4).and_then(|at| self.mapping.read32(at)).unwrap_or(u32::MAX)
    }

    fn read64(&mut self, offset: u32) -> u64 {
        self.at(offset, 8).and_then(|at| self.mapping.read64(at)).unwrap_or(u64::MAX)
    }

    fn write32(&mut self, offset: u32, value: u32) {
        // The processor keeps stores in order, to uncached memory too. The fence makes the compiler do the same.
        fence(Ordering::SeqCst);
        if let Some(at) = self.at(offset, 4) {
            self.mapping.write32(at, value);
        }
    }

    fn write64(&mut self, offset: u32, value: u64) {
        fence(Ordering::SeqCst);
        if let Some(at) = self.at(offset, 8) {
            self.mapping.write64(at, value);
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::platform::order::{Order, record};
    use std::os::fd::AsFd;

    fn registers() -> Registers {
        let file = rustix::fs::memfd_create("registers", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, 8192, Sharing::Shared).unwrap();
        Registers { mapping, skew: 0x100, length: 0x1000 }
    }

    /// Data that a unit reads from memory is stored before the register write that makes the unit read it.
    #[test]
    fn every_store_to_a_register_comes_behind_a_fence() {
        let mut registers = registers();
        let order = record(|| {
            registers.write32(0x18, 1);
            registers.write64(0x20, 1);
        });
        let fence = Order::Fence(Ordering::SeqCst);
        assert_eq!(order, [fence, Order::Store(0x118), fence, Order::Store(0x120)]);
    }

    #[test]
    fn outside_reads_ones_and_ignores_writes() {
        let mut registers = registers();
        registers.write64(0xff8, 0x1122_3344_5566_7788);
        assert_eq!(registers.read64(0xff8), 0x1122_3344_5566_7788);
        assert_eq!(registers.mapping.read64(0x10f8), Some(0x1122_3344_5566_7788));
        registers.write32(0x1000, 7);
        registers.write64(0xffc, 7);
        registers.write32(u32::MAX, 7);
        assert_eq!(registers.mapping.read32(0x1100), Some(0));
        assert_eq!(registers.read32(0xffc), 0x1122_3344);
        assert_eq!(registers.read32(0x1000), u32::MAX);
        assert_eq!(registers.read64(0xffc), u64::MAX);
        assert_eq!(registers.read64(u32::MAX), u64::MAX);
    }
}
