//! What became of the mutants: kept in a file, and told by folder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};

use super::list::Mutant;
use super::reasons::Reasons;

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This test failed.
    Caught(String),
    /// This test did not end in time.
    TimedOut(String),
    /// The tests that reach it passed: all, or all but these.
    Survived(String),
    /// No test reaches it.
    Unreached,
    /// It does not compile.
    Unviable,
    /// It could not be tried, for this reason.
    Untried(String),
}

impl Verdict {
    /// Whether it says that a test is missing.
    pub(super) fn is_missed(&self) -> bool {
        matches!(self, Self::Survived(_) | Self::Unreached)
    }

    fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Caught(test) => ("caught", test),
            Self::TimedOut(test) => ("time-out", test),
            Self::Survived(but) => ("survived", but),
            Self::Unreached => ("unreached", ""),
            Self::Unviable => ("unviable", ""),
            Self::Untried(reason) => ("untried", reason),
        }
    }

    fn read(word: &str, by: &str) -> Option<Self> {
        match word {
            "caught" => Some(Self::Caught(by.to_owned())),
            "time-out" => Some(Self::TimedOut(by.to_owned())),
            "survived" => Some(Self::Survived(by.to_owned())),
            "unreached" => Some(Self::Unreached),
            "unviable" => Some(Self::Unviable),
            "untried" => Some(Self::Untried(by.to_owned())),
            _ => None,
        }
    }
}

/// The verdicts by the mutants' names, and the file that each is added to at once.
pub(super) struct Results {
    file: Mutex<File>,
    verdicts: Mutex<BTreeMap<String, Verdict>>,
}

impl Results {
    /// Opens the file. With `again`, what was caught before stays so; without it, only what is not to be tried now.
    pub(super) fn open(path: &Path, mutants: &[Mutant], again: bool) -> Result<Self> {
        let mut verdicts = read(&std::fs::read_to_string(path).unwrap_or_default());
        for mutant in mutants {
            let old = verdicts.get(&mutant.name);
            let caught = matches!(old, Some(Verdict::Caught(_) | Verdict::TimedOut(_)));
            if !(again && caught) {
                verdicts.remove(&mutant.name);
            }
        }
        let mut file = File::create(path).with_context(|| format!("{}", path.display()))?;
        for (name, verdict) in &verdicts {
            file.write_all(line(name, verdict).as_bytes())?;
        }
        Ok(Self { file: Mutex::new(file), verdicts: Mutex::new(verdicts) })
    }

    /// Notes what became of a mutant.
    pub(super) fn note(&self, mutant: &Mutant, verdict: Verdict) -> Result<()> {
        let poisoned = || anyhow!("a worker panicked");
        let mut file = self.file.lock().map_err(|_| poisoned())?;
        file.write_all(line(&mutant.name, &verdict).as_bytes()).context("writing a result")?;
        self.verdicts.lock().map_err(|_| poisoned())?.insert(mutant.name.clone(), verdict);
        Ok(())
    }

    /// What became of a mutant, if that is known.
    pub(super) fn of(&self, mutant: &Mutant) -> Option<Verdict> {
        self.verdicts.lock().ok()?.get(&mutant.name).cloned()
    }
}

fn line(name: &str, verdict: &Verdict) -> String {
    let (word, by) = verdict.words();
    format!("{word}\t{by}\t{name}\n")
}

fn read(text: &str) -> BTreeMap<String, Verdict> {
    let entry = |line: &str| {
        let mut words = line.splitn(3, '\t');
        let verdict = Verdict::read(words.next()?, words.next()?)?;
        Some((words.next()?.to_owned(), verdict))
    };
    text.lines().filter_map(entry).collect()
}

/// The results of the mutants of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    caught: usize,
    timed_out: usize,
    missed: usize,
    /// Of those missed.
    explained: usize,
    unviable: usize,
    untried: usize,
}

impl Score {
    fn count(&mut self, verdict: &Verdict) {
        let place = match verdict {
            Verdict::Caught(_) => &mut self.caught,
            Verdict::TimedOut(_) => &mut self.timed_out,
            Verdict::Survived(_) | Verdict::Unreached => &mut self.missed,
            Verdict::Unviable => &mut self.unviable,
            Verdict::Untried(_) => &mut self.untried,
        };
        *place += 1;
    }

    fn words(&self) -> String {
        let found = self.caught + self.timed_out;
        format!(
            "{found} of {} caught ({} by a time-out), {} of the {} others explained; {} do not compile, {} were not tried",
            found + self.missed,
            self.timed_out,
            self.explained,
            self.missed,
            self.unviable,
            self.untried
        )
    }
}

