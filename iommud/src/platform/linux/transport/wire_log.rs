//! Logs every byte to and from clients, for debugging.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::policy::ClientId;

/// The direction of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromClient,
    ToClient,
}

/// The wire log. Each line is one frame: the client's number, `>` from the client or `<` to it, and the bytes in
/// hexadecimal without spaces.
#[derive(Debug)]
pub struct WireLog(Option<File>);

impl WireLog {
    /// Creates a file at `path` and logs to it.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Some(File::create(path)?)))
    }

    /// A wire log that writes nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    pub(super) fn note(&mut self, client: ClientId, direction: Direction, frame: &[u8]) {
        let Some(file) = &mut self.0 else { return };
        let sign = if direction == Direction::FromClient { '>' } else { '<' };
        let mut line = String::with_capacity(frame.len() * 2 + 16);
        // Writing to a string cannot fail.
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
