//! Limits how much of the free memory the server takes. A process that takes the last frame stops the kernel.

/// One part in this many of the free memory may become tables. Units cannot do without them.
pub(super) const FOR_TABLES: u64 = 4;

/// One part in this many of the free memory may become buffers.
pub(super) const FOR_BUFFERS: u64 = 8;

/// Whether the server may take `more` bytes besides the `taken` ones, while `free` bytes are free. In all it may take
/// one part in `part` of the bytes that would be free without it.
pub(super) const fn allows(part: u64, free: u64, taken: u64, more: u64) -> bool {
    more <= free && taken.saturating_add(more) <= free.saturating_add(taken) / part
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn no_more_is_taken_than_the_part_allows() {
        // Without the server 64 MiB would be free. A quarter of that is 16 MiB.
        assert!(allows(FOR_TABLES, 50 * MIB, 14 * MIB, 2 * MIB));
        assert!(!allows(FOR_TABLES, 48 * MIB, 16 * MIB, 2 * MIB));
        assert!(!allows(FOR_BUFFERS, 50 * MIB, 14 * MIB, 2 * MIB));
        assert!(!allows(1, MIB, 8 * MIB, 2 * MIB), "there is not so much");
        assert!(!allows(FOR_TABLES, 0, u64::MAX, 1) && !allows(FOR_TABLES, u64::MAX, u64::MAX, 1));
    }

    /// Grows from nothing, step by step, exactly up to the limit.
    #[test]
    fn growing_ends_at_the_part() {
        let (mut free, mut taken) = (100 * MIB, 0);
        while allows(FOR_BUFFERS, free, taken, 4 * MIB) {
            (free, taken) = (free - 4 * MIB, taken + 4 * MIB);
        }
        assert_eq!(taken, 12 * MIB);
    }
}
