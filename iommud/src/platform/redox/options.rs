//! The command line of `iommud` on Redox.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg::Long;
use lexopt::ValueExt;

/// What `--help` prints.
pub(super) const USAGE: &str = "\
usage: iommud [options]

  --policy FILE      policy of unclaimed devices and limits of clients (TOML);
                     without it: compat for every device
  --tables MIB       memory for tables, taken at start (default 4)
  --buffers MIB      memory for buffers, taken at start (default 8)
  --oneshot          register the scheme and go on in the background: for a unit
                     of type oneshot. Without it init registers the scheme, for
                     a unit of type { scheme = \"iommu\" }

exit: 0 stopped, 1 could not run, 2 usage";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) policy: Option<PathBuf>,
    /// In MiB.
    pub(super) tables: u32,
    /// In MiB.
    pub(super) buffers: u32,
    pub(super) oneshot: bool,
}

impl Options {
    /// Reads the words after the program's name; `None` asks for help.
    ///
    /// # Errors
    /// A word that is not understood.
    pub(super) fn parse(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        let mut options = Self { policy: None, tables: 4, buffers: 8, oneshot: false };
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Long("policy") => options.policy = Some(parser.value()?.into()),
                Long("tables") => options.tables = parser.value()?.parse()?,
                Long("buffers") => options.buffers = parser.value()?.parse()?,
                Long("oneshot") => options.oneshot = true,
                Long("help") => return Ok(None),
                _ => return Err(word.unexpected()),
            }
        }
        Ok(Some(options))
    }
}
