//! Halves of a word of configuration space.

/// The low 16 bits.
pub(super) const fn low(word: u32) -> u16 {
    let [a, b, _, _] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The high 16 bits.
pub(super) const fn high(word: u32) -> u16 {
    low(word >> 16)
}
