//! The keeper on Redox. It starts the server, makes a third process map all of the server's memory, and starts the
//! next server when that one dies.
//!
//! The kernel counts the mappings of each frame. While the third process maps the frames of a dead server's tables
//! and buffers, the kernel reuses none of them. So units can go on walking the tables. The keeper keeps its name
//! space, while the server gives its own up.
//!
//! ```text
//! server dies   the keeper answers its open requests with ENODEV, then removes its name
//!               the keeper starts the next server, which keeps the old memory out of every device's reach
//!               the next server takes the units over, and the keeper registers its name
//!               the keeper gives the old memory up
//! ```
//!
//! The keeper gives the memory of a dead server up only when the next server reports that every unit uses the next
//! server's tables. After any failure before that, the memory stays held. If necessary, the keeper then does nothing
//! but hold it.
//!
//! The keeper kills a server that misses a deadline, and then handles it like any dead server. Meanwhile each unit
//! goes on with the tables that it was given last. They are held, so devices can reach the same memory as before.
//!
//! This file contains the decisions, over a [`System`], which are tested on every host. The real system is in
//! `system.rs`.

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

/// The state that a dead server left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    /// Ranges of its memory.
    ranges: Vec<PhysRange>,
    /// Functions that were driven when it died.
    driven: Vec<PciAddress>,
    /// Tags that units may hold. `None` when the server did not note them.
    tags: Option<TagRecord>,
}

/// The operations of a keeper on its system. All of them are bounded in time, except [`System::wait`].
trait System {
    /// A server's process, and the pipe through which it sends descriptors.
    type Server;
    /// A descriptor that a server sent.
    type Descriptor;
    /// The holder: a process that maps the memory of a server. Dropping this value gives the memory up.
    type Hold;

    /// Starts the process that will hold the server's memory, and then the server. Both new processes drop their
    /// copies of `old`.
    fn start(
        &mut self,
        options: &Options,
        old: &mut Vec<Self::Hold>,
    ) -> io::Result<(Self::Server, Self::Hold)>;

    /// Receives the next descriptor from a server.
    fn receive(&mut self, server: &mut Self::Server) -> io::Result<Self::Descriptor>;

    /// Makes the holder map all of `memory` and then notify the server, which waits for that. Does not wait for the
    /// holder.
    fn bring(&mut self, hold: &mut Self::Hold, memory: &Self::Descriptor) -> io::Result<()>;

    /// Waits until the server has acknowledged that all its memory is mapped.
    fn be_told(&mut self, hold: &mut Self::Hold, server: &mut Self::Server) -> io::Result<()>;

    /// Whether that acknowledgement is known to the keeper.
    fn was_told(&self, hold: &Self::Hold) -> bool;

    /// Returns the state that the server left. `UnexpectedEof` when the holder has ended.
    fn contents(&mut self, hold: &mut Self::Hold) -> io::Result<Contents>;

    /// Asks the server whether no unit uses the memory of earlier servers any more.
    fn may_go(&mut self, hold: &mut Self::Hold, server: &mut Self::Server) -> io::Result<bool>;

    /// Ends the holder, which gives the memory up.
    fn let_go(&mut self, hold: Self::Hold) -> io::Result<()>;

    /// Ends a holder that never got any memory to map.
    fn end(&mut self, hold: Self::Hold) -> io::Result<()>;

    /// Makes a server's scheme known. `root` is the root that the server sent. For the first server this notifies the
    /// process that waits for the scheme: init, or the parent of a oneshot unit.
    fn make_known(&mut self, root: Self::Descriptor) -> io::Result<()>;

    /// Lets the boot go on without a server: ends the wait of init, or of the parent process.
    fn wait_no_more(&mut self);

    /// Removes the name of a dead server's scheme. The name does not exist when the server did not get that far.
    fn take_name_back(&mut self);

    /// Answers the open requests of a dead server, and ends its scheme. `socket` is the last descriptor of the
    /// scheme's socket.
    fn answer(&mut self, socket: Self::Descriptor) -> io::Result<()>;

    /// The status of a server that has ended.
    fn ended(&mut self, server: &mut Self::Server) -> io::Result<Option<ExitStatus>>;

