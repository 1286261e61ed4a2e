//! One client: its socket, its handles, and what it has not taken yet.

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

/// The most bytes that wait for a client to read: a reply and an event for each of many handles.
pub const QUEUE_LIMIT: usize = 2 * MAX_FRAME;

/// Nothing in the loop waits, and a client that is gone is no signal.
const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A frame that the socket had no room for, with descriptors.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client closed it or died.
    HangUp,
    /// What the client sent is not a frame.
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
    /// Where the next read starts.
    pub(super) position: u64,
    /// An event frame was sent, and the client has not looked since.
    pub(super) told: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    pub(super) caller: Caller,
    /// By the numbers the client knows them by: the lowest free one is used next.
    handles: Vec<Option<Opened>>,
    /// Claims that wait, with the tags of their requests.
    pub(super) claims: Vec<(Ticket, u64)>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// The loop waits for room for the queue, not for requests.
    pub(super) stuck: bool,
}

impl Connection {
    /// `socket` does not block.
    pub(super) fn new(socket: OwnedFd, caller: Caller) -> Self {
        let (handles, claims) = (Vec::new(), Vec::new());
        let queue = VecDeque::new();
        Self { socket, caller, handles, claims, queue, queued: 0, stuck: false }
    }

    /// Whether everything the client was told has left.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }

    /// The handle that the client calls `number`.
    pub(super) fn handle(&mut self, number: u32) -> Option<&mut Opened> {
        self.handles.get_mut(usize::try_from(number).ok()?)?.as_mut()
    }

    /// Gives a handle a number.
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

    /// Ends a number.
    pub(super) fn remove(&mut self, number: u32) -> Option<Handle> {
        let place = self.handles.get_mut(usize::try_from(number).ok()?)?;
        place.take().map(|opened| opened.handle)
    }

    /// The number of a handle of this client.
    pub(super) fn number(&self, handle: Handle) -> Option<u32> {
        let same = |place: &Option<Opened>| place.is_some_and(|opened| opened.handle == handle);
        self.handles.iter().position(same).and_then(|index| u32::try_from(index).ok())
    }

    /// Every open handle.
    pub(super) fn handles(&self) -> impl Iterator<Item = Handle> + '_ {
        self.handles.iter().flatten().map(|opened| opened.handle)
    }

    /// Puts the next frame at the beginning of `room` and returns its length; `None` when there is none.
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

    /// Sends a frame, behind those that wait. It waits, too, when it cannot be sent now.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Ended> {
        if self.queue.is_empty() && pass(&self.socket, bytes, &descriptors)? {
            return Ok(());
        }
        self.queued += bytes.len();
        self.queue.push_back(Outgoing { bytes: bytes.to_vec(), descriptors });
        self.flush()?;
        if self.queued > QUEUE_LIMIT { Err(Ended::Overflow) } else { Ok(()) }
    }

    /// Sends what can be sent now.
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

/// Hands a frame to the socket; false when it has no room now.
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

/// Sends a frame and descriptors.
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
