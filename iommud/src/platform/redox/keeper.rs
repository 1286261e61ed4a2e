//! The keeper on Redox: starts the server, has all of its memory mapped by a third process, and starts the next server
//! when it dies.
//!
//! The kernel counts who maps a frame: while somebody does, the frames of a dead server's tables and buffers are
//! nobody else's, and a unit goes on walking them. The keeper keeps its name space; the server has none.
//!
//! ```text
//! server dies   whoever waits for its answer gets ENODEV, then its name is taken back
//!               the next server is started: the memory stays out of every device's reach there
//!               it takes the units over, its name is entered, and only then is the old memory given up
//! ```
//!
//! Memory of a dead server is given up only when the next one says that every unit uses its tables; whatever fails before,
//! it stays held, by a keeper that does nothing else any more if need be.
//!
//! A server that says nothing when it should is killed, and is dead then as any other. Meanwhile each unit goes on
//! with the tables that it was given last, which are held: what a device reaches is what it reached before.

//!
//! What is decided is here, over a [`System`], and tested on every host; the system itself is in `system.rs`.

mod answers;
mod bounded_read;
#[cfg(target_os = "redox")]
mod descriptors;
#[cfg(target_os = "redox")]
mod memory_holder;
#[cfg(target_os = "redox")]
mod system;
#[cfg(target_os = "redox")]
mod waits;
mod words;

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use iommu_protocol::ids::PciAddress;

use super::options::Options;
use crate::addr::PhysRange;
use crate::platform::restart_backoff::{End, MOST_FAILURES, Pace};
use crate::topology::tags::TagRecord;

#[cfg(target_os = "redox")]
pub(super) use system::keep;
#[cfg(target_os = "redox")]
pub use system::keep_others;

/// What a dead server has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    /// Its memory.
    ranges: Vec<PhysRange>,
    /// Functions that were driven.
    driven: Vec<PciAddress>,
    /// Tags that units may hold, if it noted them.
    tags: Option<TagRecord>,
}

/// What a keeper does to the system, and learns of it. Nothing here waits for ever, but for [`System::wait`].
trait System {
    /// A server's process, and the pipe that it gives descriptors through.
    type Server;
    /// A descriptor that a server has given.
    type Descriptor;
    /// A process that has the memory of a server mapped. Dropped, it gives the memory up.
    type Hold;

    /// Starts a server, and before it the process that is to hold its memory. Neither has `old`.
    fn start(
        &mut self,
        options: &Options,
        old: &mut Vec<Self::Hold>,
    ) -> io::Result<(Self::Server, Self::Hold)>;

    /// The next descriptor of a server's.
    fn receive(&mut self, server: &mut Self::Server) -> io::Result<Self::Descriptor>;

    /// Begins to map everything that `memory` stands for, and then tells the server, which waits for that.
    fn bring(&mut self, hold: &mut Self::Hold, memory: &Self::Descriptor) -> io::Result<()>;

    /// Waits until the server has taken note that everything is mapped.
    fn be_told(&mut self, hold: &mut Self::Hold, server: &mut Self::Server) -> io::Result<()>;

    /// Whether the server is known to have been told.
    fn was_told(&self, hold: &Self::Hold) -> bool;

    /// What the server has left. `UnexpectedEof`: the process that holds it has ended.
    fn contents(&mut self, hold: &mut Self::Hold) -> io::Result<Contents>;

    /// Whether the server says that no unit uses the memory of servers before it.
    fn may_go(&mut self, hold: &mut Self::Hold, server: &mut Self::Server) -> io::Result<bool>;

    /// Gives the memory up.
    fn let_go(&mut self, hold: Self::Hold) -> io::Result<()>;

    /// Ends a process that did not get to mapping anything.
    fn end(&mut self, hold: Self::Hold) -> io::Result<()>;

    /// Makes the scheme known whose root a server has given: the first one to whoever waits for it.
    fn make_known(&mut self, root: Self::Descriptor) -> io::Result<()>;

    /// Whoever waits for a server, so that the machine boots, goes on without one.
    fn wait_no_more(&mut self);

    /// Takes the name of a dead server's scheme back; it is not there when the server did not get that far.
    fn take_name_back(&mut self);

    /// Answers whoever waits for a dead server, and ends its scheme, of which `socket` is the last descriptor.
    fn answer(&mut self, socket: Self::Descriptor) -> io::Result<()>;

    /// Waits for a server's end.
    fn wait(&mut self, server: &mut Self::Server) -> io::Result<ExitStatus>;

    /// Kills a server, or has it ended before. With an error it may live.
    fn kill(&mut self, server: &mut Self::Server) -> io::Result<ExitStatus>;

