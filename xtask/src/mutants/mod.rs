//! Mutation testing: one place of the server is changed at a time, and a test must fail.
//!
//! cargo-mutants says what to change. All changes are compiled at once, into a copy, each behind a switch; a test's
//! process reads from its environment which one is on. So a mutant costs the time of its tests, not of a build.
//! An operator is replaced in the tree, not in the text: its operands stay what they were.

mod blame;
mod build;
mod child;
mod copy;
mod learned;
mod list;
mod places;
mod reasons;
mod report;
mod rewrite;
mod suite;
mod trial;
mod workers;

use anyhow::Result;

use crate::options::MutantsOptions;
use crate::workspace::cache;
use copy::Copy;
use list::Mutant;
use reasons::Reasons;
use report::{Results, Verdict};
use suite::Suite;

/// Tests for every mutant: the ones that take seconds.
const FAST: [&str; 12] = [
    "--lib",
    "--test=server_vtd",
    "--test=server_amdvi",
    "--test=conformance_vtd",
    "--test=conformance_amdvi",
    "--test=sizing",
    "--test=hostile_input",
    "--test=groups_golden",
    "--test=acpi_tables",
    "--test=model_machine",
    "--test=model_vtd",
    "--test=iommuctl",
];

/// Tests for the survivors of the fast tests: the explorer.
const SLOW: [&str; 1] = ["--test=ordering"];

/// Mutates the server's code, one place at a time. Returns whether every mutant was caught, or has a reason not to be.
pub(crate) fn run(options: &MutantsOptions) -> Result<bool> {
    let mutants = list::list(options)?;
    println!("mutants: {} of them", mutants.len());
    let copy = Copy::new(&mutants)?;
    let learned = build::settle(&copy, &mutants)?;
    let results = Results::open(&cache("mutants")?.join("results.tsv"), &mutants, options.again)?;
    for (number, verdict) in build::left_out(&copy, &learned) {
        if let Some(mutant) = mutants.get(number as usize - 1) {
            results.note(mutant, verdict)?;
        }
    }
    let unknown = |mutant: &Mutant| results.of(mutant).is_none();
    let meet = |tests, name, wanted: &dyn Fn(&Mutant) -> bool, patient| {
        println!("mutants: building the tests");
        let suite = Suite::of(&copy, build::programs(&copy, tests)?, name)?;
        let wanted = (1..).zip(&mutants).filter(|(_, mutant)| wanted(mutant));
        let numbers: Vec<u32> = wanted.map(|(number, _)| number).collect();
        trial::all(&suite, &mutants, &numbers, &results, patient)
    };
    meet(&FAST, "quick", &unknown, false)?;
    let missed = |mutant: &Mutant| results.of(mutant).is_some_and(|verdict| verdict.is_missed());
    if options.slow {
        println!("mutants: survivors meet the slow tests");
        meet(&FAST, "quick", &missed, true)?;
    }
    if options.explore {
        println!("mutants: survivors meet the explorer");
        meet(&SLOW, "explorer", &missed, true)?;
    }
    let verdicts: Vec<(&str, Verdict)> = mutants
        .iter()
        .filter_map(|mutant| Some((mutant.name.as_str(), results.of(mutant)?)))
        .collect();
    let (text, unexplained) = report::summary(&verdicts, Reasons::load()?);
    print!("{text}");
    Ok(unexplained == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    /// cargo refuses a test program that does not exist, and then nothing is mutated.
    #[test]
    fn the_named_test_programs_exist() {
        let folder = root().join("tests/tests");
        for name in FAST.iter().chain(&SLOW).filter_map(|word| word.strip_prefix("--test=")) {
            let file = folder.join(format!("{name}.rs"));
            assert!(file.is_file() || folder.join(name).join("main.rs").is_file(), "{name}");
        }
    }
}
