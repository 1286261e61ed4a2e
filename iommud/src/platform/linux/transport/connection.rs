//! The connection of one client: its socket, its handles, and frames that the socket has no room for.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iommu_protocol::frame::MAX_FRAME;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, recv, send, sendmsg,
    shutdown,
};

use crate::platform::linux::reply_cache::MOST_HANDLES;
use crate::server::{Caller, Handle, Ticket};

/// The most bytes queued for a client: room for a reply, and for an event of each of many handles.
pub const QUEUE_LIMIT: usize = 2 * MAX_FRAME;

/// Sending never blocks, because the loop must not wait. Sending to a closed connection raises no SIGPIPE.
const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A queued frame, which the socket had no room for, and its descriptors.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client closed the connection or died.
    HangUp,
    /// The client sent bytes that are not a frame.
    Garbage,
    /// The client does not read.
    Overflow,
    /// The socket failed.
    Socket(Errno),
}

/// An open handle of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) handle: Handle,
    /// Offset of the next read, in bytes.
    pub(super) position: u64,
    /// An event frame was sent, and the client has neither read nor watched the handle since.
    pub(super) told: bool,
}

/// What a client's number names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Free,
    Open(Opened),
    /// A handle that ended with an earlier server. Its number stays taken until the client closes it.
    Stale,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    pub(super) caller: Caller,
    /// Indexed by the client's numbers. A new handle gets the lowest free number.
    handles: Vec<Number>,
    /// Waiting claims, with the tags of their requests.
    pub(super) claims: Vec<(Ticket, u64)>,
    /// Tags of claims whose replies the socket has not taken yet.
    pub(super) answered_claims: Vec<u64>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// The frame of the last request is in the socket until it took the reply.
    pub(super) untaken: bool,
    /// The loop waits until the socket has room for the queue. It does not wait for requests.
    pub(super) stuck: bool,
}

impl Connection {
    /// A connection without handles. `socket` must not block.
    pub(super) fn new(socket: OwnedFd, caller: Caller) -> Self {
        Self {
            socket,
            caller,
            handles: Vec::new(),
            claims: Vec::new(),
            answered_claims: Vec::new(),
            queue: VecDeque::new(),
            queued: 0,
            untaken: false,
            stuck: false,
        }
    }

    /// Whether the queue is empty: the socket took every frame.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }

    /// The handle with the client's number `number`.
    pub(super) fn handle(&mut self, number: u32) -> Option<&mut Opened> {
        match self.handles.get_mut(usize::try_from(number).ok()?)? {
            Number::Open(opened) => Some(opened),
            Number::Free | Number::Stale => None,
        }
    }

    /// Whether the handle with this number ended with an earlier server.
    pub(super) fn is_stale(&self, number: u32) -> bool {
        let place = usize::try_from(number).ok().and_then(|index| self.handles.get(index));
        place == Some(&Number::Stale)
    }

    /// Assigns a number to a handle. `None` when no number is left.
    pub(super) fn add(&mut self, handle: Handle) -> Option<u32> {
        let free = self.handles.iter().position(|place| *place == Number::Free);
        let index = free.unwrap_or(self.handles.len());
        let number = u32::try_from(index).ok().filter(|number| *number < MOST_HANDLES)?;
        self.put(index, Number::Open(Opened { handle, position: 0, told: false }));
        Some(number)
    }

    /// Takes a number for a handle that ended with an earlier server.
    pub(super) fn add_stale(&mut self, number: u32) {
        if let Ok(index) = usize::try_from(number) {
            self.put(index, Number::Stale);
        }
    }

    fn put(&mut self, index: usize, number: Number) {
        if self.handles.len() <= index {
            self.handles.resize(index + 1, Number::Free);
        }
        if let Some(place) = self.handles.get_mut(index) {
            *place = number;
        }
    }

    /// Frees a number and returns its handle.
    pub(super) fn remove(&mut self, number: u32) -> Option<Handle> {
        let place = self.handles.get_mut(usize::try_from(number).ok()?)?;
        match std::mem::replace(place, Number::Free) {
            Number::Open(opened) => Some(opened.handle),
            Number::Free | Number::Stale => None,
        }
    }

    /// The number of a handle. `None` when it is not this client's.
    pub(super) fn number(&self, handle: Handle) -> Option<u32> {
        let is_it = |place: &Number| matches!(place, Number::Open(it) if it.handle == handle);
        self.handles.iter().position(is_it).and_then(|index| u32::try_from(index).ok())
    }

    /// All open handles.
    pub(super) fn handles(&self) -> impl Iterator<Item = Handle> + '_ {
        self.handles.iter().filter_map(|place| match place {
            Number::Open(opened) => Some(opened.handle),
            Number::Free | Number::Stale => None,
        })
    }

    /// Copies the next frame into the beginning of `room` and returns its length. `None` when there is none yet. The
    /// frame stays in the socket until [`Connection::take`].
    pub(super) fn peek(&self, room: &mut [u8]) -> Result<Option<usize>, Ended> {
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        match recv(&self.socket, room, flags) {
            Ok((_, 0)) => Err(Ended::HangUp),
            Ok((kept, sent)) if kept == sent => Ok(Some(kept)),
            Ok(_) => Err(Ended::Garbage),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Err(Ended::HangUp),
            Err(error) => Err(Ended::Socket(error)),
        }
    }

    /// Takes the frame from the socket that was copied.
    pub(super) fn take(&self) -> Result<(), Ended> {
        match recv(&self.socket, &mut [0; 1], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(error) => Err(Ended::Socket(error)),
        }
    }

    /// Ends the connection, even if another process has its socket open.
    pub(super) fn hang_up(&self) {
        // This fails only when the connection has ended already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends a frame after the queued ones. Queues it when the socket has no room now.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Ended> {
        if self.queue.is_empty() && pass(&self.socket, bytes, &descriptors)? {
            return Ok(());
        }
        self.queued += bytes.len();
        self.queue.push_back(Outgoing { bytes: bytes.to_vec(), descriptors });
        self.flush()?;
        if self.queued > QUEUE_LIMIT { Err(Ended::Overflow) } else { Ok(()) }
    }

    /// Sends queued frames while the socket has room.
    pub(super) fn flush(&mut self) -> Result<(), Ended> {
        while let Some(frame) = self.queue.front()
            && pass(&self.socket, &frame.bytes, &frame.descriptors)?
        {
            self.queued -= frame.bytes.len();
            self.queue.pop_front();
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a frame through the socket. False when the socket has no room now.
fn pass(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<bool, Ended> {
    let sent = if descriptors.is_empty() {
        send(socket, bytes, FLAGS)
    } else {
        send_along(socket, bytes, descriptors)
    };
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(Ended::HangUp),
        Err(error) => Err(Ended::Socket(error)),
    }
}

/// Sends a frame together with descriptors.
fn send_along(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> rustix::io::Result<usize> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, FLAGS)
}
