//! DMA memory over the whole server and a software unit: the reach of the device, the cost of requests, and the order
//! in which things end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::transport::{Handle, Transport};
use iommu_client::{
    Access, Batch, BufferOptions, Connection, Device, DmaBuffer, DmaPool, Error, Placement,
    PoolOptions, Refusal, SessionFlags,
};
use iommu_protocol::wire::{Operation, RequestHeader, Wire};
use iommud_tests::model::{DEVICES, InProcess, Model, Vendor};

const NAME: &str = DEVICES[1];

#[test]
fn a_typed_buffer_is_the_devices_memory() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let at = device.address();
    let mut table = DmaBuffer::<[u64; 8]>::zeroed(&device).unwrap();
    let mut words = DmaBuffer::<[u32]>::zeroed_slice(&device, 4000).unwrap();
    assert_eq!((table.load(), table.length()), ([0; 8], 4096));
    assert_eq!((words.len(), words.length()), (4000, 16384));

    table.store_at(16, 0x1122_3344_5566_7788_u64).unwrap();
    let seen = model.device_read(at, table.iova() + 16, 8).unwrap();
    assert_eq!(seen, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    // The 2048th word, which lies on another page.
    model.device_write(at, words.iova() + 8192, &[1, 2, 0, 0]).unwrap();
    assert_eq!((words.get(2048).unwrap(), words.get(2047).unwrap()), (0x0201, 0));
    words.set(2049, 0x0403).unwrap();
    let mut some = [0; 3];
    words.copy_to(2047, &mut some).unwrap();
    assert_eq!(some, [0, 0x0201, 0x0403]);
    words.copy_from(3999, &[5]).unwrap();
    assert_eq!(words.to_vec().iter().sum::<u32>(), 0x0201 + 0x0403 + 5);
    for outside in
        [words.copy_from(3999, &[5, 6]), words.set(4000, 1), words.get(usize::MAX).map(drop)]
    {
        assert!(matches!(outside, Err(Error::Outside)));
    }
    assert!(matches!(table.load_at::<u64>(4089), Err(Error::Outside)));
    table.store([9; 8]);
    assert_eq!(table.load_at::<[u64; 2]>(48).unwrap(), [9, 9]);
    table.fill(8, 8, 0x11).unwrap();
    assert_eq!(table.load()[..3], [9, 0x1111_1111_1111_1111, 9]);
    let value = DmaBuffer::new(&device, [7_u8; 5]).unwrap();
    assert_eq!(model.device_read(at, value.iova(), 6).unwrap(), [7, 7, 7, 7, 7, 0]);
}

/// The entries of an IOTLB that a buffer takes, on either vendor's unit. `tests/server/large_pages.rs` has larger leaves.
#[test]
fn a_buffer_says_how_many_iotlb_entries_it_takes() {
    for vendor in Vendor::ALL {
        let model = Model::of(vendor);
        let (device, _permission) = model.attached();
        // The model's memory comes in pieces of 16 KiB with 4 KiB between them, so these lie 0, 4, 8 and 12 KiB behind a
        // multiple of 16 KiB in turn. AMD-Vi maps them by 1, 4, 2 and 4 entries: 11 for each four of the 128.
        let large = device.allocate(2 << 20, BufferOptions::default()).unwrap();
        let small = device.allocate(12288, BufferOptions::default()).unwrap();
        let counted = [&large, &small].map(|buffer| buffer.iotlb_entries().unwrap());
        assert_eq!(counted, if vendor == Vendor::Intel { [512, 3] } else { [352, 2] });
        large.unmap().unwrap();
        assert_eq!(large.iotlb_entries().unwrap(), 0);
        let unmapped = BufferOptions { unmapped: true, ..BufferOptions::default() };
        let lent = device.allocate(8192, unmapped).unwrap();
        assert_eq!(lent.iotlb_entries().unwrap(), 0);
        let grant = lent.grant(4096..8192, Access::READ).unwrap();
        assert_eq!(lent.iotlb_entries().unwrap(), 1);
        drop(grant);
    }
    let model = Model::without_unit();
    let (device, _permission) = model.attached();
    let plain = device.allocate(4096, BufferOptions::default()).unwrap();
    assert_eq!(plain.iotlb_entries().unwrap(), 0);
}

