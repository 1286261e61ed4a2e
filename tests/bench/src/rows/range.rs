//! Rows 2 and 3: 1 GiB of 4 KiB pages, mapped and unmapped.

use std::cell::RefCell;
use std::time::Instant;

use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};
use iommud::addr::{Iova, IovaRange, PhysAddr};
use iommud::hw::TableMemory;
use iommud::hw::page_table::{Detached, PageTable};
use iommud::platform::{HUGE_PAGE_LENGTH, Mapping};
use iommud::policy::{BatchRequest, MapRequest};

use crate::machine::{Core, Counting, Format, page, small_pages, tables};
use crate::peers::{Aarch64, Multiarch};
use crate::report::Line;
use crate::timing::{ROUNDS, cpu, median, nanos, ratio};

const GIB: u64 = 1 << 30;
const ENTRIES: u64 = GIB / 4096;
const AT: u64 = 4 * GIB;
const READ_WRITE: Access = Access::READ.union(Access::WRITE);

/// The cost of storing each entry, in memory like that of page tables.
struct Floor {
    page: Mapping,
    clean: bool,
}

const _: () = assert!(ENTRIES as usize * 8 == HUGE_PAGE_LENGTH);

impl Floor {
    fn new(clean: bool) -> Self {
        Self { page: page(), clean }
    }

    fn run(&mut self) -> f64 {
        let start = cpu();
        let words = self.page.base().cast::<u64>();
        for value in 0..ENTRIES {
            // SAFETY: the page has exactly `ENTRIES` words and belongs to this object alone. The compiler may neither
            // omit a volatile store nor merge it with another.
            unsafe { words.add(value as usize).write_volatile(value << 12 | 3) };
        }
        if self.clean {
            clean(words.as_ptr());
        }
        (cpu() - start) / ENTRIES as f64
    }
}

/// Writes cache lines back like the daemon, with CLWB, CLFLUSHOPT, or CLFLUSH if the processor has neither.
fn clean(page: *const u64) {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _mm_mfence};
    let features = __cpuid_count(7, 0).ebx;
    for line in (0..ENTRIES as usize).step_by(8) {
        let line = page.wrapping_add(line);
        // SAFETY: the line is mapped, and CPUID reports that the processor has the instruction.
        unsafe {
            if features & 1 << 24 != 0 {
                asm!("clwb [{}]", in(reg) line, options(nostack));
            } else if features & 1 << 23 != 0 {
                asm!("clflushopt [{}]", in(reg) line, options(nostack));
            } else {
                asm!("clflush [{}]", in(reg) line, options(nostack));
            }
        }
    }
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_mfence() };
}

fn range() -> IovaRange {
    IovaRange::new(Iova(AT), GIB).expect("a range")
}

/// Nanoseconds to map an entry, to detach all, and to free all.
struct Once {
    map: f64,
    detach: f64,
    free: f64,
}

fn ours<M: TableMemory>(memory: &mut M, coherent: bool) -> Once {
    let frames = memory.frames_in_use();
    let mut table = PageTable::<Format>::new(memory, small_pages(coherent)).expect("a table");
    // A neighbour keeps the upper tables in place.
    let neighbour = IovaRange::new(Iova(AT - 4096), 4096).expect("a range");
    table.map(memory, neighbour, PhysAddr(0), READ_WRITE).expect("mapped");
    let map = timed(|| {
        table.map(memory, range(), PhysAddr(GIB + 4096), READ_WRITE).expect("mapped");
    }) / ENTRIES as f64;
    let mut detached = Detached::new();
    // Too short for the processor's clock, whose reading is a system call.
    let start = Instant::now();
    table.unmap(memory, range(), &mut detached).expect("unmapped");
    let detach = start.elapsed().as_secs_f64() * 1e9;
    let free = timed(|| PageTable::<Format>::release(memory, &mut detached));
    table.destroy(memory);
    assert_eq!(memory.frames_in_use(), frames, "a table was lost");
    Once { map, detach, free }
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = cpu();
    work();
    cpu() - start
}

pub fn run() {
    let memory = &RefCell::new(tables(4));
    for coherent in [true, false] {
        let (mut floor, mut all) = (Floor::new(!coherent), [const { Vec::new() }; 4]);
        for round in 0..=ROUNDS {
            let once = ours(&mut *memory.borrow_mut(), coherent);
            let least = floor.run();
            if round > 0 {
                for (list, value) in all.iter_mut().zip([once.map, least, once.detach, once.free]) {
                    list.push(value);
                }
            }
        }
        let [map, least, detach, free] = all;
        let against = ratio(&map, &least);
        let (what, floor) = if coherent {
            ("map 1 GiB of 4 KiB, per entry", "store floor")
        } else {
            ("the same where the unit does not snoop (C=0)", "store + write-back floor")
        };
        Line::note(2, what, nanos(median(&map)))
            .peer(format!("{floor} {}", nanos(median(&least))), against)
            .target("<= 1.5x", against <= 1.5)
            .print();
        if coherent {
            unmapped(&detach, &free);
        }
    }
    peers();
    whole();
}

fn unmapped(detach: &[f64], free: &[f64]) {
    Line::note(
        3,
        "unmap 1 GiB of 4 KiB: tables detached, ready for the invalidation",
        nanos(median(detach)),
    )
    .target("<= 5 us", median(detach) <= 5000.0)
    .print();
    Line::note(3, "the same: tables freed and cleared after it", nanos(median(free))).print();
}

fn peers() {
    let (mut multiarch, mut aarch64) = (Multiarch::new(), Aarch64::new());
    let mut all = [const { Vec::new() }; 4];
    for round in 0..=ROUNDS {
        let times = [
            timed(|| multiarch.map_range(AT, 0x20_0000_0000, GIB)) / ENTRIES as f64,
            timed(|| multiarch.unmap_range(AT, GIB)),
            timed(|| aarch64.map_range(AT, GIB)) / ENTRIES as f64,
            timed(|| aarch64.unmap_range(AT, GIB)),
        ];
        if round > 0 {
            all.iter_mut().zip(times).for_each(|(list, value)| list.push(value));
        }
    }
    let [map_multiarch, unmap_multiarch, map_aarch64, unmap_aarch64] =
        all.map(|l| nanos(median(&l)));
    let names = ["page_table_multiarch", "aarch64-paging"];
    for (name, map) in names.iter().zip([map_multiarch, map_aarch64]) {
        Line::note(2, format!("peer {name}: map 1 GiB of 4 KiB, per entry"), map).print();
    }
    for (name, unmap) in names.iter().zip([unmap_multiarch, unmap_aarch64]) {
        Line::note(3, format!("peer {name}: unmap 1 GiB of 4 KiB"), unmap).print();
    }
}

/// Maps one buffer of 1 GiB through policy and engine, on a unit without large pages. Measures the cost of the whole
/// request.
fn whole() {
    let mut core = Core::new(Counting { small_pages_only: true, ..Counting::default() }, 8);
    let (slot, _) = core.allocate(GIB, AllocateFlags::UNMAPPED);
    let map = MapRequest {
        slot,
        offset: 0,
        length: GIB,
        iova: Iova(0),
        access: READ_WRITE,
        flags: MapFlags::ABOVE_4G,
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let iova = core.change(BatchRequest::Map(map));
        times.push(timed(|| {
            core.change(BatchRequest::Unmap { iova, length: GIB });
        }));
    }
    Line::note(3, "the whole request, decided to committed, tables freed", nanos(median(&times)))
        .print();
}
