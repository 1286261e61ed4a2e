//! Tests of the allocator over ordinary memory in place of huge pages.

use super::*;
use crate::hw::SetAside;
use crate::platform::linux::memory::testing::FakePages;

const LOW: u64 = 0x4000_0000;
const HIGH: u64 = 0x1_8000_0000;

fn tables() -> HugeTables {
    let mut source = FakePages::default();
    let mut page = |phys| (PhysAddr(phys), source.page(phys).into_mapping());
    HugeTables::new([page(HIGH), page(LOW)])
}

#[test]
fn frames_are_zero_aligned_and_distinct_until_there_are_none() {
    let mut tables = tables();
    let mut seen = std::collections::BTreeSet::new();
    while let Ok(frame) = tables.allocate() {
        assert!(frame.is_aligned(4096) && seen.insert(frame.0));
        assert!((0..512).all(|word| tables.load(frame, word) == 0));
        tables.store(frame, 0, u64::MAX);
    }
    assert_eq!((seen.len(), tables.frames_in_use()), (1024, 1024));
    assert_eq!(seen.first(), Some(&LOW));
    assert_eq!(seen.last(), Some(&(HIGH + 511 * 4096)));
    assert_eq!(tables.allocate(), Err(MemoryError::Exhausted));
}

#[test]
fn runs_are_aligned_to_their_size_and_the_gap_is_not_lost() {
    let mut tables = tables();
    let first = tables.allocate().unwrap();
    let run = tables.allocate_run(8).unwrap();
    assert_eq!((first.0, run.0), (LOW, LOW + 8 * 4096));
    assert_eq!(tables.allocate_run(512), Ok(PhysAddr(HIGH)));
    let rest: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
    assert_eq!(rest.len(), 512 - 9);
    assert!(rest.contains(&PhysAddr(LOW + 4096)));
    for bad in [0, 3, 1024] {
        assert_eq!(tables.allocate_run(bad), Err(MemoryError::Exhausted));
    }
}

/// Every frame was in use, and all but one are freed. The allocator finds runs between the remaining frames, and
/// hands out no frame twice.
#[test]
fn runs_are_gathered_from_frames_that_came_back() {
    let mut tables = tables();
    let frames: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
    assert_eq!(tables.allocate_run(2), Err(MemoryError::Exhausted));
    let kept = PhysAddr(LOW + 16 * 4096);
    for frame in frames.iter().rev().filter(|frame| **frame != kept) {
        tables.store(*frame, 7, 7);
        tables.free(*frame, false);
    }
    assert_eq!(tables.allocate_run(512), Ok(PhysAddr(HIGH)));
    assert_eq!(tables.allocate_run(512), Err(MemoryError::Exhausted));
    assert_eq!(tables.allocate_run(256), Ok(PhysAddr(LOW + 256 * 4096)));
    assert_eq!(tables.allocate_run(16), Ok(PhysAddr(LOW)));
    assert_eq!(tables.allocate_run(16), Ok(PhysAddr(LOW + 32 * 4096)));
    assert!((0..512).all(|word| tables.load(PhysAddr(LOW), word) == 0));
    let rest: std::collections::BTreeSet<_> =
        std::iter::from_fn(|| tables.allocate().ok()).map(|frame| frame.0).collect();
    assert_eq!(rest.len(), 256 - 16 - 16 - 1);
    assert!(rest.iter().all(|frame| (LOW + 17 * 4096..LOW + 256 * 4096).contains(frame)));
    assert_eq!(tables.frames_in_use(), 1024);
}

/// The runs of an AMD-Vi unit are set aside and all other frames are used. Given back, each run is found again.
#[test]
fn what_is_set_aside_has_room_for_the_runs_of_its_unit() {
    const RUNS: [usize; 6] = [512, 1, 1, 1, 16, 16];
    let mut tables = tables();
    let kept = SetAside::take(&mut tables, &RUNS).unwrap();
    assert_eq!((kept.frames(), tables.frames_in_use()), (560, 560));
    assert!(SetAside::take(&mut tables, &RUNS).is_none(), "there is no second long run");
    assert_eq!(tables.frames_in_use(), 560, "all or nothing");
    let others = std::iter::from_fn(|| tables.allocate().ok()).count();
    assert_eq!(others, 1024 - 560);
    kept.give_back(&mut tables);
    for count in RUNS {
        let first = tables.allocate_run(count).unwrap();
        assert!(first.is_aligned(4096 * count as u64));
    }
    assert_eq!(tables.frames_free(), 560 - 547);
}

