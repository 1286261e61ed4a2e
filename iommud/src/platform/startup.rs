//! The parts of starting that are the same on every system: the command line, the policy file, the server over its
//! units.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::HugeTables;
use super::machine_facts::MachineFacts;
use super::units::{self, Family, LateUnits, MapRegisters, Surroundings};
use crate::addr::PhysRange;
use crate::config::{self, ConfigError};
use crate::hw::BufferMemory;
use crate::policy::Config;
use crate::server::{Budget, Driven, Server, Startup};
use crate::topology::pci::ConfigSpace;
use crate::trace::Recorder;

/// Returns the options of a command line. Otherwise prints `usage`, after the error if there is one, and returns the
/// exit code.
pub(super) fn options<O>(
    parsed: Result<Option<O>, lexopt::Error>,
    usage: &str,
) -> Result<O, ExitCode> {
    match parsed {
        Ok(Some(options)) => Ok(options),
        Ok(None) => {
            println!("{usage}");
            Err(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("iommud: {error}\n{usage}");
            Err(ExitCode::from(2))
        }
    }
}

/// Loads the policy from a file, with its text. Without a path, returns the default policy and no text.
///
/// # Errors
/// The path of the file, and its error.
pub(super) fn policy(path: Option<&Path>) -> Result<(Config, String), (PathBuf, ConfigError)> {
    let load = |path: &Path| {
        let text = config::text(path)?;
        Ok((config::parse(&text)?, text))
    };
    let load = |path: &Path| load(path).map_err(|error| (path.to_path_buf(), error));
    path.map_or_else(|| Ok((Config::default(), String::new())), load)
}

/// The memory that a server starts with.
pub(super) struct ServerMemory<B> {
    pub(super) tables: HugeTables,
    pub(super) buffers: B,
    /// The ranges of all this memory. Devices reach only the parts that are their buffers.
    pub(super) own: Vec<PhysRange>,
    /// Memory of earlier servers that units may still use.
    pub(super) left: Vec<PhysRange>,
    pub(super) budget: Budget,
}

/// Brings up every unit and puts every function under policy.
pub(super) fn start<U: Family, S: ConfigSpace, B: BufferMemory>(
    facts: MachineFacts,
    (mut space, map): (S, MapRegisters),
    config: Config,
    memory: ServerMemory<B>,
    (driven, trace): (Driven, Recorder),
) -> (Server<U, B>, LateUnits<S>) {
    let MachineFacts { ram, functions, table, firmware } = facts;
    let ServerMemory { mut tables, buffers, own, left, budget } = memory;
    let mut around = Surroundings {
        firmware: &firmware,
        space: &mut space,
        tables: &mut tables,
        map,
        budget: &budget,
    };
    let descriptions = firmware.units.iter().enumerate();
    let units = descriptions
        .map(|(index, unit)| units::bring_up::<U, _>(index, &mut around, unit))
        .collect();
    let late = LateUnits { firmware: firmware.clone(), space, map };
    let startup = Startup {
        config,
        table,
        firmware,
        units,
        functions,
        ram,
        own,
        left,
        memory: tables,
        buffers,
        budget,
    };
    (Server::start_recorded(startup, driven, trace), late)
}
