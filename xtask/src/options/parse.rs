//! Reading the command line.

use lexopt::{Arg, Parser, ValueExt};

use super::*;
use crate::fuzz::TARGETS;

/// Reads the program's arguments.
pub(crate) fn parse() -> Result<Command, lexopt::Error> {
    parse_from(Parser::from_env())
}

/// Reads these arguments.
#[cfg(test)]
pub(crate) fn parse_words(words: &[String]) -> Result<Command, lexopt::Error> {
    parse_from(Parser::from_args(words))
}

fn parse_from(mut parser: Parser) -> Result<Command, lexopt::Error> {
    match parser.next()? {
        Some(Arg::Value(name)) => match name.string()?.as_str() {
            "help" => help(parser),
            "shell" => shell(parser),
            "new-driver" => new_driver(parser),
            "demo" => demo(parser),
            "bare" => bare(parser),
            "bench" => bench(parser),
            "redox" => redox(parser),
            "package" => package(parser),
            "check-redox" => no_more(parser, "check-redox", Command::CheckRedox),
            "test" => test(parser),
            "fuzz" => fuzz(parser),
            "mutants" => mutants(parser),
            "explore" => explore(parser),
            other => Err(format!("unknown command {other}").into()),
        },
        None | Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help(None)),
        Some(argument) => Err(argument.unexpected()),
    }
}

/// `help COMMAND`.
fn help(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let Some(argument) = parser.next()? else { return Ok(Command::Help(None)) };
    let Arg::Value(name) = argument else { return Err(argument.unexpected()) };
    let known = COMMANDS.iter().find(|command| name == command.name);
    let known = known.ok_or_else(|| format!("unknown command {}", name.to_string_lossy()))?;
    Ok(Command::Help(Some(known.name)))
}

fn shell(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = ShellOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("iommu") => options.iommu = iommu(&mut parser)?,
            Arg::Long("tour") => options.tour = true,
            Arg::Long("redox") => options.redox = Some(parser.value()?.into()),
            Arg::Long("program") => options.programs.push(parser.value()?.string()?),
            Arg::Long("device") => options.devices.push(parser.value()?.string()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("shell"))),
            other => return Err(other.unexpected()),
        }
    }
    if options.tour && options.iommu == Iommu::None {
        return Err("the tour needs a unit".into());
    }
    if options.redox.is_some() && !options.programs.is_empty() {
        return Err("--program is for the guest of Linux".into());
    }
    Ok(Command::Shell(options))
}

fn new_driver(mut parser: Parser) -> Result<Command, lexopt::Error> {
    match parser.next()? {
        Some(Arg::Value(name)) => {
            let name = name.string()?;
            no_more(parser, "new-driver", Command::NewDriver(name))
        }
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help(Some("new-driver"))),
        Some(argument) => Err(argument.unexpected()),
        None => Err("new-driver: a name is missing".into()),
    }
}

fn package(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut tree, mut out) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("tree") => tree = Some(parser.value()?.into()),
            Arg::Long("out") => out = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("package"))),
            other => return Err(other.unexpected()),
        }
    }
    let out = out.ok_or("package: --out DIR is missing")?;
    Ok(Command::Package(PackageOptions { tree, out }))
}

fn test(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut stages = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(name) => stages.push(name.string()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("test"))),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Test(stages))
}

fn iommu(parser: &mut Parser) -> Result<Iommu, lexopt::Error> {
    match parser.value()?.string()?.as_str() {
        "intel" => Ok(Iommu::Intel),
        "amd" => Ok(Iommu::Amd),
        "none" => Ok(Iommu::None),
        other => Err(format!("--iommu {other}: intel, amd or none").into()),
    }
}

fn no_more(
    mut parser: Parser,
    name: &'static str,
    command: Command,
) -> Result<Command, lexopt::Error> {
    match parser.next()? {
        None => Ok(command),
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help(Some(name))),
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
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("bare"))),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Bare(options))
}

fn bench(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = BenchOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("whole") => options.whole = true,
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("bench"))),
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
            Arg::Long("iommu") => options.iommu = iommu(&mut parser)?,
            Arg::Long("late") => options.run = RedoxRun::Late,
            Arg::Long("oneshot") => options.run = RedoxRun::Oneshot,
            Arg::Long("damage") => options.run = RedoxRun::Damaged,
            Arg::Long("boots") => options.run = RedoxRun::Boots(parser.value()?.parse()?),
            Arg::Long("keep") => options.keep = true,
            Arg::Long("verbose") => options.verbose = true,
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("redox"))),
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
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("explore"))),
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
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("fuzz"))),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Fuzz(options))
}

fn mutants(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = MutantsOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("shard") => options.shard = Some(parser.value()?.string()?),
            Arg::Long("again") => options.again = true,
            Arg::Long("slow") => options.slow = true,
            Arg::Long("explore") => options.explore = true,
            Arg::Value(path) => options.paths.push(path.string()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("mutants"))),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Mutants(options))
}

