//! From the command line to the loop, in the one order that leaves no device unconfined for an instant.
//!
//! ```text
//! signals blocked -> policy file, memory map, functions and table read; units looked at: how much memory they need
//!  -> leftovers of earlier servers found; those that no unit can be using given back; memory taken
//!  -> note that units may use this server's tables
//!  -> every unit brought up: queues run, translation as it was found
//!  -> Server::start_after: functions that were driven cut off, every other function under its group's policy, then translation on, unit by unit
//!  -> leftovers given back, if no unit can still be using them
//!  -> facts that the server before left read and logged, a new store of them begun
//!  -> socket bound
//!  -> while it runs: memory that is short is taken, page by page
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use super::acpi_tables;
use super::keeper;
use super::link::{Link, Message};
use super::machine::{self, Sysfs};
use super::memory::{
    self, DirectoryError, HugeBuffers, HugeDirectory, LeftOver, MorePages, NotesPage, PageSource,
    Taken,
};
use super::options::{Options, Role, USAGE};
use super::pci::SysfsConfig;
use super::previous_tables::{self, Told};
use super::ram::{RamError, system_ram};
use super::reply_cache::{SharedCache, VERSION};
use super::signals;
use super::trace_file::{self, TraceFile};
use super::transport::{Listener, Recover, Transport, WireLog};
use super::uevent::Uevents;
use crate::addr::PhysRange;
use crate::config::ConfigError;
use crate::facts::Cell;
use crate::hw::{BufferMemory, Unit};
use crate::platform::growth::Growth;
use crate::platform::machine_facts::MachineFacts;
use crate::platform::startup::{self, ServerMemory};
use crate::platform::units::{self, AmdVi, Family, LateUnits, MapRegisters, Vtd};
use crate::platform::{Order, Registers, logger, sizing};
use crate::policy::Config;
use crate::server::{Driven, Server};
use crate::topology::pci::ConfigSpace;
use crate::trace::{Record, Recorder};

/// Why the server does not run.
enum StartError {
    Policy(PathBuf, ConfigError),
    Memory(DirectoryError),
    Ram(RamError),
    Pci(io::Error),
    WireLog(PathBuf, io::Error),
    Socket(PathBuf, io::Error),
    Signals(io::Error),
    Keeper(io::Error),
    Loop(io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(path, error) => write!(f, "policy {}: {error}", path.display()),
            Self::Memory(error) => write!(f, "memory: {error}"),
            Self::Ram(error) => write!(f, "memory map: {error}"),
            Self::Pci(error) => write!(f, "PCI: {error}"),
            Self::WireLog(path, error) => write!(f, "wire log {}: {error}", path.display()),
            Self::Socket(path, error) => write!(f, "socket {}: {error}", path.display()),
            Self::Signals(error) => write!(f, "signals: {error}"),
            Self::Keeper(error) => write!(f, "keeper: {error}"),
            Self::Loop(error) => write!(f, "loop: {error}"),
        }
    }
}

impl StartError {
    /// How devices are left.
    fn aftermath(&self) -> &'static str {
        match self {
            Self::Socket(..) | Self::Loop(_) => AFTERMATH,
            _ => "devices are as firmware or an earlier server left them",
        }
    }
}

/// How the server leaves the machine once it has run.
const AFTERMATH: &str =
    "devices are under policy, units go on translating, their memory stays taken";

/// The `iommud` program.
#[must_use]
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    logger::install();
    let options = match startup::options(Options::parse(words), USAGE) {
        Ok(options) => options,
        Err(ended) => return ended,
    };
    let ended = match options.role {
        Role::Server => run(&options, None),
        Role::GoesOn(version) if version == VERSION => return ExitCode::SUCCESS,
        Role::GoesOn(_) => return ExitCode::FAILURE,
        Role::Replace => return keeper::replace_by_this(&options.socket),
        Role::Keeper => return keeper::keep(&options.words, options.socket),
        Role::Kept(keeper) => keeper::follow(keeper)
            .and_then(|()| kept())
            .map_err(StartError::Keeper)
            .and_then(|kept| run(&options, Some(kept))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            log::error!("not running: {}", error.aftermath());
            ExitCode::FAILURE
        }
    }
}

/// What the server has of its keeper.
struct Kept {
    link: Link,
    cache: SharedCache,
}

