//! Implements the `hal` traits on Redox, in a scheme daemon.
//!
//! ```text
//!  acpi, pci, memory schemes -> start -> Server -> scheme (SchemeSync) <- requests
//!                                          ^         one loop, one event at a time
//!  timer ----------------------------------+
//! ```
//!
//! The process opens every path before it announces the scheme. After that it has no name space and opens nothing.
//! The modules [`scheme`], `claims`, `keys`, [`buffer_pool`], `free_part`, [`ecam`] and `discovery` use nothing of
//! the system. Nor do the decisions of `keeper`, `held_memory` and `rhythm`. So all of these are tested on every
//! host.

#[cfg(target_os = "redox")]
mod acpi_tables;
#[cfg(target_os = "redox")]
mod boot_timing;
pub mod buffer_pool;
mod claims;
#[cfg(any(target_os = "redox", test))]
mod discovery;
pub mod ecam;
#[cfg(target_os = "redox")]
mod events;
#[cfg(target_os = "redox")]
mod fork;
mod free_part;
mod held_memory;
#[cfg(target_os = "redox")]
mod interrupt;
#[cfg_attr(not(target_os = "redox"), expect(dead_code, reason = "what the system uses"))]
mod keeper;
#[cfg(target_os = "redox")]
mod keeper_link;
mod keys;
#[cfg(target_os = "redox")]
mod machine;
#[cfg(target_os = "redox")]
mod memory;
#[cfg(target_os = "redox")]
mod more;
#[cfg_attr(not(target_os = "redox"), expect(dead_code, reason = "read on Redox"))]
mod options;
#[cfg(target_os = "redox")]
mod pci;
#[cfg(target_os = "redox")]
mod registration;
mod rhythm;
pub mod scheme;
#[cfg(target_os = "redox")]
mod start;

#[cfg(target_os = "redox")]
pub use keeper::keep_others;
#[cfg(target_os = "redox")]
pub use start::main;

/// Maps registers, uncached. The file of physical memory stays open, because the process can open nothing when a unit
/// comes up late.
#[cfg(target_os = "redox")]
fn registers(range: crate::addr::PhysRange) -> std::io::Result<super::Registers> {
    use std::cell::OnceCell;
    use std::fs::File;
    use std::os::fd::AsFd;

    thread_local! { static MEMORY: OnceCell<File> = const { OnceCell::new() } }
    let path = "/scheme/memory/physical@uc";
    MEMORY.with(|memory| {
        if memory.get().is_none() {
            // Setting the cell cannot fail: it is empty, and only this thread uses it.
            let _ = memory.set(File::options().read(true).write(true).open(path)?);
        }
        let memory = memory.get().ok_or(std::io::ErrorKind::NotFound)?;
        super::Registers::over(memory.as_fd(), range)
    })
}
