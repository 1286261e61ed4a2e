//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::{Long, Value};
use lexopt::{Error, Parser, ValueExt};
use nvme::Confine;

pub(crate) const USAGE: &str = "\
usage: nvme COMMAND [--device SSSS--BB--DD.F] [OPTIONS]

The device may be left out by a driver that pcid-spawner or iommu-run started.

  info                what the controller says of itself and of its namespaces
  write               writes a pattern, or a file
  read                reads and compares with the pattern, or into a file
  bench               random reads of 4 KiB and sequential ones of 128 KiB
  rogue --iova HEX    one read into memory that was never granted: expects the
                      fault, resets the controller, and works on

options of all:
  --queues N          queues of requests (default: one for each processor)
  --depth N           requests under way at once in each (default: 16; bench: 32)
  --interrupts        sleeps until the controller's interrupt, instead of polling;
                      polls, and says so, when there is none to be had
  --patience MS       what a request may take before it is aborted, or else the
                      controller is reset, and it is sent again (default: 10000)
  --confine MODE      what the controller reaches of the memory of requests (the
                      first controller, of bench's two):
                        pool        all of it, all the time (default)
                        transfer    the pages of a request while it is under way,
                                    in its direction; one call to iommud for as
                                    many requests as begin and end together
                        page-exact  the same, and zeros in the rest of a page
  --size BYTES        one transfer of read and write (default: 128K); of bench:
                      random reads of this size instead

options of write and read:
  --namespace N       (default: the first)
  --from BYTES        where to begin (default: 0); K, M and G are understood
  --length BYTES      how much (default: 1M, or the file's length)
  --pattern SEED      the pattern (default: 1)
  --file FILE         the file, instead of a pattern
  --loop              again and again until killed; each time a pattern is written
                      it is the next seed's

options of bench:
  --against DEVICE    a second controller, measured in turn with the first
  --rounds N          measurements of each (default: 301)
  --table short|whole every mode with transfers of several sizes and depths, against
                      the second controller with memory of a pool
  --json              one line of JSON besides

exit: 0 as expected, 1 could not run, 2 usage, 3 refused by iommud, 4 wrong data,
      5 an expected fault did not come, 6 a fault that was not expected";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Info,
    Write,
    Read,
    Bench,
    Rogue,
}

/// How much of the table of modes, sizes and depths is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Short,
    Whole,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) command: Command,
    /// Empty for the device that this driver was started for.
    pub(crate) device: String,
    pub(crate) namespace: Option<u32>,
    pub(crate) from: u64,
    pub(crate) length: Option<u64>,
    pub(crate) pattern: u64,
    pub(crate) file: Option<PathBuf>,
    pub(crate) queues: Option<u16>,
    pub(crate) depth: Option<u16>,
    pub(crate) interrupts: bool,
    pub(crate) patience: Duration,
    pub(crate) confine: Confine,
    pub(crate) size: Option<u64>,
    pub(crate) forever: bool,
    pub(crate) against: Option<String>,
    pub(crate) rounds: usize,
    pub(crate) table: Option<Table>,
    pub(crate) json: bool,
    pub(crate) iova: u64,
}

impl Options {
    pub(crate) fn parse(mut parser: Parser) -> Result<Self, Error> {
        let command = match parser.next()? {
            Some(Value(word)) => match word.string()?.as_str() {
                "info" => Command::Info,
                "write" => Command::Write,
                "read" => Command::Read,
                "bench" => Command::Bench,
                "rogue" => Command::Rogue,
                other => return Err(format!("unknown command {other}").into()),
            },
            _ => return Err("a command is missing".into()),
        };
        let mut options = Self {
            command,
            device: String::new(),
            namespace: None,
            from: 0,
            length: None,
            pattern: 1,
            file: None,
            queues: None,
            depth: None,
            interrupts: false,
            patience: Duration::from_secs(10),
            confine: Confine::default(),
            size: None,
            forever: false,
            against: None,
            rounds: 301,
            table: None,
            json: false,
            iova: 0x0bad_0000,
        };
        while let Some(word) = parser.next()? {
            options.take(word.to_owned_option()?, &mut parser)?;
        }
        if options.table.is_some() && options.against.is_none() {
            return Err("--table compares with a second controller: --against".into());
        }
        Ok(options)
    }

