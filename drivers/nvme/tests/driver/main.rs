//! The driver over a controller in software, whose DMA goes through the software unit and the whole server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod confine;
mod retry;
mod scatter;
mod software;
mod troubles;

use std::time::Duration;

use iommu_client::{
    BufferOptions, BusMasterPermission, Device, DeviceMemory, DmaBlock, DmaBuffer, DmaPool,
    FaultAccess, PoolOptions,
};
use iommud_tests::model::Model;
use nvme::{CompletionMode, Controller, Error, Operation, Request, Settings, Status};
use software::{BLOCK, Manner, Software};

const NAME: &str = "0000--00--04.0";
const SOON: Duration = Duration::from_millis(200);

struct Lab<D: DeviceMemory> {
    nvme: Controller<Software, D>,
    software: Software,
    pool: DmaPool,
    device: Device,
    _permission: BusMasterPermission,
    model: Model,
}

fn lab<D: DeviceMemory>(manner: Manner, depth: u16) -> Lab<D> {
    lab_on(Model::new(), manner, depth)
}

fn lab_on<D: DeviceMemory>(model: Model, manner: Manner, depth: u16) -> Lab<D> {
    lab_with(model, manner, |_| Settings { queues: 1, depth, completion: CompletionMode::Poll })
}

fn lab_with<D: DeviceMemory>(
    model: Model,
    manner: Manner,
    settings: impl FnOnce(&Software) -> Settings,
) -> Lab<D> {
    let device = Device::open(&model.connection(), NAME).unwrap();
    let software = Software::new(&model, device.address(), manner);
    Controller::<_, D>::quiesce(&mut software.clone()).unwrap();
    let permission = device.attach().unwrap();
    let nvme = Controller::start(software.clone(), &device, settings(&software)).unwrap();
    let options = PoolOptions { largest: 4 << 20, ..PoolOptions::default() };
    let pool = DmaPool::new(&device, options).unwrap();
    Lab { nvme, software, pool, device, _permission: permission, model }
}

const fn request(namespace: u32, operation: Operation, first: u64, blocks: u64) -> Request {
    Request { namespace, operation, first, blocks }
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 77) >> 7).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_controller_says_what_it_is() {
    let lab = lab::<DmaBlock>(Manner::default(), 8);
    let info = lab.nvme.info();
    assert_eq!((info.serial.as_str(), info.model.as_str()), ("SW-0001", "in software"));
    let sizes: Vec<_> = info.namespaces.iter().map(|n| (n.id, n.blocks, n.block_size)).collect();
    assert_eq!(sizes, [(1, 4096, 512), (2, 4096, 4096)]);
    assert_eq!(lab.nvme.depth(), 8);
    assert!(matches!(lab.nvme.namespace(3), Err(Error::NoNamespace(3))));
}

/// Transfers of every number of pages, from one to more than a list holds, to both namespaces. The controller gets
/// every page of the memory once, in order, and no other page.
#[test]
fn what_is_written_is_read_back() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 4);
    for (namespace, pages) in
        [(1, 1), (2, 2), (1, 3), (2, 8), (1, 9), (2, 32), (2, 512), (2, 513), (2, 514), (2, 1024)]
    {
        let length = pages * 4096;
        let blocks = length / BLOCK[namespace - 1];
        let mut data = lab.pool.take(length as u64).unwrap();
        let pattern = bytes(pages as u64, length);
        data.write(0, &pattern).unwrap();
        let id = u32::try_from(namespace).unwrap();
        let write = request(id, Operation::Write, 5, blocks as u64);
        let expected: Vec<u64> = (0..pages as u64).map(|page| data.iova() + page * 4096).collect();
        let mut data = lab.nvme.run(write, data, SOON).unwrap();
        assert_eq!(lab.software.take_pages(), expected);
        assert_eq!(lab.software.disk(namespace, 5 * BLOCK[namespace - 1], length), pattern);
        data.fill(0xee);
        let read = Request { operation: Operation::Read, ..write };
        let data = lab.nvme.run(read, data, SOON).unwrap();
        assert!(data.to_vec() == pattern, "{pages} pages differ");
        lab.software.take_pages();
    }
    assert_eq!(lab.device.faults().count(), 0);
}

/// Memory that begins at an offset in a buffer.
struct Long(DmaBuffer<[u8]>, u64);

impl DeviceMemory for Long {
    fn iova(&self) -> u64 {
        self.0.iova() + self.1
    }

    fn length(&self) -> u64 {
        self.0.length() - self.1
    }
}

