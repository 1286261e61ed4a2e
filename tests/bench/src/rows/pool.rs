//! Row 6: a block of a client's pool is taken and returned.

use std::hint::black_box;

use iommu_client::{Device, DmaPool, PoolOptions};
use iommud_tests::model::Model;

use crate::report::Line;
use crate::timing::{median, nanos, rounds};

const PAIRS: u64 = 1_000_000;

#[inline(never)]
fn pairs(pool: &DmaPool, count: u64) -> u64 {
    for _ in 0..count {
        let block = pool.take(black_box(4096)).expect("a block");
        black_box(block.iova());
    }
    count
}

/// Calls `work` with a pool that has a block.
fn with_pool(work: impl FnOnce(&Model, &DmaPool)) {
    let model = Model::new();
    let connection = model.connection();
    let device = Device::open(&connection, "0000--00--04.0").expect("a device");
    let permission = device.attach().expect("attached");
    let pool = DmaPool::new(&device, PoolOptions::default()).expect("a pool");
    pool.reserve(4096, 1).expect("memory");
    work(&model, &pool);
    drop(permission);
}

/// Work for a profiler.
pub fn profile() {
    with_pool(|_, pool| {
        pairs(pool, PAIRS);
    });
}

pub fn run() {
    with_pool(measure);
}

fn measure(model: &Model, pool: &DmaPool) {
    let before = model.counts().requests();
    let [times] = rounds([&mut || pairs(pool, PAIRS)]);
    let requests = model.counts().requests() - before;
    let value = median(&times);
    Line::note(6, "pool block of 4 KiB, take + give back", nanos(value))
        .target("<= 5 ns", value <= 5.0)
        .print();
    Line::note(6, "requests to the server meanwhile", requests.to_string())
        .target("0", requests == 0)
        .print();
}
