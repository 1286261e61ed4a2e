//! The processor: ports, descriptor tables, interrupts, the time stamp counter.

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, Ordering};

/// The first of the 16 counted vectors.
pub const FIRST_VECTOR: u8 = 0x40;

/// Arrivals of each counted vector; written by `interrupt_entries`.
#[unsafe(no_mangle)]
static interrupt_counts: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port accesses change devices, not memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: port accesses change devices, not memory of this program.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack)) };
    value
}

/// Writes 32 bits to an I/O port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: port accesses change devices, not memory of this program.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// Reads 32 bits from an I/O port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: port accesses change devices, not memory of this program.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack)) };
    value
}

/// Nanoseconds since the machine was started, from the time stamp counter. Under `-icount shift=10` QEMU counts 1024
/// nanoseconds for each instruction.
pub fn nanos() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Instructions executed so far.
pub fn instructions() -> u64 {
    nanos() >> 10
}

/// Writes the cache line at `address` back to memory.
pub fn flush_line(address: u64) {
    // SAFETY: writes a line back and changes no value. All of the first 4 GiB is mapped.
    unsafe { asm!("clflush [{}]", in(reg) address, options(nostack)) };
}

/// Orders all earlier memory accesses before all later ones.
pub fn fence() {
    // SAFETY: affects only the order of memory accesses.
    unsafe { asm!("mfence", options(nostack)) };
}

/// Pauses briefly in a waiting loop.
pub fn pause() {
    core::hint::spin_loop();
}

/// Returns the number of arrivals of `vector` (0x40 to 0x4f).
pub fn interrupts(vector: u8) -> u32 {
    interrupt_counts
        .get(usize::from(vector.wrapping_sub(FIRST_VECTOR)))
        .map_or(0, |count| count.load(Ordering::SeqCst))
}

/// Returns the value for MSI data registers that sends `vector`: edge, fixed delivery (Intel SDM volume 3, "Message
/// Data Register Format").
pub const fn msi_data(vector: u8) -> u32 {
    vector as u32
}

/// The value for MSI address registers that addresses the only processor.
pub const MSI_ADDRESS: u64 = 0xfee0_0000;

/// An entry in the interrupt descriptor table.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(16))]
struct Stack([u8; 16 * 1024]);

/// The task state segment. Only its interrupt stacks are used (Intel SDM volume 3 figure 8-11).
#[repr(C, packed(4))]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved1: u64,
    interrupt_stacks: [u64; 7],
    reserved2: u64,
    io_map: u32,
}

#[repr(C, packed(2))]
struct TablePointer {
    limit: u16,
    base: u64,
}

static mut EXCEPTION_STACK: Stack = Stack([0; 16 * 1024]);
static mut INTERRUPT_STACK: Stack = Stack([0; 16 * 1024]);
static mut TASK_STATE: TaskState = TaskState {
    reserved: 0,
    stacks: [0; 3],
    reserved1: 0,
    interrupt_stacks: [0; 7],
    reserved2: 0,
    io_map: 104 << 16,
};
static mut DESCRIPTORS: [u64; 5] = [0, 0x0020_9a00_0000_0000, 0x0000_9200_0000_0000, 0, 0];
static mut GATES: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];

unsafe extern "C" {
    static exception_entries: u8;
    static interrupt_entries: u8;
}

/// Builds a 64-bit interrupt gate to `entry` on interrupt stack `stack` (Intel SDM volume 3 figure 6-8).
const fn gate(entry: u64, stack: u64) -> Gate {
    let low = entry & 0xffff | 8 << 16 | stack << 32 | 0x8e << 40 | (entry >> 16 & 0xffff) << 48;
    Gate { low, high: entry >> 32 }
}

/// Loads descriptor tables, masks the old interrupt controllers, turns the local APIC and interrupts on. Called once,
/// before anything else.
pub fn start() {
    let exceptions = addr_of!(exception_entries) as u64;
    let interrupts = addr_of!(interrupt_entries) as u64;
    let task = addr_of!(TASK_STATE) as u64;
    // SAFETY: there is one processor, interrupts are off, and no other code accesses these statics. The loaded tables
    // live for ever and describe the flat code and data segments in use.
    unsafe {
        TASK_STATE.interrupt_stacks[0] = addr_of!(EXCEPTION_STACK) as u64 + 16 * 1024;
        TASK_STATE.interrupt_stacks[1] = addr_of!(INTERRUPT_STACK) as u64 + 16 * 1024;
        DESCRIPTORS[3] = 103 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
        DESCRIPTORS[4] = task >> 32;
        let gates = &mut *addr_of_mut!(GATES);
        for (vector, slot) in (0u64..).zip(gates.iter_mut()) {
            match vector {
                0..32 => *slot = gate(exceptions + vector * 16, 1),
                0x40..0x50 => *slot = gate(interrupts + (vector - 0x40) * 32, 2),
                _ => {}
            }
        }
        let descriptors = TablePointer { limit: 5 * 8 - 1, base: addr_of!(DESCRIPTORS) as u64 };
        let gates = TablePointer { limit: 256 * 16 - 1, base: addr_of!(GATES) as u64 };
        asm!("lgdt [{}]", in(reg) &raw const descriptors);
        asm!("lidt [{}]", in(reg) &raw const gates);
        asm!("ltr {0:x}", in(reg) 0x18u16);
    }
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    crate::phys::write32(0xfee0_00f0, 0x1ff);
    // SAFETY: every vector that can arrive has a gate.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Handles an exception. This program should cause none.
#[unsafe(no_mangle)]
extern "C" fn exception(vector: u64, code: u64, instruction: u64, address: u64) -> ! {
    panic!("exception {vector} code {code:#x} at {instruction:#x}, address {address:#x}")
}
