//! The manual page and the completions, from the description of the command line.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::aot::{Bash, Fish, generate};

use super::arguments::{Arguments, Shell};
use super::outcome::{CommandError, Found};

/// Writes the manual page, or one page for each command into a folder.
pub(super) fn pages(folder: Option<&Path>, out: &mut dyn Write) -> Result<Found, CommandError> {
    match folder {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            out.write_all(&page)?;
        }
        Some(folder) => clap_mangen::generate_to(Arguments::command(), folder)
            .map_err(|error| CommandError::File(folder.to_path_buf(), error))?,
    }
    Ok(Found::Nothing)
}

/// Writes the completions of a shell.
pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> Result<Found, CommandError> {
    let mut text = Vec::new();
    let command = &mut Arguments::command();
    match shell {
        Shell::Bash => generate(Bash, command, "iommuctl", &mut text),
        Shell::Fish => generate(Fish, command, "iommuctl", &mut text),
    }
    out.write_all(&text)?;
    Ok(Found::Nothing)
}
