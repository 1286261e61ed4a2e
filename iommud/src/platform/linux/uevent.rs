//! Receives the kernel's notifications that PCI functions came or went. They are datagrams of a netlink socket (Linux
//! Documentation/core-api/kobject.rst; lib/kobject_uevent.c). Each holds "ACTION@DEVPATH" and then KEY=value words,
//! each ended by a zero byte.
//!
//! A datagram is only a hint to read configuration space again. So a lost or forged datagram does no harm.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The multicast group of events that the kernel itself sends.
const KERNEL: u32 = 1;

/// Bytes of the receive buffer. The kernel's buffer for one event has 2048 bytes, and a path comes before it.
const LONGEST: usize = 8192;

/// The most datagrams that one call reads. The others leave the socket readable.
const AT_ONCE: usize = 256;

/// Receives device events of the kernel.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Opens a socket that receives events from now on.
    ///
    /// # Errors
    /// The error of socket(2) or bind(2).
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::NETLINK;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Receives events from any socket, for tests.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Reads the pending events. Returns whether a PCI function may have come or gone.
    pub fn changed(&mut self) -> bool {
        let mut room = [0; LONGEST];
        let mut changed = false;
        for _ in 0..AT_ONCE {
            match recv(&self.0, &mut room[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::AGAIN) => break,
                Ok((length, _)) => {
                    changed |= tells_of_pci(room.get(..length).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                // The kernel dropped some events.
                Err(Errno::NOBUFS) => changed = true,
                Err(error) => {
                    log::warn!("events of the kernel: {error}");
                    break;
                }
            }
        }
        changed
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether an event reports that a PCI function was added or removed.
fn tells_of_pci(datagram: &[u8]) -> bool {
    let mut words = datagram.split(|byte| *byte == 0);
    let head = words.next().unwrap_or_default();
    let matters = head.starts_with(b"add@") || head.starts_with(b"remove@");
    matters && words.any(|word| word == b"SUBSYSTEM=pci")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendFlags, send, socketpair};

    /// The event of kernel 6.12 when a device behind a root port is unplugged.
    const REMOVED: &[u8] = b"remove@/devices/pci0000:00/0000:00:08.0/0000:01:00.0\0ACTION=remove\0\
        DEVPATH=/devices/pci0000:00/0000:00:08.0/0000:01:00.0\0SUBSYSTEM=pci\0PCI_CLASS=FF\0\
        PCI_ID=1234:11E8\0SEQNUM=1207\0";

    #[test]
    fn only_functions_that_come_and_go_matter() {
        assert!(tells_of_pci(REMOVED));
        let with = |from: &str, to: &str| {
            let text = String::from_utf8(REMOVED.to_vec()).unwrap();
            tells_of_pci(text.replace(from, to).as_bytes())
        };
        assert!(with("remove", "add"));
        assert!(!with("remove", "change") && !with("remove", "bind"));
        assert!(!with("SUBSYSTEM=pci", "SUBSYSTEM=pci_bus"));
        for bad in [&b""[..], b"\0", b"add@", b"add@/x\0SUBSYSTEM=pc"] {
            assert!(!tells_of_pci(bad), "{bad:?}");
        }
    }

    #[test]
    fn all_that_was_said_is_read() {
        let (kernel, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let mut uevents = Uevents::over(ours);
        assert!(!uevents.changed());
        let other = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=tty\0";
        for datagram in [&other[..], REMOVED, &other[..]] {
            send(&kernel, datagram, SendFlags::empty()).unwrap();
        }
        assert!(uevents.changed());
        assert!(!uevents.changed(), "once");
        send(&kernel, other, SendFlags::empty()).unwrap();
        assert!(!uevents.changed());
    }
}
