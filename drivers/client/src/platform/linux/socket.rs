//! The scheme over iommud's Unix socket.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iommu_protocol::frame::{
    EVENT_TAG, Kind, MAX_DESCRIPTORS, MAX_FRAME, NUMBERED, OPEN_WAIT_SHIFT, OPEN_WRITE, READABLE,
    ROOT, Reply, Request, STALE,
};
use iommu_protocol::status::{Errno, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

#[cfg(test)]
mod tests;

use crate::error::{Error, ProtocolError};
use crate::platform::Memory;
use crate::transport::{FOREVER, Handle, OPENING, Transport, WRITING};

/// Interval at which a waiting thread checks whether another one has received its event.
const SLICE: Duration = Duration::from_millis(50);

/// A connection to iommud. Several threads may use it: each request has its own answer. A thread that waits for an
/// answer also receives those of other threads.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    state: Mutex<State>,
    /// Signals that a frame was received, or that no thread receives any more.
    received: Condvar,
}

#[derive(Debug)]
struct State {
    next_tag: u64,
    /// Tags of requests that have no answer yet.
    asked: Vec<u64>,
    /// Answers that were received, and that their threads have not taken yet.
    answers: Vec<Answer>,
    /// Handles of event frames that no thread has waited for yet.
    readable: BTreeSet<u32>,
    /// Buffer for the next frame; `None` while a thread receives.
    room: Option<Vec<u8>>,
    /// Threads that wait for `received`.
    sleepers: usize,
}

