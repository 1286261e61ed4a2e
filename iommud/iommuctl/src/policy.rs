//! `policy check`: what each device would get from a policy file before it is installed.

use std::fmt::Write as _;

use iommud::config::ConfigError;
use iommud::policy::{Config, Matcher, Mode, Rule};
use iommud::topology::pci::PciFunction;
use serde_json::{Value, json};

use crate::names;

/// A device, and what decides its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The device.
    pub function: PciFunction,
    /// Its mode while nobody has claimed it.
    pub mode: Mode,
    /// The rule that decides, from 1; `None` for the default.
    pub rule: Option<usize>,
}

/// What a policy means on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The default.
    pub default: Mode,
    /// Each device, by address.
    pub devices: Vec<Verdict>,
    /// Rules that decide for no device of this machine, from 1.
    pub idle: Vec<(usize, String)>,
}

/// The mode in the word of the policy file.
const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Compat => "compat",
        Mode::Strict => "strict",
        Mode::Off => "off",
    }
}

/// Applies a policy to the functions of a machine.
#[must_use]
pub fn check(config: &Config, functions: &[PciFunction]) -> Checked {
    let rule = |function: &PciFunction| {
        config.rules.iter().position(|rule| rule.matcher.matches(function)).map(|at| at + 1)
    };
    let mut devices: Vec<Verdict> = functions
        .iter()
        .map(|function| Verdict {
            function: *function,
            mode: config.mode(function),
            rule: rule(function),
        })
        .collect();
    devices.sort_by_key(|verdict| verdict.function.address);
    let used = |number: usize| devices.iter().any(|verdict| verdict.rule == Some(number));
    let rules = config.rules.iter().enumerate().map(|(at, rule)| (at + 1, rule));
    let idle = rules.filter(|(number, _)| !used(*number));
    let idle = idle.map(|(number, rule)| (number, describe(rule))).collect();
    Checked { default: config.default, devices, idle }
}

fn describe(rule: &Rule) -> String {
    let what = match rule.matcher {
        Matcher::Address(address) => format!("address {}", names::address(address)),
        Matcher::Device { vendor, device } => format!("id {vendor:04x}:{device:04x}"),
        Matcher::Class { class, mask: 0xff_0000 } => format!("class {:02x}", class >> 16),
        Matcher::Class { class, mask: 0xff_ff00 } => format!("class {:04x}", class >> 8),
        Matcher::Class { class, .. } => format!("class {class:06x}"),
    };
    format!("{what} {}", word(rule.mode))
}

/// A file that is refused, as JSON.
#[must_use]
pub fn refused_json(error: &ConfigError) -> Value {
    let line = match error {
        ConfigError::Syntax { line, .. }
        | ConfigError::Rule { line, .. }
        | ConfigError::Quota { line, .. } => Some(*line),
        ConfigError::Read(_) | ConfigError::TooLong => None,
    };
    json!({ "valid": false, "line": line, "error": error.to_string() })
}

impl Checked {
    /// One line for each device, then the rules that decide for none.
    #[must_use]
    pub fn text(&self) -> String {
        // Writing to a string cannot fail.
        let mut out = format!("default: {}\n", word(self.default));
        for Verdict { function, mode, rule } in &self.devices {
            let why = rule.map_or_else(|| "default".to_owned(), |rule| format!("rule {rule}"));
            let name = names::device(function.vendor, function.device);
            let address = names::address(function.address);
            let _ = writeln!(out, "{address} {:6} {why:8} {name}", word(*mode));
        }
        for (number, rule) in &self.idle {
            let _ = writeln!(out, "rule {number} ({rule}) decides for no device of this machine");
        }
        out
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let devices = self.devices.iter().map(|Verdict { function, mode, rule }| {
            json!({
                "address": names::address(function.address),
                "name": names::device(function.vendor, function.device),
                "policy": word(*mode),
                "rule": rule,
            })
        });
        let idle: Vec<usize> = self.idle.iter().map(|(number, _)| *number).collect();
        json!({
            "valid": true,
            "default": word(self.default),
            "devices": devices.collect::<Vec<_>>(),
            "unused_rules": idle,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::Device;
    use crate::server::machine::tests::{NVME, PORT};
    use iommud::config::parse;

    #[test]
    fn the_first_rule_that_matches_is_named_and_others_are_told() {
        let functions = [NVME, PORT].map(|text| Device::parse(text).unwrap().function);
        let config = parse(
            "default = \"strict\"\n\
             [[device]]\nclass = \"0108\"\npolicy = \"off\"\n\
             [[device]]\nid = \"144d:a808\"\npolicy = \"compat\"\n",
        )
        .unwrap();
        let checked = check(&config, &functions);
        let expected = "\
default: strict
0000:00:1c.0 strict default  Intel 100 Series/C230 Series Chipset Family PCI Express Root Port #1
0000:01:00.0 off    rule 1   Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983
rule 2 (id 144d:a808 compat) decides for no device of this machine
";
        assert_eq!(checked.text(), expected);
        assert_eq!(checked.json()["devices"][1]["rule"], 1);
        assert_eq!(checked.json()["unused_rules"], json!([2]));
    }

    #[test]
    fn a_mistake_has_its_line() {
        let error = parse("\n[[device]]\nclass = \"zz\"\npolicy = \"off\"\n").unwrap_err();
        let json = refused_json(&error);
        assert_eq!((json["valid"].clone(), json["line"].clone()), (false.into(), 3.into()));
    }
}
