//! Writes cache lines back to memory, for units that do not snoop caches when they walk tables.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

use super::order::{_mm_mfence, _mm_sfence};

/// The instruction that writes a line back (Intel SDM volume 2, CLFLUSH, CLFLUSHOPT, CLWB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// MFENCE alone orders it, according to AMD's documentation. Drops the line.
    Clflush,
    /// SFENCE orders it. Drops the line.
    Clflushopt,
    /// SFENCE orders it. May keep the line in the cache.
    Clwb,
}

/// The processor's instruction for writing lines back, and the size of its lines.
#[derive(Clone, Copy, Debug)]
pub struct CacheLines {
    instruction: Instruction,
    /// Bytes of a line, a power of two.
    size: usize,
}

impl CacheLines {
    /// Reads CPUID (Intel SDM volume 2, CPUID). Leaf 1: EBX 15:8 is the size of a line in units of 8 bytes. Leaf 7:
    /// EBX bit 23 is CLFLUSHOPT, bit 24 is CLWB. CLFLUSH is part of x86-64.
    #[must_use]
    pub fn detect() -> Self {
        let highest = __cpuid(0).eax;
        let extended = if highest >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        Self::from_cpuid(__cpuid(1).ebx, extended)
    }

    fn from_cpuid(leaf_1_ebx: u32, leaf_7_ebx: u32) -> Self {
        let instruction = if leaf_7_ebx & 1 << 24 != 0 {
            Instruction::Clwb
        } else if leaf_7_ebx & 1 << 23 != 0 {
            Instruction::Clflushopt
        } else {
            Instruction::Clflush
        };
        let [_, units, ..] = leaf_1_ebx.to_le_bytes();
        let size = usize::from(units) * 8;
        // To flush a line twice is harmless, but to skip one is not. So an implausible size counts as 16 bytes.
        let size = if size.is_power_of_two() && size >= 16 { size } else { 16 };
        Self { instruction, size }
    }

    /// Writes back every line that holds a byte of the range. When this returns, all of them are in memory before any
    /// later store, including stores to registers.
    ///
    /// # Safety
    /// All `length` bytes from `start` on are mapped and readable.
    pub unsafe fn write_back(self, start: *const u8, length: usize) {
        if length == 0 {
            return;
        }
        let skew = start.addr() & (self.size - 1);
        let mut done = 0;
        while done < skew + length {
            let line = start.wrapping_sub(skew).wrapping_add(done);
            // SAFETY: a line is aligned to its size, so it lies in the same page as the byte of the range that it
            // holds. The caller ensures that this page is mapped. Flushing a line changes no value.
            unsafe { self.write_back_line(line) };
            done += self.size;
        }
        self.settle();
    }

    /// Waits until every line that was written back is in memory.
    fn settle(self) {
        if self.instruction == Instruction::Clflush {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { _mm_mfence() }
        } else {
            // SAFETY: SSE is part of x86-64.
            unsafe { _mm_sfence() }
        }
    }

    /// # Safety
    /// The address is mapped.
    unsafe fn write_back_line(self, line: *const u8) {
        #[cfg(test)]
        super::order::note(super::order::Order::Line(line.addr()));
        match self.instruction {
            // SAFETY: CLFLUSH is part of x86-64, and the caller ensures that the address is mapped. The asm block
            // counts as reading and writing memory, so the compiler keeps earlier stores before it.
            Instruction::Clflush => unsafe {
                asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
            },
            // SAFETY: CPUID reports CLFLUSHOPT, and the caller ensures that the address is mapped. The asm block
            // counts as reading and writing memory, so the compiler keeps earlier stores before it.
            Instruction::Clflushopt => unsafe {
                asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
            },
            // SAFETY: CPUID reports CLWB, and the caller ensures that the address is mapped. The asm block counts as
            // reading and writing memory, so the compiler keeps earlier stores before it.
            Instruction::Clwb => unsafe {
                asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_bits_choose_the_instruction() {
        // EBX of leaf 1 on a processor with 64-byte lines: 8 in bits 15:8.
        let lines = |leaf_7| CacheLines::from_cpuid(0x0010_0800, leaf_7);
        assert_eq!(lines(0).instruction, Instruction::Clflush);
        assert_eq!(lines(0x0080_0000).instruction, Instruction::Clflushopt);
        assert_eq!(lines(0x0180_0000).instruction, Instruction::Clwb);
        assert_eq!(lines(0).size, 64);
        assert_eq!(CacheLines::from_cpuid(0, 0).size, 16);
    }

    #[test]
    fn every_instruction_this_processor_has_leaves_memory_as_it_is() {
        let detected = CacheLines::detect();
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let copy = bytes.clone();
        for (start, length) in [(0, 1000), (1, 999), (63, 2), (64, 64), (999, 1), (500, 0)] {
            // SAFETY: the range lies in `bytes`.
            unsafe { detected.write_back(bytes.as_ptr().wrapping_add(start), length) }
        }
        assert_eq!(bytes, copy);
    }

    /// A fence that orders the instruction stands between a write-back and every later store, to registers too.
    #[test]
    fn lines_are_in_memory_when_a_write_back_is_over() {
        use crate::platform::order::{Order, record};

        #[repr(align(64))]
        struct Lines([u8; 192]);

        let lines = Lines([0; 192]);
        let line = |number: usize| Order::Line(lines.0.as_ptr().addr() + 64 * number);
        let write_back = |with: CacheLines, start: usize, length| {
            // SAFETY: the range lies in `lines`.
            record(|| unsafe { with.write_back(lines.0.as_ptr().wrapping_add(start), length) })
        };
        let flush = CacheLines { instruction: Instruction::Clflush, size: 64 };
        assert_eq!(write_back(flush, 60, 5), [line(0), line(1), Order::Full]);
        assert_eq!(write_back(flush, 64, 128), [line(1), line(2), Order::Full]);
        let found = CacheLines { size: 64, ..CacheLines::detect() };
        let last =
            if found.instruction == Instruction::Clflush { Order::Full } else { Order::Stores };
        assert_eq!(write_back(found, 0, 64), [line(0), last]);
        // The fence is checked even if this processor has neither instruction.
        for instruction in [Instruction::Clflushopt, Instruction::Clwb] {
            let lines = CacheLines { instruction, size: 64 };
            assert_eq!(record(|| lines.settle()), [Order::Stores], "{instruction:?}");
        }
    }
}
