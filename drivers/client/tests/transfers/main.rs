//! Strict confinement of each transfer, over the whole server and a software unit: what it costs, and what the device
//! reaches when.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod endings;
mod lent;

use std::cell::RefCell;
use std::rc::Rc;

use iommu_client::{
    Access, Batch, BufferOptions, BusMasterPermission, Device, Direction, Error, Exposure,
    FaultAccess, Granted, Lendable, Refusal, TransferOptions, TransferQueue,
};
use iommu_protocol::wire::Operation;
use iommud_tests::model::{Counts, Model, Vendor};

use Direction::{FromDevice, ToDevice};

const PAGE: u64 = 4096;

/// Both degrees, on a unit of each vendor.
const EVERYWHERE: [(Vendor, Exposure); 4] = [
    (Vendor::Intel, Exposure::Pages),
    (Vendor::Intel, Exposure::Bytes),
    (Vendor::Amd, Exposure::Pages),
    (Vendor::Amd, Exposure::Bytes),
];

struct Lab {
    queue: TransferQueue,
    device: Device,
    _permission: BusMasterPermission,
    model: Model,
}

fn lab(slots: usize, slot_bytes: u64, exposure: Exposure) -> Lab {
    lab_of((Vendor::Intel, exposure), slots, slot_bytes)
}

fn lab_of((vendor, exposure): (Vendor, Exposure), slots: usize, slot_bytes: u64) -> Lab {
    let options = TransferOptions { slots, slot_bytes, exposure, above_4g: true };
    lab_on(Model::of(vendor), options)
}

fn lab_on(model: Model, options: TransferOptions) -> Lab {
    let (device, permission) = model.attached();
    // These devices do what the sanitizer reports.
    device.sanitize_with(|_| {});
    let queue = TransferQueue::new(&device, options).unwrap();
    Lab { queue, device, _permission: permission, model }
}

impl Lab {
    fn reads(&self, iova: u64, length: usize) -> Option<Vec<u8>> {
        self.model.device_read(self.device.address(), iova, length).ok()
    }

    fn writes(&self, iova: u64, bytes: &[u8]) -> bool {
        self.model.device_write(self.device.address(), iova, bytes).is_ok()
    }

    /// Grants a slot of this length by a flush of its own.
    fn granted(&mut self, length: u64, direction: Direction) -> Granted {
        let slot = self.queue.take(length).unwrap();
        self.queue.grant(slot, direction).unwrap();
        self.queue.flush().unwrap();
        self.queue.granted().unwrap()
    }

    fn lendable(&self, length: u64) -> Lendable {
        let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
        Rc::new(RefCell::new(self.device.allocate(length, options).unwrap()))
    }
}

/// Calls of any kind, calls of batches, invalidations and waits since then.
fn spent(before: &Counts, after: &Counts) -> [u64; 4] {
    [
        after.requests() - before.requests(),
        after.of(Operation::Batch) - before.of(Operation::Batch),
        after.page_invalidations - before.page_invalidations,
        after.waits - before.waits,
    ]
}

/// A device that is kept `depth` deep: each flush revokes the transfers that have ended, and grants the next ones.
/// 128 transfers cost 128 / depth calls and the last revoke, and one invalidation and one wait for each call that
/// revokes.
#[test]
fn a_call_serves_as_many_transfers_as_are_under_way() {
    for (vendor, exposure) in EVERYWHERE {
        for (depth, bytes) in [1, 8, 32].into_iter().flat_map(|d| [(d, 512), (d, 16384)]) {
            let mut lab = lab_of((vendor, exposure), 2 * depth, 16384);
            let before = lab.model.counts();
            let mut under_way = Vec::new();
            for group in 0..128 / depth {
                under_way.drain(..).for_each(|done| lab.queue.finished(done).unwrap());
                for _ in 0..depth {
                    let direction = if group % 2 == 0 { ToDevice } else { FromDevice };
                    let slot = lab.queue.take(bytes).unwrap();
                    lab.queue.grant(slot, direction).unwrap();
                }
                lab.queue.flush().unwrap();
                under_way.extend(std::iter::from_fn(|| lab.queue.granted()));
                assert_eq!(under_way.len(), depth);
                let back = std::iter::from_fn(|| lab.queue.returned()).count();
                assert_eq!(back, if group == 0 { 0 } else { depth });
            }
            let steady = spent(&before, &lab.model.counts());
            let groups = 128 / u64::try_from(depth).unwrap();
            assert_eq!(steady, [groups, groups, groups - 1, groups - 1], "depth {depth}");
            under_way.drain(..).for_each(|done| lab.queue.finished(done).unwrap());
            lab.queue.flush().unwrap();
            let all = spent(&before, &lab.model.counts());
            assert_eq!(all, [groups + 1, groups + 1, groups, groups], "depth {depth}");
            lab.queue.flush().unwrap();
            assert_eq!(spent(&before, &lab.model.counts()), all, "nothing to send");
            assert_eq!(lab.model.reach(lab.device.address()), []);
        }
    }
}