/// Half a page in front makes a transfer touch one page more: two pages, a list, a list of 512 entries.
#[test]
fn a_transfer_may_begin_inside_of_a_page() {
    let mut lab = lab::<Long>(Manner::default(), 2);
    for blocks in [1, 4, 5, 8, 12, 13, 20, 4096] {
        let length = blocks * 512;
        let mut buffer = lab.device.allocate((2 << 20) + 4096, BufferOptions::default()).unwrap();
        let pattern = bytes(blocks as u64, length);
        buffer.write(2048, &pattern).unwrap();
        let iova = buffer.iova();
        let write = request(1, Operation::Write, 0, blocks as u64);
        let Long(buffer, _) = lab.nvme.run(write, Long(buffer, 2048), SOON).unwrap();
        assert_eq!(lab.software.disk(1, 0, length), pattern);
        let pages = lab.software.take_pages();
        let last = (2048 + length - 1) / 4096;
        let rest = (1..=last as u64).map(|page| iova + page * 4096);
        assert_eq!(pages, [iova + 2048].into_iter().chain(rest).collect::<Vec<_>>());
        drop(buffer);
    }
}

#[test]
fn the_queue_is_filled_and_goes_round() {
    for backwards in [false, true] {
        let manner = Manner { slow: true, backwards, ..Manner::default() };
        let mut lab = lab::<DmaBlock>(manner, 5);
        for round in 0..20_u64 {
            for index in 0..5 {
                let mut data = lab.pool.take(512).unwrap();
                data.fill(index + 1);
                let write = request(1, Operation::Write, u64::from(index) + 8 * round, 1);
                lab.nvme.submit(write, data).unwrap();
            }
            let data = lab.pool.take(512).unwrap();
            let full = lab.nvme.submit(request(1, Operation::Write, 0, 1), data);
            assert!(matches!(full, Err((Error::Full, _))));
            assert!(lab.nvme.poll().unwrap().is_none());
            lab.software.let_go();
            for index in 0..5 {
                let done = lab.nvme.poll().unwrap().expect("a completion");
                let nth = if backwards { 4 - index } else { index };
                assert_eq!(done.request.first, nth + 8 * round);
                let first: u8 = done.data.load_at(0).unwrap();
                assert_eq!((done.result, first), (Ok(()), nth.to_le_bytes()[0] + 1));
            }
            assert_eq!(lab.nvme.in_flight(), 0);
        }
    }
}

/// Once the pool has enough memory, a transfer costs nothing in the server or the unit: no requests, no
/// invalidations, no register accesses.
#[test]
fn transfers_make_no_requests() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 4);
    for (operation, blocks) in [(Operation::Write, 32), (Operation::Read, 1)] {
        lab.pool.reserve(blocks * 4096, 4).unwrap();
        let length = blocks * 4096;
        let send = |lab: &mut Lab<DmaBlock>, first| {
            let data = lab.pool.take(length).unwrap();
            lab.nvme.submit(request(2, operation, first, blocks), data).unwrap();
        };
        // The first requests under way take memory for their lists from the pool.
        (0..4).for_each(|first| send(&mut lab, first));
        let before = lab.model.counts();
        let mut state = 1_u64;
        for _ in 0..400 {
            assert_eq!(lab.nvme.wait(SOON).unwrap().result, Ok(()));
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            send(&mut lab, (state >> 33) % 4000);
        }
        assert_eq!(lab.model.counts(), before);
        (0..4).for_each(|_| drop(lab.nvme.wait(SOON).unwrap()));
    }
}

/// The same blocks of two namespaces are different blocks.
#[test]
fn namespaces_are_apart() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 4);
    for namespace in [1, 2] {
        let mut data = lab.pool.take(4096).unwrap();
        data.write(0, &bytes(namespace, 4096)).unwrap();
        let blocks = if namespace == 1 { 8 } else { 1 };
        let id = u32::try_from(namespace).unwrap();
        lab.nvme.run(request(id, Operation::Write, 8, blocks), data, SOON).unwrap();
    }
    let data = lab.pool.take(4096).unwrap();
    let first = lab.nvme.run(request(1, Operation::Read, 8, 8), data, SOON).unwrap();
    assert!(
        first.to_vec() == bytes(1, 4096) && lab.software.disk(2, 8 * 4096, 4096) == bytes(2, 4096)
    );
}

