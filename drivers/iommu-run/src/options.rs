//! The command line.

use std::ffi::OsString;
use std::fmt;

pub(crate) const USAGE: &str = "\
usage: iommu-run [--user UID] [--names none|LIST|all] [--no-interrupt] [--optional] -- PROGRAM [ARGS]

Claims the function that pcid-spawner started it for, and becomes PROGRAM, which
drives it through the session in IOMMU_SESSION. An interrupt vector is reserved
for it (IOMMU_INTERRUPT).

  --user UID       the program's user and group (default: unchanged)
  --names NAMES    the schemes that the program can open by name, commas between
                   them: none, or all; those with a name space of their own can
                   register no scheme (default: all but memory and irq)
  --no-interrupt   reserves no vector
  --optional       without iommud: starts PROGRAM with what this process has,
                   instead of failing

exit: PROGRAM's, or 1 failed, 2 usage, 3 refused by iommud";

/// Names taken out of a driver's name space by default: with them a driver reaches all memory, and all interrupts.
const TAKEN: [&str; 2] = ["memory", "irq"];

/// The names that the program has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Those of this process, in the same name space.
    All,
    /// Those of this process but [`TAKEN`], in a name space of their own.
    Most,
    /// These, in a name space of their own.
    Only(Vec<String>),
}

impl Names {
    /// The names of the program's own name space, if this process has `ours`; `None` if it keeps this process's.
    pub(crate) fn of(&self, ours: impl FnOnce() -> Vec<String>) -> Option<Vec<String>> {
        match self {
            Self::All => None,
            Self::Only(names) => Some(names.clone()),
            Self::Most => {
                let mut names = ours();
                names.retain(|name| !TAKEN.contains(&name.as_str()));
                Some(names)
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) user: Option<u32>,
    pub(crate) names: Names,
    pub(crate) interrupt: bool,
    pub(crate) optional: bool,
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
}

/// The invalid argument.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadUsage(String);

impl fmt::Display for BadUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad usage: {}\n{USAGE}", self.0)
    }
}

impl Options {
    /// Reads the words after the program's own name.
    pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, BadUsage> {
        let mut words = words.into_iter();
        let (mut user, mut names, mut interrupt, mut optional) = (None, Names::Most, true, false);
        loop {
            let word = words.next().ok_or_else(|| BadUsage("-- PROGRAM is missing".into()))?;
            let mut value = || {
                let value = words.next().and_then(|value| value.into_string().ok());
                value.ok_or_else(|| BadUsage(format!("{} what?", word.display())))
            };
            match word.to_str() {
                Some("--") => break,
                Some("--user") => {
                    let value = value()?;
                    user = Some(value.parse().map_err(|_| BadUsage(format!("--user {value}")))?);
                }
                Some("--names") => names = list(&value()?)?,
                Some("--no-interrupt") => interrupt = false,
                Some("--optional") => optional = true,
                _ => return Err(BadUsage(word.display().to_string())),
            }
        }
        let program = words.next().ok_or_else(|| BadUsage("-- what?".into()))?;
        Ok(Self { user, names, interrupt, optional, program, arguments: words.collect() })
    }
}

fn list(text: &str) -> Result<Names, BadUsage> {
    match text {
        "all" => Ok(Names::All),
        "none" => Ok(Names::Only(Vec::new())),
        _ => {
            let names: Vec<String> = text.split(',').map(str::to_owned).collect();
            let plain = |name: &String| {
                !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            };
            if names.iter().all(plain) {
                Ok(Names::Only(names))
            } else {
                Err(BadUsage(format!("--names {text}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, BadUsage> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_program_alone_loses_memory_and_interrupts_by_name() {
        let options = parse("-- /bin/nvme info --user 7").unwrap();
        assert_eq!(options.program, "/bin/nvme");
        assert_eq!(options.arguments, ["info", "--user", "7"]);
        assert_eq!((options.user, options.interrupt, options.optional), (None, true, false));
        let ours = || ["memory", "log", "irq", "time", "memory2"].map(str::to_owned).into();
        let theirs = options.names.of(ours).unwrap();
        assert_eq!(theirs, ["log", "time", "memory2"]);
    }

    #[test]
    fn options_are_read() {
        let options = parse("--user 1000 --names none --no-interrupt --optional -- x").unwrap();
        let ours = || vec!["log".to_owned()];
        assert_eq!((options.user, options.interrupt, options.optional), (Some(1000), false, true));
        assert_eq!(options.names.of(ours), Some(Vec::new()));
        let names = |line: &str| parse(&format!("--names {line} -- x")).unwrap().names.of(ours);
        assert_eq!(names("all"), None);
        assert_eq!(names("time,event"), Some(vec!["time".into(), "event".into()]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in [
            "",
            "--",
            "nvme",
            "--user -- x",
            "--user root -- x",
            "--user -1 -- x",
            "--user 4294967296 -- x",
            "--names",
            "--names a,,b -- x",
            "--names /a -- x",
            "--what -- x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
