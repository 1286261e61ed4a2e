//! The pool of buffer memory.

use super::*;
use proptest::prelude::*;

const ANY: Constraints = Constraints {
    below_4g: false,
    contiguous: false,
    alignment: 0,
    boundary: 0,
    written_back: false,
    account: 0,
};

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// Two chunks of two lots: the first at 4 GiB, the second at 64 KiB.
fn pool() -> Pool {
    Pool::new(&[range(1 << 32, 0x2_0000), range(0x1_0000, 0x2_0000)])
}

/// Anything of an account's.
const fn of(account: u32) -> Constraints {
    Constraints { account, ..ANY }
}

#[test]
fn runs_do_not_overlap_and_come_back() {
    let mut pool = pool();
    assert_eq!(pool.allocate(1, 0x1_3000, ANY), Ok(vec![range(1 << 32, 0x1_3000)]));
    assert_eq!(pool.allocate(2, 0xd000, ANY), Ok(vec![range((1 << 32) + 0x1_3000, 0xd000)]));
    assert_eq!(pool.allocate(3, 0x2000, ANY), Ok(vec![range(0x1_0000, 0x2000)]));
    assert_eq!(pool.pages(3), Some(32..34));
    assert_eq!(pool.allocate(4, 0x1_1000, ANY), Err(MemoryError::Exhausted));
    assert_eq!(pool.allocate(3, 0x1000, ANY), Err(MemoryError::Constraints));
    assert_eq!(pool.release(1), Some(0..19));
    assert_eq!(pool.release(1), None);
    assert_eq!(pool.allocate(1, 1, ANY), Ok(vec![range((1 << 32) + 0x1_0000, 0x1000)]));
}

#[test]
fn constraints_are_met_or_refused() {
    let check = |length, constraints, expected: Result<u64, MemoryError>| {
        let found = pool().allocate(1, length, constraints);
        let expected = expected.map(|first| vec![range(first, length)]);
        assert_eq!(found, expected, "{length:#x} {constraints:?}");
    };
    check(0x1000, Constraints { below_4g: true, ..ANY }, Ok(0x1_0000));
    check(0x2_0000, Constraints { contiguous: true, ..ANY }, Ok(1 << 32));
    check(0x2_1000, Constraints { contiguous: true, ..ANY }, Err(MemoryError::Constraints));
    check(0x1000, Constraints { alignment: 1 << 33, ..ANY }, Err(MemoryError::Constraints));
    let low = Constraints { below_4g: true, contiguous: true, ..ANY };
    check(0x2000, Constraints { alignment: 0x2_0000, ..low }, Ok(0x2_0000));
    check(0x4000, Constraints { boundary: 0x2000, ..low }, Err(MemoryError::Constraints));
    check(0x4_1000, ANY, Err(MemoryError::Constraints));
    check(0, ANY, Err(MemoryError::Constraints));
}

/// Within a lot too.
#[test]
fn constraints_are_met_in_a_lot_that_is_in_use() {
    let mut pool = pool();
    let low = Constraints { below_4g: true, contiguous: true, ..ANY };
    assert_eq!(pool.allocate(1, 0x1000, low), Ok(vec![range(0x1_0000, 0x1000)]));
    let aligned = Constraints { alignment: 0x4000, ..low };
    assert!(pool.has_room(0x1000, aligned));
    assert_eq!(pool.allocate(2, 0x1000, aligned), Ok(vec![range(0x1_4000, 0x1000)]));
    let bounded = Constraints { boundary: 0x8000, ..low };
    assert_eq!(pool.allocate(3, 0x4000, bounded), Ok(vec![range(0x1_8000, 0x4000)]));
    assert!(!pool.has_room(0x5000, low), "0x1_1000 to 0x1_3fff, 0x1_5000 to 0x1_7fff, 0x1_c000 on");
    assert!(!pool.has_room(0x1000, Constraints { account: 1, ..low }), "another one's");
}

#[test]
fn a_run_that_straddles_chunks_is_pieced_in_order() {
    let mut pool = pool();
    let pieces = pool.allocate(9, 0x4_0000, ANY).unwrap();
    assert_eq!(pieces, [range(1 << 32, 0x2_0000), range(0x1_0000, 0x2_0000)]);
}

