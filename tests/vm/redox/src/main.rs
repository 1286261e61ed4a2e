//! A loader that `qemu -kernel` starts and that starts a Redox kernel.
//!
//! Modules, in this order: the kernel (ELF), the initial file system, the environment (`NAME=value`, one a
//! line). The kernel gets what the Redox boot loader would give it: its image at the address it is linked
//! for, all memory at `0xffff_8000_0000_0000`, and a [`KernelArgs`] in `rdi`. With `damage=DMAR` on the command
//! line, a table of the firmware is made unreadable first.
#![no_std]
#![no_main]

mod console;
mod damage;
mod elf;
mod environment;
mod memory;
mod multiboot;
mod rsdp;

use core::arch::{asm, global_asm};
use core::fmt;

use spin::{Mutex, MutexGuard};

use multiboot::{Information, Range};

global_asm!(include_str!("entry.s"), load = sym load);

unsafe extern "C" {
    static loader_start: u8;
    static loader_end: u8;
    static mut kernel_directory: [u64; 512];
}

/// Where the kernel is linked: `KERNEL_OFFSET` of the kernel's linker script.
const KERNEL_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// One page of the kernel's mapping, and the alignment of its physical address.
const LARGE_PAGE: u64 = 2 << 20;

/// What the kernel reads from `rdi`: twelve words (kernel/src/startup/mod.rs, `KernelArgs`).
#[repr(C)]
struct KernelArgs {
    kernel: Span,
    stack: Span,
    environment: Span,
    hardware: Span,
    areas: Span,
    bootstrap: Span,
}

/// Base and size of physical memory.
#[derive(Clone, Copy)]
#[repr(C)]
struct Span {
    base: u64,
    size: u64,
}

/// One entry of the kernel's memory map (kernel/src/startup/memory.rs, `BootloaderMemoryEntry`).
#[derive(Clone, Copy)]
#[repr(C)]
struct Area {
    base: u64,
    size: u64,
    kind: u64,
}

const FREE: u64 = 1;
const RESERVED: u64 = 3;
const MOST_AREAS: usize = 64;

/// Both stay locked once they are written: the kernel reads them.
static AREAS: Mutex<[Area; MOST_AREAS]> =
    Mutex::new([Area { base: 0, size: 0, kind: 0 }; MOST_AREAS]);
static ARGUMENTS: Mutex<KernelArgs> = Mutex::new({
    let none = Span { base: 0, size: 0 };
    KernelArgs {
        kernel: none,
        stack: none,
        environment: none,
        hardware: none,
        areas: none,
        bootstrap: none,
    }
});

/// Why the kernel was not started.
pub(crate) enum Failure {
    /// Not started by a multiboot loader: the value of `eax`.
    Magic(u32),
    /// Module with this number was not given: 0 kernel, 1 initfs, 2 environment.
    NoModule(u32),
    /// The loader gave no memory map, or one of more than `MOST_AREAS` entries.
    MemoryMap,
    /// The kernel module is not a 64-bit x86 executable for `KERNEL_OFFSET`.
    NotAKernel(&'static str),
    /// No free memory of this many bytes after the modules and below 4 GiB.
    NoRoom(u64),
    /// No RSDP between 0xe0000 and 0xfffff.
    NoRsdp,
    /// No table with this signature to be damaged.
    NoTable([u8; 4]),
    /// The environment is too long.
    Environment,
    /// Something that is written once was to be written twice.
    Again,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(value) => write!(f, "not started by multiboot: eax is {value:#x}"),
            Self::NoModule(number) => {
                write!(f, "module {number} is missing (kernel, initfs, environment)")
            }
            Self::MemoryMap => f.write_str("no memory map, or too long a one"),
            Self::NotAKernel(why) => write!(f, "module 0 is not a kernel: {why}"),
            Self::NoRoom(bytes) => write!(f, "no {bytes:#x} bytes of memory for the kernel"),
            Self::NoRsdp => f.write_str("no RSDP in the BIOS area"),
            Self::Environment => f.write_str("the environment is longer than 4096 bytes"),
            Self::Again => f.write_str("started twice"),
            Self::NoTable(name) => write!(f, "no table {} to damage", name.escape_ascii()),
        }
    }
}

/// Called by `entry.s` in long mode with `eax` and `ebx` of the start.
extern "C" fn load(magic: u32, information: u32) -> ! {
    match prepare(magic, information) {
        // SAFETY: `prepare` has put the kernel and its arguments in place.
        Ok((entry, arguments)) => unsafe { jump(entry, arguments) },
        Err(failure) => console::line(format_args!("redox-loader: {failure}")),
    }
    halt()
}

