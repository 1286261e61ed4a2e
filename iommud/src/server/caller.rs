//! The opener of a handle.

use crate::policy::ClientId;

/// The opener of a handle. It is checked when the handle is opened and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client whose quota counts.
    pub client: ClientId,
    /// User id.
    pub uid: u32,
}
