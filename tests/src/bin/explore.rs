//! Explores the ordering contract: `explore [--long] [--write]`, or runs one part alone:
//!
//! ```text
//! --free MACHINE DEPTH   free choice on a machine (0 to 4) to a depth
//! --play NAME            the plays of one name, over the units of both vendors
//! --failures             one failure at a time
//! --exhaust              all memory gone
//! --random CASES         random interleavings
//! ```
//!
//! With `--write`, the short mode's report becomes `tests/ORDERING.md`.

use std::process::ExitCode;

use iommud_tests::explore::{report, stages};

/// Prints the result of a part that ran alone.
fn told(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(words) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Err(found) => {
            eprintln!("{found}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let number = |at: usize| arguments.get(at).and_then(|number| number.parse().ok());
    if let Some(at) = arguments.iter().position(|argument| argument == "--play") {
        let name = arguments.get(at + 1).map_or("", String::as_str);
        return told(stages::plays_alone(name, has("--long")).map(|_| "holds".into()));
    }
    if has("--failures") {
        return told(stages::sweeps_alone(has("--long")).map(|sweeps| format!("{sweeps:#?}")));
    }
    if has("--exhaust") {
        let exhausted = stages::exhaust_all(has("--long"));
        return told(exhausted.map(|exhausted| report::without_memory(&exhausted)));
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--random") {
        let cases = number(at + 1).and_then(|cases| u32::try_from(cases).ok()).unwrap_or(100);
        return told(stages::random_alone(cases).map(|stats| report::at_random(&stats)));
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--free") {
        let (machine, depth) = (number(at + 1).unwrap_or(0), number(at + 2).unwrap_or(4));
        let covered = stages::free_alone(machine, depth);
        return told(
            covered.map(|(words, vendor, covered)| report::freely(words, vendor, &covered)),
        );
    }
    let report = match stages::run(has("--long")) {
        Ok(report) => report,
        Err(found) => {
            eprintln!("{found}");
            return ExitCode::FAILURE;
        }
    };
    print!("{}", report.words());
    if !report.missing().is_empty() {
        eprintln!("not exercised: {:?}", report.missing());
        return ExitCode::FAILURE;
    }
    if has("--write") && !has("--long") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ORDERING.md");
        if let Err(error) = std::fs::write(path, report.markdown()) {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
