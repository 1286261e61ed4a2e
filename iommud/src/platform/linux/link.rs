//! The link between the keeper and its server: a Unix socket of sequenced packets, at which each message is whole or not
//! there, also when the other process has died since.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, socketpair,
};

use super::memory::PageName;
use crate::policy::ClientId;

/// The longest time that a server waits for room in the link. A keeper takes messages at once.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Bytes of a message: three 32-bit numbers.
const LENGTH: usize = 12;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To a server: the file of the reply cache. The first message to every server.
    Cache,
    /// To a server: a client and its connection.
    Client(ClientId),
    /// To the keeper, as all that follow but the last: the server answers requests from now on.
    Serving,
    /// A client whose connection ended.
    Gone(ClientId),
    /// The pin of a page of buffers.
    Pin(PageName),
    /// A page of buffers that is released.
    Unpin(PageName),
    /// A server all of whose pages are released.
    UnpinServer(u32),
    /// The program that is to replace the server.
    Replace,
    /// To a process that wants the server replaced: whether the new one serves.
    Replaced(bool),
}

impl Message {
    fn encode(self) -> [u8; LENGTH] {
        let numbers = match self {
            Self::Cache => [1, 0, 0],
            Self::Client(ClientId(client)) => [2, client, 0],
            Self::Serving => [3, 0, 0],
            Self::Gone(ClientId(client)) => [4, client, 0],
            Self::Pin(PageName { server, serial }) => [5, server, serial],
            Self::Unpin(PageName { server, serial }) => [6, server, serial],
            Self::UnpinServer(server) => [7, server, 0],
            Self::Replace => [8, 0, 0],
            Self::Replaced(done) => [9, done.into(), 0],
        };
        let mut bytes = [0; LENGTH];
        for (to, from) in bytes.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(4).map(|part| part.try_into().map(u32::from_le_bytes));
        let mut next = || numbers.next()?.ok();
        let [kind, first, second] = [next()?, next()?, next()?];
        Some(match kind {
            1 => Self::Cache,
            2 => Self::Client(ClientId(first)),
            3 => Self::Serving,
            4 => Self::Gone(ClientId(first)),
            5 => Self::Pin(PageName { server: first, serial: second }),
            6 => Self::Unpin(PageName { server: first, serial: second }),
            7 => Self::UnpinServer(first),
            8 => Self::Replace,
            9 => Self::Replaced(first == 1),
            _ => return None,
        })
    }
}

/// One end of the link.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Makes both ends of a link.
    ///
    /// # Errors
    /// The error of socketpair(2).
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (keeper, server) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(keeper), server))
    }

    /// The end of a server, which its keeper has made its standard input.
    ///
    /// # Errors
    /// The error of fcntl(2).
    pub fn of_server() -> io::Result<Self> {
        Ok(Self(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// The end of a process that connects to the keeper at `path`.
    ///
    /// # Errors
    /// The error of socket(2) or connect(2).
    pub fn connect(path: &Path) -> io::Result<Self> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Uses a socket of [`Link::pair`], or one that the keeper has accepted.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The same end once more.
    ///
    /// # Errors
    /// The error of fcntl(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends a message, and a descriptor with it.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; the error of sendmsg(2).
    pub fn send(&self, message: Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = message.encode();
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Sends a message like [`Link::send`], and waits up to a second for room.
    ///
    /// # Errors
    /// Those of [`Link::send`].
    pub fn send_soon(
        &self,
        message: Message,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        match self.send(message, descriptor) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&PATIENCE))?;
                self.send(message, descriptor)
            }
            sent => sent,
        }
    }

    /// Receives the next message, and the descriptor that came with it. `None` when there is none yet.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other process has ended; `InvalidData` when it sent something else; the error of
    /// recvmsg(2).
    pub fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0; LENGTH + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
        let length = match received {
            Ok(message) if message.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(message) => message.bytes,
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => return Err(error.into()),
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let whole = bytes.get(..length).filter(|bytes| bytes.len() == LENGTH);
        let message = whole.and_then(Message::decode).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((message, descriptor)))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const PAGE: PageName = PageName { server: 7, serial: u32::MAX };

    /// What a server sent before it died arrives, and then the end.
    #[test]
    fn messages_outlive_their_sender() {
        let (keeper, server) = Link::pair().unwrap();
        let server = Link(server);
        let file = File::open("/dev/null").unwrap();
        let messages = [
            (Message::Gone(ClientId(u32::MAX)), None),
            (Message::Pin(PAGE), Some(file.as_fd())),
            (Message::Unpin(PAGE), None),
            (Message::UnpinServer(3), None),
            (Message::Serving, None),
        ];
        assert!(keeper.receive().unwrap().is_none());
        messages.iter().for_each(|(message, file)| server.send(*message, *file).unwrap());
        drop(server);
        for (message, file) in messages {
            let (received, descriptor) = keeper.receive().unwrap().unwrap();
            assert_eq!((received, descriptor.is_some()), (message, file.is_some()));
        }
        assert_eq!(keeper.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_link_is_an_error_and_no_wait_for_ever() {
        let (keeper, _server) = Link::pair().unwrap();
        let refused = std::iter::repeat_with(|| keeper.send(Message::Cache, None))
            .take(100_000)
            .find_map(Result::err);
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
        let start = std::time::Instant::now();
        assert!(keeper.send_soon(Message::Cache, None).is_err());
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (keeper, server) = Link::pair().unwrap();
        for bytes in [&[99; LENGTH][..], &[1; LENGTH - 1], &[1; LENGTH + 1]] {
            rustix::net::send(&server, bytes, SendFlags::empty()).unwrap();
            assert_eq!(keeper.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
