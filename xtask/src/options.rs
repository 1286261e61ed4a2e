//! The command line.

use std::path::PathBuf;

use crate::emulator::Emulator;
use crate::fuzz::TARGETS;
use lexopt::{Arg, Parser, ValueExt};

/// What is printed for `--help` and after a mistake.
pub(crate) const USAGE: &str = "\
usage: cargo xtask COMMAND [OPTIONS]

commands:
  demo    boot a guest in QEMU and watch iommud confine real driver processes
  bare    the register-level suite, on a machine without an operating system
  test    everything CI runs
  explore every order of events through the server over software units
  fuzz    look for inputs from outside that break something
  bench   the targets of performance: measured, wanted, and what peers do in the same run
  redox   an image of Redox with iommud in it, booted
  check-redox
          everything that Redox gets compiles for it

options of bare:
  --iommu intel|amd        amd: AMD-Vi, on a newer QEMU (default: intel)
  --caching-mode, --qemu   as of demo

options of bench:
  --json FILE              also write the table to FILE: an array of objects
  ROW...                   only these, on this machine: core range iova pool calls
                           sockets alone probe memory storm

options of redox:
  --tree DIR               a finished Redox tree; without it: what one consists of
  --iommu intel|amd|none   the unit of the machine (default: intel)
  --late                   iommud is started from the root file system, while a disk is read
  --oneshot                iommud is started as a plain oneshot service
  --damage                 the unit's table cannot be read
  --boots N                boots N times each with neither, a unit, and iommud too; says how long each took
  --keep, --verbose, --json FILE
                           as of demo

options of explore:
  --long                   many more orders, all plays on AMD-Vi too, deeper
  --write                  write tests/ORDERING.md anew

options of fuzz:
  TARGET ...               only these (default: all)
  --seconds N              time for each target (default: 60)

options of demo:
  --iommu intel|amd|none   the unit of the guest's machine (default: intel)
  --caching-mode on|off    VT-d CAP.CM of that unit (default: off)
  --qemu installed|newer   newer: QEMU 11 or later, unpacked into the cache
  --kernel FILE            this kernel's image; without it: Debian's, unpacked into the cache
  --kills N                not the story: kill -9 of iommud, N times, under load
  --groups                 not the story: isolation groups on a machine of many bridges,
                           compared with those of the guest's kernel
  --capture FILE           with --groups: write configuration space and groups to FILE
  --machine                check what the story takes for granted, not the story
  --damaged-table          another story: what iommud does with a broken DMAR
  --nvme                   the story of the NVMe driver
  --keep                   keep the guest's files, and say where they are
  --verbose                show the guest's console too
  --json FILE              also write the checks to FILE: an array of {name, ok, detail}";

/// The unit of a guest's machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// QEMU's intel-iommu.
    #[default]
    Intel,
    /// QEMU's amd-iommu.
    Amd,
    /// No unit.
    None,
}

/// Which QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Qemu {
    /// The installed one.
    #[default]
    Installed,
    /// See [`Emulator::newer`].
    Newer,
}

impl Qemu {
    /// Makes sure that it is there.
    pub(crate) fn get(self) -> anyhow::Result<Emulator> {
        match self {
            Self::Installed => Emulator::installed(),
            Self::Newer => Emulator::newer(),
        }
    }
}

/// Options of `bare`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BareOptions {
    /// The unit.
    pub(crate) iommu: Iommu,
    /// VT-d CAP.CM.
    pub(crate) caching_mode: bool,
    /// Which QEMU.
    pub(crate) qemu: Qemu,
}

impl BareOptions {
    /// A machine with AMD-Vi. The installed QEMU's unit never translates.
    pub(crate) const fn amd() -> Self {
        Self { iommu: Iommu::Amd, caching_mode: false, qemu: Qemu::Newer }
    }
}

