//! The DMA memory of Redox's drivers, confined by iommud where it serves.
//!
//! The modules [`dma`] and [`sgl`] have the interface of the modules of the same names in `common`, the crate that the
//! drivers of Redox's base share. `common` re-exports them in place of its own, and no driver changes. What then
//! happens is decided once in each process, at its first allocation:
//!
//! | at the first allocation | the memory | said on the standard error output |
//! |---|---|---|
//! | the process inherited a session ([`SESSION_VARIABLE`]), and a unit confines its device | the session's | nothing |
//! | iommud serves, and grants a session on the function that pcid-spawner started the process for | the session's | nothing |
//! | no iommud serves, or none yet | plain | not confined |
//! | pcid-spawner started the process for no function | plain; under policy `strict` its device does not reach it | not confined |
//! | no unit stands in front of the device, and policy is not `strict` | plain | not confined |
//! | the unit was never brought up, and policy is not `strict` | plain | not confined |
//! | policy is `strict`, and no unit confines the device | refused: `ENXIO`, `EIO`, `EAGAIN` | refused |
//! | the unit failed while it translated | refused: `EIO`; what the device reaches is not known | refused |
//! | another process owns the device's group | refused: `EBUSY`; the device does not reach plain memory | refused |
//! | iommud does not know the function, and a unit is on | refused: `ENODEV` | refused |
//! | the server gives this process no session: `Quota`, `Permission` and all else | refused: its error number | refused |
//! | the inherited descriptor is none of a session, or pcid does not say which function it is | refused: its error number | refused |
//!
//! Later an allocation is refused where the server has no more memory for this process (`EDQUOT`, `ENOMEM`), which
//! is said once, too.
//!
//! A refusal is not remembered: the next allocation tries again. The other outcomes stay until the process ends. Each
//! line is printed once.
//!
//! Plain memory is memory as `common` allocates it: physically contiguous, addressed physically. It grants a device
//! nothing: a device reaches what its unit lets it reach, under the policy of a device that nobody has claimed.
//!
//! When the server ends, an allocation returns `ENODEV`, and a line says so. The process does not go over to another
//! server, since the device has lost the memory that the driver already has: the driver is started again.
//!
//! # The session
//!
//! The device is attached before the first address is known to the driver. From then on it reaches memory of this
//! crate and nothing else. The session ends with the process. Its group then stays blocked until its next driver
//! attaches it.
//!
//! A device may still be at work for a driver that died ([`iommu_client::SessionFlags::UNQUIESCED`]). This crate cannot
//! quiet it: whoever starts drivers resets it, or the driver resets it before its first allocation.
//!
//! A driver that enters the null name space first allocates afterwards only if it inherited a session; without one
//! it finds no server. [`init`] opens beforehand what plain memory needs.
//!
//! # Reuse
//!
//! Memory of up to 16 pages comes out of chunks of 64 pages, so a driver that allocates for each command sends no
//! request to the server. A dropped value's pages belong to the next value of the same process, which finds zeros.
//! In between the device still reaches them, as it reaches the rest of the process's memory of this crate. Longer
//! memory, and a chunk of which nothing is in use while another such chunk exists, is out of its reach when the drop
//! returns.

pub mod dma;
mod errno;
mod home;
mod pool;
mod region;
mod session;
pub mod sgl;
mod words;

pub mod platform;

pub use iommu_client::handover::SESSION_VARIABLE;
pub use platform::{Error, Result};
pub use session::{Late, through};

/// Keeps what later allocations need, under descriptors of this process: the root of the memory scheme, and the
/// channel of the driver's function. `common::init` calls it, before the driver can close the channel or enter the
/// null name space. Nothing is sent to anybody, and a failure shows at the first allocation.
pub fn init() {
    platform::keep();
}