/// Puts everything in place; returns the kernel's entry point, and what it gets.
fn prepare(magic: u32, information: u32) -> Result<(u64, &'static KernelArgs), Failure> {
    if magic != multiboot::LOADED {
        return Err(Failure::Magic(magic));
    }
    // SAFETY: the magic value promises that `information` is such a structure.
    let given = unsafe { Information::at(information) };
    let [kernel, initfs, environment] =
        [0, 1, 2].map(|number| given.module(number).ok_or(Failure::NoModule(number)));
    let (kernel, initfs, environment) = (kernel?, initfs?, environment?);

    // SAFETY: the module lies in memory that nothing else uses.
    let image = elf::Image::parse(unsafe { kernel.bytes() }, KERNEL_OFFSET)?;
    let after = [kernel, initfs, environment].iter().map(|m| m.end).max().unwrap_or(0);
    let base = given
        .room(after.next_multiple_of(LARGE_PAGE), image.size())
        .ok_or(Failure::NoRoom(image.size()))?;
    // SAFETY: `room` found free memory of that size beyond all modules.
    unsafe { image.place(base) };
    map_kernel(base, image.size());

    let hardware = rsdp::find().ok_or(Failure::NoRsdp)?;
    if let Some(signature) = given.word_after(b"damage=")
        && !damage::apply(hardware, signature)
    {
        return Err(Failure::NoTable(signature));
    }
    let (areas, count) = fill_areas(&given)?;
    let arguments = ARGUMENTS.try_lock().map(MutexGuard::leak).ok_or(Failure::Again)?;
    let span = |range: Range| Span { base: range.start, size: range.end - range.start };
    *arguments = KernelArgs {
        kernel: Span { base, size: image.size() },
        stack: Span { base: 0, size: 0 },
        environment: span(environment::fill(environment, hardware)?),
        hardware: span(hardware),
        areas: Span { base: areas.as_ptr() as u64, size: (count * size_of::<Area>()) as u64 },
        // The kernel counts whole pages; modules begin on pages, so the rest of the last one is nobody's.
        bootstrap: Span {
            base: initfs.start,
            size: (initfs.end - initfs.start).next_multiple_of(4096),
        },
    };
    console::line(format_args!(
        "redox-loader: kernel at {base:#x}, initfs {:#x} bytes",
        initfs.end - initfs.start
    ));
    Ok((image.entry(), arguments))
}

/// Maps `size` bytes of physical memory from `base` at `KERNEL_OFFSET`.
fn map_kernel(base: u64, size: u64) {
    let pages = size.div_ceil(LARGE_PAGE);
    let directory = &raw mut kernel_directory;
    // SAFETY: the directory is this loader's and covers 1 GiB; one processor runs.
    let directory = unsafe { &mut *directory };
    for (page, entry) in (0..pages).zip(directory) {
        *entry = (base + page * LARGE_PAGE) | 0x83;
    }
    // SAFETY: reloading the root forgets the old, absent, entries.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _) };
}

/// Writes the memory map; returns it, and how many of its entries are used.
fn fill_areas(given: &Information) -> Result<(&'static [Area; MOST_AREAS], usize), Failure> {
    let areas = AREAS.try_lock().map(MutexGuard::leak).ok_or(Failure::Again)?;
    let own = Area {
        base: &raw const loader_start as u64,
        size: &raw const loader_end as u64 - &raw const loader_start as u64,
        // The page tables in use when the kernel starts are the loader's.
        kind: RESERVED,
    };
    let mut places = areas.iter_mut();
    let mut count = 0;
    let mut put = |area| {
        count += 1;
        places.next().map(|place| *place = area).ok_or(Failure::MemoryMap)
    };
    put(own)?;
    for (range, free) in given.memory().ok_or(Failure::MemoryMap)? {
        let kind = if free { FREE } else { RESERVED };
        put(Area { base: range.start, size: range.end - range.start, kind })?;
    }
    Ok((areas, count))
}

/// Starts the kernel.
///
/// # Safety
/// `entry` is the entry point of a kernel that is mapped, and all that `arguments` names is in place.
unsafe fn jump(entry: u64, arguments: &'static KernelArgs) -> ! {
    // SAFETY: the caller's promise; the kernel brings its own stack.
    unsafe { asm!("jmp {0}", in(reg) entry, in("rdi") arguments, options(noreturn)) }
}

fn halt() -> ! {
    loop {
        // SAFETY: stops the processor; interrupts are off.
        unsafe { asm!("cli", "hlt") };
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::line(format_args!("redox-loader: {info}"));
    halt()
}
