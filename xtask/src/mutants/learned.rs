//! What the compiler taught in an earlier run, as long as the sources are the same: a file in the cache.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::list::Mutant;
use super::rewrite::{Form, Learned};

/// Reads what was learned about these mutants from the same sources.
pub(super) fn load(path: &Path, sources: u64, mutants: &[Mutant]) -> Learned {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut learned = Learned::default();
    let numbers: HashMap<&str, u32> =
        mutants.iter().map(|mutant| mutant.name.as_str()).zip(1..).collect();
    for (word, name) in entries(&text, sources) {
        let Some(number) = numbers.get(name) else { continue };
        match word {
            "anew" => drop(learned.forms.insert(*number, Form::Anew)),
            "original" => drop(learned.forms.insert(*number, Form::Original)),
            _ => drop(learned.unviable.insert(*number)),
        }
    }
    learned
}

/// Writes what was learned. What the file says of other mutants stays.
pub(super) fn save(path: &Path, sources: u64, mutants: &[Mutant], learned: &Learned) -> Result<()> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut out = format!("{sources}\n");
    for (word, name) in entries(&text, sources) {
        if mutants.iter().all(|mutant| mutant.name != name) {
            out.push_str(&format!("{word}\t{name}\n"));
        }
    }
    for (number, mutant) in (1..).zip(mutants) {
        let form = match learned.forms.get(&number) {
            Some(Form::Anew) => Some("anew"),
            Some(Form::Original) => Some("original"),
            Some(Form::Once) | None => None,
        };
        let unviable = learned.unviable.contains(&number).then_some("unviable");
        for word in form.into_iter().chain(unviable) {
            out.push_str(&format!("{word}\t{}\n", mutant.name));
        }
    }
    std::fs::write(path, out).with_context(|| format!("writing {}", path.display()))
}

/// The entries, if they are of the same sources: a word and the name of a mutant.
fn entries(text: &str, sources: u64) -> Vec<(&str, &str)> {
    let mut lines = text.lines();
    if lines.next() != Some(sources.to_string().as_str()) {
        return Vec::new();
    }
    lines.filter_map(|line| line.split_once('\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(name: &str) -> Mutant {
        let json = serde_json::json!({"name": name, "file": "f.rs", "genre": "MatchArm",
            "replacement": "", "span": {"start": {"line": 1, "column": 1}}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_was_learned_holds_for_the_same_sources() {
        let path = std::env::temp_dir().join(format!("xtask-learned-{}", std::process::id()));
        let mutants = ["a", "b", "c"].map(mutant);
        let mut learned = Learned::default();
        learned.unviable.extend([1, 3]);
        learned.forms.extend([(1, Form::Anew), (2, Form::Original)]);
        save(&path, 7, &mutants, &learned).unwrap();
        assert_eq!(load(&path, 7, &mutants), learned);
        assert_eq!(load(&path, 8, &mutants), Learned::default());
        let [a, _, c] = mutants;
        save(&path, 7, std::slice::from_ref(&a), &Learned::default()).unwrap();
        let rest = Learned { unviable: [1].into(), ..Learned::default() };
        assert_eq!(load(&path, 7, &[c, a]), rest);
        std::fs::remove_file(&path).unwrap();
    }
}
