//! Memory of the process with known physical addresses.
//!
//! The memory scheme hands out physically contiguous chunks: powers of two, at most 4 MiB, aligned to their
//! size, from anywhere, filled with zeros. All of it is taken at start and never given back: its frames would be
//! anybody's at once, and nothing else tells a device's reach from what the kernel thinks is free.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use libredox::call::{MmapArgs, call_rw, fstatvfs, mmap};
use libredox::flag::{MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};
use syscall::flag::{CallFlags, MapFlags};

use super::buffer_pool::Pool;
use super::held_memory::Piece;
use super::scheme::Window;
use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::hw::{BufferMemory, BufferPool, Constraints, MemoryError};
use crate::platform::cache::CacheLines;
use crate::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables, Mapping, Order, Sharing};

/// Bytes of a chunk of buffer memory: the most the kernel gives in one piece.
const CHUNK: usize = 4 << 20;

/// The parts of free memory that may be taken for tables, which units cannot do without, and for buffers. A process
/// that takes the last frame stops the kernel.
const PART_FOR_TABLES: u64 = 4;
const PART_FOR_BUFFERS: u64 = 8;

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
    let memory = File::open("/scheme/memory/zeroed")?;
    let found = fstatvfs(descriptor(&memory)?)?;
    let bytes = |blocks: u64| blocks.saturating_mul(PAGE_SIZE);
    Ok((bytes(found.f_blocks), bytes(found.f_bavail)))
}

/// Takes what is wanted, rounded up to chunks; less when that is more than may be taken of what is free, or when
/// there are no more chunks.
///
/// # Errors
/// The memory scheme does not answer, or gives no chunk at all.
pub(super) fn take(order: &Order) -> io::Result<Taken> {
    let (_, free) = amounts()?;
    let wanted = order.tables.wanted.min(free / PART_FOR_TABLES);
    let contiguous = File::open("/scheme/memory/zeroed@wb?phys_contiguous")?;
    let translation = Translation::open()?;
    let mut ranges = Vec::new();
    let (mut pages, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..wanted.div_ceil(HUGE_PAGE).max(1) {
        let page = match Mapping::new(contiguous.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Private) {
            Ok(page) => page,
            Err(error) if pages.is_empty() => return Err(error),
            // Units that find no room say how much would do.
            Err(_) => break,
        };
        let range = translation.range(page.base(), HUGE_PAGE_LENGTH)?;
        ranges.push(range);
        pieces.push(piece(&page));
        pages.push((range.first(), page));
    }
    let wanted = order.buffers.wanted.min(free / PART_FOR_BUFFERS);
    let chunks = usize::try_from(wanted).unwrap_or(0).div_ceil(CHUNK).max(1);
    let (region, chunks) = Region::take(&contiguous, &translation, chunks)?;
    ranges.extend(&chunks);
    pieces.push(Piece { address: region.base.addr().get(), length: region.length });
    let notes = Mapping::new(contiguous.as_fd(), 0, PAGE, Sharing::Private)?;
    ranges.push(translation.range(notes.base(), PAGE)?);
    pieces.push(piece(&notes));
    let buffer_bytes = chunks.iter().map(|chunk| chunk.length()).sum();
    let buffers = Buffers { region, pool: Pool::new(&chunks) };
    Ok(Taken { tables: HugeTables::new(pages), buffers, buffer_bytes, ranges, notes, pieces })
}

fn piece(mapping: &Mapping) -> Piece {
    Piece { address: mapping.base().addr().get(), length: mapping.length() }
}

/// Chunks of memory at consecutive virtual addresses.
struct Region {
    base: NonNull<u8>,
    length: usize,
}

impl Region {
    /// Takes up to `count` chunks; stops at the first one that is not to be had.
    fn take(
        contiguous: &File,
        translation: &Translation,
        count: usize,
    ) -> io::Result<(Self, Vec<PhysRange>)> {
        let plain = File::open("/scheme/memory/zeroed")?;
        let request = |file: &File, addr, length, prot, flags| {
            Ok::<_, io::Error>(MmapArgs {
                addr,
                length,
                prot,
                flags,
                fd: descriptor(file)?,
                offset: 0,
            })
        };
        let whole = request(&plain, std::ptr::null_mut(), count * CHUNK, PROT_NONE, MAP_PRIVATE)?;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let base = unsafe { mmap(whole) }?.cast::<u8>();
        let fixed = u32::try_from(MapFlags::MAP_FIXED.bits()).unwrap_or(0);
        let mut ranges = Vec::new();
        for number in 0..count {
            let place = base.wrapping_add(number * CHUNK);
            let (access, flags) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | fixed);
            let chunk = request(contiguous, place.cast(), CHUNK, access, flags)?;
            // SAFETY: replaces a part of the mapping above, which nothing refers to yet.
            if unsafe { mmap(chunk) }.is_err() {
                break;
            }
            let place = NonNull::new(place).ok_or(io::ErrorKind::InvalidData)?;
            ranges.push(translation.range(place, CHUNK)?);
        }
        if ranges.is_empty() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        Ok((Self { base, length: ranges.len() * CHUNK }, ranges))
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

    fn release(&mut self, id: u32) {
        if let Some(pages) = self.pool.pages(id) {
            self.region.clear(pages.start * PAGE, pages.len() * PAGE);
            self.pool.release(id);
        }
    }

    fn pool(&self) -> BufferPool {
        let capacity = u64::try_from(self.region.length).unwrap_or(u64::MAX);
        BufferPool { capacity, granule: PAGE_SIZE }
    }

    fn share(&mut self, id: u32) -> Option<Window> {
        let pages = self.pool.pages(id)?;
        Some(Window { address: self.region.base.addr().get() + pages.start * PAGE })
    }
}