/// The reply to a request.
#[derive(Debug)]
struct Answer {
    tag: u64,
    /// Not negative in results of [`Socket::request`].
    result: i64,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if no server listens there; errors of connect(2).
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(std::io::Error::from)?;
        let address = SocketAddrUnix::new(path).map_err(std::io::Error::from)?;
        match connect(&socket, &address) {
            Ok(()) => Ok(Self::over(socket)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => {
                Err(Error::Disconnected)
            }
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Uses a sequenced-packet socket whose other end the server has.
    #[must_use]
    pub fn over(socket: OwnedFd) -> Self {
        let state = State {
            next_tag: NUMBERED + 1,
            asked: Vec::new(),
            answers: Vec::new(),
            readable: BTreeSet::new(),
            room: Some(vec![0; MAX_FRAME]),
            sleepers: 0,
        };
        Self { socket, state: Mutex::new(state), received: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(
        &self,
        kind: Kind,
        handle: u32,
        argument: u64,
        payload: &[u8],
        likely: &[Refusal],
    ) -> Result<Answer, Error> {
        let tag = self.state().ask();
        let header = Request { kind: kind as u16, handle, tag, argument }.encode();
        let answer = self.send(&header, payload).and_then(|()| self.answer(tag));
        if answer.is_err() {
            self.state().asked.retain(|asked| *asked != tag);
        }
        let answer = answer?;
        match i32::try_from(answer.result.saturating_neg()) {
            _ if answer.result >= 0 => Ok(answer),
            Ok(number) if Errno(number) == STALE => Err(Error::Disconnected),
            Ok(number) => Err(Error::from_errno(Errno(number), likely)),
            Err(_) => Err(ProtocolError::Value.into()),
        }
    }

    /// Waits for the answer to a request, whichever thread receives it.
    fn answer(&self, tag: u64) -> Result<Answer, Error> {
        let mut state = self.state();
        loop {
            if let Some(at) = state.answers.iter().position(|answer| answer.tag == tag) {
                return Ok(state.answers.swap_remove(at));
            }
            if !state.asked.contains(&tag) {
                return Err(ProtocolError::Mismatch.into());
            }
            state = match state.room.take() {
                Some(room) => self.receive(state, room, RecvFlags::empty())?,
                None => self.sleep(state, None),
            };
        }
    }

    /// Waits until another thread has received a frame, or until the time is over.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        longest: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.sleepers += 1;
        let mut state = match longest {
            None => self.received.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(longest) => {
                let woken = self.received.wait_timeout(state, longest);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.sleepers -= 1;
        state
    }

    /// Receives one frame, and stores it for the thread that waits for it. Other threads can use the state meanwhile.
    /// An interruption is no error, nor is a missing frame if `flags` do not wait for one.
    fn receive<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        mut room: Vec<u8>,
        flags: RecvFlags,
    ) -> Result<MutexGuard<'a, State>, Error> {
        drop(state);
        let frame = self.frame(&mut room, flags);
        let mut state = self.state();
        state.room = Some(room);
        if state.sleepers > 0 {
            self.received.notify_all();
        }
        match frame? {
            None => {}
            Some(Frame::Readable(handle)) => {
                state.readable.insert(handle);
            }
            Some(Frame::Answer(answer)) => state.file(answer)?,
        }
        Ok(state)
    }

    fn send(&self, header: &[u8], payload: &[u8]) -> Result<(), Error> {
        let parts = [IoSlice::new(header), IoSlice::new(payload)];
        loop {
            let mut nothing = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &parts, &mut nothing, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Receives the next frame; `None` after an interruption, or if there is none.
    fn frame(&self, room: &mut [u8], flags: RecvFlags) -> Result<Option<Frame>, Error> {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(room)];
        let length = match recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
            Ok(message) if message.bytes == 0 => return Err(Error::Disconnected),
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(lost(error)),
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let frame = room.get(..length).ok_or(ProtocolError::Length)?;
        let (Reply { tag, result, handle }, payload) = Reply::decode(frame)?;
        Ok(Some(match tag {
            EVENT_TAG => Frame::Readable(handle),
            _ => Frame::Answer(Answer { tag, result, payload: payload.to_vec(), descriptors }),
        }))
    }

    /// Waits at most `longest` until a frame can be received.
    fn wait(&self, longest: Duration) -> Result<(), Error> {
        let timeout = Timespec::try_from(longest).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }
}

/// A received frame.
enum Frame {
    /// This handle can be read.
    Readable(u32),
    Answer(Answer),
}

impl State {
    /// The tag of a new request.
    fn ask(&mut self) -> u64 {
        let tag = self.next_tag;
        // At a billion requests a second these numbers last for a century.
        self.next_tag = tag + 1;
        self.asked.push(tag);
        tag
    }

    /// Keeps an answer for the thread that waits for it. Ignores the second answer to a request, which the next server
    /// sends when it cannot know of the first. An answer to no request fails all open requests: it may have been
    /// meant for any of them.
    fn file(&mut self, answer: Answer) -> Result<(), Error> {
        let Some(at) = self.asked.iter().position(|tag| *tag == answer.tag) else {
            if (NUMBERED + 1..self.next_tag).contains(&answer.tag) {
                return Ok(());
            }
            self.asked.clear();
            return Err(ProtocolError::Mismatch.into());
        };
        self.asked.swap_remove(at);
        self.answers.push(answer);
        Ok(())
    }
}

fn lost(error: rustix::io::Errno) -> Error {
    match error {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Error::Disconnected,
        error => std::io::Error::from(error).into(),
    }
}

fn number<T: TryFrom<i64>>(result: i64) -> Result<T, Error> {
    T::try_from(result).map_err(|_| ProtocolError::Value.into())
}

fn copy(payload: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    out.get_mut(..payload.len()).ok_or(ProtocolError::Length)?.copy_from_slice(payload);
    Ok(payload.len())
}

impl Transport for Socket {
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error> {
        let at = at.map_or(ROOT, |Handle(number)| number);
        let flags = if write { OPEN_WRITE } else { 0 };
        let answer = self.request(Kind::Open, at, flags, path.as_bytes(), OPENING)?;
        Ok(Handle(number(answer.result)?))
    }

    fn open_within(&self, at: Option<Handle>, path: &str, wait: Duration) -> Result<Handle, Error> {
        let at = at.map_or(ROOT, |Handle(number)| number);
        // Whole milliseconds, rounded up.
        let wait = wait.as_nanos().div_ceil(1_000_000).min(u32::MAX.into());
        let wait = u64::try_from(wait).unwrap_or(0);
        let argument = OPEN_WRITE | wait << OPEN_WAIT_SHIFT;
        let answer = self.request(Kind::Open, at, argument, path.as_bytes(), OPENING)?;
        Ok(Handle(number(answer.result)?))
    }

    fn close(&self, Handle(handle): Handle) {
        // Errors do not matter. The handle is closed in any case: with the connection, at the latest.
        let _ = self.request(Kind::Close, handle, 0, &[], &[]);
        self.state().readable.remove(&handle);
    }

    fn read(&self, Handle(handle): Handle, out: &mut [u8]) -> Result<usize, Error> {
        let wanted = u64::try_from(out.len()).unwrap_or(u64::MAX);
        copy(&self.request(Kind::Read, handle, wanted, &[], &[])?.payload, out)
    }

    fn write(&self, Handle(handle): Handle, bytes: &[u8]) -> Result<(), Error> {
        self.request(Kind::Write, handle, 0, bytes, WRITING).map(drop)
    }

    fn call(
        &self,
        Handle(handle): Handle,
        payload: &mut [u8],
        request: usize,
    ) -> Result<usize, Error> {
        let room = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        let request = payload.get(..request).ok_or(Refusal::BadLength)?;
        copy(&self.request(Kind::Call, handle, room, request, &[])?.payload, payload)
    }

    fn names(&self, Handle(handle): Handle) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let first = u64::try_from(names.len()).unwrap_or(u64::MAX);
            let answer = self.request(Kind::GetDents, handle, first, &[], &[])?;
            let text = String::from_utf8(answer.payload).map_err(|_| ProtocolError::Value)?;
            if text.is_empty() {
                return Ok(names);
            }
            names.extend(text.lines().map(str::to_owned));
        }
    }

    fn wait_readable(&self, Handle(handle): Handle, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout.min(FOREVER);
        self.state().readable.remove(&handle);
        let now = self.request(Kind::Fevent, handle, READABLE, &[], &[])?;
        if number::<u64>(now.result)? & READABLE != 0 {
            return Ok(true);
        }
        loop {
            // An event that another thread has received counts, even if the server is gone since.
            let mut state = self.state();
            if state.readable.remove(&handle) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(room) = state.room.take() {
                state = self.receive(state, room, RecvFlags::DONTWAIT)?;
                if state.readable.remove(&handle) {
                    return Ok(true);
                }
                drop(state);
                self.wait(left.min(SLICE))?;
            } else {
                drop(self.sleep(state, Some(left)));
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn map(&self, Handle(handle): Handle) -> Result<Memory, Error> {
        let answer = self.request(Kind::Mmap, handle, 0, &[], &[])?;
        Memory::map(&answer.descriptors, number(answer.result)?)
    }

    fn import(&self, Handle(session): Handle, Handle(buffer): Handle) -> Result<u32, Error> {
        number(self.request(Kind::Import, session, buffer.into(), &[], &[])?.result)
    }
}
