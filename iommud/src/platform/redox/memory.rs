//! Memory of the process with known physical addresses.
//!
//! The memory scheme hands out physically contiguous chunks: powers of two, at most 4 MiB, aligned to their
//! size, from anywhere, filled with zeros. What hardware may reach is never given back: its frames would be anybody's at
//! once, and nothing else tells a device's reach from what the kernel thinks is free.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use libredox::call::{MmapArgs, call_rw, fstatvfs, mmap};
use libredox::flag::{MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};
use syscall::flag::{CallFlags, MapFlags};

use super::buffer_pool::{LOT, Pool};
use super::free_part;
use super::held_memory::Piece;
use super::scheme::Window;
use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::hw::{BufferMemory, BufferPool, Constraints, MemoryError};
use crate::platform::cache::CacheLines;
use crate::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables, Mapping, Order, Sharing};

/// Bytes of a chunk of buffer memory: the most the kernel gives in one piece.
pub(super) const CHUNK: usize = 4 << 20;

/// All memory of the server.
pub(super) struct Taken {
    pub(super) tables: HugeTables,
    pub(super) buffers: Buffers,
    /// Bytes of buffers.
    pub(super) buffer_bytes: u64,
    /// Where it is.
    pub(super) ranges: Vec<PhysRange>,
    /// A page for what the next server is to know.
    pub(super) notes: Mapping,
    /// All of it by virtual address, the notes last.
    pub(super) pieces: Vec<Piece>,
    /// Where more of it comes from.
    pub(super) files: Files,
}

/// The files of the memory scheme. They stay open: nothing can be opened any more when memory is taken later.
pub(super) struct Files {
    zeroed: File,
    contiguous: File,
    translation: Translation,
}

impl Files {
    fn open() -> io::Result<Self> {
        Ok(Self {
            zeroed: File::open("/scheme/memory/zeroed")?,
            contiguous: File::open("/scheme/memory/zeroed@wb?phys_contiguous")?,
            translation: Translation::open()?,
        })
    }

    /// Bytes of the machine's memory that are free.
    pub(super) fn free(&self) -> io::Result<u64> {
        Ok(amounts_by(&self.zeroed)?.1)
    }

    /// A page for tables, and where it is.
    pub(super) fn page(&self) -> io::Result<(Mapping, PhysRange)> {
        let length = HUGE_PAGE_LENGTH;
        let page = Mapping::new(self.contiguous.as_fd(), 0, length, Sharing::Private)?;
        let range = self.translation.range(page.base(), length)?;
        Ok((page, range))
    }

    /// Maps `length` bytes at `place`: memory that follows one another when `access` is given, or else nothing that
    /// can be used.
    ///
    /// # Safety
    /// Nothing refers to what is mapped there, and it is this process's own.
    unsafe fn map_at(&self, place: *mut u8, length: usize, access: bool) -> io::Result<()> {
        let fixed = u32::try_from(MapFlags::MAP_FIXED.bits()).unwrap_or(0);
        let (file, prot) = match access {
            true => (&self.contiguous, PROT_READ | PROT_WRITE),
            false => (&self.zeroed, PROT_NONE),
        };
        let (fd, flags) = (descriptor(file)?, MAP_PRIVATE | fixed);
        let request = MmapArgs { addr: place.cast(), length, prot, flags, fd, offset: 0 };
        // SAFETY: the caller's word.
        unsafe { mmap(request) }?;
        Ok(())
    }
}

/// Physical addresses of this process's pages.
pub(super) struct Translation(File);

impl Translation {
    /// Opens the way to ask.
    ///
    /// # Errors
    /// This is not uid 0.
    pub(super) fn open() -> io::Result<Self> {
        File::open("/scheme/memory/translation").map(Self)
    }

    fn physical(&self, address: NonNull<u8>) -> io::Result<PhysAddr> {
        let mut word = address.addr().get().to_ne_bytes();
        call_rw(descriptor(&self.0)?, &mut word, CallFlags::empty(), &[])?;
        Ok(PhysAddr(u64::from_ne_bytes(word)))
    }

