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
//! A server that says nothing when it should is killed, and is dead then as any other. Meanwhile each unit goes on
//! with the tables that it was given last, which are held: what a device reaches is what it reached before.

mod hold;
mod patience;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use libredox::call::{call_ro, getns, register_scheme_to_ns, write};
use syscall::error::{ENODEV, Error};
use syscall::flag::CallFlags;
use syscall::schemev2::{Cqe, CqeOpcode};

use super::events::number;
use super::fork::Process;
use super::kept;
use super::options::Options;
use super::ready::{Announce, NAME};
use crate::addr::PAGE_SIZE;
use crate::platform::pace::{End, MOST_FAILURES, Pace};
use hold::{Contents, Hold};
use patience::Patience;

/// Requests of one scheme that can wait at a time are numbered from 0 on; nobody waits with a higher number.
const MOST_WAITING: u32 = 1024;

/// How long a server may take from one step of its start to the next: it waits for hardware itself, with deadlines.
const STEP: Duration = Duration::from_secs(60);

/// How long anybody may take to answer who has nothing to wait for.
const ANSWER: Duration = Duration::from_secs(10);

/// How long clients of a dead server are answered.
const LEARNING: Duration = Duration::from_millis(50);

/// A server, and what is known of it so far.
struct Running {
    process: Process,
    /// A byte comes with each descriptor.
    pipe: File,
    /// A second descriptor of its socket: its scheme lives until this is closed.
    socket: Option<OwnedFd>,
    /// The server learns of the end of its keeper by the end of this.
    memory: Option<OwnedFd>,
    hold: Hold,
    since: Instant,
}

/// What a server is: it ends as `Process::new` says.
pub(super) type Serve<'a> = &'a dyn Fn(&Options, Announce) -> bool;

/// Runs servers with these options until one ends for good; says whether that was a good end.
pub(super) fn keep(options: &Options, serve: Serve<'_>, announce: Announce) -> bool {
    let mut keeper = match Keeper::new(options, serve, announce) {
        Ok(keeper) => keeper,
        Err(error) => {
            log::error!("keeper: {error}");
            return false;
        }
    };
    keeper.run().unwrap_or_else(|error| {
        log::error!("keeper: {error}");
        if !keeper.old.is_empty() {
            keeper.stay();
        }
        false
    })
}

/// As [`keep`], over servers of the caller's, such as fail on purpose. Each is told how many ranges of memory earlier
/// ones have left, and has the pipe to its keeper. The keeper is started as init starts it.
#[must_use]
pub fn keep_others(serve: impl Fn(usize, OwnedFd) -> bool) -> bool {
    let serve = |options: &Options, announce| match announce {
        Announce::Keeper(keeper) => serve(options.left.len(), keeper.into_pipe()),
        _ => false,
    };
    Announce::from_init().is_some_and(|announce| keep(&Options::default(), &serve, announce))
}

struct Keeper<'a> {
    options: Options,
    serve: Serve<'a>,
    patience: Patience,
    /// Until a server serves: it is waited for by whoever boots.
    announce: Option<Announce>,
    /// Memory of servers that are dead. A unit may use it.
    old: Vec<Hold>,
}

impl<'a> Keeper<'a> {
    fn new(options: &Options, serve: Serve<'a>, announce: Announce) -> io::Result<Self> {
        let (options, patience) = (options.clone(), Patience::new()?);
        Ok(Self { options, serve, patience, announce: Some(announce), old: Vec::new() })
    }