#[test]
fn constraints_are_met() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let high = BufferOptions { above_4g: true, ..BufferOptions::default() };
    for _ in 0..20 {
        let options =
            BufferOptions { alignment: 1 << 20, boundary: 1 << 16, ..BufferOptions::default() };
        let ring = DmaBuffer::<[u64]>::zeroed_slice_with(&device, 4096, options).unwrap();
        assert!(ring.iova().is_multiple_of(1 << 20) && ring.iova() + ring.length() <= 1 << 32);
        assert_eq!(ring.iova() >> 16, (ring.iova() + ring.length() - 1) >> 16);
        std::mem::forget(ring);
    }
    assert!(DmaBuffer::<[u8]>::zeroed_slice_with(&device, 10, high).is_ok());
    let bad = BufferOptions { alignment: 5000, ..BufferOptions::default() };
    let refused = DmaBuffer::<u64>::zeroed_with(&device, bad).unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Alignment));
}

/// The numbers of requests that drivers/README.md states.
#[test]
fn a_buffer_costs_five_requests() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let count = || model.counts().requests();
    let before = count();
    let buffer = device.allocate(1 << 20, BufferOptions::default()).unwrap();
    assert_eq!(count() - before, 3);
    drop(buffer);
    assert_eq!(count() - before, 5);
    let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let buffer = device.allocate(65536, options).unwrap();
    let before = model.counts();
    drop(buffer.grant(0..65536, Access::WRITE).unwrap());
    let after = model.counts();
    assert_eq!(after.requests() - before.requests(), 2);
    assert_eq!((after.of(Operation::Grant), after.of(Operation::Revoke)), (1, 1));
    assert_eq!(after.waits - before.waits, 1);
}

#[test]
fn every_block_of_a_pool_comes_back_once() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let pool = DmaPool::new(&device, PoolOptions::default()).unwrap();
    let all = || {
        let blocks: Vec<_> = std::iter::from_fn(|| pool.take_ready(4096)).collect();
        let mut places: Vec<u64> = blocks.iter().map(|block| block.iova()).collect();
        places.sort_unstable();
        places
    };
    pool.reserve(4096, 1).unwrap();
    let first = all();
    assert!(first.len() == 64 && first.windows(2).all(|pair| pair[0] + 4096 <= pair[1]));
    assert_eq!(all(), first);
    assert_eq!(pool.memory(), 256 << 10);
}

/// Taking and giving back a block sends no request.
#[test]
fn a_pool_makes_no_requests() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let pool = DmaPool::new(&device, PoolOptions::default()).unwrap();
    for length in [64, 4096, 65536] {
        pool.reserve(length, 4).unwrap();
    }
    let before = model.counts();
    for round in 0..10_000_u32 {
        let (small, page) = (pool.take(1).unwrap(), pool.take(3000).unwrap());
        let mut large = pool.take(65536).unwrap();
        large.store_at(0, 1_u8).unwrap();
        assert!(pool.take_ready(4096).is_some(), "round {round}");
        drop((page, large, small));
    }
    assert_eq!(model.counts(), before);
}

/// Blocks in use at the same time share no byte, neither of this process nor of the device.
#[test]
fn blocks_do_not_overlap() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let pool = DmaPool::new(&device, PoolOptions::default()).unwrap();
    let mut blocks = Vec::new();
    let mut seed = 12345_u64;
    for step in 0..3000_u64 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if seed >> 62 == 0 && !blocks.is_empty() {
            let index = usize::try_from(seed >> 20).unwrap() % blocks.len();
            blocks.swap_remove(index);
            continue;
        }
        let length = 1 + (seed >> 33) % [64, 500, 5000][usize::try_from(step % 3).unwrap()];
        let mut block = pool.take(length).unwrap();
        let size = length.next_power_of_two().max(64);
        assert_eq!(block.length(), length);
        assert!(matches!(block.write(length, &[1]), Err(Error::Outside)));
        assert!(matches!(block.load_at::<u8>(length), Err(Error::Outside)));
        assert!(block.iova().is_multiple_of(size), "{:#x} of {length}", block.iova());
        block.fill(step.to_le_bytes()[0]);
        blocks.push((block, step.to_le_bytes()[0]));
        if blocks.len() > 200 {
            blocks.clear();
        }
    }
    let mut ranges = Vec::new();
    for (block, fill) in &blocks {
        let bytes = block.to_vec();
        assert!(bytes.iter().all(|byte| byte == fill), "another block wrote here");
        let seen = model.device_read(device.address(), block.iova(), bytes.len()).unwrap();
        assert!(seen.iter().all(|byte| byte == fill), "the device sees something else");
        ranges.push((block.iova(), block.iova() + block.length()));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
    assert!(ranges.len() > 50);
}

