//! Mutation testing: cargo-mutants changes one place of the server at a time, and a test must fail.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::options::MutantsOptions;
use crate::workspace::{cache, cargo, quietly, root};

/// The version of cargo-mutants whose output is parsed here.
const VERSION: &str = "27.1.0";

/// Folders that are mutated by default.
const FOLDERS: [&str; 4] = ["policy", "engine", "hw", "server"];

/// Tests for every mutant: the ones that take seconds.
const FAST: [&str; 11] = [
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
];

/// Tests for the survivors of the fast tests: the explorer.
const SLOW: [&str; 1] = ["--test=ordering"];

/// Exit codes of a complete run of cargo-mutants: all caught; some missed; some timed out.
const FINISHED: [i32; 3] = [0, 2, 3];

/// The results of the mutants of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    caught: usize,
    missed: usize,
    timed_out: usize,
}

/// Mutates the server's code, one place at a time. Returns whether every mutant was caught.
pub(crate) fn run(options: &MutantsOptions) -> Result<bool> {
    let program = install()?;
    let output = cache("mutants")?;
    std::fs::remove_dir_all(output.join("mutants.out")).or_else(absent)?;
    mutate(&program, &output, options, &FAST, false)?;
    if !read(&output, "missed.txt")?.is_empty() {
        println!("mutants: survivors meet the explorer");
        mutate(&program, &output, options, &SLOW, true)?;
    }
    let [caught, before, missed, timed_out] =
        ["caught.txt", "previously_caught.txt", "missed.txt", "timeout.txt"]
            .map(|name| read(&output, name));
    let caught = [caught?, before?].concat();
    let (missed, timed_out) = (missed?, timed_out?);
    print!("{}", summary(&caught, &missed, &timed_out));
    Ok(missed.is_empty())
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Installs cargo-mutants into the cache, once.
fn install() -> Result<PathBuf> {
    let folder = cache("cargo-mutants")?;
    let program = folder.join("bin/cargo-mutants");
    if !program.exists() {
        println!("installing cargo-mutants {VERSION}");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "cargo-mutants", "--version", VERSION]);
        quietly(install.arg("--root").arg(&folder))?;
    }
    Ok(program)
}

fn mutate(
    program: &Path,
    output: &Path,
    options: &MutantsOptions,
    tests: &[&str],
    again: bool,
) -> Result<()> {
    let mut command = std::process::Command::new(program);
    command.current_dir(root()).arg("mutants").arg("--output").arg(output);
    command.args(["--package=iommud", "--test-package=iommud,iommud-tests", "--profile=mutants"]);
    command.args(["--no-shuffle", "--colors=never", "--minimum-test-timeout=120"]);
    for path in paths(options) {
        command.arg("--file").arg(path);
    }
    if let Some(shard) = &options.shard {
        command.args(["--shard", shard, "--sharding=round-robin"]);
    }
    if again {
        command.arg("--iterate");
    }
    command.arg("--").args(tests);
    let status = command.status().context("starting cargo-mutants")?;
    let Some(code) = status.code() else { bail!("cargo-mutants ended with {status}") };
    ensure!(FINISHED.contains(&code), "cargo-mutants ended with {status}");
    Ok(())
}

/// Returns the files to mutate, as globs.
fn paths(options: &MutantsOptions) -> Vec<String> {
    if options.paths.is_empty() {
        return FOLDERS.map(|folder| format!("iommud/src/{folder}/**/*.rs")).to_vec();
    }
    let glob = |path: &String| {
        let folder = root().join(path).is_dir();
        if folder { format!("{}/**/*.rs", path.trim_end_matches('/')) } else { path.clone() }
    };
    options.paths.iter().map(glob).collect()
}

fn read(output: &Path, name: &str) -> Result<Vec<String>> {
    let path = output.join("mutants.out").join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Returns the folder of a mutant below `iommud/src`.
fn folder(mutant: &str) -> String {
    let rest = mutant.strip_prefix("iommud/src/").unwrap_or(mutant);
    rest.split(['/', ':']).next().unwrap_or(rest).to_owned()
}

/// Formats the score of each folder, and every survivor.
fn summary(caught: &[String], missed: &[String], timed_out: &[String]) -> String {
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    for mutant in caught {
        scores.entry(folder(mutant)).or_default().caught += 1;
    }
    for mutant in missed {
        scores.entry(folder(mutant)).or_default().missed += 1;
    }
    for mutant in timed_out {
        scores.entry(folder(mutant)).or_default().timed_out += 1;
    }
    let mut text = String::new();
    for mutant in missed {
        let _ = writeln!(text, "survived: {mutant}");
    }
    for (folder, score) in scores {
        let found = score.caught + score.timed_out;
        let all = found + score.missed;
        let _ = writeln!(
            text,
            "mutants: {folder}: {found} of {all} caught ({} by a time-out)",
            score.timed_out
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cargo refuses a test program that does not exist, and then nothing is mutated.
    #[test]
    fn the_named_test_programs_exist() {
        let folder = root().join("tests/tests");
        for name in FAST.iter().chain(&SLOW).filter_map(|word| word.strip_prefix("--test=")) {
            let file = folder.join(format!("{name}.rs"));
            assert!(file.is_file() || folder.join(name).join("main.rs").is_file(), "{name}");
        }
    }

    #[test]
    fn scores_are_told_by_folder() {
        let lines = |text: &[&str]| text.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let caught =
            lines(&["iommud/src/policy/list.rs:3:5: replace f", "iommud/src/hw/mod.rs:1:1: x"]);
        let missed = lines(&["iommud/src/policy/work.rs:9:1: replace + with -"]);
        let timed_out = lines(&["iommud/src/policy/work.rs:8:1: replace < with >"]);
        assert_eq!(
            summary(&caught, &missed, &timed_out),
            "survived: iommud/src/policy/work.rs:9:1: replace + with -\n\
             mutants: hw: 1 of 1 caught (0 by a time-out)\n\
             mutants: policy: 2 of 3 caught (1 by a time-out)\n"
        );
    }
}
