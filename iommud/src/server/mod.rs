//! The scheme: handles, texts and operations, the same on every platform.
//!
//! A platform calls one method of [`Server`] at a time; each runs to completion. A request becomes an [`Event`],
//! policy makes a plan of it, and the engine runs the plan. The outcome is committed or aborted before the method
//! returns.

mod activity;
mod budget;
mod call;
mod caller;
mod counts;
mod decode;
mod details;
mod domain_text;
mod driven_devices;
mod endings;
mod facts;
mod faults;
mod footprint;
mod growth;
mod handles;
mod hotplug;
mod pending_claims;
mod processes;
mod recording;
mod release;
mod rescan;
mod startup;
mod tags;
#[cfg(test)]
mod tests;
mod text;
mod transaction;
mod unit_recovery;
mod unit_status;

pub use budget::Budget;
pub use caller::Caller;
pub use driven_devices::{Driven, Notes};
pub use handles::Handle;
pub use pending_claims::{Answer, LONGEST_WAIT, MOST_WAITING, MOST_WAITING_OF_ONE, Opened, Ticket};
pub use rescan::{Discovery, Rescanned};
pub use startup::Startup;
pub use unit_recovery::{FIRST_PAUSE, LONGEST_PAUSE};
pub use unit_status::{TableState, UnitStart, UnitState};

use alloc::string::ToString;
use alloc::vec::Vec;

use iommu_protocol::frame::READABLE;
use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::path::{NAMES, Path, RELEASE, RESET, SessionPath};
use iommu_protocol::{Refusal, fault};

use crate::engine::Engine;
use crate::hw::{BufferMemory, Unit};
use crate::policy::{
    BufferId, Claim, ClientId, Event, Hold, Import, ImportShared, Registry, SessionId,
};
use crate::trace::{Recorder, Traced};
use counts::Counts;
use decode::Scratch;
use endings::Endings;
use facts::Facts;
use faults::Faults;
use faults::storms::Storms;
use growth::Growth;
use handles::{Control, Handles, Object};
use pending_claims::PendingClaims;
use processes::Processes;
use rescan::Survey;
use unit_recovery::Recovery;
use unit_status::Machine;

/// The result of `fstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Bytes of a text or buffer; 0 for directories and sessions.
    pub size: u64,
    /// File type and permission bits, as POSIX numbers them.
    pub mode: u32,
}

const MODE_DIRECTORY: u32 = 0o040_500;
const MODE_TEXT: u32 = 0o100_400;
const MODE_DEVICE: u32 = 0o100_600;
const MODE_CONTROL: u32 = 0o100_200;

/// The server of one machine.
pub struct Server<U: Unit, B: BufferMemory> {
    registry: Registry,
    engine: Engine<U>,
    buffers: B,
    handles: Handles,
    faults: Faults,
    machine: Machine,
    driven: Driven,
    waiting: PendingClaims,
    counts: Counts,
    storms: Storms,
    endings: Endings,
    recovery: Recovery,
    survey: Survey,
    growth: Growth,
    processes: Processes,
    trace: Recorder,
    facts: Facts,
    /// The lists of the current request.
    scratch: Scratch,
}