    /// The physical range of `length` bytes from `base` on, which the kernel gave as one piece.
    ///
    /// # Errors
    /// They are not mapped, or not aligned to their length.
    pub(super) fn range(&self, base: NonNull<u8>, length: usize) -> io::Result<PhysRange> {
        let length = u64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let first = self.physical(base)?;
        let range = PhysRange::new(first, length).filter(|_| first.is_aligned(length));
        range.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn descriptor(file: &File) -> io::Result<usize> {
    usize::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The machine's memory in bytes: all of it, and what is free.
pub(super) fn amounts() -> io::Result<(u64, u64)> {
    amounts_by(&File::open("/scheme/memory/zeroed")?)
}

fn amounts_by(memory: &File) -> io::Result<(u64, u64)> {
    let found = fstatvfs(descriptor(memory)?)?;
    let bytes = |blocks: u64| blocks.saturating_mul(PAGE_SIZE);
    Ok((bytes(found.f_blocks), bytes(found.f_bavail)))
}

/// Takes what is wanted, rounded up to chunks; less when that is more than may be taken of what is free, or when
/// there are no more chunks.
///
/// # Errors
/// The memory scheme does not answer, or gives no chunk at all.
pub(super) fn take(order: &Order) -> io::Result<Taken> {
    let files = Files::open()?;
    let free = files.free()?;
    let wanted = order.tables.wanted.min(free / free_part::FOR_TABLES);
    let mut ranges = Vec::new();
    let (mut pages, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..wanted.div_ceil(HUGE_PAGE).max(1) {
        let (page, range) = match files.page() {
            Ok(page) => page,
            Err(error) if pages.is_empty() => return Err(error),
            // Units that find no room say how much would do.
            Err(_) => break,
        };
        ranges.push(range);
        pieces.push(piece(&page));
        pages.push((range.first(), page));
    }
    let chunks = |bytes: u64| {
        let bytes = bytes.min(free / free_part::FOR_BUFFERS);
        usize::try_from(bytes).unwrap_or(0).div_ceil(CHUNK).max(1)
    };
    let (most, wanted) = (chunks(order.buffers.most), chunks(order.buffers.wanted));
    let (region, chunks) = Region::take(&files, wanted, most.max(wanted))?;
    ranges.extend(&chunks);
    pieces.push(Piece { address: region.base.addr().get(), length: region.length });
    let notes = Mapping::new(files.contiguous.as_fd(), 0, PAGE, Sharing::Private)?;
    ranges.push(files.translation.range(notes.base(), PAGE)?);
    pieces.push(piece(&notes));
    let buffer_bytes = chunks.iter().map(|chunk| chunk.length()).sum();
    let buffers = Buffers { region, pool: Pool::new(&chunks) };
    let tables = HugeTables::new(pages);
    Ok(Taken { tables, buffers, buffer_bytes, ranges, notes, pieces, files })
}

fn piece(mapping: &Mapping) -> Piece {
    Piece { address: mapping.base().addr().get(), length: mapping.length() }
}

/// Chunks of memory at consecutive virtual addresses.
struct Region {
    base: NonNull<u8>,
    length: usize,
    /// Addresses that are kept for chunks, those that there are included.
    reserved: usize,
}

impl Region {
    /// Takes up to `count` chunks, and keeps addresses for `most`; stops at the first one that is not to be had.
    fn take(files: &Files, count: usize, most: usize) -> io::Result<(Self, Vec<PhysRange>)> {
        let reserved = most * CHUNK;
        let whole = MmapArgs {
            addr: std::ptr::null_mut(),
            length: reserved,
            prot: PROT_NONE,
            flags: MAP_PRIVATE,
            fd: descriptor(&files.zeroed)?,
            offset: 0,
        };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let base = unsafe { mmap(whole) }?.cast::<u8>();
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        let mut region = Self { base, length: 0, reserved };
        let mut ranges = Vec::new();
        while ranges.len() < count {
            let Ok(range) = region.map_next(files) else { break };
            ranges.push(range);
            region.length += CHUNK;
        }
        if ranges.is_empty() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok((region, ranges))
    }

    /// Maps one chunk more behind the last one. It is no part of the region yet.
    fn map_next(&mut self, files: &Files) -> io::Result<PhysRange> {
        if self.length.checked_add(CHUNK).is_none_or(|end| end > self.reserved) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: at most `reserved`, which is mapped.
        let place = unsafe { self.base.add(self.length) };
        // SAFETY: replaces a part of the mapping of `take` that is no part of the region: nothing refers to it.
        unsafe { files.map_at(place.as_ptr(), CHUNK, true) }?;
        let range = files.translation.range(place, CHUNK);
        range.inspect_err(|_| self.unmap_next(files))
    }

    /// Gives the chunk behind the last one back to the system, and keeps its addresses.
    fn unmap_next(&mut self, files: &Files) {
        // SAFETY: as in `map_next`, which was called before.
        let place = unsafe { self.base.add(self.length) };
        // SAFETY: as in `map_next`.
        if let Err(error) = unsafe { files.map_at(place.as_ptr(), CHUNK, false) } {
            log::warn!("memory: {} MiB stay taken: {error}", CHUNK >> 20);
        }
    }

    /// Writes a range back from the caches, where it was cleared, to memory.
    fn write_back(&self, from: usize, length: usize) {
        if from.checked_add(length).is_some_and(|end| end <= self.length) {
            // SAFETY: the range lies in the region, which is mapped and readable as long as `self` lives.
            unsafe { CacheLines::detect().write_back(self.base.add(from).as_ptr(), length) }
        }
    }

    fn clear(&mut self, from: usize, length: usize) {
        if from.checked_add(length).is_some_and(|end| end <= self.length) {
            // SAFETY: the range lies in the region, which is mapped, writable, and holds no Rust object.
            unsafe { self.base.add(from).write_bytes(0, length) }
        }
    }
}

/// Buffer memory. A client sees a buffer only while its handle is open, because its mappings keep the
/// handle open: when a buffer is released, nobody maps it any more.
pub(super) struct Buffers {
    region: Region,
    pool: Pool,
}

/// Bytes of a page as a length in memory.
const PAGE: usize = 4096;

impl Buffers {
    /// Maps a chunk of the system's, which is no part of any buffer before [`Buffers::add`].
    ///
    /// # Errors
    /// There is none, or there are no addresses left for it.
    pub(super) fn take(&mut self, files: &Files) -> io::Result<PhysRange> {
        self.region.map_next(files)
    }

    /// Gives the chunk back that was taken and not added.
    pub(super) fn discard(&mut self, files: &Files) {
        self.region.unmap_next(files);
    }

    /// Makes buffers of the chunk that was taken, which no device reaches any more. Whatever one has written to it is
    /// cleared.
    pub(super) fn add(&mut self, chunk: PhysRange) {
        let from = self.region.length;
        self.region.length += CHUNK;
        self.region.clear(from, CHUNK);
        self.pool.add(chunk);
    }
}

impl BufferMemory for Buffers {
    type Share = Window;

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let segments = self.pool.allocate(id, length, constraints)?;
        if let Some(pages) = self.pool.pages(id).filter(|_| constraints.written_back) {
            self.region.write_back(pages.start * PAGE, pages.len() * PAGE);
        }
        Ok(segments)
    }

    fn has_room(&self, length: u64, constraints: Constraints) -> bool {
        self.pool.has_room(length, constraints)
    }

    fn release(&mut self, id: u32) {
        if let Some(pages) = self.pool.pages(id) {
            self.region.clear(pages.start * PAGE, pages.len() * PAGE);
            self.pool.release(id);
        }
    }

    fn pool(&self) -> BufferPool {
        let capacity = u64::try_from(self.region.length).unwrap_or(u64::MAX);
        BufferPool { capacity, granule: LOT }
    }

    fn share(&mut self, id: u32) -> Option<Window> {
        let pages = self.pool.pages(id)?;
        Some(Window { address: self.region.base.addr().get() + pages.start * PAGE })
    }
}
