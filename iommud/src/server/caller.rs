//! Who asks.

use crate::policy::ClientId;

/// Who opens a handle. Looked at when the handle is opened and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose quota counts.
    pub client: ClientId,
    /// User id.
    pub uid: u32,
}