/// What may lie anywhere lies above 4 GiB first: lots below are for what may not.
#[test]
fn low_lots_are_kept_for_those_who_need_them() {
    let mut pool = Pool::new(&[range(0x1_0000, 0x2_0000), range(1 << 32, 0x2_0000)]);
    let low = |account| Constraints { below_4g: true, account, ..ANY };
    assert_eq!(pool.allocate(1, 0x1000, of(1)), Ok(vec![range(1 << 32, 0x1000)]));
    assert_eq!(pool.allocate(2, 0x1000, of(2)), Ok(vec![range((1 << 32) + 0x1_0000, 0x1000)]));
    assert_eq!(pool.allocate(3, 0x1000, low(3)), Ok(vec![range(0x1_0000, 0x1000)]));
    assert_eq!(pool.allocate(4, 0x1000, of(4)), Ok(vec![range(0x2_0000, 0x1000)]), "the last one");
    assert_eq!(pool.allocate(5, 0x1000, low(5)), Err(MemoryError::Exhausted));
}

/// A lot is one account's from its first buffer on until its last one is released.
#[test]
fn lots_are_of_one_account_each() {
    let mut pool = Pool::new(&[range(0x10_0000, 0x3_0000)]);
    assert!(!pool.has_room(0x1000, of(1)));
    assert_eq!(pool.allocate(1, 0x1000, of(1)), Ok(vec![range(0x10_0000, 0x1000)]));
    assert_eq!(pool.allocate(2, 0x1000, of(2)), Ok(vec![range(0x11_0000, 0x1000)]));
    assert_eq!(pool.allocate(3, 0x1000, of(1)), Ok(vec![range(0x10_1000, 0x1000)]));
    assert_eq!(pool.allocate(4, 0x1_0000, of(3)), Ok(vec![range(0x12_0000, 0x1_0000)]));
    assert_eq!(pool.allocate(5, 0x1000, of(3)), Err(MemoryError::Exhausted), "its lot is full");
    assert!(pool.has_room(0xe000, of(1)) && !pool.has_room(0xf000, of(1)));
    pool.release(1).unwrap();
    assert_eq!(pool.allocate(5, 0x1000, of(3)), Err(MemoryError::Exhausted));
    pool.release(3).unwrap();
    assert!(!pool.has_room(0x1000, of(1)));
    assert_eq!(pool.allocate(5, 0x1_0000, of(3)), Ok(vec![range(0x10_0000, 0x1_0000)]));
}

/// A chunk that comes later is the end of the last free run, and of the last piece of memory if it is its next.
#[test]
fn a_chunk_is_added_behind_the_others() {
    let mut pool = pool();
    assert_eq!(pool.allocate(1, 0x3_0000, ANY).map(|pieces| pieces.len()), Ok(2));
    pool.add(range(0x3_0000, 0x1_0000));
    pool.add(range(0x8_0000, 0x2_0000));
    let pieces = pool.allocate(2, 0x3_1000, ANY);
    assert_eq!(pieces, Ok(vec![range(0x2_0000, 0x2_0000), range(0x8_0000, 0x1_1000)]));
    assert_eq!(pool.pages(2), Some(48..97));
    assert_eq!(pool.allocate(3, 0x1000, of(1)), Err(MemoryError::Exhausted));
    pool.add(range(0x10_0000, 0x1_0000));
    assert_eq!(pool.allocate(3, 0x1000, of(1)), Ok(vec![range(0x10_0000, 0x1000)]));
}

/// Chunks that are no multiple of a lot, or lie askew, have no lots there.
#[test]
fn only_whole_lots_are_used() {
    let mut pool = Pool::new(&[range(0x1_0000, 0x1_8000), range(0x100_0000, 0x4_0000)]);
    assert_eq!(pool.allocate(1, 0x1_0000, ANY), Ok(vec![range(0x1_0000, 0x1_0000)]));
    assert_eq!(pool.allocate(2, 0x1000, ANY), Err(MemoryError::Exhausted));
    let mut pool = Pool::new(&[range(0x1_8000, 0x4_0000)]);
    assert!(pool.allocate(1, 0x1000, ANY).is_err());
}

/// The pool of a large machine: 256 MiB in chunks of 4 MiB, no two of which are one piece of physical memory.
const CHUNKS: u64 = 64;
const CHUNK: u64 = 4 << 20;

fn large() -> Pool {
    let chunks: Vec<_> = (0..CHUNKS).map(|n| range(CHUNK + 2 * n * CHUNK, CHUNK)).collect();
    Pool::new(&chunks)
}

/// What one more allocation comes to, and how many steps it takes.
fn measured(
    pool: &mut Pool,
    length: u64,
    constraints: Constraints,
) -> (Result<Vec<PhysRange>, MemoryError>, u64) {
    let before = pool.steps();
    let result = pool.allocate(u32::MAX, length, constraints);
    (result, pool.steps() - before)
}

