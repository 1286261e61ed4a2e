//! Measurements of iommud on this machine, for `cargo xtask bench`, which prints them as a table.

mod machine;
mod peers;
mod report;
mod rows;
mod timing;

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The rows, by name.
const ROWS: [(&str, fn()); 10] = [
    ("core", rows::core::run),
    ("range", rows::range::run),
    ("iova", rows::iova::run),
    ("pool", rows::pool::run),
    ("calls", rows::calls::run),
    ("sockets", rows::sockets::run),
    ("alone", rows::alone::run),
    ("probe", rows::probe::run),
    ("memory", rows::memory::run),
    ("storm", rows::storm::run),
];

/// Work without time measurement, for a profiler.
const PROFILES: [(&str, fn()); 5] = [
    ("core", rows::core::profile),
    ("batches", rows::core::profile_batches),
    ("alone", rows::alone::profile),
    ("pool", rows::pool::profile),
    ("probe", rows::probe::profile),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = wanted.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["profile", work] => match PROFILES.iter().find(|(name, _)| name == work) {
            Some((_, run)) => run(),
            None => return ExitCode::FAILURE,
        },
        ["driver", number, begin] => {
            let number = number.parse().expect("a device");
            rows::driver::run(number, Duration::from_nanos(begin.parse().expect("a time")));
        }
        ["caller"] => rows::calls::caller(),
        parts => {
            for (name, run) in ROWS {
                if parts.is_empty() || parts.contains(&name) {
                    eprintln!("measuring: {name}");
                    let started = Instant::now();
                    run();
                    eprintln!("measured: {name}, in {:.0} s", started.elapsed().as_secs_f64());
                }
            }
        }
    }
    ExitCode::SUCCESS
}