#[test]
fn a_pool_says_why_not() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let options = PoolOptions { limit: 512 << 10, ..PoolOptions::default() };
    let pool = DmaPool::new(&device, options).unwrap();
    assert!(matches!(pool.take(200_000), Err(Error::TooLong { length: 200_000, most: 131_072 })));
    let held: Vec<_> = (0..4).map(|_| pool.take(128 << 10).unwrap()).collect();
    assert!(matches!(pool.take(1), Err(Error::PoolLimit { taken: 524_288, limit: 524_288 })));
    assert!(pool.take_ready(1).is_none());
    // A block may outlive its pool. The memory is released with the last block.
    drop(pool);
    model.device_write(device.address(), held[3].iova(), &[9]).unwrap();
    assert_eq!(held[3].load_at::<u8>(0).unwrap(), 9);
    drop(held);
    assert_eq!(model.reach(device.address()), []);
    for bad in [
        PoolOptions { smallest: 100, ..options },
        PoolOptions { smallest: 1 << 20, ..options },
        PoolOptions { chunk: 0, ..options },
    ] {
        assert!(matches!(DmaPool::new(&device, bad), Err(Error::PoolOptions { .. })));
    }
}

/// The end of a mapping costs one call, one invalidation of pages and one wait, whatever the size.
#[test]
fn the_end_of_a_mapping_costs_one_call_and_one_wait() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let buffer = device.allocate(1 << 20, BufferOptions::default()).unwrap();
    for length in [4096, 65536, 1 << 20] {
        let access = Access::READ | Access::WRITE;
        let before = model.counts();
        let mapping = buffer.slot().map(0..length, access, Placement::Anywhere).unwrap();
        let mapped = model.counts();
        assert_eq!(mapped.requests() - before.requests(), 1);
        assert_eq!(
            (mapped.page_invalidations, mapped.waits),
            (before.page_invalidations, before.waits)
        );
        model.device_write(device.address(), mapping.iova() + length - 1, &[1]).unwrap();
        let iova = mapping.iova();
        mapping.unmap().unwrap();
        let after = model.counts();
        assert_eq!(after.requests() - mapped.requests(), 1);
        assert_eq!(after.of(Operation::Unmap) - mapped.of(Operation::Unmap), 1);
        assert_eq!(after.waits - mapped.waits, 1, "{length} bytes");
        assert_eq!(after.page_invalidations - mapped.page_invalidations, 1, "{length} bytes");
        assert!(model.device_read(device.address(), iova, 1).is_err());
    }
    assert_eq!(device.faults().count(), 3);
}

/// Pages in any order are one range for the device, each at its place in the list. Mapping costs one call, and so
/// does unmapping.
#[test]
fn a_list_of_pages_is_one_range() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let mut buffer = device.allocate(1 << 20, BufferOptions::default()).unwrap();
    let pages: Vec<u32> = (0..200).map(|n| n * 77 % 256).collect();
    for page in 0..256_u64 {
        buffer.write(page * 4096, &page.to_le_bytes()).unwrap();
    }
    let before = model.counts();
    let mapping = buffer.slot().map_pages(&pages, Access::READ, Placement::Below4G).unwrap();
    let mapped = model.counts();
    assert_eq!((mapped.requests() - before.requests(), mapped.waits - before.waits), (1, 0));
    assert_eq!(mapping.length(), 200 * 4096);
    for (at, page) in (0..).zip(&pages) {
        let read = model.device_read(device.address(), mapping.iova() + at * 4096, 8).unwrap();
        assert_eq!(read, u64::from(*page).to_le_bytes(), "page {at}");
    }
    let iova = mapping.iova();
    model.device_write(device.address(), iova, &[1]).unwrap_err();
    let quiet = model.counts();
    mapping.unmap().unwrap();
    let after = model.counts();
    assert_eq!(after.requests() - quiet.requests(), 1);
    assert_eq!(after.page_invalidations - quiet.page_invalidations, 1);
    assert_eq!(after.waits - quiet.waits, 1);
    for at in 0..200 {
        assert!(model.device_read(device.address(), iova + at * 4096, 1).is_err(), "page {at}");
    }
    let outside = buffer.slot().map_pages(&[0, 255, 256], Access::READ, Placement::Below4G);
    let Err(Error::RefusedItem { refusal, item }) = outside else { panic!("{outside:?}") };
    assert_eq!((refusal, item), (Refusal::Range, 2));
}

