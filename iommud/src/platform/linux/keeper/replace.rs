//! Replacement of the server's program while clients are connected.
//!
//! ```text
//! iommud --replace: its own program -> SOCKET.keeper
//!   -> the keeper runs it with --goes-on-from VERSION: it does not know the records: refused, the server goes on
//!   -> the server is killed, and the new program started over the same connections
//!   -> it serves: done     it ends before: the old program is started again
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::platform::linux::link::{Link, Message};
use crate::platform::linux::reply_cache::VERSION;
use crate::platform::linux::signals::retry;

/// Longest time for a program to tell what it goes on from.
const TELLING: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Longest time until the new server serves.
const SERVING: Duration = Duration::from_secs(60);

/// The program of servers, and the one before while the new one has not served yet.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// `None`: the keeper's own.
    current: Option<OwnedFd>,
    /// What was current before.
    before: Option<Option<OwnedFd>>,
}

impl Program {
    pub(super) fn path(&self) -> PathBuf {
        path_of(self.current.as_ref())
    }

    /// Uses another program from the next server on, on trial. Returns false when it does not go on from this
    /// keeper's records.
    pub(super) fn replace(&mut self, program: OwnedFd) -> bool {
        match goes_on(&path_of(Some(&program))) {
            Ok(true) => {
                self.before = Some(self.current.replace(program));
                return true;
            }
            Ok(false) => log::error!("keeper: a program does not go on from records of {VERSION}"),
            Err(error) => log::error!("keeper: a program cannot be run: {error}"),
        }
        false
    }

    /// Whether the current program has not served yet, and there is one before it.
    pub(super) const fn is_on_trial(&self) -> bool {
        self.before.is_some()
    }

    /// The current program serves.
    pub(super) fn serves(&mut self) {
        self.before = None;
    }

    /// Goes back to the program before.
    pub(super) fn go_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.current = before;
        }
    }
}

fn path_of(program: Option<&OwnedFd>) -> PathBuf {
    // The process that is to run it has the descriptor until it does.
    program.map_or("/proc/self/exe".into(), |file| {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    })
}

fn goes_on(program: &Path) -> io::Result<bool> {
    let mut child = Command::new(program)
        .args(["--goes-on-from", &VERSION.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
    if retry(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&TELLING)))? == 0 {
        child.kill()?;
    }
    Ok(child.wait()?.success())
}

/// Where the keeper of this socket hears of programs.
pub(super) fn control_path(socket: &Path) -> PathBuf {
    socket.with_added_extension("keeper")
}

/// Asks the keeper of `socket` to replace its server by a program. Returns whether the new one serves; if not, the old
/// one does.
///
/// # Errors
/// There is no keeper, or it does not answer for a minute.
pub fn replace(socket: &Path, program: OwnedFd) -> io::Result<bool> {
    let link = Link::connect(&control_path(socket))?;
    link.send(Message::Replace, Some(program.as_fd()))?;
    let longest = Timespec::try_from(SERVING).map_err(io::Error::other)?;
    retry(|| poll(&mut [PollFd::new(&link, PollFlags::IN)], Some(&longest)))?;
    match link.receive()? {
        Some((Message::Replaced(done), _)) => Ok(done),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// `iommud --replace`.
pub(in crate::platform::linux) fn replace_by_this(socket: &Path) -> ExitCode {
    match File::open("/proc/self/exe").and_then(|program| replace(socket, program.into())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            log::error!("not replaced: the keeper's log says why");
            ExitCode::FAILURE
        }
        Err(error) => {
            log::error!("not replaced: {}: {error}", control_path(socket).display());
            ExitCode::FAILURE
        }
    }
}
