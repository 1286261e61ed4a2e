//! What came of a replay.

use std::fmt::Write;

use iommud::trace::{Entry, Kind, Record, Unreadable};
use iommud_model::invariant::Broken;
use serde_json::{Value, json};

/// The result of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Records in the file.
    pub records: usize,
    /// Lives of servers that were replayed, the last one perhaps in part.
    pub lives: usize,
    /// Requests, events and facts that were replayed without a difference.
    pub events: usize,
    /// The first thing that is not as it was.
    pub finding: Option<Finding>,
}

/// Something that is not as it was when the trace was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index of the first record concerned, from 0 at the beginning of the file.
    pub index: usize,
    /// Its kind, if it has one.
    pub kind: Option<Kind>,
    /// The problem.
    pub problem: Problem,
}

/// The problem of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The record cannot be read.
    Unreadable(Unreadable),
    /// A seal: one of so many records before it is not as it was written, or missing.
    Changed(u64),
    /// Records are missing, or in another order.
    Number {
        /// The number that it should have.
        expected: u32,
        /// The number that it has.
        found: u32,
    },
    /// The file does not begin with the start of a server.
    NoLife,
    /// It is earlier than the record before it.
    Time,
    /// No software unit is like the unit, or the machine cannot be built; the reason.
    NotModelled(String),
    /// The outcome is another one.
    Different {
        /// The record in the file.
        recorded: Record,
        /// The record of the replay.
        replayed: Record,
        /// The reason for which a step failed in the replay.
        failure: Option<String>,
    },
    /// An invariant is broken.
    Broken(Broken),
}

impl Problem {
    /// The problem in words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Unreadable(why) => why.to_string(),
            Self::Changed(records) => {
                format!("one of the {records} records before it was changed after it was written")
            }
            Self::Number { expected, found } => {
                format!(
                    "it has number {found}, and {expected} comes next: records are missing or in another order"
                )
            }
            Self::NoLife => "no server starts before it".into(),
            Self::Time => "it is earlier than the record before it".into(),
            Self::NotModelled(why) => format!("cannot be replayed: {why}"),
            Self::Different { recorded, replayed, failure } => {
                let mut text = format!("recorded {}\nreplayed {}", line(recorded), line(replayed));
                if let Some(failure) = failure {
                    // Writing to a string cannot fail.
                    let _ = write!(text, "\na step failed: {failure}");
                }
                text
            }
            Self::Broken(broken) => format!("{:?} is broken: {}", broken.invariant, broken.how),
        }
    }
}

fn line(record: &Record) -> String {
    record.iter().map(|word| format!("{word:016x}")).collect::<Vec<_>>().join(" ")
}

impl Replayed {
    /// The result in words.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { records, lives, events, finding } = self;
        let mut text = format!("{records} records, {lives} lives, {events} events replayed\n");
        // Writing to a string cannot fail.
        let _ = match finding {
            None => writeln!(text, "no difference; I1 to I9 hold"),
            Some(Finding { index, kind, problem }) => {
                let kind = kind.map_or("unreadable", Kind::words);
                writeln!(text, "record {index} ({kind}): {}", problem.words())
            }
        };
        text
    }

    /// The result as JSON; see SCHEMA.md.
    #[must_use]
    pub fn json(&self) -> Value {
        let finding = self.finding.as_ref().map(|finding| {
            json!({
                "record": finding.index,
                "kind": finding.kind.map(Kind::words),
                "problem": finding.problem.words(),
            })
        });
        json!({
            "records": self.records,
            "lives": self.lives,
            "events": self.events,
            "finding": finding,
        })
    }
}

/// A problem of an entry.
pub(super) fn found(entry: &Entry, problem: Problem) -> Box<Finding> {
    Box::new(Finding { index: entry.index, kind: Some(entry.kind), problem })
}
