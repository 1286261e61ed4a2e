//! Sessions and buffers that one process hands over to another. For a session, the descriptor is the capability, and
//! all that a driver needs. For a buffer, a key is the capability, once.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::Scheme;
use super::scheme::{bring, expect};
use super::vector;
use crate::buffer::DmaBuffer;
use crate::device::Device;
use crate::error::{Error, ProtocolError};
use crate::handover::SESSION_VARIABLE;
use crate::mapping::{BufferSlot, release};
use crate::session::Session;
use crate::transport::Handle;

impl Device {
    /// The device that a launcher claimed for this process and handed on: [`SESSION_VARIABLE`]. `None` if none was. The
    /// descriptor is cloned, so that a second call finds it too.
    ///
    /// # Errors
    /// The variable names no open descriptor of a session.
    pub fn handed_over() -> Result<Option<Self>, Error> {
        let Some(number) = std::env::var_os(SESSION_VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Self::inherited(vector::clone(number)?).map(Some)
    }

    /// Makes a device from an inherited descriptor. Nothing is opened by path, here or later. So a process without a
    /// name space, of any user, can drive the device.
    ///
    /// # Errors
    /// The descriptor is not that of a session, or the server is gone.
    pub fn inherited(descriptor: OwnedFd) -> Result<Self, Error> {
        let number = u32::try_from(descriptor.into_raw_fd()).map_err(|_| ProtocolError::Value)?;
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

    /// Makes the server generate a key. Any process that knows it can give one buffer to this session. A new key
    /// replaces the one before.
    ///
    /// # Errors
    /// The server is gone, or has no randomness to generate keys from.
    pub fn expect_buffer(&self) -> Result<BufferKey, Error> {
        Ok(BufferKey(expect(self.session.handle)?))
    }

    /// The buffer at the slot that [`DmaBuffer::bring`] returned. Nothing is mapped yet.
    #[must_use]
    pub fn brought(&self, slot: u32) -> Brought {
        Brought { session: self.session.clone(), slot }
    }
}

/// The key with which a buffer is given to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferKey(pub [u8; 16]);

impl<T: ?Sized> DmaBuffer<T> {
    /// Gives this buffer to the session that the key was made for, in any process. Returns its slot there, which the
    /// driver sends to that process. The memory is not reused before both have closed it.
    ///
    /// # Errors
    /// `BadHandle` if no session expects the key any more; `Quota`.
    pub fn bring(&self, key: BufferKey) -> Result<u32, Error> {
        bring(self.handle(), key.0)
    }
}

/// A buffer that another process brought. Its mappings end when it is dropped.
#[derive(Debug)]
pub struct Brought {
    session: Arc<Session>,
    slot: u32,
}

impl Brought {
    /// The buffer's slot in the session.
    #[must_use]
    pub fn slot(&self) -> BufferSlot<'_> {
        BufferSlot { session: &self.session, number: self.slot }
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        // None of its bytes were mapped here, so that none of them were read here.
        release(&self.session, self.slot, 0);
    }
}
