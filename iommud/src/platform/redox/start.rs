//! From the command line to the loop.
//!
//! ```text
//! policy file, functions, table read -> memory taken -> every unit brought up
//!  -> socket, timer, queue opened
//!  -> Server::start: every function under its group's policy, then translation on, unit by unit
//!  -> name space given up -> scheme made known
//! ```

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::events::Loop;
use super::interrupt::Vector;
use super::machine::Machine;
use super::memory::{self, Taken};
use super::options::{Options, USAGE};
use super::phases::Phases;
use super::ready::{Announce, in_child};
use super::scheme::IommuScheme;
use crate::config::{self, ConfigError};
use crate::platform::logger;
use crate::platform::units::{self, AmdVi, Family, Surroundings, Vtd};
use crate::policy::Config;
use crate::server::{Server, Startup, TableState};
use crate::topology::firmware::{Firmware, UnitKind};

/// How often units are asked for faults.
const PERIOD: Duration = Duration::from_millis(10);

/// How often the loop wakes when there is no unit.
const IDLE_PERIOD: Duration = Duration::from_secs(1);

const MIB: u64 = 1 << 20;

/// Why the server does not run.
enum StartError {
    Policy(PathBuf, ConfigError),
    Machine(io::Error),
    Memory(io::Error),
    Files(io::Error),
    Loop(io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(path, error) => write!(f, "policy {}: {error}", path.display()),
            Self::Machine(error) => write!(f, "memory or PCI scheme: {error}"),
            Self::Memory(error) => write!(f, "memory: {error}"),
            Self::Files(error) => write!(f, "scheme, timer, event queue: {error}"),
            Self::Loop(error) => write!(f, "loop: {error}"),
        }
    }
}

impl StartError {
    /// How devices are left. Boot goes on without the scheme: these are the last words about it.
    fn aftermath(&self) -> &'static str {
        match self {
            Self::Loop(_) => "devices are under policy, units go on translating",
            _ => "boot goes on WITHOUT DMA protection: devices are as firmware left them",
        }
    }
}

/// The `iommud` program.
#[must_use]
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    logger::install();
    let options = match Options::parse(words) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("iommud: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match Announce::from_init() {
        Some(init) if !options.oneshot => match serve(&options, init) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
        _ => {
            let error = in_child(|parent| serve(&options, parent));
            log::error!("background process: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the end; says whether it was a good one.
fn serve(options: &Options, announce: Announce) -> bool {
    let ended = run(options, announce);
    if let Err(error) = &ended {
        log::error!("{error}");
        log::error!("not running: {}", error.aftermath());
    }
    ended.is_ok()
}

fn run(options: &Options, announce: Announce) -> Result<(), StartError> {
    let mut phases = Phases::new();
    let config = policy(options)?;
    let machine = Machine::read(&mut phases).map_err(StartError::Machine)?;
    let mib = |number| u64::from(number) * MIB;
    let taken = memory::take(mib(options.tables), mib(options.buffers));
    let taken = taken.map_err(StartError::Memory)?;
    phases.end("memory");
    match machine.table {
        TableState::Parsed("IVRS") => {
            serve_units::<AmdVi>(config, machine, taken, announce, phases)
        }
        _ => serve_units::<Vtd>(config, machine, taken, announce, phases),
    }
}

/// Serves a machine whose units, if any, are of one family.
fn serve_units<U: Family>(
    config: Config,
    machine: Machine,
    taken: Taken,
    announce: Announce,
    mut phases: Phases,
) -> Result<(), StartError> {
    let Machine { ram, mut space, functions, table, firmware } = machine;
    let Taken { mut tables, buffers, ranges } = taken;
    let period = if firmware.units.is_empty() { IDLE_PERIOD } else { PERIOD };
    let events = Loop::open(period).map_err(StartError::Files)?;
    let mut around = Surroundings {
        firmware: &firmware,
        space: &mut space,
        tables: &mut tables,
        map: super::registers,
    };
    let descriptions = firmware.units.iter().enumerate();
    let units = descriptions
        .map(|(index, unit)| units::bring_up::<U, _>(index, &mut around, unit))
        .collect();
    phases.end("units");
    let vector = vector(&firmware);
    let mut server = Server::start(Startup {
        config,
        table,
        firmware,
        units,
        functions,
        ram,
        own: ranges,
        left: Vec::new(),
        memory: tables,
        buffers,
    });
    phases.end("policy");
    let vector = vector.filter(|vector| {
        let (address, data) = vector.message();
        server.tell_faults(address, data)
    });
    match &vector {
        Some(vector) => log::info!("faults: by interrupt, vector {}", vector.vector()),
        None => log::info!("faults: asked for every {} ms", period.as_millis()),
    }
    log::info!("started: {phases}");
    events.run(IommuScheme::new(server), vector, announce).map_err(StartError::Loop)
}

/// The vector that units tell of faults by; `None` when they are to be asked.
fn vector(firmware: &Firmware) -> Option<Vector> {
    if !firmware.units.iter().any(|unit| unit.kind == UnitKind::Vtd) {
        return None;
    }
    let reserved = Vector::reserve();
    reserved.inspect_err(|error| log::warn!("no vector for faults: {error}")).ok()
}

fn policy(options: &Options) -> Result<Config, StartError> {
    options.policy.as_ref().map_or_else(
        || Ok(Config::default()),
        |path| config::load(path).map_err(|error| StartError::Policy(path.clone(), error)),
    )
}
