//! The system that the program is started on. Only this module of the crate has `unsafe`.

#[cfg(not(target_os = "redox"))]
mod host;
#[cfg(target_os = "redox")]
mod redox;

#[cfg(not(target_os = "redox"))]
pub(crate) use host::launch;
#[cfg(target_os = "redox")]
pub(crate) use redox::launch;
