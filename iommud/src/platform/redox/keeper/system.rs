//! The operations of a keeper on Redox.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use libredox::call::{close, getns, register_scheme_to_ns, write};
use syscall::error::{ENODEV, Error};
use syscall::schemev2::{Cqe, CqeOpcode};

use super::answers::{Callers, answer_all};
use super::bounded_read::Patience;
use super::descriptors::next;
use super::memory_holder::Hold;
use super::waits::Queue;
use super::{Contents, Keeper, System};
use crate::platform::redox::events::number;
use crate::platform::redox::fork::Process;
use crate::platform::redox::keeper_link;
use crate::platform::redox::options::Options;
use crate::platform::redox::registration::{Announce, NAME};

/// How long a server may take from one step of its start to the next. The server itself waits for hardware, with
/// deadlines.
const STEP: Duration = Duration::from_secs(60);

/// The main function of a server. Its result becomes the exit code, see [`Process::new`].
pub(in crate::platform::redox) type Serve<'a> = &'a dyn Fn(&Options, Announce) -> bool;

/// Runs servers with these options until one ends for good. Returns whether the last one ended with exit code 0. Does
/// not return as long as a unit may use memory that is held.
pub(in crate::platform::redox) fn keep(
    options: &Options,
    serve: Serve<'_>,
    announce: Announce,
) -> bool {
    let Some(mut keeper) = keeper(options, serve, announce) else { return false };
    let good = keeper.run();
    if keeper.old.is_empty() {
        return good;
    }
    keeper.system.wait_no_more();
    log::error!("keeper: units go on with the tables of the last server, which are held for ever");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Runs a keeper like that of `iommud`, over servers of the caller, for tests with servers that fail on purpose. No
/// unit may use their memory, because this function returns while memory is held. `serve` gets the number of ranges
/// that earlier servers left, and the pipe to the keeper. Init must start the process, as it starts `iommud`.
#[must_use]
pub fn keep_others(serve: impl Fn(usize, OwnedFd) -> bool) -> bool {
    let serve = |options: &Options, announce| match announce {
        Announce::Keeper(keeper) => serve(options.left.len(), keeper.into_pipe()),
        _ => false,
    };
    Announce::from_init()
        .and_then(|announce| keeper(&Options::default(), &serve, announce))
        .is_some_and(|mut keeper| keeper.run())
}

fn keeper<'a>(
    options: &Options,
    serve: Serve<'a>,
    announce: Announce,
) -> Option<Keeper<Redox<'a>>> {
    let queue = Queue::new().inspect_err(|error| log::error!("keeper: {error}")).ok()?;
    let system = Redox { serve, patience: Patience::new(queue), announce: Some(announce) };
    Some(Keeper::new(system, options))
}

struct Redox<'a> {
    serve: Serve<'a>,
    patience: Patience<Queue>,
    /// `Some` until the first server serves. Init, or the parent of a oneshot unit, waits for this.
    announce: Option<Announce>,
}

/// A server's process.
struct Server {
    process: Process,
    /// The server sends one byte with each descriptor.
    pipe: File,
    since: Instant,
}