/// The same items, by a batch that the driver makes itself.
#[test]
fn a_batch_grants_and_revokes() {
    let lab = lab(1, PAGE, Exposure::Bytes);
    let memory = lab.lendable(4 * PAGE);
    let (buffer, at) = (memory.borrow(), lab.device.address());
    let (slot, iova) = (buffer.slot(), buffer.iova());
    let before = lab.model.counts();
    let both = Batch::new().grant(slot, 0..4096, Access::READ).grant(
        slot,
        8192..16384,
        Access::READ | Access::WRITE,
    );
    assert_eq!(both.run(&lab.device).unwrap(), [iova, iova + 8192]);
    assert_eq!(lab.model.reach(at), [(iova, iova + 4095), (iova + 8192, iova + 16383)]);
    assert!(lab.reads(iova, 1).is_some() && !lab.writes(iova, &[1]));
    let next = Batch::new().revoke(slot, 8192..16384).grant(slot, 4096..8192, Access::WRITE);
    assert_eq!(next.run(&lab.device).unwrap(), [0, iova + 4096]);
    // Two accesses are two ranges.
    assert_eq!(lab.model.reach(at), [(iova, iova + 4095), (iova + 4096, iova + 8191)]);
    let part = Batch::new().grant(slot, 8192..12288, Access::READ).revoke(slot, 0..8192);
    let refused = part.run(&lab.device);
    let Err(Error::RefusedItem { refusal, item }) = refused else { panic!("{refused:?}") };
    assert_eq!((refusal, item), (Refusal::NotMapped, 1));
    let rest = Batch::new().revoke(slot, 0..4096).revoke(slot, 4096..8192);
    rest.run(&lab.device).unwrap();
    assert_eq!(lab.model.reach(at), []);
    assert_eq!(spent(&before, &lab.model.counts()), [4, 4, 2, 2]);
}

/// More transfers than one batch may hold take one call for each 1024.
#[test]
fn a_queue_may_be_deeper_than_a_batch() {
    let mut lab = lab(1500, PAGE, Exposure::Bytes);
    let mut all = Vec::new();
    for expected in [[2, 2, 0, 0], [2, 2, 2, 2]] {
        let before = lab.model.counts();
        all.drain(..).for_each(|done| lab.queue.finished(done).unwrap());
        if expected[2] == 0 {
            for _ in 0..1500 {
                let slot = lab.queue.take(PAGE).unwrap();
                lab.queue.grant(slot, ToDevice).unwrap();
            }
            assert!(matches!(lab.queue.take(1), Err(Error::NoSlot { slots: 1500 })));
        }
        lab.queue.flush().unwrap();
        assert_eq!(spent(&before, &lab.model.counts()), expected);
        all.extend(std::iter::from_fn(|| lab.queue.granted()));
    }
    assert_eq!(std::iter::from_fn(|| lab.queue.returned()).count(), 1500);
    assert_eq!(lab.model.reach(lab.device.address()), []);
}

