//! The policy file: TOML text to [`Config`]. `iommud/policy.toml` is a commented example.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use iommu_protocol::ids::PciAddress;
use serde::Deserialize;
use toml::Spanned;

use crate::policy::{Config, Matcher, Mode, Quotas, Rule};

/// Longest policy file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// The reason why there is no policy. Lines count from 1.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read(io::Error),
    /// It is longer than 1 MiB.
    TooLong,
    /// It is not TOML, or a key or value is not one of a policy file.
    Syntax {
        /// Line of the first character concerned.
        line: usize,
        /// The message of the TOML reader.
        message: String,
    },
    /// A `[[device]]` rule.
    Rule {
        /// Line of the rule, or of the value concerned.
        line: usize,
        /// The problem.
        problem: RuleProblem,
    },
    /// A limit of `[quota]` with which nothing could work.
    Quota {
        /// Line of the value.
        line: usize,
        /// The limit.
        name: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The problem of a `[[device]]` rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleProblem {
    /// None of `address`, `id` and `class`.
    NoDevice,
    /// More than one of `address`, `id` and `class`.
    SeveralDevices,
    /// Not an address.
    Address(String),
    /// Not a vendor and device id.
    Id(String),
    /// Not a class.
    Class(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "{error}"),
            Self::TooLong => f.write_str("longer than 1 MiB"),
            Self::Syntax { line, message } => write!(f, "line {line}: {message}"),
            Self::Rule { line, problem } => write!(f, "line {line}: {problem}"),
            Self::Quota { line, name, value } => {
                write!(f, "line {line}: {name} = {value} is out of range")
            }
        }
    }
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("a device rule needs one of address, id and class"),
            Self::SeveralDevices => {
                f.write_str("a device rule takes only one of address, id and class")
            }
            Self::Address(text) => write!(f, "{text:?} is not an address like 0000--00--04.0"),
            Self::Id(text) => write!(f, "{text:?} is not a vendor and device id like 8086:10d3"),
            Self::Class(text) => {
                write!(f, "{text:?} is not a class of 2, 4 or 6 hexadecimal digits like 0108")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads the policy file at `path`.
///
/// # Errors
/// See [`ConfigError`]. A missing file is `Read` with kind `NotFound`.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse(&text(path)?)
}

/// Reads the text of the policy file at `path`.
///
/// # Errors
/// `Read` and `TooLong`.
pub fn text(path: &Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    let file = File::open(path).map_err(ConfigError::Read)?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(ConfigError::Read)?;
    if text.len() > usize::try_from(LONGEST).unwrap_or(usize::MAX) {
        return Err(ConfigError::TooLong);
    }
    Ok(text)
}

/// Reads a policy.
///
/// # Errors
/// All of [`ConfigError`] except `Read` and `TooLong`.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Syntax {
        line: line(text, error.span().unwrap_or_default()),
        message: error.message().to_owned(),
    })?;
    let rules = raw.device.iter().map(|rule| read_rule(text, rule)).collect::<Result<_, _>>()?;
    Ok(Config { default: raw.default.into(), rules, quotas: raw.quota.limits(text)? })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    default: RawMode,
    #[serde(default)]
    device: Vec<Spanned<RawRule>>,
    #[serde(default)]
    quota: RawQuota,
}

#[derive(Clone, Copy, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum RawMode {
    Off,
    #[default]
    Compat,
    Strict,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    address: Option<Spanned<String>>,
    id: Option<Spanned<String>>,
    class: Option<Spanned<String>>,
    policy: RawMode,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawQuota {
    memory_mib: Option<Spanned<u64>>,
    mappings: Option<Spanned<u32>>,
    sessions: Option<Spanned<u32>>,
    buffers: Option<Spanned<u32>>,
    domains: Option<Spanned<u32>>,
    handles: Option<Spanned<u32>>,
    faults: Option<Spanned<u32>>,
    regions: Option<Spanned<u32>>,
}

impl From<RawMode> for Mode {
    fn from(mode: RawMode) -> Self {
        match mode {
            RawMode::Off => Self::Off,
            RawMode::Compat => Self::Compat,
            RawMode::Strict => Self::Strict,
        }
    }
}

