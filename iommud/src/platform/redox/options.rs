//! The command line of `iommud` on Redox.

use std::ffi::OsString;
use std::path::PathBuf;

use iommu_protocol::ids::PciAddress;
use lexopt::Arg::Long;
use lexopt::ValueExt;

use crate::addr::PhysRange;
use crate::topology::tags::TagRecord;

/// The text that `--help` prints.
pub(super) const USAGE: &str = "\
usage: iommud [options]

  --policy FILE      policy of unclaimed devices and limits of clients (TOML);
                     without it: compat for every device
  --tables MIB       memory for tables, no more; without it as much as the
                     machine needs, and more when it is short (not with --keep)
  --buffers MIB      memory for buffers, likewise; without it a part of the
                     machine's, and more when it is short (not with --keep)
  --keep             start a server that is held: when it dies its memory stays out
                     of everybody's hands, and the next one takes the units over
  --oneshot          register the scheme and go on in the background: for a unit
                     of type oneshot. Without it init registers the scheme, for
                     a unit of type { scheme = \"iommu\" }

exit: 0 stopped, 1 could not run, 2 usage";

/// The options of a command line, and the facts that a keeper adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) policy: Option<PathBuf>,
    /// Memory for tables in MiB. Without it, as much as the machine needs.
    pub(super) tables: Option<u32>,
    /// Memory for buffers in MiB. Without it, a part of the machine's memory.
    pub(super) buffers: Option<u32>,
    pub(super) oneshot: bool,
    pub(super) keep: bool,
    /// Set by a keeper: memory of dead servers.
    pub(super) left: Vec<PhysRange>,
    /// Set by a keeper: functions that were driven when those servers died.
    pub(super) driven: Vec<PciAddress>,
    /// Set by a keeper: tags that units may have held when the last server died, if it noted them.
    pub(super) tags: Option<TagRecord>,
}

impl Options {
    /// Parses the words after the program's name. `None` when they ask for help.
    ///
    /// # Errors
    /// A word is unknown, or its value is missing or malformed.
    pub(super) fn parse(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        let mut options = Self::default();
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Long("policy") => options.policy = Some(parser.value()?.into()),
                Long("tables") => options.tables = Some(parser.value()?.parse()?),
                Long("buffers") => options.buffers = Some(parser.value()?.parse()?),
                Long("oneshot") => options.oneshot = true,
                Long("keep") => options.keep = true,
                Long("help") => return Ok(None),
                _ => return Err(word.unexpected()),
            }
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, lexopt::Error> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_option_has_its_place() {
        assert_eq!(parse("").unwrap(), Some(Options::default()));
        let expected = Options {
            policy: Some("p".into()),
            tables: Some(3),
            buffers: Some(40),
            oneshot: true,
            ..Options::default()
        };
        let all = "--policy p --tables 3 --buffers 40 --oneshot";
        assert_eq!(parse(all).unwrap(), Some(expected));
        assert_eq!(parse("--keep").unwrap(), Some(Options { keep: true, ..Options::default() }));
        assert_eq!(parse("--help").unwrap(), None);
        for bad in ["x", "--tables", "--what", "--tables 1M", "--buffers x", "--buffers -1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