/// A checkpoint, for tests over a machine that can be restored. A real machine cannot be, and its hardware traits are
/// not `Clone`.
impl<U: Unit + Clone, B: BufferMemory + Clone> Clone for Server<U, B>
where
    U::Memory: Clone,
{
    fn clone(&self) -> Self {
        Self {
            registry: self.registry.clone(),
            engine: self.engine.clone(),
            buffers: self.buffers.clone(),
            handles: self.handles.clone(),
            faults: self.faults.clone(),
            machine: self.machine.clone(),
            driven: self.driven.clone(),
            scratch: self.scratch.clone(),
            storms: self.storms.clone(),
            endings: self.endings.clone(),
            recovery: self.recovery.clone(),
            survey: self.survey.clone(),
            growth: self.growth.clone(),
            processes: self.processes.clone(),
            trace: self.trace.clone(),
            facts: self.facts.clone(),
            waiting: self.waiting.clone(),
            counts: self.counts,
        }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Opens `path`, relative to the handle `at` or to the scheme's root. Opening a device for writing
    /// claims its group and opens a session.
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Quota`, `BadHandle`, and every refusal of a claim.
    pub fn open(
        &mut self,
        caller: Caller,
        at: Option<Handle>,
        path: &str,
        write: bool,
    ) -> Result<Handle, Refusal> {
        self.counts.opens += 1;
        let opened = self.open_checked(caller, at, path, write);
        self.counted(opened)
    }

    fn open_checked(
        &mut self,
        caller: Caller,
        at: Option<Handle>,
        path: &str,
        write: bool,
    ) -> Result<Handle, Refusal> {
        self.handles.admit(caller.client)?;
        let object = match at.map(|handle| self.handles.object(handle).cloned()).transpose()? {
            Some(Object::Session(session)) => self.open_below(caller, session, path, write)?,
            Some(Object::Ended) => return Err(Refusal::NotProbed),
            Some(Object::Directory(base)) => self.open_top(caller, &join(base, path), write)?,
            Some(_) => return Err(Refusal::NotFound),
            None => self.open_top(caller, path, write)?,
        };
        Ok(self.handles.insert(caller.client, object))
    }

    fn open_top(&mut self, caller: Caller, path: &str, write: bool) -> Result<Object, Refusal> {
        let path = Path::parse(path).ok_or(Refusal::NotFound)?;
        if caller.uid != 0 {
            return Err(Refusal::Permission);
        }
        match path {
            Path::Device(address) if write => self.claim(caller.client, address, None),
            Path::Unit(unit) if write => self.control_of(unit).map(Object::Control),
            Path::Group(group) if write => self.group_control(group).map(Object::Control),
            Path::Rescan if write => Ok(Object::Control(Control::Rescan)),
            _ if write => Err(Refusal::Permission),
            _ if path.is_directory() => Ok(Object::Directory(path)),
            _ => self.text(path).map(Object::Text).ok_or(Refusal::NotFound),
        }
    }

    /// A session handle gives any holder the right to open the buffers below it. Another device is a claim, for which
    /// the holder must be an administrator: a driver that was handed one session gets no second device.
    fn open_below(
        &mut self,
        caller: Caller,
        session: SessionId,
        path: &str,
        write: bool,
    ) -> Result<Object, Refusal> {
        match SessionPath::parse(path).ok_or(Refusal::NotFound)? {
            SessionPath::Buffer(slot) => self.hold(session, slot),
            SessionPath::Member(address) if write && caller.uid == 0 => {
                self.claim(caller.client, address, Some(session))
            }
            SessionPath::Member(_) => Err(Refusal::Permission),
        }
    }

    fn claim(
        &mut self,
        client: ClientId,
        address: PciAddress,
        parent: Option<SessionId>,
    ) -> Result<Object, Refusal> {
        let claim = Claim { client, address, parent };
        let mut claimed = self.run(&claim);
        if claimed == Err(Refusal::NotProbed) && self.has_appeared(address) {
            claimed = self.run(&claim);
        }
        Ok(Object::Session(claimed?))
    }

    fn hold(&mut self, session: SessionId, slot: Slot) -> Result<Object, Refusal> {
        let buffer = self.run(&Hold(session, slot))?;
        let length = self.registry.buffer(session, slot).map_or(0, |view| view.length);
        Ok(Object::Buffer { buffer, length })
    }

    /// Closes a handle. At the end of a session its device goes back to policy, then its memory is freed. A handle
    /// that is not open is ignored.
    pub fn close(&mut self, handle: Handle) {
        self.end_claims_below(handle);
        match self.handles.remove(handle) {
            Some(Object::Session(session)) => self.end_session(session),
            Some(Object::Buffer { buffer, .. }) => {
                self.run_to_the_end(Event::Drop(buffer));
            }
            Some(Object::Directory(_) | Object::Text(_) | Object::Control(_) | Object::Ended)
            | None => {}
        }
        self.finish_endings();
    }

    /// Reads fault records from a session (whole records only) or the bytes of a text from `offset` on.
    ///
    /// # Errors
    /// `NotReady` when a session has no unread record, `BadLength` when `out` cannot hold one,
    /// `BadHandle`, `BadOperation`.
    pub fn read(&mut self, handle: Handle, offset: u64, out: &mut [u8]) -> Result<usize, Refusal> {
        match self.handles.object(handle)? {
            Object::Ended => Err(Refusal::NotProbed),
            Object::Session(_) if out.len() < fault::RECORD_SIZE => Err(Refusal::BadLength),
            Object::Session(session) => match self.faults.read(*session, out) {
                0 => Err(Refusal::NotReady),
                length => Ok(length),
            },
            Object::Text(text) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = text.as_bytes().get(start..).unwrap_or_default();
                let length = rest.len().min(out.len());
                for (to, from) in out.iter_mut().zip(rest) {
                    *to = *from;
                }
                Ok(length)
            }
            Object::Directory(_) | Object::Control(_) | Object::Buffer { .. } => {
                Err(Refusal::BadOperation)
            }
        }
    }

    /// Carries out an administrator's request: to reset a unit, to end the sessions on a group, or to walk configuration
    /// space again. Returns the number of bytes taken, which is all of them.
    ///
    /// # Errors
    /// `BadHandle`; `BadOperation` when the handle takes no requests, or not this one; `Busy` when the unit is not
    /// failed; `Unsupported` when nothing can bring the unit up, or no walk can be made.
    pub fn write(&mut self, handle: Handle, bytes: &[u8]) -> Result<usize, Refusal> {
        let done = match *self.handles.object(handle)? {
            Object::Control(Control::Reset(unit)) => {
                let word = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                if word == RESET { self.reset_unit(unit) } else { Err(Refusal::BadOperation) }
            }
            Object::Control(Control::Release(group)) => {
                let word = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                let right = word == RELEASE;
                right.then(|| self.release(group)).ok_or(Refusal::BadOperation)
            }
            Object::Control(Control::Rescan) => self.rescan().map(drop).ok_or(Refusal::Unsupported),
            _ => Err(Refusal::BadOperation),
        };
        self.counted(done).map(|()| bytes.len())
    }

    /// Whether a handle takes administrators' requests ([`Server::write`]), and is neither a session nor below one.
    #[must_use]
    pub fn is_control(&self, handle: Handle) -> bool {
        matches!(self.handles.object(handle), Ok(Object::Control(_)))
    }

    /// Passes the names in a directory to `sink`, from the `first`-th on, until it returns false.
    ///
    /// # Errors
    /// `BadHandle`, `BadOperation` when the handle is not a directory.
    pub fn names(
        &mut self,
        handle: Handle,
        first: usize,
        sink: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), Refusal> {
        let Object::Directory(path) = *self.handles.object(handle)? else {
            return Err(Refusal::BadOperation);
        };
        for name in self.entries(path).iter().skip(first) {
            if !sink(name) {
                break;
            }
        }
        Ok(())
    }

    /// Size and mode of the object of a handle.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn stat(&mut self, handle: Handle) -> Result<Stat, Refusal> {
        Ok(match self.handles.object(handle)? {
            Object::Directory(_) => Stat { size: 0, mode: MODE_DIRECTORY },
            Object::Text(text) => Stat { size: length_of(text.len()), mode: MODE_TEXT },
            Object::Session(_) | Object::Ended => Stat { size: 0, mode: MODE_DEVICE },
            Object::Control(_) => Stat { size: 0, mode: MODE_CONTROL },
            Object::Buffer { length, .. } => Stat { size: *length, mode: MODE_DEVICE },
        })
    }

    /// Announces through [`Server::next_ready`] when the handle becomes readable, if `bits` has
    /// [`READABLE`]; returns the bits that hold now.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn watch(&mut self, handle: Handle, bits: u64) -> Result<u64, Refusal> {
        let readable = match self.handles.object(handle)? {
            Object::Session(session) => self.faults.pending(*session),
            Object::Text(_) | Object::Directory(_) | Object::Ended => true,
            Object::Buffer { .. } | Object::Control(_) => false,
        };
        self.handles.watch(handle, bits & READABLE != 0);
        Ok(if readable { READABLE & bits } else { 0 })
    }

    /// The next watched handle that became readable since it was last announced.
    pub fn next_ready(&mut self) -> Option<Handle> {
        self.handles.next_ready()
    }

    /// A share of a buffer's memory, and its length in bytes.
    ///
    /// # Errors
    /// `BadHandle`, `BadOperation` when the handle is not a buffer, `NoMemory` when no share can be made.
    pub fn share(&mut self, handle: Handle) -> Result<(B::Share, u64), Refusal> {
        match *self.handles.object(handle)? {
            Object::Buffer { buffer, length } => {
                let share = self.buffers.share(buffer.0).ok_or(Refusal::NoMemory)?;
                Ok((share, length))
            }
            _ => Err(Refusal::BadOperation),
        }
    }

    /// Gives a buffer to another session of the same client. The caller holds both handles, which are capabilities.
    ///
    /// # Errors
    /// `BadHandle`, `BadOperation`, `Quota`; `Permission` when the buffer is another client's.
    pub fn import(&mut self, session: Handle, buffer: Handle) -> Result<u32, Refusal> {
        self.give(session, buffer, Import)
    }

    /// Gives a buffer to a session of any client. The holder of the session has stated that it expects this buffer,
    /// and the holder of the buffer has handed it over.
    ///
    /// # Errors
    /// `BadHandle`, `BadOperation`, `Quota`.
    pub fn bring(&mut self, session: Handle, buffer: Handle) -> Result<u32, Refusal> {
        self.give(session, buffer, ImportShared)
    }

    fn give<R: Traced<Outcome = Slot>>(
        &mut self,
        session: Handle,
        buffer: Handle,
        request: fn(SessionId, BufferId) -> R,
    ) -> Result<u32, Refusal> {
        let target = self.handles.session(session)?;
        let Object::Buffer { buffer, .. } = *self.handles.object(buffer)? else {
            return Err(Refusal::BadOperation);
        };
        let Slot(slot) = self.run(&request(target, buffer))?;
        Ok(slot)
    }

    /// Closes every session and puts every group back under policy. Translation stays on.
    pub fn shutdown(&mut self) {
        for handle in self.handles.all() {
            self.close(handle);
        }
        self.run_to_the_end(Event::Shutdown);
    }

    fn entries(&self, path: Path) -> Vec<alloc::string::String> {
        let numbers = |count: usize| (0..count).map(|n| n.to_string()).collect();
        match path {
            Path::Root => NAMES.map(ToString::to_string).into(),
            Path::Units => numbers(self.machine.units().len()),
            Path::Groups => self.registry.groups().map(|group| group.0.to_string()).collect(),
            Path::Domains => self.domain_numbers().iter().map(ToString::to_string).collect(),
            Path::Devices => self.registry.functions().map(|address| address.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    fn counted<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if result.is_err() {
            self.counts.refusals += 1;
        }
        result
    }
}

fn length_of(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The path `rest` below a directory.
fn join(base: Path, rest: &str) -> alloc::string::String {
    match base {
        Path::Root => rest.to_string(),
        _ if rest.is_empty() => base.to_string(),
        _ => alloc::format!("{base}/{rest}"),
    }
}