impl RawQuota {
    fn limits(&self, text: &str) -> Result<Quotas, ConfigError> {
        let default = Quotas::default();
        let pick = |name, value: &Option<Spanned<u32>>, default| match value {
            None => Ok(default),
            Some(value) if *value.get_ref() > 0 => Ok(*value.get_ref()),
            Some(value) => {
                Err(ConfigError::Quota { line: line(text, value.span()), name, value: 0 })
            }
        };
        Ok(Quotas {
            memory: self.memory(text)?.unwrap_or(default.memory),
            mappings: pick("mappings", &self.mappings, default.mappings)?,
            sessions: pick("sessions", &self.sessions, default.sessions)?,
            buffers: pick("buffers", &self.buffers, default.buffers)?,
            domains: pick("domains", &self.domains, default.domains)?,
            handles: pick("handles", &self.handles, default.handles)?,
            faults: pick("faults", &self.faults, default.faults)?,
            regions: pick("regions", &self.regions, default.regions)?,
        })
    }

    /// The limit in bytes.
    fn memory(&self, text: &str) -> Result<Option<u64>, ConfigError> {
        let Some(mib) = &self.memory_mib else { return Ok(None) };
        let value = *mib.get_ref();
        match value.checked_mul(MIB) {
            Some(bytes) if bytes > 0 => Ok(Some(bytes)),
            _ => {
                let line = line(text, mib.span());
                Err(ConfigError::Quota { line, name: "memory_mib", value })
            }
        }
    }
}

fn read_rule(text: &str, rule: &Spanned<RawRule>) -> Result<Rule, ConfigError> {
    let raw = rule.get_ref();
    let (value, result) = match (&raw.address, &raw.id, &raw.class) {
        (Some(value), None, None) => (value, address(value.get_ref())),
        (None, Some(value), None) => (value, id(value.get_ref())),
        (None, None, Some(value)) => (value, class(value.get_ref())),
        (None, None, None) => {
            let line = line(text, rule.span());
            return Err(ConfigError::Rule { line, problem: RuleProblem::NoDevice });
        }
        _ => {
            let line = line(text, rule.span());
            return Err(ConfigError::Rule { line, problem: RuleProblem::SeveralDevices });
        }
    };
    let at_value = |problem| ConfigError::Rule { line: line(text, value.span()), problem };
    Ok(Rule { matcher: result.map_err(at_value)?, mode: raw.policy.into() })
}

fn address(text: &str) -> Result<Matcher, RuleProblem> {
    let address: PciAddress = text.parse().map_err(|_| RuleProblem::Address(text.to_owned()))?;
    Ok(Matcher::Address(address))
}

fn id(text: &str) -> Result<Matcher, RuleProblem> {
    let number = |part: &str| if part.len() == 4 { hexadecimal(part) } else { None };
    let read = || {
        let (vendor, device) = text.split_once(':')?;
        let vendor = u16::try_from(number(vendor)?).ok()?;
        let device = u16::try_from(number(device)?).ok()?;
        Some(Matcher::Device { vendor, device })
    };
    read().ok_or_else(|| RuleProblem::Id(text.to_owned()))
}

/// Class; class and subclass; or class, subclass and programming interface.
fn class(text: &str) -> Result<Matcher, RuleProblem> {
    let (shift, mask) = match text.len() {
        2 => (16, 0xff_0000),
        4 => (8, 0xff_ff00),
        6 => (0, 0xff_ffff),
        _ => return Err(RuleProblem::Class(text.to_owned())),
    };
    match hexadecimal(text) {
        Some(number) => Ok(Matcher::Class { class: number << shift, mask }),
        None => Err(RuleProblem::Class(text.to_owned())),
    }
}

/// Digits only: no sign, no prefix.
fn hexadecimal(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(text, 16).ok())?
}