impl System for Redox<'_> {
    type Server = Server;
    type Descriptor = OwnedFd;
    type Hold = Hold;

    fn start(&mut self, options: &Options, old: &mut Vec<Hold>) -> io::Result<(Server, Hold)> {
        let since = Instant::now();
        let mut hold = Hold::new(self.patience.waits(), || {
            old.clear();
            self.announce = None;
        })?;
        let (reader, writer) = io::pipe()?;
        let mut pipe = File::from(OwnedFd::from(reader));
        self.patience.waits().watch(&pipe)?;
        let mut ends = Some((pipe, hold));
        let mut writer = Some(OwnedFd::from(writer));
        let process = Process::new(|| {
            old.clear();
            self.announce = None;
            drop(ends.take());
            let keeper =
                writer.take().map(|pipe| Announce::Keeper(keeper_link::Keeper::over(pipe)));
            keeper.is_some_and(|keeper| (self.serve)(options, keeper))
        })?;
        drop(writer);
        (pipe, hold) = ends.ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((Server { process, pipe, since }, hold))
    }

    fn receive(&mut self, server: &mut Server) -> io::Result<OwnedFd> {
        let Server { process, pipe, .. } = server;
        let ended = || process.ended().map(|status| status.is_some());
        match self.patience.read(STEP, ended, || (&*pipe).read(&mut [0]))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => next(pipe)?.ok_or(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn bring(&mut self, hold: &mut Hold, memory: &OwnedFd) -> io::Result<()> {
        hold.bring(memory)
    }

    fn be_told(&mut self, hold: &mut Hold, server: &mut Server) -> io::Result<()> {
        hold.be_told(&mut self.patience, &mut server.process)
    }

    fn was_told(&self, hold: &Hold) -> bool {
        hold.told()
    }

    fn contents(&mut self, hold: &mut Hold) -> io::Result<Contents> {
        hold.contents(&mut self.patience)
    }

    fn may_go(&mut self, hold: &mut Hold, server: &mut Server) -> io::Result<bool> {
        hold.may_go(&mut self.patience, &mut server.process)
    }

    fn let_go(&mut self, hold: Hold) -> io::Result<()> {
        hold.end()
    }

    fn end(&mut self, hold: Hold) -> io::Result<()> {
        hold.kill()
    }

    fn make_known(&mut self, root: OwnedFd) -> io::Result<()> {
        let root = root.into_raw_fd();
        let root = usize::try_from(root).map_err(|_| io::ErrorKind::InvalidData)?;
        match self.announce.take() {
            Some(announce) => {
                announce.pass_on(root).map_err(|error| io::Error::from_raw_os_error(error.errno))
            }
            None => Ok(register_scheme_to_ns(getns()?, NAME, root)?),
        }
    }

    fn wait_no_more(&mut self) {
        self.announce = None;
    }

    fn take_name_back(&mut self) {
        // The C library would ask the dead scheme itself. So this asks the manager of names.
        let _ = getns().map(|names| syscall::unlinkat(names, format!("/scheme/{NAME}"), 0));
    }

    /// Answers in a child process. If a client was killed while it waited, an answer makes the kernel unmap the
    /// memory that the client lent. The kernel unmaps the server's addresses, but in the process that answers.
    fn answer(&mut self, socket: OwnedFd) -> io::Result<()> {
        let socket = number(&socket.into_raw_fd())?;
        let started = Process::new(|| {
            answer_all(Dead { socket });
            true
        });
        // The scheme ends when the child closes its descriptor, too.
        let closed = close(socket);
        started?.wait()?;
        Ok(closed?)
    }

    fn ended(&mut self, server: &mut Server) -> io::Result<Option<ExitStatus>> {
        server.process.ended()
    }

    fn wait(&mut self, server: &mut Server) -> io::Result<ExitStatus> {
        server.process.wait()
    }

    fn kill(&mut self, server: &mut Server) -> io::Result<ExitStatus> {
        server.process.kill()
    }

    fn age(&self, server: &Server) -> Duration {
        server.since.elapsed()
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// The socket of a dead server.
struct Dead {
    socket: usize,
}

impl Callers for Dead {
    fn answer(&mut self, tag: u32) -> bool {
        let gone = Error::mux(Err(Error::new(ENODEV)));
        let answer = Cqe {
            flags: CqeOpcode::RespondRegular as u8,
            extra_raw: [0; 3],
            tag,
            result: u64::try_from(gone).unwrap_or(u64::MAX),
        };
        // The kernel rejects an answer to a number without a waiting request.
        write(self.socket, &answer).is_ok()
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn close(self) {
        let _ = close(self.socket);
    }
}
