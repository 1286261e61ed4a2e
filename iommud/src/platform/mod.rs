//! The seams over real machines. The only place with `unsafe`.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod linux;
