//! The keeper: a process that starts the server, and starts it again when it dies. It holds what outlives servers
//! (`held`), so that their clients notice no more than a pause. Memory is in files, which survive any process (see
//! [`super::memory`]).
//!
//! ```text
//! server exits with 0    after SIGTERM or SIGINT: the keeper ends
//!                   2    the command line is wrong: the keeper ends
//!                   1    it could not run: the next one starts after a pause; 10 in a row: the keeper ends
//! server is killed       or panics: the next one starts at once, or after a pause if this one lived for under 100 ms
//! ```
//!
//! A server ends when its keeper dies, and the clients' connections with both. The server of the next keeper takes over.

mod held;
mod replace;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use super::memory::allow_many;
use super::signals::{self, retry};
use crate::platform::restart_backoff::{End, MOST_FAILURES, Pace};

use held::Held;
use replace::Program;
pub use replace::replace;
pub(super) use replace::replace_by_this;

/// How long a server may take to end after SIGTERM. Then the keeper kills it and starts no other. It leaves the same
/// state behind as any killed server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the kernel send SIGTERM to this process when its keeper, the process `keeper`, dies.
///
/// # Errors
/// `NotFound` when the keeper is already dead, otherwise the error of prctl(2).
pub(super) fn follow(keeper: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() == Pid::from_raw(keeper) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Runs servers with these command-line words until one ends for good. Clients connect to `socket`.
pub(super) fn keep(words: &[OsString], socket: PathBuf) -> ExitCode {
    match keep_on(socket, |program, link| start(program, words, link)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error!("keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs servers until one ends for good. `start` starts one: a program, with its end of the link as standard input.
/// Clients connect to `socket`. Returns the exit status. SIGTERM and SIGINT are blocked.
///
/// # Errors
/// A server cannot be started, or the socket cannot be bound.
pub fn keep_on(
    socket: PathBuf,
    mut start: impl FnMut(&Path, OwnedFd) -> io::Result<Child>,
) -> io::Result<u8> {
    let stop = signals::block()?;
    allow_many();
    let mut held = Held::new(socket)?;
    let (mut pace, mut program) = (Pace::default(), Program::default());
    loop {
        let started = Instant::now();
        let on_trial = program.is_on_trial();
        let status = match start(&program.path(), held.begin()?) {
            Ok(mut child) => watch(&mut child, &stop, &mut held, &mut program)?,
            Err(error) if !on_trial => return Err(error),
            Err(error) => {
                log::error!("keeper: the new program: {error}");
                ExitStatus::default()
            }
        };
        if on_trial && program.is_on_trial() && !stopped(&stop, Duration::ZERO)? {
            log::error!(
                "keeper: the new program did not serve ({status}): going on with the old one"
            );
            program.go_back();
            held.replaced(false);
            continue;
        }
        let (end, lived) = (End::from(status), started.elapsed());
        if let End::Final(code) = end {
            return Ok(code);
        }
        let Some(pause) = pace.after(end, lived) else {
            log::error!("keeper: {MOST_FAILURES} servers in a row could not run: giving up");
            return Ok(1);
        };
        log::error!("keeper: the server ended ({status}) after {lived:.1?}: starting the next one");
        if stopped(&stop, pause)? {
            return Ok(0);
        }
    }
}

/// Starts a server. Its standard input is its end of the link.
fn start(program: &Path, words: &[OsString], link: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .args(words)
        .args(["--kept-by".into(), std::process::id().to_string()])
        .stdin(Stdio::from(link))
        .spawn()
}

/// Serves a server until it ends. Forwards a signal to end to the server, and kills it when it takes too long. Leaves
/// the signal pending, so that [`stopped`] sees it.
fn watch(
    child: &mut Child,
    stop: &OwnedFd,
    held: &mut Held,
    program: &mut Program,
) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
    let mut deadline: Option<Instant> = None;
    loop {
        let ended = wait(&process, deadline.is_none().then_some(stop), held, deadline)?;
        held.turn()?;
        if held.serves && program.is_on_trial() {
            log::info!("keeper: the server was replaced");
            program.serves();
            held.replaced(true);
        }
        if let Some(wanted) = held.wanted.take() {
            if program.replace(wanted) {
                child.kill()?;
                return child.wait();
            }
            held.replaced(false);
        }
        match ended {
            Woken::Ended => return child.wait(),
            Woken::Stop => {
                pidfd_send_signal(&process, Signal::TERM)?;
                deadline = Some(Instant::now() + PATIENCE);
            }
            Woken::Else if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                log::error!("keeper: the server does not end: killed");
                child.kill()?;
                return child.wait();
            }
            Woken::Else => {}
        }
    }
}

/// What ended a wait.
enum Woken {
    /// The server ended.
    Ended,
    /// A signal to end arrived.
    Stop,
    /// A message, a client, or the deadline.
    Else,
}

fn wait(
    process: &OwnedFd,
    stop: Option<&OwnedFd>,
    held: &Held,
    deadline: Option<Instant>,
) -> io::Result<Woken> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    let mut all = vec![PollFd::new(process, PollFlags::IN)];
    // After the signal to end there is none to wait for: the process takes its place.
    all.push(PollFd::new(stop.unwrap_or(process), PollFlags::IN));
    all.extend(held.link.as_ref().map(|link| PollFd::new(link, held.awaited())));
    all.extend(held.listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
    // One request for a replacement at a time.
    match (&held.asking, &held.control) {
        (Some(asking), _) => all.push(PollFd::new(asking, PollFlags::IN)),
        (None, Some(control)) => all.push(PollFd::new(control, PollFlags::IN)),
        (None, None) => {}
    }
    retry(|| poll(&mut all, left.as_ref()))?;
    let ready = |index: usize| all.get(index).is_some_and(|each| !each.revents().is_empty());
    Ok(match (ready(0), ready(1)) {
        (true, _) => Woken::Ended,
        (false, true) => Woken::Stop,
        (false, false) => Woken::Else,
    })
}

/// Waits for a signal to end, at most for `time`. Returns whether one arrived.
fn stopped(stop: &OwnedFd, time: Duration) -> io::Result<bool> {
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut one = [PollFd::new(stop, PollFlags::IN)];
    Ok(retry(|| poll(&mut one, Some(&time)))? > 0)
}
