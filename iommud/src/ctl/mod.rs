//! The `iommuctl` program, which decodes firmware tables.

pub mod acpidump;
pub mod decode;
mod dmar;
mod ivrs;
mod present;
mod record;
mod verdict;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const USAGE: &str = "\
usage: iommuctl decode FILE [--json]
  decode   a DMAR or IVRS table (binary, or the text of acpidump) as text, or as one JSON object a line";

/// Why a command failed.
#[derive(Debug)]
pub enum CommandError {
    /// The arguments are not a valid command.
    Usage,
    /// A file could not be decoded.
    Decode(PathBuf, decode::DecodeError),
    /// The output could not be written.
    Output(io::Error),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => f.write_str(USAGE),
            Self::Decode(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "output: {error}"),
        }
    }
}

impl CommandError {
    /// Exit status of the process: 2 for a wrong command line, else 1.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Decode(..) | Self::Output(_) => 1,
        }
    }
}

/// Runs the command in `arguments`, which do not include the program's name.
///
/// # Errors
/// See [`CommandError`].
pub fn run(arguments: &[String], out: &mut dyn Write) -> Result<(), CommandError> {
    match arguments.split_first() {
        Some((command, rest)) if command == "decode" => run_decode(rest, out),
        _ => Err(CommandError::Usage),
    }
}

fn run_decode(arguments: &[String], out: &mut dyn Write) -> Result<(), CommandError> {
    let (options, files): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    let ([file], true) = (&files[..], options.iter().all(|option| *option == "--json")) else {
        return Err(CommandError::Usage);
    };
    let path = Path::new(file);
    let decoded =
        decode::file(path).map_err(|error| CommandError::Decode(path.to_path_buf(), error))?;
    for table in decoded {
        let result = if options.is_empty() {
            out.write_all(table.text().as_bytes())
        } else {
            writeln!(out, "{}", table.json())
        };
        result.map_err(CommandError::Output)?;
    }
    out.flush().map_err(CommandError::Output)
}