    fn run(&mut self) -> io::Result<bool> {
        let mut pace = Pace::default();
        loop {
            let mut server = self.start()?;
            let met = self.meet(&mut server);
            let ended = match &met {
                Ok(()) => server.process.wait(),
                Err(error) => {
                    log::error!("keeper: the server did not get to serving: {error}");
                    server.process.kill()
                }
            };
            let status = match ended {
                Ok(status) => status,
                // It may be alive, and units its own: another one must not touch them.
                Err(error) => {
                    self.old.push(server.hold);
                    return Err(error);
                }
            };
            let lived = server.since.elapsed();
            self.bury(server, status)?;
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
                self.stay();
            };
            std::thread::sleep(pause);
        }
    }

    /// Nothing more can be done, but what units use must not become anybody else's. Who waits for a server, so that
    /// the machine boots, goes on without one.
    fn stay(&mut self) -> ! {
        self.announce = None;
        log::error!(
            "keeper: units go on with the tables of the last server, which are held for ever"
        );
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }

    /// Starts a server, and before it the process that is to hold its memory.
    fn start(&mut self) -> io::Result<Running> {
        let since = Instant::now();
        let mut hold = Hold::new(&self.patience, || {
            self.old.clear();
            self.announce = None;
        })?;
        let (reader, writer) = io::pipe()?;
        let mut pipe = File::from(OwnedFd::from(reader));
        self.patience.watch(&pipe)?;
        let mut ends = Some((pipe, hold));
        let mut writer = Some(OwnedFd::from(writer));
        let process = Process::new(|| {
            self.old.clear();
            self.announce = None;
            drop(ends.take());
            let keeper = writer.take().map(|pipe| Announce::Keeper(kept::Keeper::over(pipe)));
            keeper.is_some_and(|keeper| (self.serve)(&self.options, keeper))
        })?;
        drop(writer);
        (pipe, hold) = ends.ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Running { process, pipe, socket: None, memory: None, hold, since })
    }

    /// Holds a server's memory, and makes its name known when it serves.
    fn meet(&mut self, server: &mut Running) -> io::Result<()> {
        server.socket = Some(self.receive(server)?);
        let memory = self.receive(server)?;
        let memory = server.memory.insert(memory);
        server.hold.bring(memory)?;
        server.hold.be_told(&mut self.patience, &mut server.process)?;
        let root = self.receive(server)?.into_raw_fd();
        let root = usize::try_from(root).map_err(|_| io::ErrorKind::InvalidData)?;
        match self.announce.take() {
            Some(announce) => {
                announce.pass_on(root).map_err(|error| io::Error::from_raw_os_error(error.errno))?
            }
            None => register_scheme_to_ns(getns()?, NAME, root)?,
        }
        if self.old.is_empty() { Ok(()) } else { self.give_up(server) }
    }

    /// The next descriptor of a server's.
    fn receive(&mut self, server: &mut Running) -> io::Result<OwnedFd> {
        match self.patience.read(&server.pipe, Some(&mut server.process), STEP, &mut [0])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => next(&server.pipe)?.ok_or(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Gives the memory of dead servers up, if the one that runs says that no unit uses it.
    fn give_up(&mut self, server: &mut Running) -> io::Result<()> {
        if server.hold.may_go(&mut self.patience, &mut server.process)? {
            for hold in self.old.drain(..) {
                hold.end()?;
            }
            self.options.left.clear();
            log::info!("keeper: memory of the server before given back");
        } else {
            log::warn!("keeper: a unit is not enabled: memory of the server before stays held");
        }
        Ok(())
    }

    /// Clears up behind a server that has ended.
    fn bury(&mut self, server: Running, status: ExitStatus) -> io::Result<()> {
        let Running { socket, memory, mut hold, since, .. } = server;
        // First of all: whoever looks names up may be waiting for its answer, and every program for him.
        if let Some(socket) = socket {
            answer(socket)?;
        }
        if memory.is_none() {
            return hold.kill();
        }
        let contents = match hold.contents(&mut self.patience) {
            // It ended before the server could be told: no unit knows of the memory.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !hold.told() => {
                return hold.end();
            }
            contents => contents,
        };
        self.old.push(hold);
        let Contents { ranges, driven, tags } = contents?;
        self.options.left.extend(ranges);
        self.options.driven = driven;
        self.options.tags = tags;
        if !matches!(End::from(status), End::Final(_)) {
            let lived = since.elapsed();
            log::error!(
                "keeper: the server ended ({status}) after {lived:.1?}: its memory is held"
            );
        }
        // Nobody else enters it; it is not there when the server did not get that far.
        let _ = fs::remove_file(format!("/scheme/{NAME}"));
        Ok(())
    }
}

/// Answers whoever waits for a dead server, in a process of its own: an answer to a client that was killed while it
/// waited makes the kernel unmap what the client lent, at the server's addresses, in whoever answers.
fn answer(socket: OwnedFd) -> io::Result<()> {
    let mut process = Process::new(|| number(&socket).is_ok_and(answer_all))?;
    // The scheme ends when the other one closes its own.
    drop(socket);
    process.wait().map(drop)
}

/// Who asks after an answer with his number was written, and before the socket is closed, would wait for ever: answers
/// are written until everybody had time to learn.
fn answer_all(socket: usize) -> bool {
    let end = Instant::now() + LEARNING;
    while Instant::now() < end {
        answer_once(socket);
        std::thread::sleep(LEARNING / 10);
    }
    answer_once(socket);
    true
}

fn answer_once(socket: usize) {
    let gone = Error::mux(Err(Error::new(ENODEV)));
    for tag in 0..MOST_WAITING {
        let answer = Cqe {
            flags: CqeOpcode::RespondRegular as u8,
            extra_raw: [0; 3],
            tag,
            result: u64::try_from(gone).unwrap_or(u64::MAX),
        };
        // Most numbers are nobody's.
        let _ = write(socket, &answer);
    }
}

/// The next descriptor out of a pipe; `None` when the other end is closed.
#[allow(unsafe_code)]
fn next(pipe: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    let mut word = [0; 8];
    match call_ro(number(pipe)?, &mut word, CallFlags::FD | CallFlags::FD_CLOEXEC, &[])? {
        1 => {
            let number = i32::try_from(usize::from_ne_bytes(word));
            let number = number.map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just made it, for this process alone.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        _ => Ok(None),
    }
}

fn page() -> usize {
    usize::try_from(PAGE_SIZE).unwrap_or(4096)
}
