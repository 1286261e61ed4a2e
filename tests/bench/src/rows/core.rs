//! Row 1: maps and unmaps 4 KiB in a ring, with all checks of ownership and quota.

use iommu_protocol::ids::Slot;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};
use iommud::addr::{Iova, IovaRange, PhysAddr};
use iommud::hw::page_table::{Detached, PageTable};
use iommud::platform::HugeTables;
use iommud::policy::{Batch, BatchRequest, ListRequest, MapList, MapRequest};

use crate::machine::{Core, Counting, Format, small_pages, tables};
use crate::peers::{Multiarch, X86};
use crate::report::Line;
use crate::timing::{median, nanos, ratio, rounds};

/// Mappings alive at the same time.
const RING: u64 = 256;

/// Turns of the ring in each round.
const TURNS: u64 = 40;

/// The address at which peers map.
const BASE: u64 = 0x10_0000_0000;

const READ_WRITE: Access = Access::READ.union(Access::WRITE);

fn request(slot: Slot, page: u64) -> MapRequest {
    let flags = MapFlags::empty();
    let (offset, length) = (page * 4096, 4096);
    MapRequest { slot, offset, length, iova: Iova(0), access: READ_WRITE, flags }
}

/// Policy and engine with a ring of mappings.
pub struct Ring {
    core: Core,
    slot: Slot,
    live: Vec<Iova>,
}

impl Ring {
    pub fn new() -> Self {
        let mut core = Core::new(Counting::default(), 4);
        let (slot, _) = core.allocate(RING * 4096, AllocateFlags::empty());
        Self { core, slot, live: Vec::new() }
    }

    /// Goes around once: unmaps the oldest mapping and makes a new one, for each page.
    #[inline(never)]
    pub fn turn(&mut self) -> u64 {
        for page in 0..RING {
            if let Some(&old) = self.live.get(page as usize) {
                self.core.change(BatchRequest::Unmap { iova: old, length: 4096 });
            }
            let request = request(self.slot, page);
            let iova = self.core.change(BatchRequest::Map(request));
            match self.live.get_mut(page as usize) {
                Some(place) => *place = iova,
                None => self.live.push(iova),
            }
        }
        RING
    }
}

/// The same ring with grants of a buffer with reserved addresses.
struct Grants {
    core: Core,
    slot: Slot,
    granted: bool,
}

impl Grants {
    fn new() -> Self {
        let mut core = Core::new(Counting::default(), 4);
        let (slot, _) = core.allocate(RING * 4096, AllocateFlags::UNMAPPED);
        Self { core, slot, granted: false }
    }

    #[inline(never)]
    fn turn(&mut self) -> u64 {
        let slot = self.slot;
        for page in 0..RING {
            if self.granted {
                let offset = page * 4096;
                self.core.change(BatchRequest::Revoke { slot, offset, length: 4096 });
            }
            let request = request(slot, page);
            self.core.change(BatchRequest::Grant(request));
        }
        self.granted = true;
        RING
    }
}

/// The same with all pages of the ring in one map request and one unmap request. No two successive pages are
/// adjacent.
struct Lists {
    core: Core,
    map: ListRequest,
}

impl Lists {
    fn new() -> Self {
        let mut core = Core::new(Counting::default(), 4);
        let (slot, _) = core.allocate(RING * 4096, AllocateFlags::empty());
        let pages = (0..RING as u32).rev().collect();
        let flags = MapFlags::empty();
        let map = ListRequest { slot, access: READ_WRITE, flags, iova: Iova(0), pages };
        Self { core, map }
    }

    #[inline(never)]
    fn turn(&mut self) -> u64 {
        let iova = self.core.run(&MapList(self.core.session, &self.map));
        self.core.change(BatchRequest::Unmap { iova, length: RING * 4096 });
        RING
    }
}

/// The page table alone, like the peers. The server's other layers account for the difference.
struct Table {
    memory: HugeTables,
    pages: PageTable<Format>,
    detached: Detached,
    live: bool,
}

impl Table {
    fn new() -> Self {
        let mut memory = tables(4);
        let pages = PageTable::new(&mut memory, small_pages(true)).expect("a table");
        Self { memory, pages, detached: Detached::new(), live: false }
    }

    fn map(&mut self, page: u64) {
        let range = IovaRange::new(Iova(BASE + page * 4096), 4096).expect("a range");
        let phys = PhysAddr(0x20_0000_0000 + page * 8192);
        self.pages.map(&mut self.memory, range, phys, READ_WRITE).expect("mapped");
    }

