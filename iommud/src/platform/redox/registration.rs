//! Registers the scheme's name, in the two ways that images use.
#![allow(unsafe_code)]

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use libredox::call::{call_wo, close, getns, mkns, openat, register_scheme_to_ns, setns};
use libredox::flag::{O_CLOEXEC, O_DIRECTORY, O_RDONLY};
use redox_daemon::Daemon;
use redox_scheme::Socket;
use redox_scheme::scheme::SchemeSync;
use syscall::flag::CallFlags;

use super::keeper_link::Keeper;

/// The scheme's name.
pub(super) const NAME: &str = "iommu";

/// The process to notify when the scheme answers.
pub(super) enum Announce {
    /// Init, for a unit of type `scheme`. Init waits at this pipe for the scheme's root, and registers the name.
    Init(File),
    /// The parent process, for a oneshot unit. This process registers the name, and the parent then ends.
    Parent(Daemon),
    /// A keeper, which registers the name in one of these ways.
    Keeper(Keeper),
}

impl Announce {
    /// Takes the pipe that init passed. `None` when init passed none.
    pub(super) fn from_init() -> Option<Self> {
        let number: RawFd = env::var("INIT_NOTIFY").ok()?.parse().ok().filter(|fd| *fd > 2)?;
        // SAFETY: init passes the number of a pipe that only this process uses. The process takes it once.
        Some(Self::Init(unsafe { File::from_raw_fd(number) }))
    }

    /// Gives up the name space, and then makes the scheme known. So the process can open no path any more when the
    /// first request arrives.
    ///
    /// # Errors
    /// The kernel or init refuses. Then no process can reach the scheme.
    pub(super) fn announce(
        self,
        socket: &Socket,
        scheme: &mut impl SchemeSync,
    ) -> Result<(), syscall::Error> {
        let root = scheme.scheme_root()?;
        let root = socket.create_this_scheme_fd(0, root, 0, 0)?;
        if let Self::Parent(_) = self {
            // The name must be registered before the name space is given up.
            register_scheme_to_ns(getns()?, NAME, root)?;
            give_up_names()?;
            return self.ready();
        }
        give_up_names()?;
        self.pass_on(root)
    }

    /// Makes the scheme with this root known.
    ///
    /// # Errors
    /// The kernel or init refuses.
    pub(super) fn pass_on(self, root: usize) -> Result<(), syscall::Error> {
        match self {
            Self::Init(pipe) => {
                let pipe = usize::try_from(pipe.as_raw_fd())
                    .map_err(|_| syscall::Error::new(syscall::error::EBADF))?;
                call_wo(pipe, &root.to_ne_bytes(), CallFlags::FD, &[])?;
                Ok(())
            }
            Self::Parent(_) => {
                register_scheme_to_ns(getns()?, NAME, root)?;
                self.ready()
            }
            Self::Keeper(keeper) => keeper.give(root),
        }
    }

    /// Lets the parent process end. A oneshot unit waits for that.
    fn ready(self) -> Result<(), syscall::Error> {
        match self {
            Self::Parent(daemon) => Ok(daemon.ready()?),
            Self::Init(_) | Self::Keeper(_) => Ok(()),
        }
    }
}

/// Enters a name space without names, and checks that nothing can be opened. The descriptor of the old name space is
/// closed, because everything can still be opened through it. The null name space of the C library
/// does not suffice: it still has the memory scheme.
///
/// # Errors
/// The kernel gives no such name space. `EPERM` when a path can still be opened.
fn give_up_names() -> Result<(), syscall::Error> {
    let old = setns(mkns(&[])?)?;
    close(old)?;
    let through = openat(old, "/scheme/memory", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    let opens = |path| File::open(path).is_ok();
    if through.is_ok() || opens("/scheme/memory/zeroed") || opens("/scheme/sys/uname") {
        return Err(syscall::Error::new(syscall::error::EPERM));
    }
    log::info!("name space given up");
    Ok(())
}

/// Runs `child` in a child process, which exits with 0 if `child` returns true, else with 1. This process exits when
/// the child is ready. So it returns only errors.
///
/// # Errors
/// The system gives no pipe or no process, or the child ended early.
pub(super) fn in_child(child: impl FnOnce(Announce) -> bool) -> io::Error {
    let run = |daemon| -> ! { std::process::exit(i32::from(!child(Announce::Parent(daemon)))) };
    match Daemon::new(run) {
        Ok(never) => never,
        Err(error) => error.into(),
    }
}