/// AMD-Vi units allocate their runs one unit after another. The other frames go to tables of one frame each.
#[test]
fn the_pages_that_are_said_to_be_needed_hold_all_runs() {
    for units in 1..12 {
        let runs = [512, 1, 1, 1, 16, 16];
        let single = 40 * units + 3;
        let need = crate::sizing::Need {
            runs: runs.into_iter().filter(|run| *run > 1).collect(),
            base_frames: 547 * units + single,
            ..crate::sizing::Need::default()
        };
        let pages = need.least_table_bytes() / HUGE_PAGE;
        let mut source = FakePages::default();
        let mut page = |index: u64| {
            let phys = LOW + index * 3 * HUGE_PAGE;
            (PhysAddr(phys), source.page(phys).into_mapping())
        };
        let mut tables = HugeTables::new((0..pages).map(&mut page));
        for run in (0..units).flat_map(|_| runs) {
            let first = tables.allocate_run(run).unwrap();
            assert!(first.is_aligned(run as u64 * 4096), "{units} units, run of {run}");
        }
        for _ in 0..single {
            tables.allocate().unwrap();
        }
        let frames = tables.frames_in_use() as u64;
        assert!(pages * 512 - frames < 1024, "{units} units: {frames} of {pages} pages");
    }
}

#[test]
fn a_frame_taken_back_is_cleared_and_forgotten() {
    let mut tables = tables();
    let frame = tables.allocate().unwrap();
    tables.store(frame, 511, 0x1234);
    *tables.live(frame) = 9;
    tables.free(frame, false);
    tables.free(frame, false);
    assert_eq!(tables.frames_in_use(), 0);
    tables.store(frame, 3, 1);
    assert_eq!((tables.load(frame, 511), *tables.live(frame)), (0, 0));
    let again = tables.allocate().unwrap();
    assert_eq!(again, frame);
    assert!((0..512).all(|word| tables.load(again, word) == 0));
    assert_eq!(*tables.live(again), 0);
    assert_ne!(tables.allocate().unwrap(), again, "freed twice, handed out once");
}

#[test]
fn other_frames_and_indices_do_nothing() {
    let mut tables = tables();
    let frame = tables.allocate().unwrap();
    let next = tables.allocate().unwrap();
    tables.store(frame, 512, 7);
    tables.clean(frame, 511, 2);
    tables.clean(frame, 512, 1);
    assert_eq!(tables.load(next, 0), 0);
    for other in [PhysAddr(frame.0 + 8), PhysAddr(0), PhysAddr(LOW + 2 * 4096), PhysAddr(u64::MAX)]
    {
        tables.store(other, 0, 7);
        *tables.live(other) = 7;
        tables.free(other, false);
        assert_eq!((tables.load(other, 0), *tables.live(other)), (0, 0), "{other:?}");
    }
    assert_eq!(tables.frames_in_use(), 2);
    assert_eq!(tables.load(frame, 0), 0);
}

/// Behaves like the default method of the trait, which uses `load`, `live` and `store`.
#[test]
fn a_change_sees_a_word_and_its_frame_s_counter() {
    let mut tables = tables();
    let (frame, other) = (tables.allocate().unwrap(), tables.allocate().unwrap());
    tables.store(frame, 511, 5);
    *tables.live(frame) = 3;
    let seen = tables.change(frame, 511, |word, live| {
        *live += 1;
        (Some(word + 1), (word, *live))
    });
    assert_eq!((seen, tables.load(frame, 511), *tables.live(frame)), ((5, 4), 6, 4));
    let kept = tables.change(frame, 511, |word, _| (None, word));
    assert_eq!((kept, tables.load(frame, 511)), (6, 6));
    assert_eq!((tables.load(frame, 510), tables.load(other, 511), *tables.live(other)), (0, 0, 0));
    for (outside, index) in [(frame, 512), (PhysAddr(frame.0 + 8), 0), (PhysAddr(u64::MAX), 0)] {
        let seen = tables.change(outside, index, |word, live| {
            *live += 1;
            (Some(9), (word, *live))
        });
        assert_eq!(seen, (0, 1), "{outside:?} {index}");
    }
    assert_eq!((tables.load(frame, 0), tables.load(other, 0), *tables.live(frame)), (0, 0, 4));
}

