//! Measurements of iommud on this machine, for `cargo xtask bench`: see there for the table.

mod machine;
mod peers;
mod report;
mod rows;
mod timing;

use std::process::ExitCode;

/// What there is to run, by name.
const ROWS: [(&str, fn()); 8] = [
    ("core", rows::core::run),
    ("range", rows::range::run),
    ("iova", rows::iova::run),
    ("pool", rows::pool::run),
    ("sockets", rows::sockets::run),
    ("probe", rows::probe::run),
    ("memory", rows::memory::run),
    ("storm", rows::storm::run),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == ["profile"] {
        rows::core::profile();
        return ExitCode::SUCCESS;
    }
    if wanted == ["profile-batches"] {
        rows::core::profile_batches();
        return ExitCode::SUCCESS;
    }
    if let [command, number, begin] = wanted.as_slice()
        && command == "client"
    {
        rows::sockets::client(number.parse().expect("a device"), begin.parse().expect("a time"));
        return ExitCode::SUCCESS;
    }
    for (name, run) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("measuring: {name}");
            run();
        }
    }
    ExitCode::SUCCESS
}