    /// How long ago a server was started.
    fn age(&self, server: &Self::Server) -> Duration;

    /// Does nothing for a time.
    fn pause(&mut self, time: Duration);
}

/// A server, and what is known of it so far.
struct Running<S: System> {
    server: S::Server,
    /// A second descriptor of its socket: its scheme lives until this is closed.
    socket: Option<S::Descriptor>,
    /// The server learns of the end of its keeper by the end of this.
    memory: Option<S::Descriptor>,
    hold: S::Hold,
}

struct Keeper<S: System> {
    system: S,
    options: Options,
    /// Memory of servers that are dead. A unit may use it.
    old: Vec<S::Hold>,
}

impl<S: System> Keeper<S> {
    fn new(system: S, options: &Options) -> Self {
        Self { system, options: options.clone(), old: Vec::new() }
    }

    /// Runs servers until one ends for good, or none can be started any more; says whether that was a good end. Whoever
    /// calls this must not end as long as there is memory in [`Self::old`].
    fn run(&mut self) -> bool {
        self.run_all().unwrap_or_else(|error| {
            log::error!("keeper: {error}");
            false
        })
    }

    fn run_all(&mut self) -> io::Result<bool> {
        let mut pace = Pace::default();
        loop {
            let (server, hold) = self.system.start(&self.options, &mut self.old)?;
            let mut running = Running { server, socket: None, memory: None, hold };
            let met = self.meet(&mut running);
            let ended = match &met {
                Ok(()) => self.system.wait(&mut running.server),
                Err(error) => {
                    log::error!("keeper: the server did not get to serving: {error}");
                    self.system.kill(&mut running.server)
                }
            };
            let status = match ended {
                Ok(status) => status,
                // It may be alive, and units its own: another one must not touch them.
                Err(error) => {
                    self.old.push(running.hold);
                    return Err(error);
                }
            };
            let lived = self.system.age(&running.server);
            self.bury(running, status)?;
            let end = match End::from(status) {
                End::Final(code) => return Ok(code == 0),
                // When the first one cannot run, neither can others.
                _ if met.is_err() && self.old.is_empty() => return Ok(false),
                // Each of them leaves memory behind.
                _ if met.is_err() => End::Failed,
                end => end,
            };
            let Some(pause) = pace.after(end, lived) else {
                log::error!("keeper: {MOST_FAILURES} servers in a row could not run: giving up");
                return Ok(false);
            };
            self.system.pause(pause);
        }
    }

    /// Holds a server's memory, and makes its name known when it serves.
    fn meet(&mut self, running: &mut Running<S>) -> io::Result<()> {
        let Self { system, .. } = self;
        let Running { server, socket, memory, hold } = running;
        *socket = Some(system.receive(server)?);
        let received = system.receive(server)?;
        system.bring(hold, memory.insert(received))?;
        system.be_told(hold, server)?;
        let root = system.receive(server)?;
        system.make_known(root)?;
        if self.old.is_empty() { Ok(()) } else { self.give_up(running) }
    }

    /// Gives the memory of dead servers up, if the one that runs says that no unit uses it.
    fn give_up(&mut self, running: &mut Running<S>) -> io::Result<()> {
        if self.system.may_go(&mut running.hold, &mut running.server)? {
            for hold in self.old.drain(..) {
                self.system.let_go(hold)?;
            }
            self.options.left.clear();
            log::info!("keeper: memory of the server before given back");
        } else {
            log::warn!("keeper: a unit is not enabled: memory of the server before stays held");
        }
        Ok(())
    }

    /// Clears up behind a server that has ended.
    fn bury(&mut self, running: Running<S>, status: ExitStatus) -> io::Result<()> {
        let lived = self.system.age(&running.server);
        let Running { socket, memory, mut hold, .. } = running;
        // First of all: whoever looks names up may be waiting for its answer, and every program for him.
        if let Some(Err(error)) = socket.map(|socket| self.system.answer(socket)) {
            log::error!("keeper: clients of the dead server may wait for ever: {error}");
        }
        if memory.is_none() {
            return self.system.end(hold);
        }
        let contents = match self.system.contents(&mut hold) {
            // It ended before the server could be told: no unit knows of the memory.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof && !self.system.was_told(&hold) =>
            {
                return self.system.let_go(hold);
            }
            contents => contents,
        };
        self.old.push(hold);
        let Contents { ranges, driven, tags } = contents?;
        self.options.left.extend(ranges);
        self.options.driven = driven;
        self.options.tags = tags;
        if !matches!(End::from(status), End::Final(_)) {
            log::error!(
                "keeper: the server ended ({status}) after {lived:.1?}: its memory is held"
            );
        }
        // Nobody else enters it.
        self.system.take_name_back();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