    fn unmap(&mut self, page: u64) {
        let range = IovaRange::new(Iova(BASE + page * 4096), 4096).expect("a range");
        let Self { memory, pages, detached, .. } = self;
        pages.unmap(memory, range, detached).expect("unmapped");
        PageTable::<Format>::release(memory, detached);
    }

    #[inline(never)]
    fn turn(&mut self) -> u64 {
        for page in 0..RING {
            if self.live {
                self.unmap(page);
            }
            self.map(page);
        }
        self.live = true;
        RING
    }
}

fn peer(live: &mut bool, mut map: impl FnMut(u64), mut unmap: impl FnMut(u64)) -> u64 {
    for page in 0..RING {
        if *live {
            unmap(page);
        }
        map(page);
    }
    *live = true;
    RING
}

fn repeated(mut turn: impl FnMut() -> u64) -> u64 {
    (0..TURNS).map(|_| turn()).sum()
}

pub fn run() {
    let (mut ours, mut grants, mut lists) = (Ring::new(), Grants::new(), Lists::new());
    let (x86, multiarch) =
        (&std::cell::RefCell::new(X86::new()), &std::cell::RefCell::new(Multiarch::new()));
    let (mut live_x86, mut live_multiarch) = (false, false);
    let phys = |page: u64| 0x20_0000_0000 + page * 8192;
    let mut table = Table::new();
    let [core, grant, list, alone, x86, multiarch] = rounds([
        &mut || repeated(|| ours.turn()),
        &mut || repeated(|| grants.turn()),
        &mut || repeated(|| lists.turn()),
        &mut || repeated(|| table.turn()),
        &mut || {
            repeated(|| {
                let map = |page| x86.borrow_mut().map(BASE + page * 4096, phys(page));
                peer(&mut live_x86, map, |page| x86.borrow_mut().unmap(BASE + page * 4096))
            })
        },
        &mut || {
            repeated(|| {
                let map = |page| multiarch.borrow_mut().map(BASE + page * 4096, phys(page));
                peer(&mut live_multiarch, map, |page| {
                    multiarch.borrow_mut().unmap(BASE + page * 4096);
                })
            })
        },
    ]);
    let against = ratio(&core, &x86);
    Line::note(
        1,
        "core map + unmap 4 KiB, ring: policy, plan, page table, commit",
        nanos(median(&core)),
    )
    .peer(format!("x86_64 {}", nanos(median(&x86))), against)
    .target("<= 0.8x", against <= 0.8)
    .print();
    Line::note(1, "core grant + revoke 4 KiB, the same", nanos(median(&grant)))
        .peer(format!("x86_64 {}", nanos(median(&x86))), ratio(&grant, &x86))
        .print();
    let against = ratio(&list, &x86);
    let what = format!("core map + unmap of a ring of {RING} x 4 KiB by one request each, a page");
    Line::note(1, what, nanos(median(&list)))
        .peer(format!("x86_64 {}", nanos(median(&x86))), against)
        .target("<= 0.8x", against <= 0.8)
        .print();
    Line::note(1, "of the first the page table alone: map + unmap 4 KiB", nanos(median(&alone)))
        .peer(format!("x86_64 {}", nanos(median(&x86))), ratio(&alone, &x86))
        .print();
    Line::note(1, "core map + unmap 4 KiB, another peer", nanos(median(&core)))
        .peer(
            format!("page_table_multiarch {}", nanos(median(&multiarch))),
            ratio(&core, &multiarch),
        )
        .print();
}

/// Batches for a profiler: scattered pages at fixed addresses, mapped in one request and unmapped in another.
pub fn profile_batches() {
    const PAGES: u64 = 512;
    let mut core = Core::new(Counting::default(), 4);
    let (slot, _) = core.allocate(PAGES * 4096, AllocateFlags::UNMAPPED);
    let at = |page: u64| Iova(0x1000_0000 + page * 8192);
    let map = |page| {
        let request = request(slot, PAGES - 1 - page);
        BatchRequest::Map(MapRequest { iova: at(page), flags: MapFlags::FIXED, ..request })
    };
    let map: Vec<_> = (0..PAGES).map(map).collect();
    let unmap = |page| BatchRequest::Unmap { iova: at(page), length: 4096 };
    let unmap: Vec<_> = (0..PAGES).map(unmap).collect();
    for _ in 0..200 {
        pair(&mut core, &map, &unmap);
    }
}

#[inline(never)]
fn pair(core: &mut Core, map: &[BatchRequest], unmap: &[BatchRequest]) {
    core.run(&Batch(core.session, map));
    core.run(&Batch(core.session, unmap));
}

/// Work for a profiler.
pub fn profile() {
    let mut ring = Ring::new();
    for _ in 0..400 {
        ring.turn();
    }
}
