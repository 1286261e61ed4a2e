//! The way in which requests reach the server.

use std::time::Duration;

use iommu_protocol::status::Refusal;

use crate::error::Error;
use crate::platform::Memory;

/// The longest wait, some 136 years: with more, clocks would overflow.
pub(crate) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The usual refusals of open requests, searched first where several refusals share an error number.
pub(crate) const OPENING: &[Refusal] =
    &[Refusal::NotOwner, Refusal::NotFound, Refusal::BadHandle, Refusal::Permission];

/// The usual refusals of an administrator's word.
pub(crate) const WRITING: &[Refusal] = &[Refusal::Busy, Refusal::NotFound, Refusal::Permission];

/// An open handle of the scheme, as this transport numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// The scheme's operations. Implemented over a Unix socket, over a scheme of the operating system, and by tests over
/// a server in the same process. Each method returns when the server has answered. A method that waits in one thread
/// blocks no other thread.
pub trait Transport: Send + Sync {
    /// Opens `path` relative to a handle, or to the scheme's root. `write` claims a device.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error>;

    /// Opens `path` for writing. A claim whose unit is not up yet may wait for it, at most `wait`. A transport that
    /// cannot wait is refused with `NotReady` at once.
    ///
    /// # Errors
    /// The errors of [`Transport::open`]; `NotReady` after `wait`.
    fn open_within(&self, at: Option<Handle>, path: &str, wait: Duration) -> Result<Handle, Error> {
        let _ = wait;
        self.open(at, path, true)
    }

    /// Closes a handle. If the server is gone, the handle is closed already.
    fn close(&self, handle: Handle);

    /// Reads the next bytes of a text, or whole fault records of a session.
    ///
    /// # Errors
    /// `NotReady` when a session has no unread record.
    fn read(&self, handle: Handle, out: &mut [u8]) -> Result<usize, Error>;

    /// Writes all of `bytes`: an administrator's request to `units/N` or `rescan`, opened for writing.
    ///
    /// # Errors
    /// The server refuses, or is gone; `Unsupported` over a transport that cannot write.
    fn write(&self, handle: Handle, bytes: &[u8]) -> Result<(), Error> {
        let _ = (handle, bytes);
        Err(Refusal::Unsupported.into())
    }

    /// Makes a call. The first `request` bytes of `payload` are the request; afterwards the reply is at its start.
    /// Returns the reply's length.
    ///
    /// # Errors
    /// The server is gone. A refusal of the operation is in the reply.
    fn call(&self, handle: Handle, payload: &mut [u8], request: usize) -> Result<usize, Error>;

    /// The names in a directory.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    fn names(&self, handle: Handle) -> Result<Vec<String>, Error>;

    /// Waits until the handle can be read, at most `timeout` (less than 137 years); returns whether it can.
    ///
    /// # Errors
    /// The server is gone.
    fn wait_readable(&self, handle: Handle, timeout: Duration) -> Result<bool, Error>;

    /// The memory of a buffer handle, mapped into this process.
    ///
    /// # Errors
    /// The server refuses, or the memory cannot be mapped.
    fn map(&self, handle: Handle) -> Result<Memory, Error>;

    /// Whether handles are descriptors of the process, which mean the same over each of its connections.
    fn process_wide(&self) -> bool {
        false
    }

    /// Gives a session the buffer of another session; returns its slot there.
    ///
    /// # Errors
    /// The server refuses.
    fn import(&self, session: Handle, buffer: Handle) -> Result<u32, Error>;
}