/// What the guest is booted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Story {
    /// The story, as it goes with the machine's unit.
    #[default]
    Whole,
    /// Only what it takes for granted.
    Machine,
    /// What comes of a damaged DMAR.
    DamagedTable,
    /// iommud is killed this often.
    Kills(u32),
    /// Isolation groups, compared with the kernel's.
    Groups,
    /// The NVMe driver's.
    Nvme,
}

/// Options of `demo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DemoOptions {
    /// The unit.
    pub(crate) iommu: Iommu,
    /// VT-d CAP.CM.
    pub(crate) caching_mode: bool,
    /// Which QEMU.
    pub(crate) qemu: Qemu,
    /// A kernel's image, instead of Debian's.
    pub(crate) kernel: Option<PathBuf>,
    /// What is told.
    pub(crate) story: Story,
    /// Where what groups were made of is written.
    pub(crate) capture: Option<PathBuf>,
    /// Keep the guest's files.
    pub(crate) keep: bool,
    /// Show the guest's console.
    pub(crate) verbose: bool,
    /// Where the checks are written, too.
    pub(crate) json: Option<PathBuf>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            iommu: Iommu::Intel,
            caching_mode: false,
            qemu: Qemu::Installed,
            kernel: None,
            story: Story::Whole,
            capture: None,
            keep: false,
            verbose: false,
            json: None,
        }
    }
}

/// Options of `bench`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BenchOptions {
    /// What is measured on the host; everything, and the bare guest too, when empty.
    pub(crate) rows: Vec<String>,
    /// Where the table is written, too.
    pub(crate) json: Option<PathBuf>,
}

/// What is shown on Redox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RedoxRun {
    /// iommud before the first driver.
    #[default]
    Early,
    /// iommud before the first driver, as a service of type oneshot.
    Oneshot,
    /// iommud from the root file system.
    Late,
    /// Firmware whose table cannot be read.
    Damaged,
    /// How long booting takes, over this many boots of each kind.
    Boots(u16),
}

/// Options of `redox`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RedoxOptions {
    /// The tree.
    pub(crate) tree: Option<PathBuf>,
    /// The unit.
    pub(crate) iommu: Iommu,
    /// How the image is made and what it is to show.
    pub(crate) run: RedoxRun,
    /// Keep the image.
    pub(crate) keep: bool,
    /// Show the console.
    pub(crate) verbose: bool,
    /// Where the checks are written, too.
    pub(crate) json: Option<PathBuf>,
}

/// Options of `fuzz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FuzzOptions {
    /// Time for each target.
    pub(crate) seconds: u32,
    /// Which targets; all when there are none.
    pub(crate) targets: Vec<String>,
}

impl Default for FuzzOptions {
    fn default() -> Self {
        Self { seconds: 60, targets: Vec::new() }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print the usage.
    Help,
    /// The demo.
    Demo(DemoOptions),
    /// The register-level suite.
    Bare(BareOptions),
    /// Redox, booted.
    Redox(RedoxOptions),
    /// Redox, compiled for.
    CheckRedox,
    /// Everything CI runs.
    Test,
    /// The fuzzer.
    Fuzz(FuzzOptions),
    /// The explorer of the ordering contract, with its arguments.
    Explore(Vec<&'static str>),
    /// Measurements.
    Bench(BenchOptions),
}

/// Reads the program's arguments.
pub(crate) fn parse() -> Result<Command, lexopt::Error> {
    parse_from(Parser::from_env())
}

fn parse_from(mut parser: Parser) -> Result<Command, lexopt::Error> {
    match parser.next()? {
        Some(Arg::Value(name)) => match name.string()?.as_str() {
            "demo" => demo(parser),
            "bare" => bare(parser),
            "bench" => bench(parser),
            "redox" => redox(parser),
            "check-redox" => no_more(parser, Command::CheckRedox),
            "test" => no_more(parser, Command::Test),
            "fuzz" => fuzz(parser),
            "explore" => explore(parser),
            other => Err(format!("unknown command {other}").into()),
        },
        None | Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help),
        Some(argument) => Err(argument.unexpected()),
    }
}

fn no_more(mut parser: Parser, command: Command) -> Result<Command, lexopt::Error> {
    match parser.next()? {
        None => Ok(command),
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help),
        Some(argument) => Err(argument.unexpected()),
    }
}