    /// Waits until a server ends.
    fn wait(&mut self, server: &mut Self::Server) -> io::Result<ExitStatus>;

    /// Kills a server, unless it has already ended. After an error it may still live.
    fn kill(&mut self, server: &mut Self::Server) -> io::Result<ExitStatus>;

    /// Time since a server was started.
    fn age(&self, server: &Self::Server) -> Duration;

    /// Sleeps for `time`.
    fn pause(&mut self, time: Duration);
}

/// Pause between two looks whether a server has ended, while memory of dead ones is held.
const LOOK: Duration = Duration::from_millis(100);

/// Looks before it is asked again for the first time whether that memory may go: a second. They double each time.
const FIRST_LOOKS: u32 = 10;

/// The most looks between two questions: a minute.
const MOST_LOOKS: u32 = 600;

/// A server, and the descriptors that it has sent so far.
struct Running<S: System> {
    server: S::Server,
    /// A second descriptor of the server's socket. The scheme lives until it is closed.
    socket: Option<S::Descriptor>,
    /// A descriptor of the server's memory. When it closes, the server knows that its keeper is gone.
    memory: Option<S::Descriptor>,
    hold: S::Hold,
}

struct Keeper<S: System> {
    system: S,
    options: Options,
    /// Holders of the memory of dead servers, which a unit may still use.
    old: Vec<S::Hold>,
}

impl<S: System> Keeper<S> {
    fn new(system: S, options: &Options) -> Self {
        Self { system, options: options.clone(), old: Vec::new() }
    }

    /// Runs servers until one ends for good, or none can be started. Returns whether the last one ended with exit
    /// code 0. The caller must not exit while there is memory in [`Self::old`].
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
                Ok(()) => self.attend(&mut running),
                Err(error) => {
                    log::error!("keeper: the server did not get to serving: {error}");
                    self.system.kill(&mut running.server)
                }
            };
            let status = match ended {
                Ok(status) => status,
                // The server may still live and drive the units. No other server may touch them.
                Err(error) => {
                    self.old.push(running.hold);
                    return Err(error);
                }
            };
            let lived = self.system.age(&running.server);
            self.bury(running, status)?;
            let end = match End::from(status) {
                End::Final(code) => return Ok(code == 0),
                // If the first server cannot run, later ones cannot either.
                _ if met.is_err() && self.old.is_empty() => return Ok(false),
                // Such a server leaves memory behind, so the number of attempts is limited.
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

    /// Has a server's memory held, and makes its scheme known once it serves.
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

    /// Waits until a server ends. While memory of dead servers is held, asks it again and again whether that may go.
    fn attend(&mut self, running: &mut Running<S>) -> io::Result<ExitStatus> {
        let mut looks = FIRST_LOOKS;
        while !self.old.is_empty() {
            for _ in 0..looks {
                if let Some(status) = self.system.ended(&mut running.server)? {
                    return Ok(status);
                }
                self.system.pause(LOOK);
            }
            if let Err(error) = self.give_up(running) {
                log::error!("keeper: the server does not answer: {error}");
                return self.system.kill(&mut running.server);
            }
            looks = (looks * 2).min(MOST_LOOKS);
        }
        self.system.wait(&mut running.server)
    }

    /// Gives the memory of dead servers up, if the running server reports that no unit uses it.
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

    /// Cleans up after a server that has ended.
    fn bury(&mut self, running: Running<S>, status: ExitStatus) -> io::Result<()> {
        let lived = self.system.age(&running.server);
        let Running { socket, memory, mut hold, .. } = running;
        // This comes first, because the manager of name spaces may be waiting for the dead server. Every program that
        // opens a path then waits for that manager.
        if let Some(Err(error)) = socket.map(|socket| self.system.answer(socket)) {
            log::error!("keeper: clients of the dead server may wait for ever: {error}");
        }
        if memory.is_none() {
            return self.system.end(hold);
        }
        let contents = match self.system.contents(&mut hold) {
            // The holder ended before it could notify the server. So no unit uses the memory.
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
        // Only this keeper registers the name, so the name is that of the dead server.
        self.system.take_name_back();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