/// Behaves like the default methods of the trait, which use `load` and `store`.
#[test]
fn words_are_written_and_changed_in_the_frame_that_was_named() {
    let mut tables = tables();
    let (_, frame, next) = (tables.allocate(), tables.allocate().unwrap(), tables.allocate());
    tables.write(frame, 509, 3, &mut [5, 6, 7, 8].into_iter());
    let mut seen = Vec::new();
    tables.change_each(frame, 508, 3, |index, word| {
        seen.push((index, word));
        (word == 5).then_some(9)
    });
    assert_eq!(seen, [(508, 0), (509, 5), (510, 6)]);
    let words = [507, 508, 509, 510, 511].map(|index| tables.load(frame, index));
    assert_eq!(words, [0, 0, 9, 6, 7]);
    for (outside, first, count) in [
        (frame, 511, 2),
        (frame, 512, 1),
        (frame, 0, usize::MAX),
        (PhysAddr(frame.0 + 8), 0, 1),
        (PhysAddr(LOW + 100 * 4096), 0, 1),
    ] {
        tables.write(outside, first, count, &mut std::iter::repeat(1));
        tables.change_each(outside, first, count, |_, _| panic!("{outside:?} {first}"));
    }
    assert!((0..512).all(|index| tables.load(next.unwrap(), index) == 0));
    assert_eq!((tables.load(frame, 0), tables.load(frame, 511)), (0, 7));
}

#[test]
fn stores_are_seen_through_the_page_itself() {
    let mut source = FakePages::default();
    let page = source.page(LOW);
    let file = std::fs::File::from(source.files.borrow_mut().pop_first().unwrap().1);
    let mut tables = HugeTables::new([(PhysAddr(LOW), page.into_mapping())]);
    tables.allocate().unwrap();
    let second = tables.allocate().unwrap();
    tables.store(second, 2, 0x8877_6655_4433_2211);
    let mut bytes = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096 + 16).unwrap();
    assert_eq!(bytes, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
}

/// An added page is found among the others and is cleared. The list of freed frames has room for its frames.
#[test]
fn a_page_is_added_clear_and_in_its_place() {
    let mut tables = tables();
    let first: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
    tables.store(first[1023], 3, 7);
    let mut source = FakePages::default();
    let page = source.page(LOW + 0x20_0000);
    source.dirty(&page, 0x1f_fff8);
    tables.add(PhysAddr(LOW + 0x20_0000), page.into_mapping());
    assert_eq!((tables.bytes(), tables.frames_free()), (3 << 21, 512));
    assert_eq!(tables.load(first[1023], 3), 7, "the pages behind it have moved");
    let more: Vec<_> = std::iter::from_fn(|| tables.allocate().ok()).collect();
    assert_eq!((more[0].0, more.len()), (LOW + 0x20_0000, 512));
    assert!(more.iter().all(|frame| (0..512).all(|word| tables.load(*frame, word) == 0)));
    assert_eq!(tables.allocate(), Err(MemoryError::Exhausted));
    first.iter().chain(&more).for_each(|frame| tables.free(*frame, true));
    assert!(tables.free.capacity() >= 3 * 512 && tables.free.len() == 3 * 512);
}

/// Freeing a frame allocates no memory, even after pages were added. The list has room for all frames before the
/// first is freed.
#[test]
fn there_is_room_for_all_frames_before_one_comes_back() {
    let mut tables = tables();
    let mut source = FakePages::default();
    for number in 1..4 {
        let phys = LOW + number * 0x20_0000;
        tables.add(PhysAddr(phys), source.page(phys).into_mapping());
        assert!(tables.free.capacity() >= tables.pages.len() * 512);
    }
}
