//! Values in the memory of a session.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_protocol::wire::Operation;
use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::{number, signed, written_slice, zeroed, zeroed_slice};
use crate::{NAME, address, alone, drive, reached};

const PAGE: usize = 4096;
const EINVAL: i32 = 22;
const ENOMEM: i32 = 12;

fn read(model: &Model, at: usize, length: usize) -> Result<Vec<u8>, String> {
    model.device_read(address(), at as u64, length)
}

fn write(model: &Model, at: usize, bytes: &[u8]) -> Result<(), String> {
    model.device_write(address(), at as u64, bytes)
}

#[test]
fn the_first_allocation_opens_the_one_session() {
    let said = alone("memory::the_first_allocation_opens_the_one_session", || {
        let model = Model::new();
        drive(&model);
        assert_eq!(model.counts().requests(), 0);
        let first = Dma::new(1_u32).unwrap();
        assert_eq!(model.counts().of(Operation::Attach), 1);
        let second = zeroed::<[u8; 1 << 20]>().unwrap();
        drop(first);
        drop(second);
        let _third = Dma::new(3_u32).unwrap();
        assert_eq!(model.counts().of(Operation::Attach), 1);
        let text = model.connection().text(&format!("devices/{NAME}")).unwrap();
        assert!(text.contains("claimed: true"), "{text}");
        assert!(text.contains("reaches: what its session maps"), "{text}");
    });
    assert_eq!(said, [""; 0]);
}

#[test]
fn driver_and_device_share_the_bytes() {
    alone("memory::driver_and_device_share_the_bytes", || {
        let model = Model::new();
        drive(&model);
        let mut small = Dma::new([0x11_u8, 0x22, 0x33]).unwrap();
        let mut long = zeroed_slice::<u32>(50_000).unwrap();
        for physical in [small.physical(), long.physical()] {
            assert!(physical.is_multiple_of(PAGE) && physical < 1 << 32, "{physical:#x}");
        }
        assert_ne!(small.physical(), small.as_ptr().addr());
        assert_eq!(read(&model, small.physical(), 4).unwrap(), [0x11, 0x22, 0x33, 0]);
        small[1] = 0x44;
        assert_eq!(read(&model, small.physical(), 3).unwrap(), [0x11, 0x44, 0x33]);
        // The last word, at another page than the first.
        long[49_999] = 0x0403_0201;
        assert_eq!(read(&model, long.physical() + 4 * 49_999, 4).unwrap(), [1, 2, 3, 4]);
        write(&model, long.physical() + 4 * 30_000, &[5, 0, 0, 0]).unwrap();
        write(&model, small.physical() + 2, &[0x55]).unwrap();
        assert_eq!((long[30_000], long[29_999], long.len()), (5, 0, 50_000));
        assert_eq!(*small, [0x11, 0x44, 0x55]);
        let bytes = signed(written_slice(3, |index| 0xfd + index as u8));
        assert_eq!(*bytes, [-3, -2, -1]);
    });
}

#[test]
fn the_device_reaches_this_memory_and_nothing_else() {
    alone("memory::the_device_reaches_this_memory_and_nothing_else", || {
        let model = Model::new();
        drive(&model);
        let first = zeroed::<[u8; 20 * PAGE]>().unwrap();
        assert_eq!(reached(&model), 20 * 4096);
        let second = zeroed::<[u8; 20 * PAGE - 5]>().unwrap();
        assert_eq!(reached(&model), 40 * 4096);
        let end = first.physical() + 20 * PAGE;
        assert!(read(&model, end - 1, 1).is_ok() && read(&model, end - 1, 2).is_err());
        assert!(write(&model, end, &[1]).is_err());
        assert!(write(&model, 0x1000, &[1]).is_err());
        let (one, other) = (first.physical(), second.physical());
        drop(first);
        assert!(write(&model, one, &[1]).is_err() && write(&model, other, &[1]).is_ok());
        drop(second);
        assert_eq!(model.reach(address()), []);
    });
}

#[test]
fn values_for_each_command_cost_no_request() {
    alone("memory::values_for_each_command_cost_no_request", || {
        let model = Model::new();
        drive(&model);
        let _first = Dma::new(0_u8).unwrap();
        let before = model.counts().requests();
        for round in 0..200_u32 {
            let header = Dma::new(round).unwrap();
            let data = zeroed_slice::<u8>(2 * PAGE + 1).unwrap();
            let status = Dma::new(0xff_u8).unwrap();
            assert_eq!(read(&model, header.physical(), 4).unwrap(), round.to_le_bytes());
            let mut places = [header.physical(), data.physical(), status.physical()];
            places.sort_unstable();
            assert!(places.windows(2).all(|two| two[1] - two[0] >= PAGE), "{places:x?}");
        }
        assert_eq!(model.counts().requests(), before);
    });
}

