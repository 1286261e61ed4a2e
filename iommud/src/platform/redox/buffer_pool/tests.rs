//! The pool of buffer memory.

use super::*;
use proptest::prelude::*;

const ANY: Constraints = Constraints {
    below_4g: false,
    contiguous: false,
    alignment: 0,
    boundary: 0,
    written_back: false,
};

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// Two chunks of 16 KiB: the first at 4 GiB, the second at 64 KiB.
fn pool() -> Pool {
    Pool::new(&[range(1 << 32, 0x4000), range(0x1_0000, 0x4000)])
}

#[test]
fn runs_do_not_overlap_and_come_back() {
    let mut pool = pool();
    assert_eq!(pool.allocate(1, 0x3000, ANY), Ok(vec![range(1 << 32, 0x3000)]));
    assert_eq!(
        pool.allocate(2, 0x2000, ANY),
        Ok(vec![range((1 << 32) + 0x3000, 0x1000), range(0x1_0000, 0x1000)])
    );
    assert_eq!(pool.pages(2), Some(3..5));
    assert_eq!(pool.allocate(3, 0x4000, ANY), Err(MemoryError::Exhausted));
    assert_eq!(pool.allocate(2, 0x1000, ANY), Err(MemoryError::Constraints));
    assert_eq!(pool.release(1), Some(0..3));
    assert_eq!(pool.release(1), None);
    assert_eq!(pool.allocate(3, 1, ANY), Ok(vec![range(1 << 32, 0x1000)]));
}

#[test]
fn constraints_are_met_or_refused() {
    let check = |length, constraints, expected: Result<u64, MemoryError>| {
        let found = pool().allocate(1, length, constraints);
        let expected = expected.map(|first| vec![range(first, length)]);
        assert_eq!(found, expected, "{length:#x} {constraints:?}");
    };
    check(0x1000, Constraints { below_4g: true, ..ANY }, Ok(0x1_0000));
    check(0x4000, Constraints { contiguous: true, ..ANY }, Ok(1 << 32));
    check(0x5000, Constraints { contiguous: true, ..ANY }, Err(MemoryError::Constraints));
    check(0x1000, Constraints { alignment: 1 << 33, ..ANY }, Err(MemoryError::Constraints));
    let low = Constraints { below_4g: true, contiguous: true, ..ANY };
    check(0x2000, Constraints { alignment: 0x1_0000, ..low }, Ok(0x1_0000));
    check(0x4000, Constraints { boundary: 0x2000, ..low }, Err(MemoryError::Constraints));
    check(0x9000, ANY, Err(MemoryError::Constraints));
    check(0, ANY, Err(MemoryError::Constraints));
}

#[test]
fn a_run_that_straddles_chunks_is_pieced_in_order() {
    let mut pool = pool();
    let pieces = pool.allocate(9, 0x8000, ANY).unwrap();
    assert_eq!(pieces, [range(1 << 32, 0x4000), range(0x1_0000, 0x4000)]);
}

/// A chunk that comes later is the end of the last free run, and of the last piece of memory if it is its next.
#[test]
fn a_chunk_is_added_behind_the_others() {
    let mut pool = pool();
    assert_eq!(pool.allocate(1, 0x7000, ANY).map(|pieces| pieces.len()), Ok(2));
    pool.add(range(0x1_4000, 0x4000));
    pool.add(range(0x8_0000, 0x4000));
    let pieces = pool.allocate(2, 0x9000, ANY);
    assert_eq!(pieces, Ok(vec![range(0x1_3000, 0x5000), range(0x8_0000, 0x4000)]));
    assert_eq!(pool.pages(2), Some(7..16));
    assert_eq!(pool.allocate(3, 0x1000, ANY), Err(MemoryError::Exhausted));
    pool.add(range(0x10_0000, 0x1000));
    assert_eq!(pool.allocate(3, 0x1000, ANY), Ok(vec![range(0x10_0000, 0x1000)]));
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

#[test]
fn a_refusal_by_a_full_pool_of_256_mib_takes_few_steps() {
    let mut pool = large();
    pool.allocate(1, CHUNKS * CHUNK, ANY).unwrap();
    for constraints in [ANY, HARD] {
        let (result, steps) = measured(&mut pool, PAGE_SIZE, constraints);
        assert_eq!(result, Err(MemoryError::Exhausted));
        // Nothing is free; the first extent shows that the request is possible.
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

/// Every second piece is free: pieces of 1 MiB, then of single pages.
#[test]
fn a_refusal_by_a_fragmented_pool_of_256_mib_is_linear_in_its_free_runs() {
    for piece in [1 << 20, PAGE_SIZE] {
        let mut pool = large();
        let count = CHUNKS * CHUNK / piece;
        let ids = 0..u32::try_from(count).unwrap();
        ids.clone().for_each(|id| drop(pool.allocate(id, piece, ANY).unwrap()));
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

proptest! {
    /// Chunks of 1 to 16 pages around 4 GiB, some of them one piece with the one before; then takes and releases.
    #[test]
    fn a_search_finds_the_first_run_there_is(
        chunks in proptest::collection::vec((1_u64..=16, 0_u64..4), 1..6),
        requests in proptest::collection::vec((1_usize..24, constraints(), 0_u32..8), 1..40),
    ) {
        let mut next = (1 << 32) - 0x1_8000;
        let chunks: Vec<_> = chunks
            .into_iter()
            .map(|(pages, gap)| {
                let first = next + gap * PAGE_SIZE;
                next = first + pages * PAGE_SIZE;
                range(first, pages * PAGE_SIZE)
            })
            .collect();
        let frames: Vec<u64> = chunks
            .iter()
            .flat_map(|chunk| (chunk.first().0..=chunk.last().0).step_by(4096))
            .collect();
        let mut used = vec![false; frames.len()];
        let mut pool = Pool::new(&chunks);
        for (count, constraints, id) in requests {
            if let Some(run) = pool.release(id) {
                used[run].fill(false);
            }
            let expected = plain(&frames, &used, count, constraints);
            let result = pool.allocate(id, count as u64 * PAGE_SIZE, constraints);
            match (&result, expected) {
                (Ok(pieces), Some(start)) => {
                    prop_assert_eq!(pool.pages(id), Some(start..start + count));
                    let pages = pieces
                        .iter()
                        .flat_map(|piece| (piece.first().0..=piece.last().0).step_by(4096));
                    prop_assert!(pages.eq(frames[start..start + count].iter().copied()));
                    used[start..start + count].fill(true);
                }
                (Err(error), None) => {
                    let empty = vec![false; frames.len()];
                    let possible = plain(&frames, &empty, count, constraints).is_some();
                    prop_assert_eq!(*error == MemoryError::Exhausted, possible);
                }
                _ => prop_assert!(false, "{:?}, but {:?}", result, expected),
            }
        }
    }
}
