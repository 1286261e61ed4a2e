//! The socket that clients connect to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

/// The most connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A bound socket. Dropping it removes its name.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Binds `path` and listens. Only the owner of the process may connect. Replaces a socket that a dead server
    /// left. The caller ensures that no server with this path is alive.
    ///
    /// # Errors
    /// The error of socket(2), bind(2) or listen(2). `AlreadyExists` when `path` exists and is not a socket.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Clients cannot connect before listen(2).
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Accepts the next waiting connection. `WouldBlock` when none waits.
    pub(in crate::platform::linux) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If this fails, the next server replaces the name.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mode does not depend on the process's umask.
    #[test]
    fn only_the_owner_may_connect() {
        let path = std::env::temp_dir().join(format!("iommud-socket-{}", std::process::id()));
        let listener = Listener::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        drop(listener);
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!path.exists());
    }
}
