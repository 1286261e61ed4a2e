//! Refusals, and the end of transfers, queues and drivers.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::transport::{Handle, Transport};
use iommu_client::{
    Access, BufferOptions, Connection, Device, Direction, DmaPool, Error, Exposure, PoolOptions,
    Refusal, TransferOptions, TransferQueue,
};
use iommu_protocol::wire::{Operation, ReplyHeader, RequestHeader, Wire};
use iommud::policy::{Config, Quotas};
use iommud_tests::model::{DEVICES, InProcess, Model, ModelUnit};

use Direction::{FromDevice, ToDevice};

use super::{EVERYWHERE, Lab, PAGE, lab, lab_of, lab_on, spent};

/// A refused flush changes nothing. The driver withdraws the grants, and its revokes go through.
#[test]
fn a_refused_flush_changes_nothing() {
    let quotas = Quotas { mappings: 4, ..Quotas::default() };
    let model = Model::with(ModelUnit::Up, Config { quotas, ..Config::default() });
    let mut lab = lab_on(model, TransferOptions { slots: 8, ..TransferOptions::default() });
    let first = lab.granted(4096, FromDevice);
    lab.writes(first.iova(), &[9]);
    let iova = first.iova();
    lab.queue.finished(first).unwrap();
    for length in 1..=5 {
        let slot = lab.queue.take(length).unwrap();
        lab.queue.grant(slot, ToDevice).unwrap();
    }
    let reach = lab.model.reach(lab.device.address());
    for _ in 0..2 {
        let before = lab.model.counts();
        let refused = lab.queue.flush();
        let Err(Error::RefusedItem { refusal, item }) = refused else { panic!("{refused:?}") };
        assert_eq!((refusal, item), (Refusal::Quota, 5), "a revoke makes room for one grant");
        assert_eq!(spent(&before, &lab.model.counts()), [1, 1, 0, 0]);
        assert!(lab.queue.granted().is_none() && lab.queue.returned().is_none());
        assert_eq!(
            (lab.queue.waiting(), lab.model.reach(lab.device.address())),
            (6, reach.clone())
        );
    }
    assert!(lab.writes(iova, &[7]), "it stays granted");
    let lengths: Vec<_> = lab.queue.withdraw().iter().map(|slot| slot.length()).collect();
    assert_eq!((lengths, lab.queue.waiting()), ((1..=5).collect(), 1));
    lab.queue.flush().unwrap();
    assert_eq!(lab.queue.returned().unwrap().load_at::<u8>(0).unwrap(), 7);
    assert_eq!(lab.model.reach(lab.device.address()), []);
}

/// A transport over which the server refuses batches while `refuses` is set.
struct Refusing {
    to: InProcess,
    refuses: Arc<AtomicBool>,
}

impl Transport for Refusing {
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error> {
        self.to.open(at, path, write)
    }

    fn close(&self, handle: Handle) {
        self.to.close(handle);
    }

    fn read(&self, handle: Handle, out: &mut [u8]) -> Result<usize, Error> {
        self.to.read(handle, out)
    }

    fn call(&self, handle: Handle, payload: &mut [u8], request: usize) -> Result<usize, Error> {
        let header = RequestHeader::decode(payload).unwrap();
        if header.operation != Operation::Batch.code() || !self.refuses.load(Ordering::Relaxed) {
            return self.to.call(handle, payload, request);
        }
        let reply = ReplyHeader {
            version: header.version,
            operation: header.operation,
            length: 24,
            cookie: header.cookie,
            refusal: Refusal::UnitFailed.code(),
            ..ReplyHeader::default()
        };
        reply.encode(payload).unwrap();
        Ok(24)
    }

    fn names(&self, handle: Handle) -> Result<Vec<String>, Error> {
        self.to.names(handle)
    }

    fn wait_readable(&self, handle: Handle, timeout: Duration) -> Result<bool, Error> {
        self.to.wait_readable(handle, timeout)
    }

    fn map(&self, handle: Handle) -> Result<Memory, Error> {
        self.to.map(handle)
    }

    fn import(&self, session: Handle, buffer: Handle) -> Result<u32, Error> {
        self.to.import(session, buffer)
    }
}

/// While the unit may still let the device reach a transfer, its memory is handed to nobody.
#[test]
fn a_failed_unit_keeps_what_it_may_reach() {
    let model = Model::new();
    let refuses = Arc::new(AtomicBool::new(false));
    let transport = Refusing { to: model.transport(), refuses: refuses.clone() };
    let device = Device::open(&Connection::over(transport), DEVICES[1]).unwrap();
    let _permission = device.attach().unwrap();
    let options = TransferOptions { slots: 2, ..TransferOptions::default() };
    let mut queue = TransferQueue::new(&device, options).unwrap();
    for _ in 0..2 {
        let slot = queue.take(4096).unwrap();
        queue.grant(slot, ToDevice).unwrap();
    }
    queue.flush().unwrap();
    let (wanted, unwanted) = (queue.granted().unwrap(), queue.granted().unwrap());
    refuses.store(true, Ordering::Relaxed);
    queue.finished(wanted).unwrap();
    drop(unwanted);
    for _ in 0..2 {
        assert_eq!(queue.flush().unwrap_err().refusal(), Some(Refusal::UnitFailed));
        assert!(queue.returned().is_none());
        assert!(matches!(queue.take(1), Err(Error::NoSlot { slots: 2 })));
        assert_eq!(model.reach(device.address()).len(), 1);
    }
    refuses.store(false, Ordering::Relaxed);
    queue.flush().unwrap();
    assert!(queue.returned().is_some() && queue.take(1).is_ok());
    assert_eq!(model.reach(device.address()), []);
}

