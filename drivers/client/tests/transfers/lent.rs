//! Memory of the program's own: in place where it fills its pages, else copied.

use std::cell::RefCell;
use std::rc::Rc;

use iommu_client::{
    BufferOptions, Device, Direction, Error, Exposure, Refusal, ScatterList, SegmentLimits,
};
use iommud_tests::model::DEVICES;

use Direction::{FromDevice, ToDevice};

use super::{EVERYWHERE, PAGE, lab, lab_of, spent};

/// Whole pages of the program's memory are granted where they are, next to pages that are not.
#[test]
fn whole_pages_are_lent_in_place() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 1, PAGE);
        let memory = lab.lendable(8 * PAGE);
        let base = memory.borrow().iova();
        memory.borrow_mut().fill(0, 32768, 0x44).unwrap();
        let before = lab.model.counts();
        lab.queue.lend(&memory, 4096..12288, ToDevice).unwrap();
        lab.queue.lend(&memory, 16384..20480, FromDevice).unwrap();
        lab.queue.flush().unwrap();
        let (out, back) = (lab.queue.granted().unwrap(), lab.queue.granted().unwrap());
        assert_eq!((out.iova(), out.length()), (base + 4096, 8192));
        let reach = [(base + 4096, base + 12287), (base + 16384, base + 20479)];
        assert_eq!(lab.model.reach(lab.device.address()), reach);
        assert_eq!(lab.reads(out.iova(), 8192).unwrap(), [0x44; 8192]);
        assert!(lab.writes(back.iova(), &[0x55; 4096]));
        // Both are one list for a device.
        let mut list = ScatterList::new();
        list.push(&out, 0..8192).unwrap().push(&back, 0..4096).unwrap();
        assert_eq!(list.segments(SegmentLimits { longest: 0, boundary: 0 }).count(), 2);
        lab.queue.finished(out).unwrap();
        lab.queue.finished(back).unwrap();
        lab.queue.flush().unwrap();
        assert_eq!(spent(&before, &lab.model.counts()), [2, 2, 1, 1]);
        assert_eq!(memory.borrow().load_at::<[u8; 4]>(20478).unwrap(), [0x55, 0x55, 0x44, 0x44]);
        assert_eq!(lab.model.reach(lab.device.address()), []);
        assert!(lab.queue.returned().is_none());
    }
}

/// A record that begins and ends inside of pages, as a scatter list: its whole pages in place, each end through a slot of
/// its own. The device gets all of it, in order, and no other byte of the program's.
#[test]
fn a_scatter_list_reaches_its_own_bytes_only() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 2, PAGE);
        let memory = lab.lendable(4 * PAGE);
        memory.borrow_mut().fill(0, 16384, 0xcc).unwrap();
        let record: Vec<u8> = (0..10_000_u32).map(|at| at.to_le_bytes()[0] % 100).collect();
        memory.borrow_mut().write(3000, &record).unwrap();
        for range in [3000..4096, 4096..12288, 12288..13000] {
            lab.queue.lend(&memory, range, ToDevice).unwrap();
        }
        lab.queue.flush().unwrap();
        let parts: Vec<_> = std::iter::from_fn(|| lab.queue.granted()).collect();
        let mut list = ScatterList::new();
        for part in &parts {
            list.push(part, 0..part.length()).unwrap();
        }
        let limits = SegmentLimits { longest: 0, boundary: 4096 };
        let mut seen = Vec::new();
        let mut pages = Vec::new();
        for segment in list.segments(limits) {
            let length = usize::try_from(segment.length).unwrap();
            seen.extend(lab.reads(segment.iova, length).unwrap());
            pages.extend(lab.reads(segment.iova & !0xfff, 4096).unwrap());
        }
        assert!(seen == record);
        assert!(!pages.contains(&0xcc), "bytes of the program's beside the record");
        assert_eq!(pages.len(), 4 * 4096);
        let reach = lab.model.reach(lab.device.address());
        let all: u64 = reach.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(all, 4 * PAGE);
    }
}

