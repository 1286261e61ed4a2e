//! The register-level suite: iommud's hardware layer on a bare machine. One processor, one thread, and
//! QEMU's instruction counter as the only clock, so that every count is repeatable.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod checks;
mod cpu;
mod edu;
mod firmware;
mod heap;
mod nvme;
mod owner;
mod pci;
mod phys;
mod runtime;
mod seams;
mod serial;
mod suite;

/// Entered once from `boot`, with the address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u64) -> ! {
    cpu::start();
    let info = firmware::StartInfo::read(start_info);
    let failed = suite::run(&info);
    println!("@@end");
    serial::exit(failed == 0)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("@@log panic: {info}");
    serial::exit(false)
}
