// Content of the disk: every byte shows its position. Shared by xtask, which writes it, and the guest.

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;

/// Sectors of the disk: 16 MiB.
pub(crate) const SECTORS: u64 = 32768;

/// Returns the bytes of a sector: its number, little endian, then bytes that differ from sector to sector.
pub(crate) fn sector(number: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        [*byte, ..] = state.to_le_bytes();
    }
    for (byte, part) in bytes.iter_mut().zip(number.to_le_bytes()) {
        *byte = part;
    }
    bytes
}
