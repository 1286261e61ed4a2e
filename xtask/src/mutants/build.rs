//! Compiles the copy, without the mutants that do not compile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blame::{self, Culprit};
use super::copy::Copy;
use super::learned;
use super::list::Mutant;
use super::places::{Site, Without};
use super::report::Verdict;
use super::rewrite::{Form, Learned};
use crate::workspace::{cache, cargo};

/// Most rounds of compiling and leaving out what does not compile.
const ROUNDS: usize = 40;

/// A program of tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Program {
    /// Its package and its name.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The folder that cargo starts it in.
    pub(super) folder: PathBuf,
}

/// Writes the mutants, and takes out those that do not compile, until the library compiles.
pub(super) fn settle(copy: &Copy, mutants: &[Mutant]) -> Result<Learned> {
    let path = cache("mutants")?.join("learned.tsv");
    let mut learned = learned::load(&path, copy.sources, mutants);
    for round in 1..=ROUNDS {
        copy.write(&learned)?;
        println!("mutants: compiling, round {round}");
        let errors = check(copy)?;
        let text = |error: &Value| Some(error.get("rendered")?.as_str()?.to_owned());
        let texts: String = errors.iter().filter_map(text).collect();
        std::fs::write(cache("mutants")?.join(format!("errors-{round}.txt")), &texts)?;
        if errors.is_empty() {
            learned::save(&path, copy.sources, mutants, &learned)?;
            return Ok(learned);
        }
        let culprits: BTreeSet<Culprit> =
            errors.iter().flat_map(|error| blame::of(error, &copy.root)).collect();
        let mut news = culprits.iter().filter(|culprit| learn(copy, &mut learned, culprit)).count();
        if news == 0 {
            let sites: BTreeSet<Culprit> =
                errors.iter().filter_map(|error| blame::before(error, &copy.root)).collect();
            news = sites.iter().filter(|site| learn(copy, &mut learned, site)).count();
        }
        println!("mutants: {} errors, {news} mutants or places are at fault", errors.len());
        ensure!(news > 0, "no mutant is at fault:\n{texts}");
    }
    bail!("the mutants do not compile after {ROUNDS} rounds")
}

fn learn(copy: &Copy, learned: &mut Learned, culprit: &Culprit) -> bool {
    match culprit {
        Culprit::Mutant(number) => learned.unviable.insert(*number),
        Culprit::Site(id) => {
            let items = copy.sites().filter(|site| site.id() == *id).flat_map(Site::items);
            learned.unviable.extend(items);
            learned.next_form(*id)
        }
    }
}

/// The mutants that are not compiled.
pub(super) fn left_out(copy: &Copy, learned: &Learned) -> Vec<(u32, Verdict)> {
    let untried = |reason: &str| Verdict::Untried(reason.to_owned());
    let verdict = |without| match without {
        Without::Unviable => Verdict::Unviable,
        Without::Untried(reason) => untried(reason),
    };
    let mut out: Vec<(u32, Verdict)> =
        copy.without().map(|(number, reason)| (number, verdict(reason))).collect();
    for site in copy.sites() {
        let form = learned.forms.get(&site.id());
        for number in site.choices.iter().map(|choice| choice.number) {
            if learned.unviable.contains(&number) {
                out.push((number, Verdict::Unviable));
            } else if form == Some(&Form::Original) {
                out.push((number, untried("no form of this place compiles")));
            }
        }
    }
    out
}

fn command(copy: &Copy, name: &str) -> Result<Command> {
    let mut command = cargo();
    command.current_dir(&copy.root).arg(name).args(["--locked", "--profile=mutants"]);
    command.arg("--message-format=json").stderr(Stdio::null());
    // The switch is a function that answers otherwise at compile time, which the compiler does not offer to everybody.
    command.env("RUSTC_BOOTSTRAP", "iommud,redox_scheme,redox_daemon");
    command.env("RUSTFLAGS", "--cap-lints=allow");
    command.env("CARGO_TARGET_DIR", cache("mutants")?.join("target"));
    Ok(command)
}

/// Checks the library. Returns the errors.
fn check(copy: &Copy) -> Result<Vec<Value>> {
    let mut command = command(copy, "check")?;
    command.args(["--package=iommud", "--lib"]);
    let output = command.output().context("cargo check")?;
    let messages = messages(&output.stdout, "compiler-message");
    let errors: Vec<Value> = messages
        .filter_map(|mut message| message.get_mut("message").map(Value::take))
        .filter(|message| message.get("level").and_then(Value::as_str) == Some("error"))
        .collect();
    ensure!(output.status.success() || !errors.is_empty(), "cargo check says nothing");
    Ok(errors)
}

/// Builds the programs of the tests.
pub(super) fn programs(copy: &Copy, tests: &[&str]) -> Result<Vec<Program>> {
    let mut command = command(copy, "test")?;
    command.args(["--no-run", "--package=iommud", "--package=iommud-tests"]).args(tests);
    let output = command.stderr(Stdio::inherit()).output().context("cargo test")?;
    ensure!(output.status.success(), "the tests of the mutants were not built");
    Ok(messages(&output.stdout, "compiler-artifact")
        .filter_map(|message| program(&message))
        .collect())
}

fn program(message: &Value) -> Option<Program> {
    let path = PathBuf::from(message.get("executable")?.as_str()?);
    let test = message.get("profile")?.get("test")?.as_bool()?;
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    let name = message.get("target")?.get("name")?.as_str()?;
    let folder = manifest.parent()?.to_path_buf();
    test.then(|| Program { name: name.to_owned(), path, folder })
}

fn messages(output: &[u8], reason: &'static str) -> impl Iterator<Item = Value> {
    let lines = output.split(|byte| *byte == b'\n');
    let values = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    values.filter(move |value| value.get("reason").and_then(Value::as_str) == Some(reason))
}