/// Takes what the keeper has sent before it started this process.
fn kept() -> io::Result<Kept> {
    let link = Link::of_server()?;
    match link.receive()? {
        Some((Message::Cache, Some(file))) => {
            let cache = SharedCache::open(&file).map_err(io::Error::other)?;
            Ok(Kept { link, cache })
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn run(options: &Options, kept: Option<Kept>) -> Result<(), StartError> {
    let stop = signals::block().map_err(StartError::Signals)?;
    let policy = startup::policy(options.policy.as_deref())
        .map_err(|(path, error)| StartError::Policy(path, error))?;
    let wire = match &options.wire_log {
        Some(path) => {
            WireLog::create(path).map_err(|error| StartError::WireLog(path.clone(), error))?
        }
        None => WireLog::off(),
    };
    let (facts, space) = read_machine()?;
    if facts.is_amd() {
        serve::<AmdVi>(options, (stop, kept), policy, wire, (facts, space))
    } else {
        serve::<Vtd>(options, (stop, kept), policy, wire, (facts, space))
    }
}

/// Serves a machine whose units, if any, are of one family.
fn serve<U: Told>(
    options: &Options,
    (stop, kept): (OwnedFd, Option<Kept>),
    (config, policy): (Config, String),
    wire: WireLog,
    (facts, mut space): (MachineFacts, SysfsConfig),
) -> Result<(), StartError> {
    let keeper = kept.as_ref().map(|kept| &kept.link);
    let (mut directory, mut left) =
        HugeDirectory::open(&options.memory_dir, keeper).map_err(StartError::Memory)?;
    if let Some(told) = previous_tables::addresses_told::<U>(&facts.firmware, Registers::map) {
        left.give_back_unknown(&told);
    }
    let (notes, page) = directory.notes().map_err(StartError::Memory)?;
    let trace = options.trace.as_ref().map(|_| directory.trace_memory());
    let trace = trace.transpose().map_err(StartError::Memory)?;
    let facts_memory = facts_memory(&directory);
    let (any_unit, ours) = (facts.has_unit(), directory.server());
    let place = (&mut space, Registers::map as MapRegisters);
    let need = sizing::need::<U>(&facts, place, &config, &left.ranges());
    let order = Order::new(&need, options.tables, options.buffers);
    let mut memory = Taken::take(directory, &order).map_err(StartError::Memory)?;
    memory.ranges.push(page);
    memory.ranges.extend(facts_memory.iter().map(|(_, range)| *range));
    let more = (Growth::new(&order), MorePages::new(&order));
    let budget = sizing::budget(&need, memory.tables.bytes(), memory.buffer_bytes);
    // Before functions are walked for the last time: what comes later is told.
    let uevents = Uevents::open();
    let Taken { tables, buffers, ranges, .. } = memory;
    let left_ranges = left.ranges();
    let (trace, file) = traced(options, trace, &facts, (policy, &ranges));
    let memory = ServerMemory { tables, buffers, own: ranges, left: left_ranges, budget };
    let (mut server, later) =
        start::<U>(config, (facts, space), memory, (left, notes, trace), more)
            .map_err(StartError::Memory)?;
    if let Some((cells, _)) = facts_memory {
        server.keep_facts(Box::new(cells));
    }
    let mut transport = looped(server, wire, later).map_err(StartError::Loop)?;
    if let Some(file) = file {
        transport.trace_to(file);
    }
    transport.stop_on(stop).map_err(StartError::Loop)?;
    match uevents {
        Ok(uevents) => transport.hear_of_functions(uevents).map_err(StartError::Loop)?,
        Err(error) => log::warn!("functions that come and go are not told: {error}"),
    }
    transport.server().rescan();
    match kept {
        Some(Kept { link, cache }) => {
            transport.keep_with(link, Box::new(cache)).map_err(StartError::Keeper)?;
        }
        None => {
            let listener = Listener::bind(&options.socket)
                .map_err(|error| StartError::Socket(options.socket.clone(), error))?;
            transport.listen(listener).map_err(StartError::Loop)?;
        }
    }
    log::info!("listening on {}", options.socket.display());
    let ended = transport.run().map_err(StartError::Loop);
    if ended.is_ok() && any_unit {
        log::info!("ended: {AFTERMATH}");
    } else if ended.is_ok() {
        // Before the directory's lock is given up: the next server does not meet files that vanish.
        match memory::remove_files(&options.memory_dir, ours) {
            Ok(()) => log::info!("ended: nothing was confined, memory is given back"),
            Err(error) => log::warn!("ended: nothing was confined, memory stays: {error}"),
        }
    }
    ended
}

/// The memory of the store of facts, and where it is. A server without it serves all the same; the next one cannot say
/// what was lost.
fn facts_memory(directory: &HugeDirectory) -> Option<(&'static mut [Cell], PhysRange)> {
    let memory = directory.facts_memory();
    memory.inspect_err(|error| log::warn!("no store of facts: {error}")).ok()
}

/// Opens the trace that the command line asks for. Its first record is the machine. Without it the server starts all the
/// same: a full disk must not keep the next server from taking the units over.
fn traced(
    options: &Options,
    memory: Option<&'static mut [Record]>,
    facts: &MachineFacts,
    (policy, own): (String, &[PhysRange]),
) -> (Recorder, Option<TraceFile>) {
    let (Some(to), Some(memory)) = (&options.trace, memory) else {
        return (Recorder::default(), None);
    };
    let left = options.socket.with_added_extension("trace");
    let opened = trace_file::snapshot(facts, policy, own, acpi_tables::read)
        .and_then(|snapshot| Ok((snapshot, TraceFile::open(to, memory, &left)?)));
    match opened {
        Ok((snapshot, (mut ring, mut file))) => {
            snapshot.write(&mut ring);
            file.write_all(&mut ring);
            (Recorder::from(ring), Some(file))
        }
        Err(error) => {
            log::error!("no trace: {error}");
            (Recorder::default(), None)
        }
    }
}

type LinuxServer<U> = Server<U, HugeBuffers<HugeDirectory>>;

/// Puts a server into its loop, which brings units up again and takes more memory.
fn looped<U: Family, P: PageSource + 'static, S: ConfigSpace + 'static>(
    server: Server<U, HugeBuffers<P>>,
    wire: WireLog,
    later: Later<S>,
) -> io::Result<Transport<U, HugeBuffers<P>>> {
    let mut transport = Transport::new(server, wire)?;
    transport.recover_by(later.recover());
    Ok(transport)
}

/// Reads the machine from sysfs. Changes nothing.
fn read_machine() -> Result<(MachineFacts, SysfsConfig), StartError> {
    let ram = system_ram().map_err(StartError::Ram)?;
    let mut space = SysfsConfig::open().map_err(StartError::Pci)?;
    let functions = machine::functions(&mut space);
    let (table, firmware) = units::firmware(acpi_tables::read);
    Ok((MachineFacts { ram, functions, table, firmware }, space))
}

fn start<U: Family>(
    config: Config,
    (facts, space): (MachineFacts, SysfsConfig),
    memory: ServerMemory<HugeBuffers<HugeDirectory>>,
    (mut left, notes, trace): (LeftOver, NotesPage, Recorder),
    more: (Growth, MorePages),
) -> Result<(LinuxServer<U>, Later<SysfsConfig>), DirectoryError> {
    if facts.has_unit() {
        left.note_ours()?;
    }
    let left = removable(left, facts.all_units_known());
    let tags = notes.tags();
    let driven = Driven::new(notes.noted().collect::<Vec<_>>(), Box::new(notes)).after(tags);
    let place = (space, Registers::map as MapRegisters);
    let (mut server, units) = startup::start(facts, place, config, memory, (driven, trace));
    server.discover_with(Box::new(Sysfs));
    let mut later = Later { units, left, more };
    give_back(&mut server, &mut later.left);
    if later.left.as_ref().is_some_and(|left| !left.ranges().is_empty()) {
        log::warn!("a unit is not enabled: memory of an earlier server is kept from all devices");
    }
    Ok((server, later))
}

/// What is done once the server runs: units that failed are brought up again, and memory is taken that is short.
struct Later<S> {
    units: LateUnits<S>,
    /// What an earlier server left, if it may ever be removed.
    left: Option<LeftOver>,
    more: (Growth, MorePages),
}

impl<S: ConfigSpace + 'static> Later<S> {
    fn recover<U: Family, P: PageSource + 'static>(mut self) -> Recover<U, HugeBuffers<P>> {
        Box::new(move |server, now| {
            self.units.recover(server, now);
            give_back(server, &mut self.left);
            let (growth, pages) = &mut self.more;
            growth.grow(server, pages, now);
        })
    }
}

/// What may ever be removed: a unit that the firmware's table does not tell of may use it for good.
fn removable(left: LeftOver, all_known: bool) -> Option<LeftOver> {
    Some(left).filter(|_| all_known)
}

/// Removes what an earlier server left, once every unit has swapped its tables for new ones. A unit that has not may
/// still translate through the old ones: until then they stay, out of every device's reach.
fn give_back<U: Unit, B: BufferMemory>(server: &mut Server<U, B>, left: &mut Option<LeftOver>) {
    let Some(kept) = left.as_ref().filter(|_| server.all_units_enabled()) else { return };
    let ranges = kept.ranges();
    // The server logs the first time that it has no memory for tables, and goes on trying.
    if ranges.iter().filter(|range| !server.memory_returned(**range)).count() > 0 {
        return;
    }
    if let Some(left) = left.take() {
        left.remove();
    }
    if !ranges.is_empty() {
        log::info!("memory of an earlier server given back");
    }
}

#[cfg(test)]
mod tests;
