//! The connection of one client: its socket, its handles, and frames that the socket has no room for.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iommu_protocol::frame::MAX_FRAME;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};

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
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) handle: Handle,
    /// Offset of the next read, in bytes.
    pub(super) position: u64,
    /// An event frame was sent, and the client has neither read nor watched the handle since.
    pub(super) told: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    pub(super) caller: Caller,
    /// Indexed by the client's numbers. A new handle gets the lowest free number.
    handles: Vec<Option<Opened>>,
    /// Waiting claims, with the tags of their requests.
    pub(super) claims: Vec<(Ticket, u64)>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// The loop waits until the socket has room for the queue. It does not wait for requests.
    pub(super) stuck: bool,
}

impl Connection {
    /// A connection without handles. `socket` must not block.
    pub(super) fn new(socket: OwnedFd, caller: Caller) -> Self {
        let (handles, claims) = (Vec::new(), Vec::new());
        let queue = VecDeque::new();
        Self { socket, caller, handles, claims, queue, queued: 0, stuck: false }
    }

    /// Whether the queue is empty: the socket took every frame.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }

    /// The handle with the client's number `number`.
    pub(super) fn handle(&mut self, number: u32) -> Option<&mut Opened> {
        self.handles.get_mut(usize::try_from(number).ok()?)?.as_mut()
    }

    /// Assigns a number to a handle. `None` when no number is left.
    pub(super) fn add(&mut self, handle: Handle) -> Option<u32> {
        let opened = Some(Opened { handle, position: 0, told: false });
        let free = self.handles.iter().position(Option::is_none);
        let index = free.unwrap_or(self.handles.len());
        let number = u32::try_from(index).ok().filter(|number| *number != u32::MAX)?;
        match self.handles.get_mut(index) {
            Some(place) => *place = opened,
            None => self.handles.push(opened),
        }
        Some(number)
    }

    /// Frees a number and returns its handle.
    pub(super) fn remove(&mut self, number: u32) -> Option<Handle> {
        let place = self.handles.get_mut(usize::try_from(number).ok()?)?;
        place.take().map(|opened| opened.handle)
    }

    /// The number of a handle. `None` when it is not this client's.
    pub(super) fn number(&self, handle: Handle) -> Option<u32> {
        let same = |place: &Option<Opened>| place.is_some_and(|opened| opened.handle == handle);
        self.handles.iter().position(same).and_then(|index| u32::try_from(index).ok())
    }

    /// All open handles.
    pub(super) fn handles(&self) -> impl Iterator<Item = Handle> + '_ {
        self.handles.iter().flatten().map(|opened| opened.handle)
    }

    /// Receives the next frame into the beginning of `room` and returns its length. `None` when there is none yet.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Ended> {
        match recv(&self.socket, room, RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(Ended::HangUp),
            Ok((kept, sent)) if kept == sent => Ok(Some(kept)),
            Ok(_) => Err(Ended::Garbage),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Err(Ended::HangUp),
            Err(error) => Err(Ended::Socket(error)),
        }
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
