//! Sessions that are handed on: the descriptor is the capability, and all that a driver needs.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::Scheme;
use crate::device::Device;
use crate::error::{Breach, Error};
use crate::transport::Handle;

impl Device {
    /// The device of an inherited descriptor. Nothing is opened by path, here or later: a process without a
    /// name space, of any user, can drive the device.
    ///
    /// # Errors
    /// The descriptor is not that of a session; the server is gone.
    pub fn inherited(descriptor: OwnedFd) -> Result<Self, Error> {
        let number = u32::try_from(descriptor.into_raw_fd()).map_err(|_| Breach::Value)?;
        Self::over(Arc::new(Scheme::unnamed()), Handle(number))
    }

    /// A second descriptor of the session, for a child process. The session ends when the last is closed.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let number = RawFd::try_from(self.session.handle.0).map_err(io::Error::other)?;
        // SAFETY: the session keeps its descriptor open as long as it lives, which is beyond this call.
        unsafe { BorrowedFd::borrow_raw(number) }.as_fd().try_clone_to_owned()
    }
}