    fn take(&mut self, name: String, parser: &mut Parser) -> Result<(), Error> {
        match name.as_str() {
            "device" => self.device = parser.value()?.string()?,
            "namespace" => self.namespace = Some(parser.value()?.parse()?),
            "from" => self.from = parser.value()?.parse_with(bytes)?,
            "length" => self.length = Some(parser.value()?.parse_with(bytes)?),
            "pattern" => self.pattern = parser.value()?.parse()?,
            "file" => self.file = Some(parser.value()?.into()),
            "queues" => self.queues = Some(parser.value()?.parse()?),
            "depth" => self.depth = Some(parser.value()?.parse()?),
            "interrupts" => self.interrupts = true,
            "patience" => self.patience = Duration::from_millis(parser.value()?.parse()?),
            "confine" => self.confine = parser.value()?.parse()?,
            "size" => self.size = Some(parser.value()?.parse_with(bytes)?),
            "table" => self.table = Some(parser.value()?.parse_with(table)?),
            "json" => self.json = true,
            "loop" => self.forever = true,
            "against" => self.against = Some(parser.value()?.string()?),
            "rounds" => self.rounds = parser.value()?.parse()?,
            "iova" => self.iova = parser.value()?.parse_with(hexadecimal)?,
            other => return Err(format!("unknown option --{other}").into()),
        }
        Ok(())
    }
}

/// The name of a long option.
trait Named {
    fn to_owned_option(&self) -> Result<String, Error>;
}

impl Named for lexopt::Arg<'_> {
    fn to_owned_option(&self) -> Result<String, Error> {
        match self {
            Long(name) => Ok((*name).to_owned()),
            other => Err(format!("{other:?} is not understood").into()),
        }
    }
}

fn table(text: &str) -> Result<Table, &'static str> {
    match text {
        "short" => Ok(Table::Short),
        "whole" => Ok(Table::Whole),
        _ => Err("not short or whole"),
    }
}

fn hexadecimal(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
}

/// A number of bytes with an optional K, M or G.
fn bytes(text: &str) -> Result<u64, &'static str> {
    let (digits, unit) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((digits, "K")) => (digits, 1 << 10),
        Some((digits, "M")) => (digits, 1 << 20),
        Some((digits, "G")) => (digits, 1 << 30),
        _ => (text, 1),
    };
    digits.parse().ok().and_then(|number: u64| number.checked_mul(unit)).ok_or("not a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Error> {
        Options::parse(Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn every_option_has_its_place() {
        let all = "write --device d --namespace 2 --from 4K --length 64M --pattern 9 --file f \
                   --depth 3 --queues 2 --interrupts --patience 250 --loop --against e --rounds 7 --json \
                   --confine page-exact --size 16K --table whole --iova 0x10";
        let expected = Options {
            command: Command::Write,
            device: "d".into(),
            namespace: Some(2),
            from: 4096,
            length: Some(64 << 20),
            pattern: 9,
            file: Some("f".into()),
            queues: Some(2),
            depth: Some(3),
            interrupts: true,
            patience: Duration::from_millis(250),
            confine: Confine::PageExact,
            size: Some(16 << 10),
            forever: true,
            against: Some("e".into()),
            rounds: 7,
            table: Some(Table::Whole),
            json: true,
            iova: 16,
        };
        assert_eq!(parse(all).unwrap(), expected);
        assert_eq!(parse("rogue --device d --iova ff").unwrap().iova, 255);
        for mode in Confine::ALL {
            assert_eq!(parse(&format!("read --confine {mode}")).unwrap().confine, mode);
        }
        for bad in [
            "",
            "info --queues",
            "what --device d",
            "info --device d --what",
            "info --device d x",
            "read --confine page",
            "bench --table short",
            "bench --against e --table all",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("read --device d --length 1T").is_err());
    }
}