/// The device is denied everything but its transfer: before its grant, after its revoke, one byte before and one byte
/// behind its pages, and in the other direction. Each denial is a fault of its own.
#[test]
fn nothing_is_reached_but_the_transfer_while_it_runs() {
    for (vendor, exposure) in EVERYWHERE {
        for (length, direction) in
            [512, 4096, 16384].into_iter().flat_map(|l| [(l, ToDevice), (l, FromDevice)])
        {
            let mut lab = lab_of((vendor, exposure), 4, 16384);
            let touch = |lab: &Lab, iova, read| match read {
                true => lab.reads(iova, 1).is_some(),
                false => lab.writes(iova, &[1]),
            };
            let reads = direction == ToDevice;
            // The second of three slots, all of which the driver has taken.
            let _first = lab.queue.take(16384).unwrap();
            let slot = lab.queue.take(length).unwrap();
            let _third = lab.queue.take(16384).unwrap();
            lab.queue.grant(slot, direction).unwrap();
            assert_eq!(lab.model.reach(lab.device.address()), [], "before the flush");
            lab.queue.flush().unwrap();
            let granted = lab.queue.granted().unwrap();
            let (first, end) = (granted.iova(), granted.iova() + length.next_multiple_of(PAGE));
            assert_eq!(lab.model.reach(lab.device.address()), [(first, end - 1)]);
            assert!(touch(&lab, first, reads) && touch(&lab, first + length - 1, reads));
            assert_eq!(lab.device.faults().count(), 0);
            for (iova, read) in
                [(first - 1, reads), (end, reads), (first, !reads), (first + length - 1, !reads)]
            {
                assert!(!touch(&lab, iova, read), "{iova:#x} of {first:#x} to {end:#x}");
                let fault = lab.device.next_fault().unwrap().expect("a fault");
                let access = if read { FaultAccess::Read } else { FaultAccess::Write };
                assert_eq!(
                    (fault.address.map(|a| a & !0xfff), fault.access),
                    (Some(iova & !0xfff), access)
                );
            }
            lab.queue.finished(granted).unwrap();
            assert!(touch(&lab, first, reads), "the device may be late until the flush");
            assert!(lab.queue.returned().is_none(), "handed back while the device reaches it");
            lab.queue.flush().unwrap();
            for iova in [first, first + length - 1] {
                assert!(!touch(&lab, iova, true) && !touch(&lab, iova, false), "after the revoke");
            }
            assert_eq!(lab.queue.returned().unwrap().length(), length);
            assert_eq!(lab.model.reach(lab.device.address()), []);
        }
    }
}

/// A DMA that begins in a transfer and goes on behind it, or begins before it: nothing outside is read or written.
#[test]
fn a_dma_across_the_end_of_a_transfer_stops_there() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 3, PAGE);
        let memory = lab.lendable(3 * PAGE);
        memory.borrow_mut().fill(0, 12288, 0x55).unwrap();
        lab.queue.lend(&memory, 4096..8192, FromDevice).unwrap();
        lab.queue.flush().unwrap();
        let granted = lab.queue.granted().unwrap();
        assert!(!lab.writes(granted.iova() + 4095, &[0xaa; 2]));
        assert!(!lab.writes(granted.iova() - 1, &[0xbb; 2]));
        lab.queue.finished(granted).unwrap();
        lab.queue.flush().unwrap();
        lab.queue.lend(&memory, 4096..8192, ToDevice).unwrap();
        lab.queue.flush().unwrap();
        let granted = lab.queue.granted().unwrap();
        assert!(lab.reads(granted.iova() + 4095, 2).is_none());
        assert!(lab.reads(granted.iova() - 1, 2).is_none());
        let mut all = vec![0; 12288];
        memory.borrow().read(0, &mut all).unwrap();
        assert_eq!((all[4095], all[4096], all[8191], all[8192]), (0x55, 0x55, 0xaa, 0x55));
        assert_eq!(all.iter().filter(|byte| **byte != 0x55).count(), 1);
    }
}

