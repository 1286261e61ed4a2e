//! Drivers without a bug.

use std::cell::RefCell;
use std::rc::Rc;

use iommu_client::{
    Access, Batch, BufferOptions, Device, Direction, DmaBuffer, DmaPool, Placement, PoolOptions,
    TransferOptions, TransferQueue,
};
use iommud_tests::model::{DEVICES, Model, Vendor};

use super::{Lab, lab};

/// Rings, snapshots, pools, grants, batches and transfers, each used as documented.
fn works(lab: &Lab) {
    let mut ring = DmaBuffer::<[u32]>::zeroed_slice(&lab.device, 1024).unwrap();
    for round in 1..4_u8 {
        // It polls with snapshots, and reads back only after it has written again.
        assert!(lab.writes(ring.iova(), &[round]));
        for _ in 0..3 {
            assert_eq!(ring.snapshot_at::<u8>(0).map(|s| *s).unwrap(), round);
        }
        ring.set(5, round.into()).unwrap();
        assert_eq!(ring.get(5).unwrap(), u32::from(round));
        let copy = ring.snapshot_bytes(0, 64).unwrap();
        assert_eq!((copy[0], copy[20]), (round, round));
    }
    let pool = DmaPool::new(&lab.device, PoolOptions::default()).unwrap();
    for round in 1..4 {
        let mut block = pool.take(100).unwrap();
        assert!(lab.writes(block.iova(), &[round; 100]));
        assert_eq!(block.to_vec(), [round; 100]);
        block.fill(0);
        assert_eq!(block.load_at::<u8>(99).unwrap(), 0);
    }
    let unmapped = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let mut buffer = lab.device.allocate(8192, unmapped).unwrap();
    for round in 1..4 {
        buffer.fill(0, 8192, 0).unwrap();
        let grant = buffer.grant(0..4096, Access::WRITE).unwrap();
        assert!(lab.writes(grant.iova(), &[round]));
        grant.revoke().unwrap();
        // The device has lost it, so it may be read as often as wanted.
        for _ in 0..2 {
            assert_eq!(buffer.load_at::<u8>(0).unwrap(), round);
        }
    }
    let batch = Batch::new().map(buffer.slot(), 0..4096, Access::READ, Placement::Anywhere).grant(
        buffer.slot(),
        4096..8192,
        Access::WRITE,
    );
    let iovas = batch.run(&lab.device).unwrap();
    let end = Batch::new().unmap(iovas[0], 4096).revoke(buffer.slot(), 4096..8192);
    end.run(&lab.device).unwrap();
    drop(buffer.slot().map_pages(&[1, 0], Access::READ, Placement::Anywhere).ok());
    let mut queue = TransferQueue::new(&lab.device, TransferOptions::default()).unwrap();
    let memory = Rc::new(RefCell::new(buffer));
    for _ in 0..3 {
        let slot = queue.take(100).unwrap();
        queue.grant(slot, Direction::FromDevice).unwrap();
        queue.lend(&memory, 0..4096, Direction::FromDevice).unwrap();
        queue.lend(&memory, 5000..5100, Direction::FromDevice).unwrap();
        queue.flush().unwrap();
        let under_way: Vec<_> = std::iter::from_fn(|| queue.granted()).collect();
        under_way.into_iter().for_each(|done| queue.finished(done).unwrap());
        queue.flush().unwrap();
        let slot = queue.returned().unwrap();
        assert_eq!(slot.to_vec(), slot.to_vec());
        memory.borrow_mut().fill(0, 8192, 3).unwrap();
    }
    // A queue that is dropped in the middle takes its buffer along.
    let slot = queue.take(100).unwrap();
    queue.grant(slot, Direction::FromDevice).unwrap();
    queue.lend(&memory, 4096..8192, Direction::ToDevice).unwrap();
    queue.flush().unwrap();
    drop((queue, memory, ring, pool));
}

/// Nothing is reported of a driver that does what the documentation says.
#[test]
fn nothing_is_reported_without_a_bug() {
    for model in Vendor::ALL.map(Model::of).into_iter().chain([Model::without_unit()]) {
        let lab = lab(model);
        works(&lab);
        assert_eq!(lab.faults(), 0);
        assert_eq!(lab.reports(), [""; 0]);
        assert!(lab.reports.lock().unwrap().is_empty());
    }
}

/// It asks the server for nothing more.
#[test]
fn a_sanitizer_makes_no_request() {
    let spent = |watched: bool| {
        let model = Model::new();
        let device = Device::open(&model.connection(), DEVICES[1]).unwrap();
        if watched {
            device.sanitize_with(|report| panic!("{report}"));
        }
        let permission = device.attach().unwrap();
        let reports = std::sync::Arc::default();
        works(&Lab { device, reports, _permission: permission, model: model.clone() });
        model.counts()
    };
    assert_eq!(spent(true), spent(false));
}

/// A buffer of a second device is that session's to watch.
#[test]
fn an_imported_buffer_is_watched_where_it_is_mapped() {
    let lab = lab(Model::new());
    let member = lab.device.open_member(DEVICES[0].parse().unwrap()).unwrap();
    let found = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = found.clone();
    member.sanitize_with(move |report| log.lock().unwrap().push(report.to_string()));
    let buffer = lab.device.allocate(4096, BufferOptions::default()).unwrap();
    let imported = member.import(&buffer).unwrap();
    let batch = Batch::new().map(imported.slot(), 0..4096, Access::READ, Placement::Anywhere);
    batch.run(&member).unwrap();
    drop(imported);
    let found = found.lock().unwrap();
    assert!(found.len() == 1 && found[0].starts_with("0000--00--03.0: freed while mapped"));
    assert_eq!(lab.reports(), [""; 0]);
}