#[test]
fn a_batch_is_one_call_and_one_wait() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let buffer = device.allocate(1 << 20, BufferOptions::default()).unwrap();
    let before = model.counts();
    let ranges = (0..100_u64).map(|page| page * 8192..page * 8192 + 4096);
    let map = ranges.fold(Batch::new(), |batch, range| {
        batch.map(buffer.slot(), range, Access::READ, Placement::Below4G)
    });
    let iovas = map.run(&device).unwrap();
    let unmap = iovas.iter().fold(Batch::new(), |batch, iova| batch.unmap(*iova, 4096));
    unmap.run(&device).unwrap();
    let after = model.counts();
    assert_eq!(after.requests() - before.requests(), 2);
    assert_eq!(after.waits - before.waits, 1);
}

/// The same driver code works on a machine where nothing confines its device.
#[test]
fn without_a_unit_addresses_are_bus_addresses() {
    let model = Model::without_unit();
    let (device, permission) = model.attached();
    assert!(!device.query().unwrap().flags.contains(SessionFlags::CONFINED));
    let mut buffer = DmaBuffer::<[u32; 1000]>::zeroed(&device).unwrap();
    buffer.store_at(3996, 0x0a0b_0c0d_u32).unwrap();
    let seen = model.device_read(device.address(), buffer.iova() + 3996, 4).unwrap();
    assert_eq!(seen, [0x0d, 0x0c, 0x0b, 0x0a]);
    let pool = DmaPool::new(&device, PoolOptions::default()).unwrap();
    let block = pool.take(5000).unwrap();
    model.device_write(device.address(), block.iova(), &[5; 5000]).unwrap();
    assert!(block.to_vec().iter().all(|byte| *byte == 5));
    drop((buffer, block, pool));
    device.detach(permission).unwrap();
}

/// Calls of a client, in order, each with whether this process had the buffer's memory mapped at that time.
#[derive(Clone)]
struct Order {
    to: Arc<InProcess>,
    log: Arc<Mutex<Vec<(String, bool)>>>,
    file: Arc<Mutex<String>>,
}

fn mapped_files() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter_map(|line| Some(line.split_once("/memfd:")?.1.split(' ').next()?.to_owned()))
        .collect()
}

impl Order {
    fn note(&self, what: String) {
        let file = self.file.lock().unwrap().clone();
        let mapped = mapped_files().contains(&file);
        self.log.lock().unwrap().push((what, mapped));
    }
}

impl Transport for Order {
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error> {
        self.to.open(at, path, write)
    }

    fn close(&self, handle: Handle) {
        self.note(format!("close {}", handle.0));
        self.to.close(handle);
    }

    fn read(&self, handle: Handle, out: &mut [u8]) -> Result<usize, Error> {
        self.to.read(handle, out)
    }

    fn call(&self, handle: Handle, payload: &mut [u8], request: usize) -> Result<usize, Error> {
        let operation = RequestHeader::decode(payload).unwrap().operation;
        self.note(format!("{:?}", Operation::from_code(operation).unwrap()));
        self.to.call(handle, payload, request)
    }

    fn names(&self, handle: Handle) -> Result<Vec<String>, Error> {
        self.to.names(handle)
    }

    fn wait_readable(&self, handle: Handle, timeout: Duration) -> Result<bool, Error> {
        self.to.wait_readable(handle, timeout)
    }

    fn map(&self, handle: Handle) -> Result<Memory, Error> {
        let memory = self.to.map(handle)?;
        // No other test has a buffer of this length.
        let file = mapped_files().into_iter().find(|file| file.ends_with("-12288"));
        *self.file.lock().unwrap() = file.expect("the buffer's mapping");
        Ok(memory)
    }

    fn import(&self, session: Handle, buffer: Handle) -> Result<u32, Error> {
        self.to.import(session, buffer)
    }
}

/// The device loses a buffer first, then the process. Then the server may use its memory for others.
#[test]
fn a_buffer_ends_in_the_right_order() {
    let model = Model::new();
    let order =
        Order { to: Arc::new(model.transport()), log: Arc::default(), file: Arc::default() };
    let device = Device::open(&Connection::over(order.clone()), NAME).unwrap();
    let permission = device.attach().unwrap();
    let buffer = DmaBuffer::<[u8; 12288]>::zeroed(&device).unwrap();
    order.log.lock().unwrap().clear();
    // The buffer is dropped last. The session lives as long as any object made from it, in any order of drops.
    drop(device);
    assert_eq!(*order.log.lock().unwrap(), []);
    drop(buffer);
    let log = order.log.lock().unwrap().clone();
    let what: Vec<_> =
        log.iter().map(|(what, mapped)| (what.split(' ').next().unwrap(), *mapped)).collect();
    // The buffer's handle is closed second, the session's third.
    assert_eq!(what, [("Release", true), ("close", false), ("close", false)], "{log:?}");
    assert_ne!(log[1], log[2]);
    drop(permission);
}
