//! The commands: arguments in, text or JSON and an exit status out.

pub mod arguments;
mod check;
mod connect;
mod decode;
mod faults;
mod live;
mod local;
mod manual;
mod outcome;
mod replay;
mod top;
mod tree;

use std::ffi::OsString;
use std::io::{BufWriter, Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use iommu_client::Connection;

use crate::output::Look;
use crate::server::Texts;
use arguments::{Arguments, Ask, Command, Local, Policy, Show};
use connect::{Lasting, connect};
pub use outcome::{CommandError, Found};

/// Runs a command line, the program's name first, on standard output.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output, mistakes to standard error. Nobody is left to tell when that fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let look = Look::of_stdout(arguments.global.color);
    let mut out = BufWriter::new(stdout().lock());
    let done = run(&arguments, look, &mut out)
        .and_then(|found| out.flush().map(|()| found).map_err(CommandError::Output));
    match done {
        Ok(Found::Nothing) => ExitCode::SUCCESS,
        Ok(Found::Something) => ExitCode::from(3),
        // `iommuctl … | head` is no failure.
        Err(CommandError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("iommuctl: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

/// Runs a command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(arguments: &Arguments, look: Look, out: &mut dyn Write) -> Result<Found, CommandError> {
    let json = arguments.global.json;
    match &arguments.command {
        Command::Local(command) => run_local(command, json, look, out),
        Command::Show(Show::Policy(Policy::Check { file, offline: true })) => {
            local::policy(file, json, out)
        }
        Command::Show(command @ Show::Top(_)) => {
            show(command, &Lasting::connect(&arguments.global)?, json, look, out)
        }
        Command::Show(command) => show(command, &connect(&arguments.global)?, json, look, out),
        Command::Ask(command) => ask(*command, &connect(&arguments.global)?, json, look, out),
    }
}

fn run_local(
    command: &Local,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    match command {
        Local::Decode(decode) => decode::run(decode, json, look, out),
        Local::Audit { root } => local::audit(root, json, look, out),
        Local::Replay { file } => replay::run(file, json, out),
        Local::Man { folder } => manual::pages(folder.as_deref(), out),
        Local::Completions { shell } => manual::completions(*shell, out),
    }
}

fn ask(
    command: Ask,
    server: &Connection,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    match command {
        Ask::Check { device, force } => check::run(device, force, server, json, look, out),
        Ask::Release { device } => live::release(device, server, json, out),
        Ask::Rescan => live::rescan(server, json, out),
        Ask::Reset(reset) => live::reset(reset, server, json, out),
    }
}

fn show(
    command: &Show,
    texts: &dyn Texts,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    match command {
        Show::Status => live::status(texts, json, look, out),
        Show::Units { unit } => live::units(*unit, texts, json, look, out),
        Show::Tree(arguments) => tree::tree(arguments, texts, json, look, out),
        Show::Device { address } => tree::device(*address, texts, json, look, out),
        Show::Domain { number, svg } => tree::domain(*number, svg.as_deref(), texts, json, out),
        Show::Faults { follow } => faults::faults(*follow, texts, json, look, out),
        Show::Explain { fault } => faults::explain(*fault, texts, json, out),
        Show::Metrics { prometheus } => live::metrics(*prometheus, texts, json, out),
        Show::Top(options) => {
            let mut pace = top::Steady::new(options.interval);
            top::top(options, texts, &mut pace, top::Page { json, look }, out)
        }
        Show::Policy(Policy::Check { file, .. }) => live::policy(file, texts, json, out),
    }
}

#[cfg(test)]
mod tests;
