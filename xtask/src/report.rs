//! Reports of guests, checked against the list of checks fixed in advance.

use serde_json::{Value, json};

/// A line of a guest (see tests/vm/linux/src/report.rs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A check and its result.
    Check {
        /// Its number, from 1.
        number: usize,
        /// Whether it passed.
        ok: bool,
        /// The detail, or the reason for the failure.
        detail: &'a str,
    },
    /// A property that this machine cannot show; neither a pass nor a failure.
    Unchecked(&'a str),
    /// Progress.
    Log(&'a str),
    /// Data to keep in a file.
    Data(&'a str),
    /// A measured number, the same in every run.
    Count {
        /// The counted quantity.
        name: &'a str,
        /// The count.
        value: u64,
    },
    /// The guest tried every check.
    End,
    /// Any other line.
    Other(&'a str),
}

impl<'a> Line<'a> {
    /// Parses a line.
    pub(crate) fn parse(text: &'a str) -> Self {
        let check = |rest: &'a str, ok| {
            let (number, detail) = rest.split_once(" | ")?;
            Some(Self::Check { number: number.parse().ok()?, ok, detail })
        };
        if text == "@@end" {
            return Self::End;
        }
        if let Some(rest) = text.strip_prefix("@@unchecked ") {
            return Self::Unchecked(rest);
        }
        if let Some(rest) = text.strip_prefix("@@log ") {
            return Self::Log(rest);
        }
        if let Some(rest) = text.strip_prefix("@@data ") {
            return Self::Data(rest);
        }
        if let Some((value, name)) =
            text.strip_prefix("@@count ").and_then(|rest| rest.split_once(' '))
            && let Ok(value) = value.parse()
        {
            return Self::Count { name, value };
        }
        text.strip_prefix("@@ok ")
            .and_then(|rest| check(rest, true))
            .or_else(|| text.strip_prefix("@@fail ").and_then(|rest| check(rest, false)))
            .unwrap_or(Self::Other(text))
    }
}

/// The results of one guest.
#[derive(Debug)]
pub(crate) struct Report {
    titles: &'static [&'static str],
    results: Vec<Option<(bool, String)>>,
    counts: Vec<(String, u64)>,
    unchecked: Vec<String>,
    data: Vec<String>,
    logs: Vec<String>,
    ended: bool,
    stray: usize,
    /// The reason for a wrong end of the guest.
    bad_end: Option<String>,
}

impl Report {
    /// Creates a report on checks of these titles, none of which has passed.
    pub(crate) fn new(titles: &'static [&'static str]) -> Self {
        Self {
            titles,
            results: vec![None; titles.len()],
            counts: Vec::new(),
            unchecked: Vec::new(),
            data: Vec::new(),
            logs: Vec::new(),
            ended: false,
            stray: 0,
            bad_end: None,
        }
    }

    /// Takes a line. Returns the text to print for it.
    pub(crate) fn take(&mut self, text: &str) -> Option<String> {
        match Line::parse(text) {
            Line::Check { number, ok, detail } => Some(self.check(number, ok, detail)),
            Line::Unchecked(text) => {
                if self.unchecked.iter().any(|known| known == text) {
                    return None;
                }
                self.unchecked.push(text.into());
                Some(format!("not checked: {text}"))
            }
            Line::Log(text) => {
                self.logs.push(text.into());
                Some(format!("      {text}"))
            }
            Line::Data(text) => {
                self.data.push(text.into());
                None
            }
            Line::Count { name, value } => {
                self.counts.push((name.into(), value));
                Some(format!("      {value:>8} {name}"))
            }
            Line::End => {
                self.ended = true;
                None
            }
            Line::Other("") => None,
            Line::Other(text) => Some(format!("      ? {text}")),
        }
    }

    fn check(&mut self, number: usize, ok: bool, detail: &str) -> String {
        let slot = number.checked_sub(1).and_then(|index| self.results.get_mut(index));
        let title = number.checked_sub(1).and_then(|index| self.titles.get(index));
        let word = if ok { "ok" } else { "FAILED" };
        match (slot, title) {
            (Some(slot), Some(title)) if slot.is_none() => {
                *slot = Some((ok, detail.into()));
                format!("{word} {number} - {title}: {detail}")
            }
            // Unknown, or reported twice. Neither counts as a pass.
            _ => {
                self.stray += 1;
                format!("FAILED {number} - not an open check of this run: {detail}")
            }
        }
    }

    /// Records how QEMU ended; `wrong` describes a wrong end. A guest that did not end its report has died, whatever
    /// QEMU's status is. Returns the text to print.
    pub(crate) fn close(&mut self, wrong: Option<String>) -> Option<String> {
        let early = (!self.ended).then(|| "the guest ended before its report did".into());
        self.bad_end = wrong.or(early);
        self.bad_end.as_ref().map(|what| format!("FAILED - {what}"))
    }

    /// Whether the guest reported that it tried every check.
    pub(crate) const fn ended(&self) -> bool {
        self.ended
    }

    /// Numbers and titles of the checks without a report.
    pub(crate) fn silent(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.results
            .iter()
            .zip(self.titles)
            .zip(1..)
            .filter(|((result, _), _)| result.is_none())
            .map(|((_, title), number)| (number, *title))
    }

    /// Properties that this machine could not show.
    pub(crate) fn unchecked(&self) -> &[String] {
        &self.unchecked
    }

    /// Data that the guest reported for a file.
    pub(crate) fn data(&self) -> &[String] {
        &self.data
    }

    /// Counts that the guest reported.
    pub(crate) fn measured(&self) -> &[(String, u64)] {
        &self.counts
    }

    /// Numbers of passed and failed checks. Missing reports and stray lines count as failures.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let passed = self.results.iter().flatten().filter(|(ok, _)| *ok).count();
        (passed, self.results.len() - passed + self.stray + usize::from(self.bad_end.is_some()))
    }

    /// The guest's log lines.
    pub(crate) fn logs(&self) -> &[String] {
        &self.logs
    }

    /// The checks as an array of objects `name`, `ok`, `detail`. It has one more when the guest ended badly.
    pub(crate) fn json(&self) -> Value {
        let object = |(title, result): (&&str, &Option<(bool, String)>)| match result {
            Some((ok, detail)) => json!({ "name": title, "ok": ok, "detail": detail }),
            None => json!({ "name": title, "ok": false, "detail": "did not report" }),
        };
        let end = self.bad_end.iter();
        let end =
            end.map(|what| json!({ "name": "end of the guest", "ok": false, "detail": what }));
        Value::Array(self.titles.iter().zip(&self.results).map(object).chain(end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_repetition_and_strangers_fail() {
        let mut report = Report::new(&["a", "b", "c"]);
        assert_eq!(report.counts(), (0, 3));
        report.take("@@ok 1 | fine");
        assert_eq!(report.counts(), (1, 2));
        report.take("@@fail 2 | wrong");
        assert_eq!(report.counts(), (1, 2));
        report.take("@@ok 2 | fine after all");
        report.take("@@ok 4 | unknown");
        report.take("@@ok 0 | unknown");
        assert_eq!(report.counts(), (1, 5));
        assert_eq!(report.silent().collect::<Vec<_>>(), [(3, "c")]);
        assert!(!report.ended());
        report.take("@@end");
        assert!(report.ended());
        assert_eq!(report.close(None), None);
        assert_eq!(
            report.json(),
            json!([
                { "name": "a", "ok": true, "detail": "fine" },
                { "name": "b", "ok": false, "detail": "wrong" },
                { "name": "c", "ok": false, "detail": "did not report" },
            ])
        );
    }

    #[test]
    fn what_was_not_checked_is_no_pass() {
        let mut report = Report::new(&["a"]);
        report.take("@@unchecked the colour");
        assert_eq!(report.take("@@unchecked the colour"), None);
        assert_eq!((report.counts(), report.unchecked()), ((0, 1), &["the colour".into()][..]));
    }

    #[test]
    fn a_bad_end_fails_a_run_whose_checks_all_passed() {
        let passed = || {
            let mut report = Report::new(&["a"]);
            report.take("@@ok 1 | fine");
            report
        };
        let mut report = passed();
        assert!(report.close(None).is_some());
        assert_eq!(report.counts(), (1, 1));
        let mut report = passed();
        report.take("@@end");
        assert!(report.close(Some("QEMU died".into())).is_some());
        assert_eq!(report.counts(), (1, 1));
        assert_eq!(report.json()[1]["detail"], "QEMU died");
    }

    #[test]
    fn broken_lines_are_no_checks() {
        for text in ["@@ok", "@@ok 1", "@@ok x | y", "ok 1 | y", " @@ok 1 | y"] {
            assert_eq!(Line::parse(text), Line::Other(text));
        }
    }
}