/// One that tells every kind of constraint.
const HARD: Constraints = Constraints {
    below_4g: true,
    contiguous: true,
    alignment: 0x1_0000,
    boundary: 0x40_0000,
    ..ANY
};

const MIB: u64 = 1 << 20;

/// The pieces of a buffer of 5 MiB and 64 KiB in memory of these chunks.
fn pieces_of_5_mib(chunks: &[PhysRange]) -> Vec<PhysRange> {
    Pool::new(chunks).allocate(1, 5 * MIB + LOT, ANY).unwrap()
}

/// Buffers of 2 MiB and more lie where large leaves map them.
#[test]
fn large_buffers_lie_at_multiples_of_2_mib() {
    // One chunk that begins a lot behind a multiple of 2 MiB.
    let chunk = range(4 * MIB + LOT, 16 * MIB);
    assert_eq!(pieces_of_5_mib(&[chunk]), [range(6 * MIB, 5 * MIB + LOT)]);
    // The kernel's chunks of 4 MiB: each is a multiple of 2 MiB.
    let apart = [range(64 * MIB, 4 * MIB), range(128 * MIB, 4 * MIB)];
    let expected = [range(64 * MIB, 4 * MIB), range(128 * MIB, MIB + LOT)];
    assert_eq!(pieces_of_5_mib(&apart), expected);
    // Behind a chunk of 1 MiB the second multiple of 2 MiB would begin inside of a chunk: it begins in the next one.
    let odd = [range(32 * MIB, 2 * MIB), range(40 * MIB, MIB), apart[0], apart[1]];
    assert_eq!(pieces_of_5_mib(&odd), expected);
    // An odd chunk that has less than 2 MiB of the buffer, at its end, does not matter.
    let odd_end = [range(64 * MIB, 4 * MIB), range(40 * MIB + LOT, 2 * MIB)];
    let expected = [range(64 * MIB, 4 * MIB), range(40 * MIB + LOT, MIB + LOT)];
    assert_eq!(pieces_of_5_mib(&odd_end), expected);
}

/// Without such memory they lie anywhere, and they take the same lots in every case.
#[test]
fn large_buffers_lie_anywhere_when_they_must() {
    let chunk = range(4 * MIB + LOT, 6 * MIB);
    assert_eq!(pieces_of_5_mib(&[chunk]), [range(4 * MIB + LOT, 5 * MIB + LOT)]);
    for start in [4 * MIB, 4 * MIB + LOT] {
        let mut pool = Pool::new(&[range(start, 8 * MIB)]);
        pool.allocate(1, 2 * MIB, ANY).unwrap();
        // What is left before and behind it is there for others, in lots: none is lost.
        let count = (2..).take_while(|id| pool.allocate(*id, LOT, of(*id)).is_ok()).count();
        assert_eq!(count, 96, "from {start:#x}");
    }
    // Without a unit they lie where they are wanted.
    let mut pool = Pool::new(&[range(4 * MIB + LOT, 16 * MIB)]);
    let plain = Constraints { contiguous: true, ..ANY };
    assert_eq!(pool.allocate(1, 2 * MIB, plain), Ok(vec![range(4 * MIB + LOT, 2 * MIB)]));
    // Those above 4 GiB come first, as for others.
    let mut pool = Pool::new(&[range(8 * MIB, 4 * MIB), range((4 << 30) + LOT, 4 * MIB)]);
    assert_eq!(pool.allocate(1, 2 * MIB, ANY), Ok(vec![range((4 << 30) + 2 * MIB, 2 * MIB)]));
    assert_eq!(
        pool.allocate(2, 2 * MIB - LOT, ANY),
        Ok(vec![range((4 << 30) + LOT, 2 * MIB - LOT)])
    );
    assert_eq!(pool.allocate(3, 2 * MIB, ANY), Ok(vec![range(8 * MIB, 2 * MIB)]));
}

#[test]
fn a_refusal_by_a_full_pool_of_256_mib_takes_few_steps() {
    let mut pool = large();
    pool.allocate(1, CHUNKS * CHUNK, ANY).unwrap();
    for constraints in [ANY, HARD] {
        let (result, steps) = measured(&mut pool, PAGE_SIZE, constraints);
        assert_eq!(result, Err(MemoryError::Exhausted));
        // No lot is empty, none has room; the first extent shows that the request is possible.
        assert!(steps <= 4, "{steps} steps");
    }
}

