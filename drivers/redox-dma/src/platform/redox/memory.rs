//! Plain memory of the kernel's memory scheme: `zeroed@TYPE?phys_contiguous`, mapped privately, is physically
//! contiguous; `translation` says at which physical address a page of this process lies.
#![allow(unsafe_code)]

use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use libredox::Fd;
use libredox::call::{MmapArgs, call_ro, mmap, munmap};
use libredox::error::{Error, Result};
use libredox::flag::{MAP_PRIVATE, O_CLOEXEC, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::platform::{EINVAL, ENOMEM};

/// Memory that both a processor and a device may cache is coherent on x86 only.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
const CONTIGUOUS: &str = "zeroed@wb?phys_contiguous";
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
const CONTIGUOUS: &str = "zeroed@uc?phys_contiguous";

/// The mapping replaces what is at its address (redox_syscall, `MapFlags`).
const MAP_FIXED: u32 = 4;

/// The root of the memory scheme. Memory can be had through it from inside the null name space.
static ROOT: OnceLock<Fd> = OnceLock::new();

/// Translates virtual addresses.
static TRANSLATION: OnceLock<Fd> = OnceLock::new();

pub(super) fn root() -> Result<&'static Fd> {
    kept(&ROOT, || Fd::open("/scheme/memory/scheme-root", O_CLOEXEC, 0))
}

fn kept(place: &'static OnceLock<Fd>, open: impl FnOnce() -> Result<Fd>) -> Result<&'static Fd> {
    if let Some(kept) = place.get() {
        return Ok(kept);
    }
    // Of two threads one keeps its descriptor, and the other closes it.
    let _ = place.set(open()?);
    place.get().ok_or(Error::new(EINVAL))
}

/// The physical address of a byte of this process.
fn physical(address: NonNull<u8>) -> Result<usize> {
    let root = root()?;
    let handle = kept(&TRANSLATION, || root.openat("translation", O_CLOEXEC, 0))?;
    let mut bytes = address.addr().get().to_ne_bytes();
    call_ro(handle.raw(), &mut bytes, Default::default(), &[])?;
    Ok(usize::from_ne_bytes(bytes))
}

/// Memory of this process.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, and this type gives no access to it.
unsafe impl Send for Mapping {}
// SAFETY: as said above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Allocates adjacent pages of zeros, and returns their physical address.
    ///
    /// # Errors
    /// `ENOMEM`: the kernel has no such run, or the length is above 4 MiB.
    pub(crate) fn contiguous(length: usize) -> Result<(Self, usize)> {
        // The kernel takes a power of two, and would keep what is not mapped.
        let length = length.checked_next_power_of_two().ok_or(Error::new(ENOMEM))?;
        let memory = root()?.openat(CONTIGUOUS, O_CLOEXEC, 0)?;
        let request = MmapArgs {
            addr: null_mut(),
            length,
            prot: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE,
            fd: memory.raw(),
            offset: 0,
        };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let mapping = unsafe { Self::map(request) }?;
        let physical = physical(mapping.start)?;
        Ok((mapping, physical))
    }

    /// Allocates pieces of these lengths, adjacent for this process. Returns the physical address of each.
    ///
    /// # Errors
    /// Those of [`Mapping::contiguous`].
    pub(crate) fn scattered(lengths: &[usize]) -> Result<(Self, Vec<usize>)> {
        let memory = root()?.openat(CONTIGUOUS, O_CLOEXEC, 0)?;
        let mapping = Self::reserve(lengths.iter().sum())?;
        let mut addresses = Vec::with_capacity(lengths.len());
        let mut offset = 0;
        for length in lengths.iter().copied() {
            let piece = mapping.place(&memory, offset, length)?;
            addresses.push(physical(piece)?);
            offset += length;
        }
        Ok((mapping, addresses))
    }

    /// Reserves addresses that are not accessible yet.
    fn reserve(length: usize) -> Result<Self> {
        let request = MmapArgs {
            addr: null_mut(),
            length,
            prot: PROT_NONE,
            flags: MAP_PRIVATE,
            fd: usize::MAX,
            offset: 0,
        };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        unsafe { Self::map(request) }
    }

    /// Maps a contiguous piece over a part of the reservation.
    fn place(&self, memory: &Fd, offset: usize, length: usize) -> Result<NonNull<u8>> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(Error::new(EINVAL));
        }
        let request = MmapArgs {
            addr: self.start.as_ptr().wrapping_add(offset).cast(),
            length,
            prot: PROT_READ | PROT_WRITE,
            flags: MAP_PRIVATE | MAP_FIXED,
            fd: memory.raw(),
            offset: 0,
        };
        // SAFETY: the range lies inside this value's own reservation, to which no reference exists yet.
        let start = unsafe { mmap(request) }?;
        NonNull::new(start.cast()).ok_or(Error::new(ENOMEM))
    }

    /// Maps memory.
    ///
    /// # Safety
    /// The request replaces no memory that Rust knows.
    unsafe fn map(request: MmapArgs) -> Result<Self> {
        let length = request.length;
        // SAFETY: the caller's promise.
        let start = unsafe { mmap(request) }?;
        let start = NonNull::new(start.cast()).ok_or(Error::new(ENOMEM))?;
        Ok(Self { start, length })
    }

    pub(crate) const fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. A region that gave out references to it is being dropped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