#[test]
fn what_cannot_be_is_refused_before_it_is_sent() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 2);
    for (first, blocks) in [(4096, 1), (4095, 2), (u64::MAX, 2), (0, 0), (0, 8193)] {
        let data = lab.pool.take(4096).unwrap();
        let refused = lab.nvme.submit(request(1, Operation::Read, first, blocks), data);
        assert!(matches!(refused, Err((Error::Range { .. }, _))), "{first} {blocks}");
    }
    let short = lab.pool.take(1000).unwrap();
    let refused = lab.nvme.submit(request(1, Operation::Read, 0, 2), short);
    assert!(matches!(refused, Err((Error::Memory { length: 1000, .. }, _))));
    let data = lab.pool.take(512).unwrap();
    let refused = lab.nvme.submit(request(7, Operation::Read, 0, 1), data);
    assert!(matches!(refused, Err((Error::NoNamespace(7), _))));
    assert_eq!(lab.nvme.in_flight(), 0);
    let data = lab.pool.take(512).unwrap();
    lab.nvme.run(request(1, Operation::Flush, 0, 0), data, Duration::MAX).unwrap();
    assert_eq!(lab.software.flushes(), 1);
}

/// A command has an address that was never granted. The unit denies it and reports the fault to the driver, which
/// resets its controller and goes on.
#[test]
fn a_rogue_command_is_blocked_and_the_driver_goes_on() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 4);
    let before = lab.model.reach(lab.device.address());
    let ended = lab.nvme.read_to_address(1, 0, 0x0bad_0000);
    assert!(matches!(ended, Err(Error::Status(Status(4)))), "{ended:?}");
    let fault = lab.device.next_fault().unwrap().expect("a fault");
    assert_eq!((fault.address, fault.access), (Some(0x0bad_0000), FaultAccess::Write));
    assert!(lab.nvme.reset().unwrap().is_empty());
    let mut data = lab.pool.take(4096).unwrap();
    data.fill(3);
    lab.nvme.run(request(1, Operation::Write, 0, 8), data, SOON).unwrap();
    assert_eq!(lab.software.disk(1, 4095, 1), [3]);
    assert!(lab.model.reach(lab.device.address()).len() >= before.len());
    assert_eq!((lab.device.faults().count(), lab.software.troubles()), (0, (1, 1)));
}

/// The driver dies in the middle of writes. Its controller goes on, but reaches nothing. The next driver starts with
/// the same controller.
#[test]
fn death_in_the_middle_of_writes_leaves_no_dma() {
    let mut lab = lab::<DmaBlock>(Manner { slow: true, ..Manner::default() }, 3);
    for first in 0..3 {
        let data = lab.pool.take(8192).unwrap();
        lab.nvme.submit(request(1, Operation::Write, first * 16, 16), data).unwrap();
    }
    assert_eq!(lab.software.kept(), 3);
    lab.model.kill_clients();
    assert_eq!(lab.model.reach(lab.device.address()), []);
    lab.software.let_go();
    // Three reads of data and three completions.
    assert_eq!(lab.software.troubles(), (6, 0));
    let Lab { nvme, software, pool, device, _permission, model } = lab;
    // A dead process drops nothing.
    std::mem::forget((nvme, pool, device, _permission, software));

    let mut next = lab_on::<DmaBlock>(model, Manner::default(), 3);
    let mut data = next.pool.take(8192).unwrap();
    data.fill(9);
    next.nvme.run(request(1, Operation::Write, 0, 16), data, SOON).unwrap();
    assert_eq!(next.software.disk(1, 0, 8192), [9; 8192]);
}

/// The controller stops before its memory is released.
#[test]
fn a_controller_is_stopped_before_its_memory_goes() {
    let mut lab = lab::<DmaBlock>(Manner { slow: true, ..Manner::default() }, 3);
    let data = lab.pool.take(8192).unwrap();
    lab.nvme.submit(request(1, Operation::Read, 0, 16), data).unwrap();
    drop(lab.nvme);
    assert_eq!((lab.software.kept(), lab.software.troubles()), (0, (0, 1)));
    drop(lab.pool);
    assert_eq!(lab.model.reach(lab.device.address()), []);
}

#[test]
fn the_same_driver_where_nothing_is_confined() {
    let mut lab = lab_on::<DmaBlock>(Model::without_unit(), Manner::default(), 3);
    let mut data = lab.pool.take(128 << 10).unwrap();
    let pattern = bytes(1, 128 << 10);
    data.write(0, &pattern).unwrap();
    lab.nvme.run(request(2, Operation::Write, 7, 32), data, SOON).unwrap();
    assert_eq!(lab.software.disk(2, 7 * 4096, 128 << 10), pattern);
}