fn on_or_off(parser: &mut Parser) -> Result<bool, lexopt::Error> {
    match parser.value()?.string()?.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("{other}: on or off").into()),
    }
}

fn qemu(parser: &mut Parser) -> Result<Qemu, lexopt::Error> {
    match parser.value()?.string()?.as_str() {
        "installed" => Ok(Qemu::Installed),
        "newer" => Ok(Qemu::Newer),
        other => Err(format!("--qemu {other}: installed or newer").into()),
    }
}

fn bare(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = BareOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("iommu") => match parser.value()?.string()?.as_str() {
                "intel" => options.iommu = Iommu::Intel,
                "amd" => options = BareOptions::amd(),
                other => return Err(format!("--iommu {other}: intel or amd").into()),
            },
            Arg::Long("caching-mode") => options.caching_mode = on_or_off(&mut parser)?,
            Arg::Long("qemu") => options.qemu = qemu(&mut parser)?,
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Bare(options))
}

fn bench(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = BenchOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Value(row) => options.rows.push(row.string()?),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Bench(options))
}

fn redox(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = RedoxOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("tree") => options.tree = Some(parser.value()?.into()),
            Arg::Long("iommu") => match parser.value()?.string()?.as_str() {
                "intel" => options.iommu = Iommu::Intel,
                "amd" => options.iommu = Iommu::Amd,
                "none" => options.iommu = Iommu::None,
                other => return Err(format!("--iommu {other}: intel, amd or none").into()),
            },
            Arg::Long("late") => options.run = RedoxRun::Late,
            Arg::Long("oneshot") => options.run = RedoxRun::Oneshot,
            Arg::Long("damage") => options.run = RedoxRun::Damaged,
            Arg::Long("boots") => options.run = RedoxRun::Boots(parser.value()?.parse()?),
            Arg::Long("keep") => options.keep = true,
            Arg::Long("verbose") => options.verbose = true,
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    if options.iommu == Iommu::None && matches!(options.run, RedoxRun::Late | RedoxRun::Damaged) {
        return Err("--late and --damage need a unit".into());
    }
    if options.run == RedoxRun::Boots(0) {
        return Err("--boots 0: at least one".into());
    }
    Ok(Command::Redox(options))
}

fn explore(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut arguments = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("long") => arguments.push("--long"),
            Arg::Long("write") => arguments.push("--write"),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Explore(arguments))
}

fn fuzz(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = FuzzOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("seconds") => options.seconds = parser.value()?.parse()?,
            Arg::Value(name) => {
                let name = name.string()?;
                if !TARGETS.contains(&name.as_str()) {
                    return Err(format!("{name}: one of {}", TARGETS.join(", ")).into());
                }
                options.targets.push(name);
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Fuzz(options))
}

