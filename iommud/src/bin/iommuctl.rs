//! Decodes firmware tables. See [`iommud::ctl`].

use std::io::{BufWriter, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match iommud::ctl::run(&arguments, &mut BufWriter::new(stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iommuctl: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
