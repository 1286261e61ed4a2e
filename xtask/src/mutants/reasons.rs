//! Why nothing is lost by a mutant that no test catches: `tests/data/mutants.txt`.
//!
//! A reason begins its line. The mutants that it explains follow, each on an indented line, without line and column:
//! these change with every edit above. As many mutants of one text are explained as have a line.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::workspace::root;

/// Where the reasons are, below the workspace.
const FILE: &str = "tests/data/mutants.txt";

/// The number of mutants that have a reason, by their text without line and column.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reasons {
    left: BTreeMap<String, usize>,
}

impl Reasons {
    /// Reads the file.
    pub(super) fn load() -> Result<Self> {
        Self::read(&std::fs::read_to_string(root().join(FILE)).context(FILE)?).context(FILE)
    }

    pub(super) fn read(text: &str) -> Result<Self> {
        let mut reasons = Self::default();
        let mut reason = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix("    ") {
                None => reason = Some(line),
                Some(_) if reason.is_none() => bail!("no reason above {line}"),
                Some(mutant) => *reasons.left.entry(mutant.to_owned()).or_default() += 1,
            }
        }
        Ok(reasons)
    }

    /// Whether one more survivor of this name has a reason. Each reason explains one.
    pub(super) fn explain(&mut self, name: &str) -> bool {
        let Some(left) = self.left.get_mut(&without_place(name)) else { return false };
        let explained = *left > 0;
        *left = left.saturating_sub(1);
        explained
    }
}

/// The name of a mutant without line and column: `FILE:LINE:COLUMN: CHANGE` becomes `FILE: CHANGE`.
fn without_place(name: &str) -> String {
    let mut parts = name.splitn(4, ':');
    match (parts.next(), parts.nth(2)) {
        (Some(file), Some(change)) => format!("{file}:{change}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A comment.\n\
                        the bits differ\n    f.rs: replace | with ^ in a::b\n    f.rs: replace | with ^ in a::b\n\
                        \nonly memory\n    g.rs: replace c -> usize with 0\n";

    #[test]
    fn a_reason_explains_as_many_mutants_as_it_names() {
        let mut reasons = Reasons::read(TEXT).unwrap();
        assert!(reasons.explain("f.rs:10:3: replace | with ^ in a::b"));
        assert!(reasons.explain("f.rs:11:3: replace | with ^ in a::b"));
        assert!(!reasons.explain("f.rs:12:3: replace | with ^ in a::b"));
        assert!(!reasons.explain("f.rs:12:3: replace | with & in a::b"));
        assert!(reasons.explain("g.rs:1:1: replace c -> usize with 0"));
    }

    #[test]
    fn a_mutant_without_a_reason_is_an_error() {
        assert!(Reasons::read("    f.rs: replace x\n").is_err());
    }

    /// A reason for code that is gone explains nothing.
    #[test]
    fn the_file_names_sources_that_exist() {
        let reasons = Reasons::load().unwrap();
        assert!(!reasons.left.is_empty());
        for mutant in reasons.left.keys() {
            let file = mutant.split(':').next().unwrap();
            assert!(root().join(file).is_file(), "{mutant}");
        }
    }
}
