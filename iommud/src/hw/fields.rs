//! Parts of a word of 64 bits, as the bit layouts of both vendors name them.

/// The `width` bits of `word` from bit `low` on. `width` is 1 to 63.
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
