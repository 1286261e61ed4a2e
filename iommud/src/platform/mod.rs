//! Implements the `hal` traits on real machines. The only place with `unsafe`.

#[cfg(target_arch = "x86_64")]
mod cache;
mod clock;
#[cfg(test)]
mod fake_unit;
#[cfg(target_arch = "x86_64")]
mod frame_allocator;
#[cfg(target_arch = "x86_64")]
mod growth;
#[cfg(target_arch = "x86_64")]
mod handover_page;
mod logger;
#[cfg(target_arch = "x86_64")]
mod machine_facts;
#[cfg(target_arch = "x86_64")]
mod mapping;
#[cfg(target_arch = "x86_64")]
mod order;
#[cfg(target_arch = "x86_64")]
mod registers;
mod restart_backoff;
#[cfg(target_arch = "x86_64")]
mod sizing;
#[cfg(target_arch = "x86_64")]
mod startup;
#[cfg(target_arch = "x86_64")]
mod units;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod linux;
#[cfg(any(target_os = "redox", test))]
pub mod redox;

pub use clock::MonotonicClock;
#[cfg(target_arch = "x86_64")]
pub use frame_allocator::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables};
#[cfg(target_arch = "x86_64")]
pub use handover_page::NotesPage;
#[cfg(target_arch = "x86_64")]
pub use mapping::{Mapping, Sharing};
#[cfg(target_arch = "x86_64")]
pub use registers::Registers;
#[cfg(target_arch = "x86_64")]
pub use sizing::{Amount, Order};
