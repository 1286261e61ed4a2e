//! What the documents show of the commands here, and of what guests print.

use anyhow::{Context, Result};

use crate::workspace::root;

/// The lines of the block of a document that has `part`, in order. The line with the prompt is left out.
///
/// # Errors
/// There is no such block.
pub(crate) fn block(document: &str, part: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root().join(document)).context("reading a document")?;
    let blocks = text.split("```").skip(1).step_by(2);
    let found = blocks.into_iter().find(|block| block.contains(part));
    let block = found.with_context(|| format!("{document} has no block with {part}"))?;
    let lines = block.lines().skip(1).filter(|line| !line.starts_with("iommud# "));
    Ok(lines.map(|line| line.trim().to_owned()).collect())
}

/// A line without its numbers, which differ between machines and runs.
pub(crate) fn without_numbers(line: &str) -> String {
    let mut out = String::new();
    for word in line.trim().split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let is_digit = |c: char| c.is_ascii_digit();
        if word.starts_with(is_digit) {
            out.push('#');
            out.push_str(word.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
        } else {
            out.push_str(word);
        }
    }
    out
}

/// Whether all lines of the block stand in `printed`, in order, but for their numbers.
pub(crate) fn shows(block: &[String], printed: &str) -> bool {
    let mut printed = printed.lines().map(without_numbers);
    block.iter().all(|line| printed.any(|other| other == without_numbers(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Scenario;
    use crate::options;

    const DOCUMENTS: [&str; 8] = [
        "README.md",
        "CONTRIBUTING.md",
        "drivers/README.md",
        "iommud/README.md",
        "iommud/REFERENCE.md",
        "tests/README.md",
        "tests/bench/README.md",
        "tests/data/pci/README.md",
    ];

    /// The words of a command line of a document. What it is for stands behind it, two spaces away, and words in capital
    /// letters stand for something.
    fn words(line: &str) -> Option<Vec<String>> {
        let rest = line.trim().strip_prefix("cargo xtask ")?;
        let rest = rest.split("  ").next()?;
        let mut words = Vec::new();
        for (index, part) in rest.split('"').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(|word| match word {
                    "N" => "2".to_owned(),
                    "K/N" => "0/2".to_owned(),
                    word => word.to_owned(),
                }));
            }
        }
        Some(words)
    }

    #[test]
    fn every_command_of_the_documents_is_one() {
        let mut found = 0;
        for document in DOCUMENTS {
            let text = std::fs::read_to_string(root().join(document)).unwrap();
            for line in text.lines().filter(|line| line.starts_with("    ")) {
                let Some(words) = words(line) else { continue };
                let read = options::parse_words(&words);
                assert!(read.is_ok(), "{document}: {}: {:?}", words.join(" "), read.err());
                found += 1;
            }
        }
        assert!(found >= 20, "{found}");
    }

    #[test]
    fn the_readme_shows_checks_of_the_demo() {
        let titles = Scenario::Intel.checks();
        let lines = block("README.md", "demo: ").unwrap();
        let (last, checks) = lines.split_last().unwrap();
        assert_eq!(*last, format!("demo: {} passed, 0 failed", titles.len()));
        assert!(checks.len() >= 3);
        for line in checks {
            let (number, title) = line.strip_prefix("ok ").unwrap().split_once(" - ").unwrap();
            let number: usize = number.parse().unwrap();
            assert_eq!(titles.get(number - 1).copied(), Some(title));
        }
    }

    #[test]
    fn only_numbers_may_differ() {
        let block = ["buffer at iova 0x10".to_owned(), "done, 3 times".to_owned()];
        assert!(shows(&block, "x\n buffer at iova 0xff0\ny\ndone, 41 times"));
        assert!(!shows(&block, "done, 3 times\nbuffer at iova 0x10"), "another order");
        assert!(!shows(&block, "buffer at iova 0x10\ndone, 3 rounds"));
        assert_eq!(without_numbers("#1 0000:00:04.0 wrote"), "## #:#:#.# wrote");
    }
}
