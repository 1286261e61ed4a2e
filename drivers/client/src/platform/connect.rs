//! The way to the server of this machine.

use std::sync::Arc;

use crate::error::Error;
use crate::transport::Transport;

/// The transport to the server of this machine.
#[cfg(target_os = "linux")]
pub(crate) fn connect() -> Result<Arc<dyn Transport>, Error> {
    Ok(Arc::new(super::linux::Socket::connect(&super::linux::socket_path())?))
}

/// The transport to the server of this machine.
#[cfg(target_os = "redox")]
pub(crate) fn connect() -> Result<Arc<dyn Transport>, Error> {
    Ok(Arc::new(super::redox::Scheme::connect()?))
}
