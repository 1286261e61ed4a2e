//! The seal: the last record of each piece of a file. A bit that was changed in the piece shows by it.
//!
//! Records have no check of their own, which would cost each event 13 instructions. A seal costs two instructions a word
//! when the records are taken, after the event was served.

use alloc::vec::Vec;

use super::record::{Kind, RECORD_BYTES, Record, State, Status};
use super::ring::Ring;

/// What a seal says of the records before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Number of records.
    pub records: u64,
    /// Sum of their words, oldest first: rotated to the left by one bit before each is added by exclusive or.
    pub sum: u64,
}

impl Seal {
    /// The seal of these records.
    #[must_use]
    pub fn of(records: &[Record]) -> Self {
        let mut seal = Self::default();
        seal.add(records);
        seal
    }

    fn add(&mut self, records: &[Record]) {
        self.records += u64::try_from(records.len()).unwrap_or(u64::MAX);
        self.sum = records.iter().flatten().fold(self.sum, |sum, word| sum.rotate_left(1) ^ word);
    }

    fn record(self) -> Record {
        let committed = Status::new(State::Committed).to_bits();
        [u64::from(Kind::Seal.code()), 0, self.records, self.sum, 0, 0, 0, committed]
    }
}

/// Takes the records that wait in the ring, as the next bytes of a file: the latest `most` of them, and their seal.
pub fn take_sealed(ring: &mut Ring, most: usize) -> Vec<u8> {
    let mut taken = Vec::new();
    ring.take(|piece| taken.extend_from_slice(piece));
    let latest = taken.get(taken.len().saturating_sub(most)..).unwrap_or_default();
    if latest.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::with_capacity((latest.len() + 1) * RECORD_BYTES);
    let seal = Seal::of(latest).record();
    bytes.extend(latest.iter().chain([&seal]).flatten().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// Reckoned by hand: 1 is rotated 15 more times, 2 is the second word of the second record.
    #[test]
    fn a_seal_has_the_sum_of_all_words_in_their_order() {
        let mut ring = Ring::new(vec![[0; 8]; 5].leak()).unwrap();
        ring.append([1, 0, 0, 0, 0, 0, 0, 0]);
        ring.append([0, 2, 0, 0, 0, 0, 0, 0]);
        let bytes = take_sealed(&mut ring, 9);
        assert_eq!(bytes.len(), 3 * RECORD_BYTES);
        let seal = super::super::records(&bytes)[2];
        assert_eq!(seal, [72, 0, 2, 0x8000 | 2 << 6, 0, 0, 0, 1]);
        assert_eq!(take_sealed(&mut ring, 9), [0; 0]);
    }

    #[test]
    fn the_latest_records_have_a_seal_of_their_own() {
        let mut ring = Ring::new(vec![[0; 8]; 5].leak()).unwrap();
        for number in 1..=3 {
            ring.append([number; 8]);
        }
        let records = super::super::records(&take_sealed(&mut ring, 1));
        assert_eq!((records.len(), records[0], records[1][2]), (2, [3; 8], 1));
    }
}
