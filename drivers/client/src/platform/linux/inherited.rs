//! Sessions that one process hands over to another: none here, since a session belongs to a connection.

use crate::device::Device;
use crate::error::Error;

impl Device {
    /// The device that a launcher claimed for this process and handed on, on Redox; `None` here.
    ///
    /// # Errors
    /// None here.
    pub const fn handed_over() -> Result<Option<Self>, Error> {
        Ok(None)
    }
}