/// A transfer that is dropped is revoked by the next flush, and its slot is free only then.
#[test]
fn a_dropped_transfer_is_revoked_by_the_next_flush() {
    let mut lab = lab(1, PAGE, Exposure::Bytes);
    let granted = lab.granted(4096, ToDevice);
    let iova = granted.iova();
    drop(granted);
    assert!(lab.reads(iova, 1).is_some());
    assert!(matches!(lab.queue.take(1), Err(Error::NoSlot { .. })));
    let before = lab.model.counts();
    lab.queue.flush().unwrap();
    assert_eq!(spent(&before, &lab.model.counts()), [1, 1, 1, 1]);
    assert!(lab.reads(iova, 1).is_none() && lab.queue.returned().is_none());
    assert!(lab.queue.take(1).is_ok());
}

/// The memory of a dropped queue is given up with the last of its transfers. The model fails if it is used for others
/// while the device reaches it.
#[test]
fn a_dropped_queue_keeps_its_memory_for_its_transfers() {
    let mut lab = lab(4, PAGE, Exposure::Bytes);
    let left = lab.device.query().unwrap().memory_left;
    let memory = lab.lendable(8192);
    lab.queue.lend(&memory, 0..4096, FromDevice).unwrap();
    lab.queue.lend(&memory, 4096..8192, FromDevice).unwrap();
    lab.queue.flush().unwrap();
    let (one, two) = (lab.queue.granted().unwrap(), lab.queue.granted().unwrap());
    let slot = lab.granted(4096, FromDevice);
    // One transfer is handed in, one was never taken out, one is the driver's still.
    lab.queue.finished(one).unwrap();
    lab.queue.lend(&memory, 100..200, FromDevice).unwrap();
    let kept = lab.queue.take(4096).unwrap();
    lab.queue.grant(kept, ToDevice).unwrap();
    let Lab { queue, device, _permission, model } = lab;
    drop(queue);
    let reach = |count| assert_eq!(model.reach(device.address()).len(), count);
    assert!(model.device_write(device.address(), slot.iova(), &[1]).is_ok());
    reach(2);
    drop(slot);
    reach(2);
    // With the last one the queue's buffer ends, and what was lent is revoked.
    drop(two);
    reach(0);
    assert_eq!(device.query().unwrap().memory_left, left + 4 * 4096 - 8192);
    assert_eq!(Rc::strong_count(&memory), 1);
    assert_eq!(memory.borrow().load_at::<u8>(0).unwrap(), 0);
}

/// A driver of a pool, of transfers, or of grants is dropped in the middle of its DMA. The device reaches nothing when
/// the drop returns, and the memory is the next driver's.
#[test]
fn a_driver_that_is_dropped_in_the_middle_leaves_nothing_reachable() {
    for (vendor, exposure) in EVERYWHERE {
        let Lab { queue, device, _permission, model } = lab_of((vendor, exposure), 4, PAGE);
        let mut queue = queue;
        let left = device.query().unwrap().memory_left;
        let pool = DmaPool::new(&device, PoolOptions::default()).unwrap();
        let block = pool.take(4096).unwrap();
        let unmapped = BufferOptions { unmapped: true, ..BufferOptions::default() };
        let buffer = device.allocate(8192, unmapped).unwrap();
        let grant = buffer.grant(0..4096, Access::WRITE).unwrap();
        for direction in [FromDevice, ToDevice] {
            let slot = queue.take(100).unwrap();
            queue.grant(slot, direction).unwrap();
        }
        queue.flush().unwrap();
        let granted = queue.granted().unwrap();
        let under_way = [block.iova(), grant.iova(), granted.iova()];
        let writes = |iova| model.device_write(device.address(), iova, &[1; 64]).is_ok();
        assert!(under_way.into_iter().all(writes));
        drop((queue, granted));
        assert_eq!(under_way.map(writes), [true, true, false]);
        drop(grant);
        assert_eq!(under_way.map(writes), [true, false, false]);
        drop((pool, block, buffer));
        assert_eq!(under_way.map(writes), [false; 3]);
        assert_eq!(model.reach(device.address()), []);
        assert_eq!(device.query().unwrap().memory_left, left + 4 * PAGE);
    }
}

/// A driver dies with transfers in every state. Its device reaches nothing, and the next driver may have all of the
/// memory.
#[test]
fn a_dead_driver_leaves_nothing_reachable() {
    for (vendor, exposure) in EVERYWHERE {
        let mut lab = lab_of((vendor, exposure), 8, PAGE);
        let memory = lab.lendable(8192);
        let (finished, running) = (lab.granted(512, ToDevice), lab.granted(4096, FromDevice));
        lab.queue.lend(&memory, 0..4096, ToDevice).unwrap();
        lab.queue.lend(&memory, 10..20, FromDevice).unwrap();
        lab.queue.flush().unwrap();
        lab.queue.finished(finished).unwrap();
        let slot = lab.queue.take(100).unwrap();
        lab.queue.grant(slot, ToDevice).unwrap();
        let iova = running.iova();
        assert!(lab.writes(iova, &[1]));
        lab.model.kill_clients();
        assert_eq!(lab.model.reach(lab.device.address()), []);
        assert!(!lab.writes(iova, &[1]));
        let Lab { queue, device, _permission, model } = lab;
        // A dead process drops nothing.
        std::mem::forget((queue, device, _permission, running, memory));
        let metrics = model.connection().text("metrics").unwrap();
        for line in ["sessions 0", "buffers 0"] {
            assert!(metrics.lines().any(|found| found == line), "{metrics}");
        }
    }
}