/// Returns the folder of a mutant below `iommud/src`.
fn folder(mutant: &str) -> String {
    let rest = mutant.strip_prefix("iommud/src/").unwrap_or(mutant);
    rest.split(['/', ':']).next().unwrap_or(rest).to_owned()
}

/// Formats every survivor without a reason, every mutant that was not tried, and the score of each folder. Also returns
/// the number of survivors without a reason.
pub(super) fn summary(verdicts: &[(&str, Verdict)], mut reasons: Reasons) -> (String, usize) {
    let mut unexplained = 0;
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let mut text = String::new();
    for (name, verdict) in verdicts {
        let score = scores.entry(folder(name)).or_default();
        score.count(verdict);
        if verdict.is_missed() {
            if reasons.explain(name) {
                score.explained += 1;
                continue;
            }
            unexplained += 1;
        }
        let _ = match verdict {
            Verdict::Survived(but) if but.is_empty() => writeln!(text, "survived: {name}"),
            Verdict::Survived(but) => writeln!(text, "survived: {name} ({but})"),
            Verdict::Unreached => writeln!(text, "survived: {name} (no test reaches it)"),
            Verdict::Untried(reason) => writeln!(text, "not tried: {name} ({reason})"),
            Verdict::Caught(_) | Verdict::TimedOut(_) | Verdict::Unviable => Ok(()),
        };
    }
    for (folder, score) in scores {
        let _ = writeln!(text, "mutants: {folder}: {}", score.words());
    }
    (text, unexplained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_told_by_folder() {
        let caught = || Verdict::Caught("lib: a".into());
        let verdicts = [
            ("iommud/src/policy/list.rs:3:5: replace f", caught()),
            ("iommud/src/hw/mod.rs:1:1: x", caught()),
            ("iommud/src/policy/work.rs:9:1: replace + with -", Verdict::Survived(String::new())),
            ("iommud/src/policy/work.rs:9:1: replace + with /", Verdict::Survived("but".into())),
            ("iommud/src/policy/work.rs:9:2: replace + with *", Verdict::Unreached),
            ("iommud/src/policy/work.rs:8:1: replace < with >", Verdict::TimedOut("b".into())),
            ("iommud/src/policy/work.rs:7:1: replace g", Verdict::Unviable),
            ("iommud/src/policy/work.rs:6:1: replace h", Verdict::Untried("constant".into())),
        ];
        let reasons = "equal\n    iommud/src/policy/work.rs: replace + with -\n";
        assert_eq!(
            summary(&verdicts, Reasons::read(reasons).unwrap()),
            ("survived: iommud/src/policy/work.rs:9:1: replace + with / (but)\n\
             survived: iommud/src/policy/work.rs:9:2: replace + with * (no test reaches it)\n\
             not tried: iommud/src/policy/work.rs:6:1: replace h (constant)\n\
             mutants: hw: 1 of 1 caught (0 by a time-out), 0 of the 0 others explained; 0 do not compile, 0 were not tried\n\
             mutants: policy: 2 of 5 caught (1 by a time-out), 1 of the 3 others explained; 1 do not compile, 1 were not tried\n"
                .to_owned(),
            2)
        );
    }

    fn mutant(name: &str) -> Mutant {
        let json = serde_json::json!({"name": name, "file": "f.rs", "genre": "MatchArm",
            "replacement": "", "span": {"start": {"line": 1, "column": 1}}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn another_run_tries_what_was_not_caught() {
        let path = std::env::temp_dir().join(format!("xtask-results-{}", std::process::id()));
        let [a, b, other] = ["a", "b", "other"].map(mutant);
        let results = Results::open(&path, &[], false).unwrap();
        let caught = || Verdict::Caught("lib: x".into());
        for (mutant, verdict) in
            [(&a, caught()), (&b, Verdict::Survived(String::new())), (&other, caught())]
        {
            results.note(mutant, verdict).unwrap();
        }
        let both = [a, b];
        let again = Results::open(&path, &both, true).unwrap();
        assert_eq!(both.each_ref().map(|mutant| again.of(mutant)), [Some(caught()), None]);
        let anew = Results::open(&path, &both, false).unwrap();
        assert_eq!(both.each_ref().map(|mutant| anew.of(mutant)), [None, None]);
        assert_eq!(anew.of(&other), Some(caught()), "it was not to be tried now");
        std::fs::remove_file(&path).unwrap();
    }
}
