//! The command line of `iommud`.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg::Long;
use lexopt::ValueExt;

use super::trace_file::TraceTo;

/// The text that `--help` prints.
pub(super) const USAGE: &str = "\
usage: iommud [options]

  --policy FILE      policy of unclaimed devices and limits of clients (TOML);
                     without it: compat for every device
  --tables MIB       memory for tables, neither more nor less; without it as
                     much as the machine needs, and more when it is short
  --buffers MIB      memory for buffers, likewise; without it a part of the
                     machine's, and more when it is short
  --memory-dir DIR   where its huge pages are kept: a directory in a hugetlbfs
                     with pages of 2 MiB (default /dev/hugepages/iommud)
  --socket PATH      where clients connect (default /run/iommu.sock)
  --wire-log FILE    every byte to and from clients, in hexadecimal
  --trace FILE|ring  every event and its outcome, for iommuctl replay;
                     `ring`: in memory only; after a death the next
                     iommud writes the last 64 KiB to SOCKET.trace
  --keep             run the server as a child and start another when it dies
  --replace          make the keeper at --socket replace its server by this
                     program, and exit; its clients' connections go on

The socket appears when every device is under its policy. SIGTERM and SIGINT
end the server: sessions end as if their drivers had died, units go on
translating, and the memory stays taken. The next iommud takes as much
again, takes the units over, and then gives the old memory back. It does so too
after a server that was killed: --keep starts it. A device that was attached
then is blocked until its driver attaches it again. SIGTERM to the keeper ends
both; a server whose keeper dies ends as by SIGTERM.
exit: 0 ended by a signal, 1 could not run, 2 usage";

/// The options of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) policy: Option<PathBuf>,
    /// Memory for tables in MiB. Without it, as much as the machine needs.
    pub(super) tables: Option<u32>,
    /// Memory for buffers in MiB. Without it, a part of the machine's memory.
    pub(super) buffers: Option<u32>,
    pub(super) memory_dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) wire_log: Option<PathBuf>,
    pub(super) trace: Option<TraceTo>,
    pub(super) role: Role,
    /// All words except `--keep`, unchanged. The keeper starts servers with them.
    pub(super) words: Vec<OsString>,
}

/// The role of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A server without a keeper.
    Server,
    /// The keeper.
    Keeper,
    /// A server whose keeper has this process id.
    Kept(i32),
    /// Asks the keeper to replace its server by this program.
    Replace,
    /// Tells whether this program goes on from a reply cache of this version.
    GoesOn(u64),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: None,
            tables: None,
            buffers: None,
            memory_dir: "/dev/hugepages/iommud".into(),
            socket: "/run/iommu.sock".into(),
            wire_log: None,
            trace: None,
            role: Role::Server,
            words: Vec::new(),
        }
    }
}

impl Options {
    /// Parses the words after the program's name. `None` when they ask for help.
    ///
    /// # Errors
    /// A word is unknown, or its value is missing or malformed.
    pub(super) fn parse(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        let words: Vec<OsString> = words.into_iter().collect();
        let kept = words.iter().filter(|word| *word != "--keep").cloned().collect();
        let mut options = Self { words: kept, ..Self::default() };
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Long("policy") => options.policy = Some(parser.value()?.into()),
                Long("tables") => options.tables = Some(parser.value()?.parse()?),
                Long("buffers") => options.buffers = Some(parser.value()?.parse()?),
                Long("memory-dir") => options.memory_dir = parser.value()?.into(),
                Long("socket") => options.socket = parser.value()?.into(),
                Long("wire-log") => options.wire_log = Some(parser.value()?.into()),
                Long("trace") => options.trace = Some(parser.value()?.into()),
                Long("keep") => options.role = Role::Keeper,
                // Only the keeper passes this option: it is not for users.
                Long("kept-by") => options.role = Role::Kept(parser.value()?.parse()?),
                Long("replace") => options.role = Role::Replace,
                // Likewise.
                Long("goes-on-from") => options.role = Role::GoesOn(parser.value()?.parse()?),
                Long("help") => return Ok(None),
                other => return Err(other.unexpected()),
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
        let all =
            "--policy p --tables 3 --buffers 40 --memory-dir d --socket=s --wire-log w --trace t";
        let words: Vec<OsString> = all.split(' ').map(OsString::from).collect();
        let expected = Options {
            policy: Some("p".into()),
            tables: Some(3),
            buffers: Some(40),
            memory_dir: "d".into(),
            socket: "s".into(),
            wire_log: Some("w".into()),
            trace: Some(TraceTo::File("t".into())),
            role: Role::Server,
            words,
        };
        assert_eq!(parse(all).unwrap(), Some(expected));
        let keeper = parse("--tables 3 --keep").unwrap().unwrap();
        assert_eq!(
            (keeper.role, keeper.words),
            (Role::Keeper, vec!["--tables".into(), "3".into()])
        );
        assert_eq!(parse("--trace ring").unwrap().unwrap().trace, Some(TraceTo::Ring));
        assert_eq!(parse("--kept-by 7").unwrap().unwrap().role, Role::Kept(7));
        assert_eq!(parse("--replace").unwrap().unwrap().role, Role::Replace);
        assert_eq!(parse("--goes-on-from 1").unwrap().unwrap().role, Role::GoesOn(1));
        assert_eq!(parse("--help").unwrap(), None);
        for bad in ["x", "--tables", "--what", "--tables 1M", "--buffers x", "--buffers -1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
