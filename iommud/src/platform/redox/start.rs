//! Starts the server, from the command line to the loop.
//!
//! ```text
//! policy file, functions, table read -> units surveyed -> memory that they need taken -> socket, timer, queue opened
//!  -> memory mapped by a holder, if there is a keeper
//!  -> every unit brought up
//!  -> Server::start_after: every function under its group's policy, then translation on, unit by unit
//!  -> name space given up -> scheme made known
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::boot_timing::Phases;
use super::discovery::Buses;
use super::events::Loop;
use super::held_memory::Memory;
use super::interrupt::Vector;
use super::keeper;
use super::machine::{Machine, SharedSpace};
use super::memory::{self, Taken};
use super::more::More;
use super::options::{Options, USAGE};
use super::registration::{Announce, in_child};
use super::scheme::IommuScheme;
use crate::config::ConfigError;
use crate::hw::Clock;
use crate::platform::handover_page::NotesPage;
use crate::platform::startup::{self, ServerMemory};
use crate::platform::units::{AmdVi, Family, MapRegisters, Vtd};
use crate::platform::{Mapping, MonotonicClock, Order, logger, sizing};
use crate::policy::Config;
use crate::server::{Budget, Driven, Notes};
use crate::topology::firmware::{Firmware, UnitKind};
use crate::trace::Recorder;

/// Time between two polls of the units for faults.
const PERIOD: Duration = Duration::from_millis(10);

/// Time between two ticks of the loop when the machine has no unit.
const IDLE_PERIOD: Duration = Duration::from_secs(1);

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
    /// The state in which devices are left. Boot goes on without the scheme, so this is the last message about it.
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
    let options = match startup::options(Options::parse(words), USAGE) {
        Ok(options) => options,
        Err(ended) => return ended,
    };
    let serve = |announce| match options.keep {
        true => keeper::keep(&options, &serve, announce),
        false => serve(&options, announce),
    };
    let announce = Announce::from_init().filter(|_| !options.oneshot);
    match announce {
        Some(announce) => match serve(announce) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
        None => {
            let error = in_child(serve);
            log::error!("background process: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the server until it ends. Returns false after an error, which it logs.
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
    let (config, _) = startup::policy(options.policy.as_deref())
        .map_err(|(path, error)| StartError::Policy(path, error))?;
    let machine = Machine::read(&mut phases).map_err(StartError::Machine)?;
    if machine.facts.is_amd() {
        serve_units::<AmdVi>(options, config, machine, announce, phases)
    } else {
        serve_units::<Vtd>(options, config, machine, announce, phases)
    }
}

/// Takes as much memory as the machine needs, or as the command line requests. Reads registers of units.
fn take<U: Family>(
    options: &Options,
    config: &Config,
    machine: &mut Machine,
) -> io::Result<(Taken, Budget, Order)> {
    let Machine { facts, space, .. } = machine;
    let place = (space, super::registers as MapRegisters);
    let need = sizing::need::<U>(facts, place, config, &options.left);
    let order = Order::new(&need, options.tables, options.buffers);
    let taken = memory::take(&order)?;
    let budget = sizing::budget(&need, taken.tables.bytes(), taken.buffer_bytes);
    Ok((taken, budget, order))
}

/// Serves a machine whose units, if any, are of one family.
fn serve_units<U: Family>(
    options: &Options,
    config: Config,
    mut machine: Machine,
    announce: Announce,
    mut phases: Phases,
) -> Result<(), StartError> {
    let taken = take::<U>(options, &config, &mut machine).map_err(StartError::Memory)?;
    phases.end("memory");
    let Machine { facts, roots, space } = machine;
    let space = SharedSpace::new(space);
    let (Taken { tables, buffers, ranges, notes, pieces, files, .. }, budget, order) = taken;
    let more = match announce {
        Announce::Keeper(_) => None,
        Announce::Init(_) | Announce::Parent(_) => Some(More::new(&order, files)),
    };
    let period = if facts.has_unit() { PERIOD } else { IDLE_PERIOD };
    let mut events = Loop::open(period).map_err(StartError::Files)?;
    let driven = driven(options, notes);
    if let Announce::Keeper(keeper) = &announce {
        events.be_held(keeper, Memory::new(pieces)).map_err(StartError::Files)?;
        phases.end("held");
    }
    let vector = vector(&facts.firmware);
    let all_known = facts.all_units_known();
    let buses = Buses { space: space.clone(), roots };
    let left = options.left.clone();
    let memory = ServerMemory { tables, buffers, own: ranges, left, budget };
    let place = (space, super::registers as MapRegisters);
    let (mut server, late) =
        startup::start::<U, _, _>(facts, place, config, memory, (driven, Recorder::default()));
    phases.end("units and policy");
    server.discover_with(Box::new(buses));
    let vector = vector.filter(|vector| {
        let (address, data) = vector.message();
        server.enable_fault_interrupt(address, data)
    });
    match &vector {
        Some(vector) => log::info!("faults: by interrupt, vector {}", vector.vector()),
        None => log::info!("faults: asked for every {} ms", period.as_millis()),
    }
    log::info!("started: {phases}");
    let mut clock = MonotonicClock::new();
    let scheme = IommuScheme::new(server).with_keys(seed()).with_clock(move || clock.now());
    let scheme = scheme.after(options.left.clone(), all_known);
    events.run(scheme, vector, (late, more), announce).map_err(StartError::Loop)
}

/// Combines the facts that a keeper passed on from earlier servers: the functions that were driven, and the tags that
/// units may hold. Notes them in `page` for the next server.
fn driven(options: &Options, page: Mapping) -> Driven {
    let Some(mut notes) = NotesPage::new(page, None) else { return Driven::default() };
    for function in &options.driven {
        notes.set(*function, true);
    }
    if let Some(tags) = options.tags {
        notes.set_tags(tags);
    }
    Driven::new(options.driven.iter().copied(), Box::new(notes)).after(options.tags)
}

/// Reads the seed of the keys for buffers. Without a seed the server makes no keys, because a predictable key is
/// worse than none.
fn seed() -> Option<[u8; 32]> {
    let mut seed = [0; 32];
    let read = File::open("/scheme/rand").and_then(|mut rand| rand.read_exact(&mut seed));
    let failed = |error: &io::Error| {
        log::warn!("/scheme/rand: {error}: no buffer can be brought to another session");
    };
    read.inspect_err(failed).ok().map(|()| seed)
}

/// Reserves the vector of the fault interrupt. `None` when there is no VT-d unit, or no free vector. Then the loop
/// polls the units.
fn vector(firmware: &Firmware) -> Option<Vector> {
    if !firmware.units.iter().any(|unit| unit.kind == UnitKind::Vtd) {
        return None;
    }
    let reserved = Vector::reserve();
    reserved.inspect_err(|error| log::warn!("no vector for faults: {error}")).ok()
}
