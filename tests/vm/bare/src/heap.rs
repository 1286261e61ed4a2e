//! The heap: blocks of powers of two, each size with a list of free ones.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{null_mut, with_exposed_provenance_mut};

use spin::Mutex;

/// First byte.
pub const START: u64 = 8 << 20;

/// First byte after it.
pub const END: u64 = crate::phys::FREE_START;

const CLASSES: usize = 25;

struct State {
    free: [*mut u8; CLASSES],
    next: u64,
    in_use: u64,
}

// SAFETY: the blocks that `free` points to belong to the heap, not to a thread.
unsafe impl Send for State {}

/// Interrupt handlers do not allocate: nobody waits for the lock.
struct Heap(Mutex<State>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(State { free: [null_mut(); CLASSES], next: START, in_use: 0 }));

/// Bytes asked for and not given back.
pub fn in_use() -> u64 {
    HEAP.0.lock().in_use
}

/// The class of blocks that fit `layout`: 2^class bytes, aligned to as many.
fn class(layout: Layout) -> usize {
    let size = layout.size().max(layout.align()).max(16);
    size.next_power_of_two().trailing_zeros() as usize
}

// SAFETY: blocks come from memory that nothing else uses, are aligned to their size, and are on at most one
// list while free.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        let state = &mut *self.0.lock();
        let Some(head) = state.free.get_mut(class) else { return null_mut() };
        state.in_use += layout.size() as u64;
        if !head.is_null() {
            let block = *head;
            // SAFETY: a free block begins with the pointer to the next one.
            *head = unsafe { block.cast::<*mut u8>().read() };
            return block;
        }
        let block = state.next.next_multiple_of(1 << class);
        if block + (1 << class) > END {
            state.in_use -= layout.size() as u64;
            return null_mut();
        }
        state.next = block + (1 << class);
        with_exposed_provenance_mut(block as usize)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let state = &mut *self.0.lock();
        state.in_use -= layout.size() as u64;
        if let Some(head) = state.free.get_mut(class(layout)) {
            // SAFETY: the block is at least 16 bytes long, aligned, and its owner has given it up.
            unsafe { block.cast::<*mut u8>().write(*head) };
            *head = block;
        }
    }
}
