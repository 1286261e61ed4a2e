//! Systems other than Redox: sessions belong to a connection, so no process inherits one.

use crate::Failure;
use crate::options::Options;

/// Starts nothing.
pub(crate) fn launch(_: &Options) -> Failure {
    Failure::Other("only processes on Redox inherit sessions".into())
}
