//! The command line of [`iommuctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    iommuctl::cli::main(std::env::args_os())
}