fn demo(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut options = DemoOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("iommu") => {
                options.iommu = iommu(&mut parser)?;
                if options.iommu == Iommu::Amd {
                    options.qemu = Qemu::Newer;
                }
            }
            Arg::Long("caching-mode") => options.caching_mode = on_or_off(&mut parser)?,
            Arg::Long("qemu") => options.qemu = qemu(&mut parser)?,
            Arg::Long("kernel") => options.kernel = Some(parser.value()?.into()),
            Arg::Long("machine") => options.story = Story::Machine,
            Arg::Long("damaged-table") => options.story = Story::DamagedTable,
            Arg::Long("groups") => options.story = Story::Groups,
            Arg::Long("kills") => options.story = Story::Kills(parser.value()?.parse()?),
            Arg::Long("capture") => options.capture = Some(parser.value()?.into()),
            Arg::Long("nvme") => options.story = Story::Nvme,
            Arg::Long("hot-plug") => options.story = Story::HotPlug,
            Arg::Long("keep") => options.keep = true,
            Arg::Long("verbose") => options.verbose = true,
            Arg::Long("json") => options.json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Some("demo"))),
            other => return Err(other.unexpected()),
        }
    }
    let units = matches!(options.story, Story::Machine | Story::Nvme | Story::Kills(_));
    if units && options.iommu == Iommu::None {
        return Err("--machine, --nvme and --kills need a unit".into());
    }
    let intels = matches!(options.story, Story::DamagedTable | Story::Groups | Story::HotPlug);
    if intels && options.iommu != Iommu::Intel {
        return Err("this story is about VT-d: --iommu intel".into());
    }
    Ok(Command::Demo(options))
}

#[cfg(test)]
mod tests {
    use super::super::usage::Usage;
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
                whole_table: false,
                measured: false,
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
        assert_eq!(story("demo --hot-plug"), Some(Story::HotPlug));
        assert_eq!(story("demo --hot-plug --iommu amd"), None);
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
    fn mutants_options_are_read() {
        let some = MutantsOptions {
            paths: vec!["a/b.rs".into()],
            shard: Some("0/8".into()),
            ..MutantsOptions::default()
        };
        assert_eq!(words("mutants a/b.rs --shard 0/8").unwrap(), Command::Mutants(some));
        assert!(words("mutants --shard").is_err());
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
    fn help_is_of_the_command_that_it_is_asked_for() {
        assert_eq!(words("--help").unwrap(), Command::Help(None));
        assert_eq!(words("").unwrap(), Command::Help(None));
        for Usage { name, about, options, .. } in &COMMANDS {
            for line in [format!("{name} --help"), format!("{name} -h"), format!("help {name}")] {
                assert_eq!(words(&line).unwrap(), Command::Help(Some(name)), "{line}");
            }
            let text = usage(Some(name));
            assert!(text.contains(about) && text.contains(options.trim_end()), "{text}");
            assert!(usage(None).contains(about), "{name}");
        }
    }

    #[test]
    fn stages_of_the_test_are_read() {
        assert_eq!(words("test").unwrap(), Command::Test(Vec::new()));
        assert_eq!(
            words("test lints format").unwrap(),
            Command::Test(vec!["lints".into(), "format".into()])
        );
    }

    #[test]
    fn shell_options_are_read() {
        let tour = ShellOptions { iommu: Iommu::Amd, tour: true, ..ShellOptions::default() };
        assert_eq!(words("shell --tour --iommu amd").unwrap(), Command::Shell(tour));
        let with = ShellOptions {
            programs: vec!["mydev".into()],
            devices: vec!["edu".into(), "edu,addr=0b.0".into()],
            ..ShellOptions::default()
        };
        let line = "shell --program mydev --device edu --device edu,addr=0b.0";
        assert_eq!(words(line).unwrap(), Command::Shell(with));
        let [tree, out] = ["tree", "book"].map(PathBuf::from);
        let package = PackageOptions { tree: Some(tree), out };
        assert_eq!(words("package --tree tree --out book").unwrap(), Command::Package(package));
        let redox = ShellOptions { redox: Some("tree".into()), ..ShellOptions::default() };
        assert_eq!(words("shell --redox tree").unwrap(), Command::Shell(redox));
        assert_eq!(words("new-driver mydev").unwrap(), Command::NewDriver("mydev".into()));
        assert_eq!(words("shell").unwrap(), Command::Shell(ShellOptions::default()));
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            "redox --boots 0",
            "redox --iommu none --late",
            "dem",
            "demo x",
            "help x",
            "shell --tour --iommu none",
            "shell --program",
            "shell --redox",
            "shell --redox tree --program mydev",
            "new-driver",
            "new-driver a b",
            "package --tree x",
            "package --out",
            "demo --iommu",
            "demo --iommu arm",
            "demo --nvme --iommu none",
            "demo --caching-mode 1",
            "test --x",
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
