//! Explores the ordering contract: `explore [--long] [--write]`. With `--write`, `tests/ORDERING.md` becomes what
//! the short mode says.

use std::process::ExitCode;

use iommud_tests::explore::report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let report = match report::run(has("--long")) {
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