#[test]
fn a_refusal_for_a_constraint_looks_at_each_extent_a_few_times() {
    let mut pool = large();
    let contiguous = Constraints { contiguous: true, ..ANY };
    let aligned = Constraints { alignment: 1 << 40, ..ANY };
    let bounded = Constraints { boundary: 8192, ..ANY };
    for (length, constraints) in
        [(2 * CHUNK, contiguous), (PAGE_SIZE, aligned), (3 * CHUNK, bounded)]
    {
        let (result, steps) = measured(&mut pool, length, constraints);
        assert_eq!(result, Err(MemoryError::Constraints), "{constraints:?}");
        // Twice through the pool: as it is, and as if it were empty.
        assert!(steps <= 2 * 3 * CHUNKS + 1, "{steps} steps {constraints:?}");
    }
}

/// Every second piece is free: pieces of 1 MiB, or of a lot, of other accounts; then single pages of one account.
#[test]
fn a_refusal_by_a_fragmented_pool_of_256_mib_is_linear_in_its_free_runs() {
    for piece in [1 << 20, LOT, PAGE_SIZE] {
        let mut pool = large();
        let count = CHUNKS * CHUNK / piece;
        let ids = 0..u32::try_from(count).unwrap();
        let account = |id| if piece < LOT { 0 } else { id };
        ids.clone().for_each(|id| drop(pool.allocate(id, piece, of(account(id))).unwrap()));
        for id in ids.step_by(2) {
            pool.release(id).unwrap();
        }
        let contiguous = Constraints { contiguous: true, ..ANY };
        let aligned = Constraints { alignment: 1 << 40, ..ANY };
        for (length, constraints, expected) in [
            (2 * piece, ANY, MemoryError::Exhausted),
            (2 * piece, contiguous, MemoryError::Exhausted),
            (piece, aligned, MemoryError::Constraints),
        ] {
            let (result, steps) = measured(&mut pool, length, constraints);
            assert_eq!(result, Err(expected), "{constraints:?}");
            assert!(steps <= 3 * count / 2 + 3 * CHUNKS, "{steps} steps {constraints:?}");
        }
    }
}

/// Memory on both sides of 4 GiB is searched twice: its high lots, then all.
#[test]
fn a_search_of_high_lots_first_costs_as_much_again() {
    let chunks: Vec<_> = (0..CHUNKS).map(|n| range((960 + 2 * n) * CHUNK, CHUNK)).collect();
    let mut pool = Pool::new(&chunks);
    let ids = 0..u32::try_from(CHUNKS * CHUNK / LOT).unwrap();
    ids.clone().for_each(|id| drop(pool.allocate(id, LOT, of(id)).unwrap()));
    for id in ids.clone().step_by(2) {
        pool.release(id).unwrap();
    }
    let (result, steps) = measured(&mut pool, 2 * LOT, ANY);
    assert_eq!(result, Err(MemoryError::Exhausted));
    let free = u64::from(ids.end) / 2;
    assert!(steps <= 2 * (2 * free + CHUNKS) + CHUNKS, "{steps} steps");
}

/// Which run a search over every start position would find: the plain way to say what [`Pool`] does.
fn plain(frames: &[u64], used: &[bool], count: usize, constraints: Constraints) -> Option<usize> {
    let starts = 0..(frames.len() + 1).checked_sub(count)?;
    starts.into_iter().find(|start| {
        let run = &frames[*start..start + count];
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for frame in run {
            match pieces.last_mut() {
                Some((_, end)) if *end == *frame => *end += PAGE_SIZE,
                _ => pieces.push((*frame, frame + PAGE_SIZE)),
            }
        }
        let low = |(_, end): &(u64, u64)| !constraints.below_4g || *end <= 1 << 32;
        let within = |(first, end): &(u64, u64)| {
            constraints.boundary == 0
                || first / constraints.boundary == (end - 1) / constraints.boundary
        };
        used[*start..start + count].iter().all(|used| !used)
            && (!constraints.contiguous || pieces.len() == 1)
            && run[0].is_multiple_of(constraints.alignment.max(PAGE_SIZE))
            && pieces.iter().all(|piece| low(piece) && within(piece))
    })
}

fn constraints() -> impl Strategy<Value = Constraints> {
    let powers = || prop_oneof![Just(0), (9_u32..18).prop_map(|bits| 1 << bits)];
    (any::<bool>(), any::<bool>(), powers(), powers()).prop_map(
        |(below_4g, contiguous, alignment, boundary)| Constraints {
            below_4g,
            contiguous,
            alignment,
            boundary,
            ..ANY
        },
    )
}

