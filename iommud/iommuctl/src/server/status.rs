//! The text of `status`.

use serde_json::{Value, json};

use super::lines::Lines;

/// A unit as `status` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitLine {
    /// Its number, in firmware order.
    pub index: u32,
    /// `vt-d` or `amd-vi`.
    pub kind: String,
    /// `enabled`, `parsed` or `failed(reason)`.
    pub state: String,
}

/// What `status` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The firmware's table, in words.
    pub table: String,
    /// The units.
    pub units: Vec<UnitLine>,
    /// What is confined, in words.
    pub confinement: String,
    /// The default policy.
    pub policy: String,
    /// Lines of what needs somebody's attention: key and value.
    pub notes: Vec<(String, String)>,
    /// Numbers of groups, devices and sessions.
    pub counts: [(&'static str, u64); 3],
}

/// Keys that are read into fields.
const KNOWN: [&str; 6] = ["table", "confinement", "policy", "groups", "devices", "sessions"];

impl Status {
    /// Reads the text of `status`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = Lines::of(text);
        let word = |key: &str| lines.get(key).unwrap_or("unknown").to_owned();
        let count = |key| (key, lines.parse(key).unwrap_or(0));
        let (mut units, mut notes) = (Vec::new(), Vec::new());
        for (key, value) in lines.iter().filter(|(key, _)| !KNOWN.contains(key)) {
            match unit(key, value) {
                Some(unit) => units.push(unit),
                None => notes.push((key.to_owned(), value.to_owned())),
            }
        }
        Self {
            table: word("table"),
            units,
            confinement: word("confinement"),
            policy: word("policy"),
            notes,
            counts: [count("groups"), count("devices"), count("sessions")],
        }
    }

    /// Whether every device is behind a unit that translates.
    #[must_use]
    pub fn confined(&self) -> bool {
        self.confinement == "on" && self.units.iter().all(|unit| unit.state == "enabled")
    }

    /// The status as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let units = self
            .units
            .iter()
            .map(|unit| json!({ "index": unit.index, "kind": unit.kind, "state": unit.state }));
        let notes = self.notes.iter().map(|(key, value)| json!({ "kind": key, "text": value }));
        let [(_, groups), (_, devices), (_, sessions)] = self.counts;
        json!({
            "table": self.table,
            "units": units.collect::<Vec<_>>(),
            "confined": self.confined(),
            "confinement": self.confinement,
            "policy": self.policy,
            "groups": groups,
            "devices": devices,
            "sessions": sessions,
            "notes": notes.collect::<Vec<_>>(),
        })
    }
}

fn unit(key: &str, value: &str) -> Option<UnitLine> {
    let index = key.strip_prefix("unit ")?.parse().ok()?;
    let (kind, state) = value.split_once(' ')?;
    Some(UnitLine { index, kind: kind.to_owned(), state: state.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "\
table: DMAR
anomaly: offset 48: too short
unit 0: vt-d enabled
unit 1: vt-d failed(no answer: 10 ms)
confinement: on, NOT CONFINED behind unit 1
policy: compat
groups: 4
devices: 6
sessions: 1
silenced: 0000--00--04.0 after 16 faults
";

    #[test]
    fn all_lines_are_read() {
        let status = Status::parse(TEXT);
        let unit = |index, state: &str| UnitLine {
            index,
            kind: "vt-d".to_owned(),
            state: state.to_owned(),
        };
        assert_eq!(status.units, [unit(0, "enabled"), unit(1, "failed(no answer: 10 ms)")]);
        assert_eq!(status.counts, [("groups", 4), ("devices", 6), ("sessions", 1)]);
        let notes: Vec<&str> = status.notes.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(notes, ["anomaly", "silenced"]);
        assert!(!status.confined());
        let fine = TEXT.replace("on, NOT CONFINED behind unit 1", "on");
        assert!(!Status::parse(&fine).confined(), "a unit has failed");
        assert!(Status::parse(&fine.replace("failed(no answer: 10 ms)", "enabled")).confined());
        assert!(!Status::parse("").confined());
    }
}