/// Behind a transfer that ends inside of a page the device finds zeros, or what the slot held before, as its options
/// say. What it writes there reaches no transfer.
#[test]
fn the_rest_of_a_page_is_zeros_or_the_slots_own() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 1, 8192);
        let mut slot = lab.queue.take(8192).unwrap();
        slot.fill(0x77);
        drop(slot);
        let mut slot = lab.queue.take(4196).unwrap();
        slot.fill(0x11);
        lab.queue.grant(slot, ToDevice).unwrap();
        lab.queue.flush().unwrap();
        let granted = lab.queue.granted().unwrap();
        let seen = lab.reads(granted.iova(), 8192).unwrap();
        assert!(seen[..4196].iter().all(|byte| *byte == 0x11));
        let rest = if exposure == Exposure::Bytes { 0 } else { 0x77 };
        assert!(seen[4196..].iter().all(|byte| *byte == rest), "{exposure:?}");
        lab.queue.finished(granted).unwrap();
        lab.queue.flush().unwrap();
        drop(lab.queue.returned().unwrap());

        let granted = lab.granted(100, FromDevice);
        assert!(lab.writes(granted.iova(), &[0x22; 4096]));
        lab.queue.finished(granted).unwrap();
        lab.queue.flush().unwrap();
        let slot = lab.queue.returned().unwrap();
        assert_eq!(slot.to_vec(), [0x22; 100]);
        assert!(matches!(slot.read(100, &mut [0]), Err(Error::Outside)));
        assert!(matches!(slot.load_at::<u32>(97), Err(Error::Outside)));
        // Nor does it reach the next transfer of that slot.
        drop(slot);
        let mut slot = lab.queue.take(200).unwrap();
        slot.write(0, &[0x33; 200]).unwrap();
        assert!(slot.write(1, &[0; 200]).is_err());
        lab.queue.grant(slot, ToDevice).unwrap();
        lab.queue.flush().unwrap();
        let granted = lab.queue.granted().unwrap();
        let seen = lab.reads(granted.iova(), 300).unwrap();
        assert!(seen[..200] == [0x33; 200] && (seen[200] == 0) == (exposure == Exposure::Bytes));
    }
}

#[test]
fn what_is_no_transfer_is_refused() {
    let mut lab = lab(2, 5000, Exposure::Bytes);
    assert!(matches!(lab.queue.take(8193), Err(Error::TooLong { length: 8193, most: 8192 })));
    assert!(matches!(lab.queue.take(0), Err(Error::Outside)));
    for slots in [0, usize::MAX] {
        let options = TransferOptions { slots, ..TransferOptions::default() };
        assert!(matches!(TransferQueue::new(&lab.device, options), Err(Error::Outside)));
    }
    let options = TransferOptions { slots: 2, ..TransferOptions::default() };
    let mut other = TransferQueue::new(&lab.device, options).unwrap();
    let theirs = other.take(1).unwrap();
    assert!(matches!(lab.queue.grant(theirs, ToDevice), Err(Error::OtherQueue)));
    assert!(other.take(1).is_ok() && other.take(1).is_ok(), "the slot went home");
    let theirs = other.take(1).unwrap();
    other.grant(theirs, ToDevice).unwrap();
    other.flush().unwrap();
    let theirs = other.granted().unwrap();
    assert!(matches!(lab.queue.finished(theirs), Err(Error::OtherQueue)));
    other.flush().unwrap();
    assert_eq!(lab.model.reach(lab.device.address()), []);
}

/// The same driver code works where nothing confines its device.
#[test]
fn without_a_unit_the_same_code_runs() {
    let mut lab = lab_on(Model::without_unit(), TransferOptions::default());
    let mut slot = lab.queue.take(700).unwrap();
    slot.store_at(0, 0x1122_3344_u32).unwrap();
    lab.queue.grant(slot, ToDevice).unwrap();
    lab.queue.flush().unwrap();
    let granted = lab.queue.granted().unwrap();
    assert_eq!(lab.reads(granted.iova(), 5).unwrap(), [0x44, 0x33, 0x22, 0x11, 0]);
    lab.queue.finished(granted).unwrap();
    let granted = lab.granted(4096, FromDevice);
    assert!(lab.writes(granted.iova(), &[3; 4096]));
    lab.queue.finished(granted).unwrap();
    lab.queue.flush().unwrap();
    assert_eq!(lab.queue.returned().unwrap().length(), 700);
    assert_eq!(lab.queue.returned().unwrap().to_vec(), [3; 4096]);
}