#[test]
fn addresses_are_aligned_as_the_kernels_are() {
    alone("memory::addresses_are_aligned_as_the_kernels_are", || {
        let model = Model::new();
        drive(&model);
        let mut kept = Vec::new();
        for pages in [1, 2, 3, 5, 16, 17, 100, 17, 512, 19, 1024, 21, 1025] {
            let memory = zeroed_slice::<u8>(pages * PAGE).unwrap();
            let alignment = (pages * PAGE).next_power_of_two().min(4 << 20);
            assert!(memory.physical().is_multiple_of(alignment), "{:#x}", memory.physical());
            assert!(memory.as_ptr().addr().is_multiple_of(PAGE));
            kept.push(memory);
        }
    });
}

#[test]
fn what_was_there_before_never_shows() {
    alone("memory::what_was_there_before_never_shows", || {
        let model = Model::new();
        drive(&model);
        for length in [PAGE, 3 * PAGE, 16 * PAGE, 40 * PAGE] {
            let mut memory = zeroed_slice::<u8>(length).unwrap();
            memory.fill(0xaa);
            let place = memory.physical();
            drop(memory);
            // A late write of the device, which still reaches pages of a chunk.
            let pooled = length <= 16 * PAGE;
            assert_eq!(write(&model, place + 7, &[0xbb]).is_ok(), pooled);
            let again = zeroed_slice::<u8>(length).unwrap();
            assert!(!pooled || again.physical() == place);
            assert!(again.iter().all(|byte| *byte == 0), "{length}");
        }
    });
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct Counted(#[expect(dead_code, reason = "it takes room")] u32);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_value_is_dropped_once_whatever_the_order() {
    alone("memory::a_value_is_dropped_once_whatever_the_order", || {
        let model = Model::new();
        drive(&model);
        let dropped = || DROPPED.swap(0, Ordering::Relaxed);
        let one = Dma::new(Counted(1)).unwrap();
        let three = written_slice(3, |_| Counted(3));
        let two = written_slice(2, |_| Counted(2));
        assert_eq!(dropped(), 0);
        drop(three);
        assert_eq!(dropped(), 3);
        drop(one);
        assert_eq!(dropped(), 1);
        drop(two);
        assert_eq!(dropped(), 2);
        drop(Dma::<Counted>::zeroed().unwrap());
        drop(Dma::<[Counted]>::zeroed_slice(9).unwrap());
        assert_eq!(dropped(), 0);
        let mut many: Vec<_> = (0..300).map(|n| Dma::new(n).unwrap()).collect();
        assert!(many.iter().enumerate().all(|(n, value)| **value == n));
        while many.len() > 1 {
            many.swap_remove(many.len() / 3);
            assert!(many.iter().all(|value| **value < 300));
        }
        // One chunk with the last value, and at most one without.
        assert!(reached(&model) <= 2 * 64 * 4096, "{}", reached(&model));
        drop(many);
        assert_eq!(reached(&model), 64 * 4096);
        assert_eq!(
            Dma::new([7_u8; 64 * PAGE]).unwrap().iter().filter(|n| **n == 7).count(),
            64 * PAGE
        );
        assert_eq!(reached(&model), 64 * 4096);
    });
}

#[test]
fn threads_share_the_session_and_no_page() {
    alone("memory::threads_share_the_session_and_no_page", || {
        let model = Model::new();
        drive(&model);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for number in 1..=4_u8 {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut kept = Vec::new();
                    for round in 0..100_usize {
                        kept.push(Dma::new([number; 3 * PAGE]).unwrap());
                        if round % 3 == 0 {
                            kept.remove(kept.len() / 2);
                        }
                    }
                    assert!(kept.iter().all(|memory| memory.iter().all(|byte| *byte == number)));
                });
            }
        });
        assert_eq!(model.counts().of(Operation::Attach), 1);
        assert_eq!(reached(&model), 64 * 4096);
    });
}

#[test]
fn impossible_lengths_are_refused() {
    #[repr(align(8192))]
    struct Coarse(#[expect(dead_code, reason = "it takes room")] u8);
    alone("memory::impossible_lengths_are_refused", || {
        let model = Model::new();
        drive(&model);
        assert_eq!(number(Dma::new(())), EINVAL);
        assert_eq!(number(Dma::<[u64]>::zeroed_slice(0)), EINVAL);
        assert_eq!(number(Dma::<Coarse>::zeroed()), EINVAL);
        assert_eq!(number(Dma::<[u64]>::zeroed_slice(usize::MAX / 4)), ENOMEM);
        assert_eq!(number(Dma::<[u8]>::zeroed_slice(usize::MAX - 5)), ENOMEM);
        assert_eq!(number(Dma::<[u8]>::zeroed_slice(usize::MAX / 2 + 1)), ENOMEM);
    });
}

#[test]
fn a_device_is_cut_off_when_its_driver_ends() {
    alone("memory::a_device_is_cut_off_when_its_driver_ends", || {
        let model = Model::new();
        drive(&model);
        let memory = Dma::new(7_u64).unwrap();
        let place = memory.physical();
        model.kill_clients();
        assert!(read(&model, place, 8).is_err());
        assert_eq!(model.reach(address()), []);
        let text = model.connection().text(&format!("devices/{NAME}")).unwrap();
        assert!(text.contains("reaches: nothing"), "{text}");
        std::mem::forget(memory);
    });
}
