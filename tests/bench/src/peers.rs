//! Page tables of other crates, in memory of this process. A physical address equals the address in this process.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use aarch64_paging::descriptor::Stage2Attributes;
use aarch64_paging::linearmap::LinearMap;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2};
use memory_addr::{PhysAddr as Phys, VirtAddr as Virt};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

const FRAME: usize = 4096;

fn layout(frames: usize) -> Layout {
    Layout::from_size_align(frames * FRAME, FRAME).expect("a layout")
}

/// Frames of zeros. They are never freed.
pub struct Frames;

impl Frames {
    fn take(frames: usize) -> usize {
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc_zeroed(layout(frames)) };
        NonNull::new(memory).expect("memory").addr().get()
    }
}

// SAFETY: every frame is newly allocated, so no two of them overlap.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        PhysFrame::from_start_address(PhysAddr::new(Self::take(1) as u64)).ok()
    }
}

/// The page table of the crate `x86_64`.
pub struct X86(OffsetPageTable<'static>);

impl X86 {
    pub fn new() -> Self {
        let root = std::ptr::with_exposed_provenance_mut::<PageTable>(Frames::take(1));
        // SAFETY: the frame is zero, aligned, and belongs to this table alone for ever. The table's frames are mapped
        // at their physical addresses, so the offset is 0.
        Self(unsafe { OffsetPageTable::new(&mut *root, VirtAddr::new(0)) })
    }

    pub fn map(&mut self, address: u64, phys: u64) {
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(address));
        let frame = PhysFrame::containing_address(PhysAddr::new(phys));
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        // SAFETY: no processor uses this page table.
        unsafe { self.0.map_to(page, frame, flags, &mut Frames) }.expect("mapped").ignore();
    }

    pub fn unmap(&mut self, address: u64) {
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(address));
        self.0.unmap(page).expect("was mapped").1.ignore();
    }
}

/// The geometry of x86-64 page tables, without its TLB instructions.
pub struct Geometry;

impl PagingMetaData for Geometry {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = Virt;
    fn flush_tlb(_: Option<Virt>) {}
}

pub struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(count: usize, _: usize) -> Option<Phys> {
        Some(Frames::take(count).into())
    }
    fn dealloc_frames(first: Phys, count: usize) {
        let first = std::ptr::with_exposed_provenance_mut(first.as_usize());
        // SAFETY: the memory comes from `alloc_frames` with this count, and is freed once.
        unsafe { dealloc(first, layout(count)) }
    }
    fn phys_to_virt(phys: Phys) -> Virt {
        phys.as_usize().into()
    }
}

/// The page table of the crate `page_table_multiarch`.
pub struct Multiarch(PageTable64<Geometry, X64PTE, Handler>);

impl Multiarch {
    pub fn new() -> Self {
        Self(PageTable64::try_new().expect("memory"))
    }

    pub fn map(&mut self, address: u64, phys: u64) {
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        let (address, phys) = ((address as usize).into(), (phys as usize).into());
        self.0.cursor().map(address, phys, PageSize::Size4K, flags).expect("mapped");
    }

    pub fn unmap(&mut self, address: u64) {
        self.0.cursor().unmap((address as usize).into()).expect("was mapped");
    }

    pub fn map_range(&mut self, address: u64, phys: u64, length: u64) {
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        let phys = phys as usize;
        let at = |virt: Virt| (phys + (virt.as_usize() - address as usize)).into();
        let (start, length) = ((address as usize).into(), length as usize);
        self.0.cursor().map_region(start, at, length, flags, false).expect("mapped");
    }

    pub fn unmap_range(&mut self, address: u64, length: u64) {
        let start = (address as usize).into();
        self.0.cursor().unmap_region(start, length as usize).expect("was mapped");
    }
}

/// The page table of the crate `aarch64-paging`.
pub struct Aarch64(LinearMap<Stage2>);

/// Offset from an address of [`Aarch64`] to the memory behind it.
const OFFSET: isize = 1 << 30;

impl Aarch64 {
    pub fn new() -> Self {
        Self(LinearMap::new(1, OFFSET, Stage2))
    }

    fn change(&mut self, address: u64, length: u64, flags: Stage2Attributes) {
        let range = MemoryRegion::new(address as usize, (address + length) as usize);
        let constraints = Constraints::NO_BLOCK_MAPPINGS;
        self.0.map_range_with_constraints(&range, flags, constraints).expect("changed");
    }

    pub fn map_range(&mut self, address: u64, length: u64) {
        let flags = Stage2Attributes::VALID
            | Stage2Attributes::MEMATTR_NORMAL_INNER_WB
            | Stage2Attributes::S2AP_ACCESS_RW
            | Stage2Attributes::ACCESS_FLAG;
        self.change(address, length, flags);
    }

    pub fn unmap_range(&mut self, address: u64, length: u64) {
        self.change(address, length, Stage2Attributes::empty());
    }
}