/// A range that does not fill its pages is copied, so that its neighbours in these pages are out of reach. Only its
/// own bytes come back.
#[test]
fn partial_pages_are_copied_exactly() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 2, 8192);
        let memory = lab.lendable(4 * PAGE);
        let base = memory.borrow().iova();
        memory.borrow_mut().fill(0, 16384, 0x66).unwrap();
        memory.borrow_mut().fill(5000, 100, 0x11).unwrap();
        lab.queue.lend(&memory, 5000..5100, ToDevice).unwrap();
        lab.queue.lend(&memory, 4000..9000, FromDevice).unwrap();
        assert!(matches!(lab.queue.lend(&memory, 1..2, ToDevice), Err(Error::NoSlot { slots: 2 })));
        lab.queue.flush().unwrap();
        let (out, back) = (lab.queue.granted().unwrap(), lab.queue.granted().unwrap());
        assert!(lab.reads(base, 1).is_none() && lab.reads(base + 5000, 1).is_none());
        let seen = lab.reads(out.iova(), 4096).unwrap();
        assert!(seen[..100] == [0x11; 100] && seen[100..].iter().all(|byte| *byte == 0));
        // The device writes all that it reaches.
        assert!(lab.writes(back.iova(), &[0x99; 8192]));
        lab.queue.finished(out).unwrap();
        lab.queue.finished(back).unwrap();
        let held = memory.borrow();
        assert!(matches!(lab.queue.flush(), Err(Error::Borrowed)));
        assert_eq!(lab.queue.waiting(), 2);
        drop(held);
        lab.queue.flush().unwrap();
        let mut all = vec![0; 16384];
        memory.borrow().read(0, &mut all).unwrap();
        let mut expected = vec![0x66; 16384];
        expected[4000..9000].fill(0x99);
        assert!(all == expected, "other bytes than those of the transfer came back");
        assert!(lab.queue.take(1).is_ok() && lab.queue.returned().is_none());
        // A device that writes less than it may: the rest stays, whatever the slot held before.
        for range in [100..300, 9000..9200] {
            lab.queue.lend(&memory, range, FromDevice).unwrap();
        }
        lab.queue.flush().unwrap();
        while let Some(short) = lab.queue.granted() {
            assert!(lab.writes(short.iova(), &[0x12; 10]));
            lab.queue.finished(short).unwrap();
        }
        lab.queue.flush().unwrap();
        memory.borrow().read(0, &mut all).unwrap();
        expected[100..110].fill(0x12);
        expected[9000..9010].fill(0x12);
        assert!(all == expected, "bytes came back that the device did not write");
    }
}

#[test]
fn only_unmapped_memory_of_the_same_session_is_lent() {
    let mut lab = lab(1, PAGE, Exposure::Bytes);
    let refusal = |result: Result<(), Error>| result.unwrap_err().refusal();
    let whole = lab.device.allocate(8192, BufferOptions::default()).unwrap();
    let whole = Rc::new(RefCell::new(whole));
    for range in [0..4096, 0..100] {
        let refused = lab.queue.lend(&whole, range, ToDevice);
        assert_eq!(refusal(refused), Some(Refusal::BadOperation));
    }
    let other = Device::open(&lab.model.connection(), DEVICES[0]).unwrap();
    let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let theirs = Rc::new(RefCell::new(other.allocate(8192, options).unwrap()));
    assert_eq!(refusal(lab.queue.lend(&theirs, 0..4096, ToDevice)), Some(Refusal::BadHandle));
    let memory = lab.lendable(8192);
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let bad = [0..8193, 8192..8193, 5..5, 6..5, 0..u64::MAX];
    for range in bad {
        assert!(matches!(lab.queue.lend(&memory, range, ToDevice), Err(Error::Outside)));
    }
    let refused = lab.queue.lend(&memory, 1..4098, ToDevice);
    assert!(matches!(refused, Err(Error::TooLong { length: 4097, most: 4096 })));
    let reach = lab.model.reach(lab.device.address());
    // A range twice: the server refuses the second, and nothing of the call is granted.
    lab.queue.lend(&memory, 0..4096, ToDevice).unwrap();
    lab.queue.lend(&memory, 0..8192, ToDevice).unwrap();
    let refused = lab.queue.flush();
    let Err(Error::RefusedItem { refusal, item }) = refused else { panic!("{refused:?}") };
    assert_eq!((refusal, item), (Refusal::Mapped, 1));
    assert_eq!(lab.model.reach(lab.device.address()), reach);
    assert!(lab.queue.withdraw().is_empty() && lab.queue.waiting() == 0);
}
