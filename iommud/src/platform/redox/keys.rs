//! Unpredictable keys, from a seed that is read once. Later the server has no name space, and a daemon for randomness
//! might keep it waiting.

/// Keys from the stream of ChaCha20 (RFC 8439 section 2.3): the first 16 bytes of each block.
#[derive(Clone)]
pub(super) struct Keys {
    seed: [u32; 8],
    /// Number of the block for the next key.
    next: u64,
}

/// "expand 32-byte k" (RFC 8439 section 2.3).
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The words of each quarter round: the columns, then the diagonals (RFC 8439 section 2.3.1).
const ROUNDS: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];

impl Keys {
    /// Keys that are determined by `seed` alone.
    #[must_use]
    pub(super) fn new(seed: [u8; 32]) -> Self {
        let (words, _) = seed.as_chunks::<4>();
        let mut seed = [0; 8];
        for (place, word) in seed.iter_mut().zip(words) {
            *place = u32::from_le_bytes(*word);
        }
        Self { seed, next: 0 }
    }

    /// Makes a key that was not returned before.
    #[must_use]
    pub(super) fn make(&mut self) -> [u8; 16] {
        let (low, high) = (self.next & 0xffff_ffff, self.next >> 32);
        self.next = self.next.wrapping_add(1);
        let word = |half| u32::try_from(half).unwrap_or(0);
        let block = block(&self.seed, [word(low), word(high), 0, 0]);
        let mut key = [0; 16];
        for (place, word) in key.as_chunks_mut::<4>().0.iter_mut().zip(block) {
            *place = word.to_le_bytes();
        }
        key
    }
}

/// Computes a block of the stream. The second argument is the last four words of the state: counter and nonce.
fn block(seed: &[u32; 8], [w12, w13, w14, w15]: [u32; 4]) -> [u32; 16] {
    let [c0, c1, c2, c3] = CONSTANTS;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = *seed;
    let start = [c0, c1, c2, c3, s0, s1, s2, s3, s4, s5, s6, s7, w12, w13, w14, w15];
    let mut state = start;
    for _ in 0..10 {
        ROUNDS.iter().for_each(|round| quarter(&mut state, *round));
    }
    let mut sum = [0; 16];
    for (place, (mixed, begun)) in sum.iter_mut().zip(state.iter().zip(start)) {
        *place = mixed.wrapping_add(begun);
    }
    sum
}

/// Applies a quarter round to four different words (RFC 8439 section 2.1).
fn quarter(state: &mut [u32; 16], places: [usize; 4]) {
    let Ok([a, b, c, d]) = state.get_disjoint_mut(places) else { return };
    for (left, right) in [(16, 12), (8, 7)] {
        *a = a.wrapping_add(*b);
        *d = (*d ^ *a).rotate_left(left);
        *c = c.wrapping_add(*d);
        *b = (*b ^ *c).rotate_left(right);
    }
}

/// Omits the seed, which is secret.
impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Keys").field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> [u8; 32] {
        core::array::from_fn(|index| u8::try_from(index).unwrap())
    }

    /// The example of RFC 8439 section 2.3.2.
    #[test]
    fn a_block_is_the_rfc_s() {
        let keys = Keys::new(seed());
        let block = block(&keys.seed, [1, 0x0900_0000, 0x4a00_0000, 0]);
        assert_eq!(block[..4], [0xe4e7_f110, 0x1559_3bd1, 0x1fdd_0f50, 0xc471_20a3]);
        assert_eq!(block[12..], [0xd19c_12b5, 0xb94e_16de, 0xe883_d0cb, 0x4e3c_50a2]);
    }

    #[test]
    fn no_key_comes_twice_and_another_seed_has_others() {
        let (mut keys, mut others) = (Keys::new(seed()), Keys::new([7; 32]));
        let mut seen: Vec<_> = (0..1000).flat_map(|_| [keys.make(), others.make()]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 2000);
        keys.next = 1 << 32;
        assert!(!seen.contains(&keys.make()));
        assert!(!format!("{keys:?}").contains("seed"));
    }
}
