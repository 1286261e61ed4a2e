//! Row 11: the memory used by mappings and domains, and left after their end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};
use iommud::addr::Iova;
use iommud::policy::{BatchRequest, Claim, ClientId, Event, MapRequest};

use crate::machine::{Core, Counting, function};
use crate::report::Line;

/// The system's allocator, with a count of the bytes in use.
pub struct Counted;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        IN_USE.fetch_add(size, Ordering::Relaxed);
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Mappings made.
const MAPPINGS: u64 = 200_000;

fn in_use() -> i64 {
    IN_USE.load(Ordering::Relaxed) as i64
}

pub fn run() {
    let mut core = Core::new(Counting::default(), 16);
    let (slot, _) = core.allocate(MAPPINGS * 4096, AllocateFlags::UNMAPPED);
    let map = |core: &mut Core, page: u64| {
        let request = MapRequest {
            slot,
            offset: page * 4096,
            length: 4096,
            iova: Iova(0),
            access: Access::READ,
            flags: MapFlags::ABOVE_4G,
        };
        core.change(BatchRequest::Map(request))
    };
    let mut made: Vec<Iova> = Vec::with_capacity(MAPPINGS as usize);
    let unmap = |core: &mut Core, iova| {
        core.change(BatchRequest::Unmap { iova, length: 4096 });
    };
    let (heap, frames) = (in_use(), frames(&core));
    for page in 0..MAPPINGS {
        made.push(map(&mut core, page));
    }
    let per_mapping = (in_use() - heap) as f64 / MAPPINGS as f64;
    let tables = (self::frames(&core) - frames) * 4096;
    let least = MAPPINGS * 8;
    for iova in made.drain(..) {
        unmap(&mut core, iova);
    }
    let left = (in_use() - heap, self::frames(&core) as i64 - frames as i64);
    Line::note(
        11,
        format!(
            "heap a mapping, {MAPPINGS} of 4 KiB ({tables} bytes of tables, entries alone {least})"
        ),
        format!("{per_mapping:.1} bytes"),
    )
    .target("<= 32 bytes", per_mapping <= 32.0)
    .print();
    Line::note(
        11,
        "left when all are unmapped: heap, table frames",
        format!("{} bytes, {}", left.0, left.1),
    )
    .target("back to baseline (one page of slack)", left.0 <= 4096 && left.1 <= 0)
    .print();
    idle();
}

fn frames(core: &Core) -> u64 {
    use iommud::hw::TableMemory;
    core.engine.memory().frames_in_use() as u64
}

/// Measures the cost of one more claimed and attached device.
fn idle() {
    let mut core = Core::new(Counting::default(), 4);
    let numbers = [0x28, 0x30, 0x38];
    for number in numbers {
        core.run(&Event::FunctionAdded(function(number)));
    }
    let mut cost = 0;
    for number in numbers {
        let (heap, tables) = (in_use(), frames(&core));
        let client = ClientId(u32::from(number));
        let claim = Claim { client, address: function(number).address, parent: None };
        let session = core.run(&claim);
        core.run(&Event::Attach(session));
        cost = in_use() - heap + (frames(&core) - tables) as i64 * 4096;
    }
    Line::note(
        11,
        "one more claimed device with an idle domain: heap and tables",
        format!("{cost} bytes"),
    )
    .target("<= 64 KiB", cost <= 65536)
    .print();
}