fn line(text: &str, span: Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_says_what_an_empty_file_means() {
        let example = parse(include_str!("../policy.toml")).unwrap();
        assert_eq!(example, Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!((example.default, example.rules.len()), (Mode::Compat, 0));
    }

    #[test]
    fn the_example_s_commented_lines_are_valid() {
        let text: String = include_str!("../policy.toml")
            .lines()
            .map(|line| line.strip_prefix("#").filter(|l| !l.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = parse(&text).unwrap();
        let modes: Vec<Mode> = config.rules.iter().map(|rule| rule.mode).collect();
        assert_eq!(modes, [Mode::Strict, Mode::Off, Mode::Strict, Mode::Compat]);
    }

    #[test]
    fn rules_keep_their_order_and_quotas_their_values() {
        let text = "default = \"strict\"\n\
            [[device]]\naddress = \"0001--3a--1f.7\"\npolicy = \"off\"\n\
            [[device]]\nid = \"8086:10D3\"\npolicy = \"compat\"\n\
            [[device]]\nclass = \"0c0330\"\npolicy = \"compat\"\n\
            [[device]]\nclass = \"03\"\npolicy = \"strict\"\n\
            [quota]\nmemory_mib = 3\nmappings = 5\nfaults = 7\n";
        let config = parse(text).unwrap();
        let address = PciAddress::new(1, 0x3a, 0x1f, 7).unwrap();
        let rules = [
            (Matcher::Address(address), Mode::Off),
            (Matcher::Device { vendor: 0x8086, device: 0x10d3 }, Mode::Compat),
            (Matcher::Class { class: 0x0c_0330, mask: 0xff_ffff }, Mode::Compat),
            (Matcher::Class { class: 0x03_0000, mask: 0xff_0000 }, Mode::Strict),
        ]
        .map(|(matcher, mode)| Rule { matcher, mode });
        assert_eq!((config.default, &config.rules[..]), (Mode::Strict, &rules[..]));
        let quotas = Quotas { memory: 3 << 20, mappings: 5, faults: 7, ..Quotas::default() };
        assert_eq!(config.quotas, quotas);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let cases = [
            ("default = \"strikt\"", "line 1: unknown variant `strikt`"),
            ("\ndefalt = \"strict\"", "line 2: unknown field `defalt`"),
            ("default = ", "line 1: "),
            ("[[device]]\npolicy = \"off\"", "line 1: a device rule needs one of"),
            (
                "\n[[device]]\nid = \"1:2\"\naddress = \"x\"\npolicy = \"off\"",
                "line 2: a device rule takes only one",
            ),
            ("[[device]]\nid = \"8086:10d3\"", "line 1: missing field `policy`"),
            (
                "[[device]]\npolicy = \"off\"\nid = \"86:10d3\"",
                "line 3: \"86:10d3\" is not a vendor",
            ),
            ("[[device]]\npolicy = \"off\"\nid = \"+086:10d3\"", "line 3: \"+086:10d3\" is not"),
            (
                "[[device]]\npolicy = \"off\"\naddress = \"0000:00:04.0\"",
                "line 3: \"0000:00:04.0\" is",
            ),
            ("[[device]]\npolicy = \"off\"\nclass = \"010\"", "line 3: \"010\" is not a class"),
            ("[[device]]\npolicy = \"off\"\nclass = \"0x10\"", "line 3: \"0x10\" is not a class"),
            ("[quota]\nmappings = 0", "line 2: mappings = 0 is out of range"),
            ("[quota]\nmappings = -1", "line 2: invalid value: integer `-1`"),
            ("[quota]\nmappings = 4294967296", "line 2: invalid value: integer `4294967296`"),
            ("[quota]\nmemory_mib = 17592186044416", "line 2: memory_mib = 17592186044416 is out"),
            ("[quota]\nmemory = 5", "line 2: unknown field `memory`"),
        ];
        for (text, said) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        assert!(matches!(load(Path::new("/nonexistent")), Err(ConfigError::Read(_))));
        assert!(matches!(load(Path::new("/dev/zero")), Err(ConfigError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_an_error(text in "(default|policy|class|id|=|\"|\\[|\\]|quota|device|[a-z0-9#\n:.-]){0,40}") {
            let _ = parse(&text);
        }
    }
}