/// The model of a pool: where each page is, and whose.
struct Plain {
    frames: Vec<u64>,
    /// The account that has each lot.
    owners: Vec<Option<u32>>,
    used: Vec<bool>,
    buffers: BTreeMap<u32, Range<usize>>,
}

impl Plain {
    /// A run of the account's own lots; else `true` says that it is to be searched for in empty ones.
    fn find(&self, count: usize, constraints: Constraints, own: bool) -> Option<usize> {
        let owner = own.then_some(constraints.account);
        let taken: Vec<bool> = self
            .used
            .iter()
            .enumerate()
            .map(|(page, used)| *used || self.owners[page / LOT_PAGES] != owner)
            .collect();
        let alignment = if own { 0 } else { LOT };
        let constraints =
            Constraints { alignment: constraints.alignment.max(alignment), ..constraints };
        plain(&self.frames, &taken, count, constraints)
    }

    fn take(&mut self, id: u32, account: u32, run: Range<usize>) {
        self.used[run.clone()].fill(true);
        for lot in run.start / LOT_PAGES..=(run.end - 1) / LOT_PAGES {
            assert!(self.owners[lot].is_none_or(|owner| owner == account), "lot {lot}");
            self.owners[lot] = Some(account);
        }
        self.buffers.insert(id, run);
    }

    fn release(&mut self, id: u32) {
        let Some(run) = self.buffers.remove(&id) else { return };
        self.used[run].fill(false);
        for (lot, owner) in self.owners.iter_mut().enumerate() {
            let pages = lot * LOT_PAGES..(lot + 1) * LOT_PAGES;
            if self.used[pages].iter().all(|used| !used) {
                *owner = None;
            }
        }
    }
}

proptest! {
    /// Chunks of 1 to 4 lots around 4 GiB, some of them one piece with the one before; then takes and releases by three
    /// accounts.
    #[test]
    fn a_search_finds_a_run_if_there_is_one(
        chunks in proptest::collection::vec((1_u64..=4, 0_u64..3), 1..6),
        requests in proptest::collection::vec((1_usize..40, constraints(), 0_u32..12, 0_u32..3), 1..60),
    ) {
        let mut next = (1 << 32) - 4 * LOT;
        let chunks: Vec<_> = chunks
            .into_iter()
            .map(|(lots, gap)| {
                let first = next + gap * LOT;
                next = first + lots * LOT;
                range(first, lots * LOT)
            })
            .collect();
        let pages = chunks.iter().flat_map(|chunk| (chunk.first().0..=chunk.last().0).step_by(4096));
        let frames: Vec<u64> = pages.collect();
        let count = frames.len();
        let mut model = Plain {
            frames,
            owners: vec![None; count / LOT_PAGES],
            used: vec![false; count],
            buffers: BTreeMap::new(),
        };
        let mut pool = Pool::new(&chunks);
        for (count, constraints, id, account) in requests {
            let constraints = Constraints { account, ..constraints };
            prop_assert_eq!(pool.release(id).is_some(), model.buffers.contains_key(&id));
            model.release(id);
            let own = model.find(count, constraints, true);
            let empty = model.find(count, constraints, false);
            let length = count as u64 * PAGE_SIZE;
            prop_assert_eq!(pool.has_room(length, constraints), own.is_some());
            match pool.allocate(id, length, constraints) {
                Ok(pieces) => {
                    let run = pool.pages(id).unwrap();
                    prop_assert_eq!(run.len(), count);
                    // Of its own lots the first run; of empty ones a run that serves.
                    let expected = own.or(empty.map(|_| run.start));
                    prop_assert_eq!(Some(run.start), expected);
                    let frames = &model.frames[run.clone()];
                    let unused = vec![false; count];
                    prop_assert_eq!(plain(frames, &unused, count, constraints), Some(0));
                    let pages = pieces
                        .iter()
                        .flat_map(|piece| (piece.first().0..=piece.last().0).step_by(4096));
                    prop_assert!(pages.eq(frames.iter().copied()));
                    prop_assert!(own.is_some() || run.start.is_multiple_of(LOT_PAGES));
                    prop_assert!(run.clone().all(|page| !model.used[page]));
                    model.take(id, account, run);
                }
                Err(error) => {
                    prop_assert_eq!((own, empty), (None, None));
                    let unused = vec![false; model.frames.len()];
                    let whole = Constraints { alignment: constraints.alignment.max(LOT), ..constraints };
                    let possible = plain(&model.frames, &unused, count, whole).is_some();
                    prop_assert_eq!(error == MemoryError::Exhausted, possible);
                }
            }
        }
    }
}
