//! The connection to the server, and the texts that the server shows.

use std::fmt;
use std::sync::Arc;

use iommu_protocol::path::{RELEASE, RESET};

use crate::error::Error;
use crate::transport::{Handle, Transport};

/// The most servers that one text or list of names is asked of.
const MOST_SERVERS: usize = 8;

/// A connection to the server. Clones share it; all sessions opened over it end with the process.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<dyn Transport>);

impl Connection {
    /// Connects to the server of this machine.
    ///
    /// # Errors
    /// There is no server, or it does not accept this process.
    pub fn system() -> Result<Self, Error> {
        crate::platform::connect().map(Self)
    }

    /// Uses a server that is reached in another way.
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self(Arc::new(transport))
    }

    /// Reads a whole text: `status`, `units/0`, `groups/0`, `devices/…`, `faults`, `metrics`.
    ///
    /// # Errors
    /// `NotFound`, `Permission`; [`Error::ProtocolError`] if the text is not UTF-8.
    pub fn text(&self, path: &str) -> Result<String, Error> {
        Self::whole(|| self.text_once(path))
    }

    fn text_once(&self, path: &str) -> Result<String, Error> {
        let handle = self.open(path)?;
        let mut text = Vec::new();
        let mut part = vec![0; 16 * 1024];
        loop {
            let length = self.0.read(handle.0, &mut part)?;
            let Some(read) = part.get(..length).filter(|read| !read.is_empty()) else { break };
            text.extend_from_slice(read);
        }
        String::from_utf8(text).map_err(|_| crate::ProtocolError::Value.into())
    }

    /// The names in a directory; the empty path is the root.
    ///
    /// # Errors
    /// `NotFound`, `Permission`; [`Error::ProtocolError`], like [`Connection::text`].
    pub fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        Self::whole(|| self.0.names(self.open(path)?.0))
    }

    /// Reads from the opening to the end from one server. When it dies in between, the handle ends with it, and the
    /// reading begins again over the next one.
    fn whole<T>(read: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let is_whole = |done: &Result<T, Error>| !matches!(done, Err(Error::Disconnected));
        let mut attempts = std::iter::repeat_with(read).take(MOST_SERVERS);
        attempts.find(is_whole).unwrap_or(Err(Error::Disconnected))
    }

    /// Makes the server walk configuration space again, to find functions that came or went. For administrators.
    ///
    /// # Errors
    /// `Permission`; `Unsupported` if the server cannot walk it.
    pub fn rescan(&self) -> Result<(), Error> {
        self.write("rescan", b"1")
    }

    /// Makes the server bring a failed unit up again, within some 10 ms. For administrators. The outcome is in
    /// `status`.
    ///
    /// # Errors
    /// `Permission`, `NotFound`; `Busy` when the unit is up; `Unsupported` when nothing can bring it up.
    pub fn reset_unit(&self, unit: u32) -> Result<(), Error> {
        self.write(&format!("units/{unit}"), RESET)
    }

    /// Ends the sessions on a group's devices as if their processes had died: the devices are cut off, and their memory
    /// is freed. For administrators; a group that nobody has is left as it is.
    ///
    /// # Errors
    /// `Permission`, `NotFound`.
    pub fn release_group(&self, group: u32) -> Result<(), Error> {
        self.write(&format!("groups/{group}"), RELEASE)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let handle = Closing(self.0.open(None, path, true)?, self);
        self.0.write(handle.0, bytes)
    }

    fn open(&self, path: &str) -> Result<Closing<'_>, Error> {
        Ok(Closing(self.0.open(None, path, false)?, self))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// Closes a handle when dropped.
struct Closing<'a>(Handle, &'a Connection);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.1.0.close(self.0);
    }
}
