//! Every byte that goes to or comes from clients, for those who want to search it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::policy::ClientId;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromClient,
    ToClient,
}

/// One line a frame: the client's number, `>` from the client or `<` to it, and the frame's bytes in
/// hexadecimal without spaces.
#[derive(Debug)]
pub struct WireLog(Option<File>);

impl WireLog {
    /// Writes to a new file at `path`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Some(File::create(path)?)))
    }

    /// Writes nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    pub(super) fn note(&mut self, client: ClientId, direction: Direction, frame: &[u8]) {
        let Some(file) = &mut self.0 else { return };
        let sign = if direction == Direction::FromClient { '>' } else { '<' };
        let mut line = String::with_capacity(frame.len() * 2 + 16);
        // Writing to a string does not fail.
        let _ = write!(line, "{} {sign} ", client.0);
        for byte in frame {
            let _ = write!(line, "{byte:02x}");
        }
        line.push('\n');
        if let Err(error) = file.write_all(line.as_bytes()) {
            log::error!("the wire log ends here, incomplete: {error}");
            self.0 = None;
        }
    }
}
