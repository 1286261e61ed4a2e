//! Bit layouts of AMD-Vi, and nothing else: "AMD I/O Virtualization Technology (IOMMU) Specification",
//! 48882, revision 3.10. Names are the specification's.

#![allow(dead_code, reason = "the layouts are complete; what is used of them is not")]

pub(super) mod capability;
pub(super) mod command;
pub(super) mod device;
pub(super) mod event;
pub(super) mod page;
pub(super) mod registers;

/// Bits 51:12 of a word: every table address of AMD-Vi.
pub(super) const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;

/// The `width` bits of `word` from bit `low` on.
pub(super) const fn bits(word: u64, low: u32, width: u32) -> u64 {
    (word >> low) & ((1 << width) - 1)
}

/// The low 16 bits of `word >> low`.
pub(super) const fn half(word: u64, low: u32) -> u16 {
    let [first, second, ..] = (word >> low).to_le_bytes();
    u16::from_le_bytes([first, second])
}

/// The low 8 bits of `word >> low`.
pub(super) const fn byte(word: u64, low: u32) -> u8 {
    let [first, ..] = (word >> low).to_le_bytes();
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_word() {
        const WORD: u64 = 0xfedc_ba98_7654_3210;
        assert_eq!([bits(WORD, 0, 4), bits(WORD, 60, 4), bits(WORD, 9, 3)], [0, 0xf, 1]);
        assert_eq!([half(WORD, 0), half(WORD, 16), half(WORD, 36)], [0x3210, 0x7654, 0xcba9]);
        assert_eq!([byte(WORD, 0), byte(WORD, 8), byte(WORD, 60)], [0x10, 0x32, 0x0f]);
    }
}