fn demo(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = DemoOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("iommu") => match parser.value()?.string()?.as_str() {
                "intel" => options.iommu = Iommu::Intel,
                "none" => options.iommu = Iommu::None,
                "amd" => (options.iommu, options.qemu) = (Iommu::Amd, Qemu::Newer),
                other => return Err(format!("--iommu {other}: intel, amd or none").into()),
            },
            Arg::Long("caching-mode") => options.caching_mode = on_or_off(&mut parser)?,
            Arg::Long("qemu") => options.qemu = qemu(&mut parser)?,
            Arg::Long("kernel") => options.kernel = Some(parser.value()?.into()),
            Arg::Long("machine") => options.story = Story::Machine,
            Arg::Long("damaged-table") => options.story = Story::DamagedTable,
            Arg::Long("groups") => options.story = Story::Groups,
            Arg::Long("kills") => options.story = Story::Kills(parser.value()?.parse()?),
            Arg::Long("capture") => options.capture = Some(parser.value()?.into()),
            Arg::Long("nvme") => options.story = Story::Nvme,
            Arg::Long("keep") => options.keep = true,
            Arg::Long("verbose") => options.verbose = true,
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    let units = matches!(options.story, Story::Machine | Story::Nvme | Story::Kills(_));
    if units && options.iommu == Iommu::None {
        return Err("--machine, --nvme and --kills need a unit".into());
    }
    let intels = matches!(options.story, Story::DamagedTable | Story::Groups);
    if intels && options.iommu != Iommu::Intel {
        return Err("this story is about VT-d: --iommu intel".into());
    }
    Ok(Command::Demo(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Command, lexopt::Error> {
        parse_from(Parser::from_args(text.split_whitespace()))
    }

    #[test]
    fn demo_options_are_read() {
        let Ok(Command::Demo(options)) = words(
            "demo --caching-mode=on --keep --kills 7 --capture c --qemu newer --kernel k --verbose --json x.json",
        ) else {
            panic!("not a demo")
        };
        assert_eq!(
            options,
            DemoOptions {
                iommu: Iommu::Intel,
                caching_mode: true,
                qemu: Qemu::Newer,
                kernel: Some("k".into()),
                story: Story::Kills(7),
                capture: Some("c".into()),
                keep: true,
                verbose: true,
                json: Some("x.json".into()),
            }
        );
        assert_eq!(
            words("bare --caching-mode on").unwrap(),
            Command::Bare(BareOptions { caching_mode: true, ..BareOptions::default() })
        );
        assert_eq!(words("bare --iommu amd").unwrap(), Command::Bare(BareOptions::amd()));
        assert_eq!(words("bare").unwrap(), Command::Bare(BareOptions::default()));
        assert_eq!(words("demo").unwrap(), Command::Demo(DemoOptions::default()));
    }

    #[test]
    fn stories_go_with_their_units() {
        let story = |text| match words(text) {
            Ok(Command::Demo(options)) => Some(options.story),
            _ => None,
        };
        assert_eq!(story("demo --machine"), Some(Story::Machine));
        assert_eq!(story("demo --damaged-table"), Some(Story::DamagedTable));
        assert_eq!(story("demo --nvme"), Some(Story::Nvme));
        assert_eq!(story("demo --damaged-table --iommu amd"), None);
        assert_eq!(story("demo --kills 3 --iommu amd"), Some(Story::Kills(3)));
        assert_eq!(story("demo --machine --iommu none"), None);
    }

    #[test]
    fn fuzz_options_are_read() {
        let some = FuzzOptions { seconds: 5, targets: vec!["dmar".into(), "pci".into()] };
        assert_eq!(words("fuzz dmar --seconds 5 pci").unwrap(), Command::Fuzz(some));
        assert_eq!(words("fuzz").unwrap(), Command::Fuzz(FuzzOptions::default()));
    }

    #[test]
    fn redox_options_are_read() {
        let run = |text: &str| match words(text) {
            Ok(Command::Redox(options)) => Some((options.iommu, options.run)),
            _ => None,
        };
        assert_eq!(run("redox"), Some((Iommu::Intel, RedoxRun::Early)));
        assert_eq!(run("redox --iommu amd --late"), Some((Iommu::Amd, RedoxRun::Late)));
        assert_eq!(run("redox --oneshot"), Some((Iommu::Intel, RedoxRun::Oneshot)));
        assert_eq!(run("redox --damage"), Some((Iommu::Intel, RedoxRun::Damaged)));
        assert_eq!(run("redox --boots 5"), Some((Iommu::Intel, RedoxRun::Boots(5))));
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            "redox --boots 0",
            "redox --iommu none --late",
            "dem",
            "demo x",
            "demo --iommu",
            "demo --iommu arm",
            "demo --nvme --iommu none",
            "demo --caching-mode 1",
            "test x",
            "fuzz x",
            "fuzz --seconds -1",
            "--x",
            "demo --kills",
            "demo --kills 3 --iommu none",
        ] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }
}
