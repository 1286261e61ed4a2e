//! The texts of the scheme, and all state that a refused request must not change.

use iommud::policy::ClientId;
use iommud::server::Caller;

use super::Stack;
use crate::conformance::UnderTest;

/// The administrator's identity, used for reading only.
const ADMINISTRATOR: Caller = Caller { client: ClientId(u32::MAX), uid: 0 };

/// All state that a refused request must not change.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Tables of each unit, word by word.
    pub tables: Vec<Vec<(u64, Vec<u64>)>>,
    /// Frames in use for tables.
    pub frames: usize,
    /// Buffers whose memory is in use.
    pub buffers: Vec<u32>,
    /// Texts of the scheme: status, units, groups, devices, and the metrics that are not counters.
    pub texts: String,
}

impl Snapshot {
    /// Describes the first difference between two snapshots.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        for (line, (a, b)) in self.texts.lines().zip(other.texts.lines()).enumerate() {
            if a != b {
                return Some(format!("line {line} of the texts: `{a}` and `{b}`"));
            }
        }
        for (unit, (a, b)) in self.tables.iter().zip(&other.tables).enumerate() {
            for ((frame, words), (other_frame, other_words)) in a.iter().zip(b) {
                if frame != other_frame {
                    return Some(format!("unit {unit}: table {frame:#x} and {other_frame:#x}"));
                }
                if let Some(at) = (0..512).find(|at| words[*at] != other_words[*at]) {
                    let (a, b) = (words[at], other_words[at]);
                    let at = format!("word {at} of the table at {frame:#x}");
                    return Some(format!("unit {unit}: {at}: {a:#x} and {b:#x}"));
                }
            }
        }
        (self != other).then(|| {
            let counts = |one: &Self| {
                let tables: Vec<usize> = one.tables.iter().map(Vec::len).collect();
                (tables, one.frames, one.buffers.clone())
            };
            format!("tables, frames, buffers: {:?} and {:?}", counts(self), counts(other))
        })
    }

    /// Fails unless the two snapshots are the same.
    ///
    /// # Panics
    /// Shows the first difference.
    pub fn assert_same(&self, before: &Self, what: &str) {
        if let Some(difference) = self.difference(before) {
            panic!("{what}: after and before differ in {difference}");
        }
    }
}

impl<T: UnderTest> Stack<T> {
    /// Returns a text of the scheme, read as the administrator.
    ///
    /// # Panics
    /// When there is no such text.
    pub fn text(&mut self, path: &str) -> String {
        let handle = self.server.open(ADMINISTRATOR, None, path, false).expect(path);
        let mut out = vec![0; 1 << 20];
        let length = self.server.read(handle, 0, &mut out).expect(path);
        self.server.close(handle);
        out.truncate(length);
        String::from_utf8(out).expect("text")
    }

    /// The names in a directory of the scheme.
    ///
    /// # Panics
    /// When there is no such directory.
    pub fn names(&mut self, path: &str) -> Vec<String> {
        let handle = self.server.open(ADMINISTRATOR, None, path, false).expect(path);
        let mut names = Vec::new();
        let mut sink = |name: &str| {
            names.push(name.to_string());
            true
        };
        self.server.names(handle, 0, &mut sink).expect(path);
        self.server.close(handle);
        names
    }

    /// Returns one number of the metrics.
    ///
    /// # Panics
    /// When there is no such number.
    pub fn metric(&mut self, name: &str) -> u64 {
        let text = self.text("metrics");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
        line.split(' ').nth(1).unwrap().parse().expect(name)
    }

    /// Captures all state that a refused request must not change.
    pub fn snapshot(&mut self) -> Snapshot {
        let units = 1 + usize::from(!self.setup.behind_first.is_empty());
        let mut texts = self.text("status");
        for folder in ["units", "groups", "devices"] {
            for name in self.names(folder) {
                texts.push_str(&self.text(&format!("{folder}/{name}")));
            }
        }
        const COUNTERS: [&str; 8] = [
            "opens ",
            "calls ",
            "refusals ",
            "plans ",
            "plans_undone ",
            "facts_committed ",
            "handles ",
            "faults",
        ];
        for line in self.text("metrics").lines() {
            if !COUNTERS.iter().any(|counter| line.starts_with(counter)) {
                texts.push_str(line);
                texts.push('\n');
            }
        }
        Snapshot {
            tables: (0..units).map(|unit| self.machine.table_content(unit)).collect(),
            frames: self.machine.table_frames(),
            buffers: self.machine.buffers_in_use(),
            texts,
        }
    }
}
