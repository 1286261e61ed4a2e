//! Compares every field that `iommuctl decode --json` prints for real machines' tables with the disassembly of `iasl`
//! (Debian package acpica-tools). The two have no code in common.
//!
//! This is a program of its own, not a `#[test]`: without the tables or without `iasl` it reports that and compares
//! nothing. The tables are read from `../shared/acpi-tables` beside the repository, or from `ACPI_TABLES`. `IASL`
//! names another `iasl`. The tables under `tests/data/acpi` that `iasl` accepts are compared as well.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod disassembly;
mod expected;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use disassembly::Line;
use expected::Expected;

/// The results over all tables.
#[derive(Default)]
struct Tally {
    /// Equal fields, by `iasl`'s name for them.
    equal: BTreeMap<String, usize>,
    /// Fields that this `iasl` does not print, by reason.
    unprinted: BTreeMap<&'static str, usize>,
    differences: Vec<String>,
    /// Tables with a difference.
    failed: BTreeSet<String>,
}

fn main() -> ExitCode {
    if !asked_for() {
        return ExitCode::SUCCESS;
    }
    let (iasl, tables) = match prerequisites() {
        Ok(found) => found,
        Err(missing) => {
            println!("corpus: not run, {missing}");
            println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
            return ExitCode::SUCCESS;
        }
    };
    let scratch = std::env::temp_dir().join(format!("iommud-corpus-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let mut tally = Tally::default();
    for path in &tables {
        compare(&iasl, path, &scratch, &mut tally);
    }
    std::fs::remove_dir_all(&scratch).unwrap();
    report(&tally, tables.len())
}

/// Whether the arguments of `cargo test` select this program, rather than ask for its list of tests.
fn asked_for() -> bool {
    let mut names =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    let listing = std::env::args().any(|argument| argument == "--list");
    !listing && (names.peek().is_none() || names.any(|name| "corpus".contains(&name)))
}

/// Returns `iasl` and the tables, or the missing one as an error.
fn prerequisites() -> Result<(PathBuf, Vec<PathBuf>), String> {
    let folder = std::env::var_os("ACPI_TABLES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/acpi-tables"),
        PathBuf::from,
    );
    let entries =
        std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut tables: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    tables.sort();
    if tables.is_empty() {
        return Err(format!("{} has no tables", folder.display()));
    }
    let iasl = std::env::var_os("IASL").map_or_else(|| PathBuf::from("iasl"), PathBuf::from);
    match Command::new(&iasl).arg("-v").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let version = text.lines().find(|line| line.contains("version")).unwrap_or("iasl");
            println!("corpus: {version}");
            Ok((iasl, tables))
        }
        Err(error) => Err(format!("{} (package acpica-tools): {error}", iasl.display())),
    }
}

fn compare(iasl: &Path, path: &Path, scratch: &Path, tally: &mut Tally) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).unwrap();
    let decoded = match iommuctl::decode::table(&bytes) {
        Ok(decoded) => decoded.json(),
        Err(error) => return tally.different(&name, &format!("not decoded: {error}")),
    };
    if decoded["checksum_ok"] != true {
        tally.different(&name, "checksum_ok is not true");
    }
    let lines = disassembly::disassemble(iasl, &bytes, scratch);
    let mut unknown = disassembly::unknown(&lines);
    unknown.extend(expected::unknown(&decoded));
    tally.table(&name, &expected::fields(&decoded), &lines, &unknown);
}

impl Tally {
    fn different(&mut self, table: &str, what: &str) {
        self.failed.insert(table.to_owned());
        self.differences.push(format!("{table}: {what}"));
    }

    /// Every line of `iasl` must match a field of the decoder. Every field of the decoder must match a line, unless
    /// this `iasl` cannot print it.
    fn table(
        &mut self,
        name: &str,
        fields: &BTreeMap<usize, Expected>,
        lines: &[Line],
        unknown: &[Range<usize>],
    ) {
        let by_offset: BTreeMap<usize, &Line> =
            lines.iter().map(|line| (line.offset, line)).collect();
        for line in lines.iter().filter(|line| line.name != "Reserved") {
            match fields.get(&line.offset) {
                Some(field) if field.agrees(line) => {
                    *self.equal.entry(line.name.clone()).or_default() += 1;
                }
                Some(field) => self.different(name, &format!("{field:?} is not {line:?}")),
                None => self.different(name, &format!("nothing for {line:?}")),
            }
        }
        for (offset, field) in fields {
            match by_offset.get(offset) {
                Some(line) if line.name == "Reserved" => {
                    *self.unprinted.entry("called reserved by this iasl").or_default() += 1;
                }
                Some(_) => {}
                None if unknown.iter().any(|range| range.contains(offset)) => {
                    *self.unprinted.entry("in structures unknown to iasl").or_default() += 1;
                }
                None => self.different(name, &format!("no line for {field:?} at {offset}")),
            }
        }
    }
}

fn report(tally: &Tally, tables: usize) -> ExitCode {
    for (name, count) in &tally.equal {
        println!("corpus: {count:5} {name}");
    }
    for (why, count) in &tally.unprinted {
        println!("corpus: {count:5} fields not compared: {why}");
    }
    for difference in &tally.differences {
        println!("corpus: DIFFERENT {difference}");
    }
    let equal: usize = tally.equal.values().sum();
    println!(
        "corpus: {tables} tables, {equal} fields equal, {} different",
        tally.differences.len()
    );
    let failed = tally.failed.len();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        tables - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
