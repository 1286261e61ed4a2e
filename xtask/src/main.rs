//! The commands that README and CI use.

mod bare;
mod bench;
mod build;
mod cpio;
mod demo;
mod disks;
mod documents;
mod emulator;
mod explore;
mod fuzz;
mod guest;
mod kernel;
mod monitor;
mod mutants;
mod new_driver;
mod options;
mod package;
mod packages;
mod qemu;
mod redox;
mod report;
mod shell;
mod test;
mod workspace;

use std::process::ExitCode;

use options::Command;

/// Exit code when a requirement is missing that this program cannot or may not install.
const EXIT_MISSING: u8 = 2;

fn main() -> ExitCode {
    let command = match options::parse() {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error}\n\n{}", options::usage(None));
            return ExitCode::from(EXIT_MISSING);
        }
    };
    let result = match command {
        Command::Help(command) => {
            println!("{}", options::usage(command));
            Ok(true)
        }
        Command::Shell(options) => shell::run(&options),
        Command::NewDriver(name) => new_driver::run(&name),
        Command::Demo(options) => demo::run(&options),
        Command::Bare(options) => bare::run(options),
        Command::Redox(options) => redox::run(&options),
        Command::CheckRedox => redox::check(),
        Command::Package(options) => package::run(&options),
        Command::Explore(arguments) => explore::run(&arguments),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Test(stages) => test::run(&stages),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<packages::Missing>() => {
            eprintln!("{error}");
            ExitCode::from(EXIT_MISSING)
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
