//! What is mutated: the list of cargo-mutants.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::options::MutantsOptions;
use crate::workspace::{cache, cargo, quietly, root};

/// The version of cargo-mutants whose list is read here.
const VERSION: &str = "27.1.0";

/// Folders that are mutated by default.
const FOLDERS: [&str; 4] = ["policy", "engine", "hw", "server"];

/// The kinds of mutants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub(super) enum Genre {
    /// The body of a function is replaced with a value.
    FnValue,
    /// An operator between two operands is replaced.
    BinaryOperator,
    /// An operator before its operand is deleted.
    UnaryOperator,
    /// An arm of a match is deleted.
    MatchArm,
    /// The guard of an arm is replaced with `true` or `false`.
    MatchArmGuard,
    /// A field of a structure that has a base is deleted.
    StructField,
}

/// A place in a file. Both numbers begin at 1; a column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Where a mutant's text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Span {
    pub(super) start: Place,
}

/// One change of the source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Mutant {
    /// File, place and change, as cargo-mutants prints them.
    pub(super) name: String,
    /// The file, relative to the workspace.
    pub(super) file: String,
    pub(super) span: Span,
    pub(super) replacement: String,
    pub(super) genre: Genre,
}

/// Lists the mutants of the named files and folders. A mutant's number is its place in the list, from 1.
pub(super) fn list(options: &MutantsOptions) -> Result<Vec<Mutant>> {
    let mut command = Command::new(install()?);
    command.current_dir(root()).args(["mutants", "--list", "--json", "--package=iommud"]);
    command.arg("--colors=never");
    for path in paths(options) {
        command.arg("--file").arg(path);
    }
    let all: Vec<Mutant> =
        serde_json::from_str(&quietly(&mut command)?).context("the list of cargo-mutants")?;
    let (first, step) = shard(options.shard.as_deref())?;
    Ok(all.into_iter().skip(first).step_by(step).collect())
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

/// Reads `K/N`: the first mutant and the distance to the next.
fn shard(text: Option<&str>) -> Result<(usize, usize)> {
    let Some(text) = text else { return Ok((0, 1)) };
    let (first, step) = text.split_once('/').context("--shard: K/N")?;
    let (first, step) = (first.parse()?, step.parse()?);
    ensure!(first < step, "--shard {text}: K is less than N");
    Ok((first, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_every_nth() {
        assert_eq!(shard(None).unwrap(), (0, 1));
        assert_eq!(shard(Some("2/8")).unwrap(), (2, 8));
        for bad in ["8/8", "1", "1/x", "0/0"] {
            assert!(shard(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_is_read() {
        let text = r#"[{"diff": "", "file": "iommud/src/engine/mod.rs", "function": null,
            "genre": "BinaryOperator", "name": "iommud/src/engine/mod.rs:3:7: replace < with ==",
            "package": "iommud", "replacement": "==",
            "span": {"end": {"column": 8, "line": 3}, "start": {"column": 7, "line": 3}}}]"#;
        let mutants: Vec<Mutant> = serde_json::from_str(text).unwrap();
        assert_eq!(mutants[0].genre, Genre::BinaryOperator);
        assert_eq!(mutants[0].span.start, Place { line: 3, column: 7 });
    }
}
