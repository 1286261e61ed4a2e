//! The seams over real machines. The only place with `unsafe`.

#[cfg(target_arch = "x86_64")]
mod cache;
mod clock;
mod logger;
#[cfg(target_arch = "x86_64")]
mod mapping;
#[cfg(target_arch = "x86_64")]
mod notes;
#[cfg(target_arch = "x86_64")]
mod order;
mod pace;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(target_arch = "x86_64")]
mod sizing;
#[cfg(target_arch = "x86_64")]
mod tables;
#[cfg(target_arch = "x86_64")]
mod units;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod linux;
#[cfg(any(target_os = "redox", test))]
pub mod redox;

pub use clock::MonotonicClock;
#[cfg(target_arch = "x86_64")]
pub use mapping::{Mapping, Sharing};
#[cfg(target_arch = "x86_64")]
pub use notes::NotesPage;
#[cfg(target_arch = "x86_64")]
pub use registers::Registers;
#[cfg(target_arch = "x86_64")]
pub use sizing::{Amount, Order};
#[cfg(target_arch = "x86_64")]
pub use tables::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables};
