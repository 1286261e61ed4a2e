//! Making the scheme's name known, in the two ways that images use.
#![allow(unsafe_code)]

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use libredox::call::{call_wo, getns, mkns, register_scheme_to_ns, setns};
use redox_daemon::Daemon;
use redox_scheme::Socket;
use redox_scheme::scheme::SchemeSync;
use syscall::flag::CallFlags;

use super::keeper_link::Keeper;

/// The scheme's name.
pub(super) const NAME: &str = "iommu";

/// Who is told that the scheme answers.
pub(super) enum Announce {
    /// A unit of type `scheme`: init waits at this pipe for the scheme's root and registers the name.
    Init(File),
    /// A oneshot unit: this process registers the name and its parent ends.
    Parent(Daemon),
    /// A keeper: it does one of these.
    Keeper(Keeper),
}

impl Announce {
    /// The pipe that init passed, if it did.
    pub(super) fn from_init() -> Option<Self> {
        let number: RawFd = env::var("INIT_NOTIFY").ok()?.parse().ok().filter(|fd| *fd > 2)?;
        // SAFETY: init gives the number of a pipe that is this process's alone; it is taken once.
        Some(Self::Init(unsafe { File::from_raw_fd(number) }))
    }

    /// Gives up the name space and then makes the scheme known: nothing is opened by path any more when the
    /// first request can arrive.
    ///
    /// # Errors
    /// The kernel or init refuse; nobody can reach the scheme.
    pub(super) fn announce(
        self,
        socket: &Socket,
        scheme: &mut impl SchemeSync,
    ) -> Result<(), syscall::Error> {
        let root = scheme.scheme_root()?;
        let root = socket.create_this_scheme_fd(0, root, 0, 0)?;
        if let Self::Parent(_) = self {
            // The name is registered in the name space that is given up.
            register_scheme_to_ns(getns()?, NAME, root)?;
            give_up_names()?;
            return self.ready();
        }
        give_up_names()?;
        self.pass_on(root)
    }

    /// Makes the scheme whose root this is known.
    ///
    /// # Errors
    /// The kernel or init refuse.
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

    /// Lets the process end that a oneshot unit waits for.
    fn ready(self) -> Result<(), syscall::Error> {
        match self {
            Self::Parent(daemon) => Ok(daemon.ready()?),
            Self::Init(_) | Self::Keeper(_) => Ok(()),
        }
    }
}

/// Enters a name space without names. The null name space of the C library still has the memory scheme.
///
/// # Errors
/// There is none to be had, or something can still be opened.
fn give_up_names() -> Result<(), syscall::Error> {
    setns(mkns(&[])?)?;
    if File::open("/scheme/memory/zeroed").is_ok() || File::open("/scheme/sys/uname").is_ok() {
        return Err(syscall::Error::new(syscall::error::EPERM));
    }
    log::info!("name space given up");
    Ok(())
}

/// Runs `child` in a child process, which ends with 0 if it says true; this one ends when the child is ready,
/// or with an error.
///
/// # Errors
/// There is no pipe or no process to be had, or the child ended early.
pub(super) fn in_child(child: impl FnOnce(Announce) -> bool) -> io::Error {
    let run = |daemon| -> ! { std::process::exit(i32::from(!child(Announce::Parent(daemon)))) };
    match Daemon::new(run) {
        Ok(never) => never,
        Err(error) => error.into(),
    }
}
