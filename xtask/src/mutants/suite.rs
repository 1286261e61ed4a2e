//! The tests, each alone: how long it takes, and which mutants it reaches.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::build::Program;
use super::child::{self, End};
use super::copy::Copy;
use super::workers;
use crate::workspace::{cache, quietly};

/// Time for a test of the baseline.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Test {
    /// Its place in the list of programs.
    pub(super) program: usize,
    pub(super) name: String,
    /// How long it takes without a mutant.
    pub(super) time: Duration,
}

/// The tests, and which of them reach a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Suite {
    pub(super) programs: Vec<Program>,
    pub(super) tests: Vec<Test>,
    /// Places in the list of tests, by the number of the mutant.
    pub(super) reach: BTreeMap<u32, Vec<usize>>,
}

/// What the programs are, and all that they read: while it is the same, they need not run again without a mutant.
fn state(copy: &Copy, programs: &[Program]) -> Result<String> {
    let mut out = copy.all.to_string();
    for program in programs {
        let modified = std::fs::metadata(&program.path)?.modified()?;
        let since = modified.duration_since(UNIX_EPOCH)?.as_nanos();
        out.push_str(&format!(" {}:{since}", program.path.display()));
    }
    Ok(out)
}

impl Suite {
    /// Returns the suite of these programs. The last one is in a file of the cache, and is used while it holds.
    pub(super) fn of(copy: &Copy, mut programs: Vec<Program>, name: &str) -> Result<Self> {
        programs.sort_by(|one, other| one.path.cmp(&other.path));
        let state = state(copy, &programs)?;
        let path = cache("mutants")?.join(format!("suite-{name}.json"));
        let old = std::fs::read(&path).unwrap_or_default();
        if let Ok((saved, suite)) = serde_json::from_slice::<(String, Self)>(&old)
            && saved == state
        {
            return Ok(suite);
        }
        let suite = Self::record(programs)?;
        std::fs::write(&path, serde_json::to_vec(&(state, &suite))?)?;
        Ok(suite)
    }

    /// Runs every test without a mutant, and records what it reaches. All must pass.
    fn record(programs: Vec<Program>) -> Result<Self> {
        let mut tests = Vec::new();
        for (number, program) in programs.iter().enumerate() {
            for name in names(program)? {
                tests.push(Test { program: number, name, time: Duration::ZERO });
            }
        }
        println!("mutants: {} tests, without a mutant", tests.len());
        let folder = cache("mutants")?.join("reached");
        std::fs::create_dir_all(&folder)?;
        let run =
            |index: usize| record(&programs, tests.get(index), &folder.join(index.to_string()));
        let recorded = workers::each(tests.len(), run)?;
        let mut suite = Self { programs, tests, reach: BTreeMap::new() };
        for (index, (time, numbers)) in recorded.into_iter().enumerate() {
            if let Some(test) = suite.tests.get_mut(index) {
                test.time = time;
            }
            for number in numbers {
                suite.reach.entry(number).or_default().push(index);
            }
        }
        std::fs::write(cache("mutants")?.join("tests.tsv"), suite.times())?;
        Ok(suite)
    }

    /// A line for each test, the slowest first: how long it takes, and what it is called.
    fn times(&self) -> String {
        let mut tests: Vec<&Test> = self.tests.iter().collect();
        tests.sort_by_key(|test| std::cmp::Reverse(test.time));
        let line = |test: &&Test| format!("{} ms\t{}\n", test.time.as_millis(), self.title(test));
        tests.iter().map(line).collect()
    }

    /// The name of a test, with its program.
    pub(super) fn title(&self, test: &Test) -> String {
        let program = self.programs.get(test.program);
        format!("{}: {}", program.map_or("", |program| &program.name), test.name)
    }

    /// The command that runs a test.
    pub(super) fn command(&self, test: &Test) -> Result<Command> {
        let program = self.programs.get(test.program).context("a test without a program")?;
        Ok(child::command(program, &test.name))
    }
}

/// The tests of a program that are not ignored.
fn names(program: &Program) -> Result<Vec<String>> {
    let mut command = Command::new(&program.path);
    let list = |command: &mut Command| -> Result<Vec<String>> {
        command.current_dir(&program.folder).args(["--list", "--format=terse"]);
        let text = quietly(command)?;
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    };
    let ignored = list(Command::new(&program.path).arg("--ignored"))?;
    let mut names = list(&mut command)?;
    names.retain(|name| !ignored.contains(name));
    Ok(names)
}

fn record(programs: &[Program], test: Option<&Test>, path: &Path) -> Result<(Duration, Vec<u32>)> {
    let test = test.context("no such test")?;
    let program = programs.get(test.program).context("a test without a program")?;
    let _ = std::fs::remove_file(path);
    let mut command = child::command(program, &test.name);
    let (end, time) = child::run(command.env("MUTANT_RECORD", path), PATIENCE)?;
    ensure!(end == End::Passed, "{}: {} fails without a mutant", program.name, test.name);
    let bytes = std::fs::read(path).unwrap_or_default();
    let numbers = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    Ok((time, numbers))
}
