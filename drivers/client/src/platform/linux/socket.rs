//! The scheme over iommud's Unix socket.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iommu_protocol::frame::{
    EVENT_TAG, Kind, MAX_DESCRIPTORS, MAX_FRAME, OPEN_WAIT_SHIFT, OPEN_WRITE, READABLE, ROOT,
    Reply, Request,
};
use iommu_protocol::status::{Errno, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use crate::error::{Breach, Error};
use crate::platform::Memory;
use crate::transport::{Handle, Transport};

/// How often a waiting thread looks whether another one has received its event.
const SLICE: Duration = Duration::from_millis(50);

/// What opening is refused for, where numbers are shared.
const OPENING: &[Refusal] = &[
    Refusal::NotOwner,
    Refusal::NotFound,
    Refusal::SplitGroup,
    Refusal::BadHandle,
    Refusal::Permission,
];

/// A connection to iommud. Requests of several threads take turns.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next_tag: u64,
    /// Handles of event frames that nobody has waited for yet.
    readable: BTreeSet<u32>,
    room: Vec<u8>,
}

/// What came back.
struct Answer {
    tag: u64,
    /// Not negative in what [`Socket::request`] returns.
    result: i64,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when none does; what connect(2) reports.
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
        let state = State { next_tag: 1, readable: BTreeSet::new(), room: vec![0; MAX_FRAME] };
        Self { socket, state: Mutex::new(state) }
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
        let mut state = self.state();
        let tag = state.next_tag;
        state.next_tag = if tag + 1 == EVENT_TAG { 1 } else { tag + 1 };
        let header = Request { kind: kind as u16, handle, tag, argument }.encode();
        self.send(&header, payload)?;
        let answer = loop {
            if let Some(answer) = self.receive(&mut state, RecvFlags::empty())? {
                break answer;
            }
        };
        if answer.tag != tag {
            return Err(Breach::Mismatch.into());
        }
        match i32::try_from(answer.result.saturating_neg()) {
            _ if answer.result >= 0 => Ok(answer),
            Ok(number) => Err(Error::from_errno(Errno(number), likely)),
            Err(_) => Err(Breach::Value.into()),
        }
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

    /// The next frame that is not an event; `None` after an event, an interruption, or when there is none.
    fn receive(&self, state: &mut State, flags: RecvFlags) -> Result<Option<Answer>, Error> {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut state.room)];
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
        let frame = state.room.get(..length).ok_or(Breach::Length)?;
        let (reply, payload) = Reply::decode(frame)?;
        if reply.tag == EVENT_TAG {
            state.readable.insert(reply.handle);
            return Ok(None);
        }
        let Reply { tag, result, .. } = reply;
        Ok(Some(Answer { tag, result, payload: payload.to_vec(), descriptors }))
    }

    /// Waits for a frame.
    fn wait(&self, longest: Duration) -> Result<(), Error> {
        let timeout = Timespec::try_from(longest).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }
}

fn lost(error: rustix::io::Errno) -> Error {
    match error {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Error::Disconnected,
        error => std::io::Error::from(error).into(),
    }
}

fn number<T: TryFrom<i64>>(result: i64) -> Result<T, Error> {
    T::try_from(result).map_err(|_| Breach::Value.into())
}

fn copy(payload: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    out.get_mut(..payload.len()).ok_or(Breach::Length)?.copy_from_slice(payload);
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
        // Whatever goes wrong, the handle is closed: with the connection, at the latest.
        let _ = self.request(Kind::Close, handle, 0, &[], &[]);
        self.state().readable.remove(&handle);
    }

    fn read(&self, Handle(handle): Handle, out: &mut [u8]) -> Result<usize, Error> {
        let wanted = u64::try_from(out.len()).unwrap_or(u64::MAX);
        copy(&self.request(Kind::Read, handle, wanted, &[], &[])?.payload, out)
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
            let text = String::from_utf8(answer.payload).map_err(|_| Breach::Value)?;
            if text.is_empty() {
                return Ok(names);
            }
            names.extend(text.lines().map(str::to_owned));
        }
    }

    fn wait_readable(&self, Handle(handle): Handle, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        self.state().readable.remove(&handle);
        let now = self.request(Kind::Fevent, handle, READABLE, &[], &[])?;
        if number::<u64>(now.result)? & READABLE != 0 {
            return Ok(true);
        }
        loop {
            // What another thread has received counts, even if the server is gone since.
            let mut state = self.state();
            if state.readable.remove(&handle) {
                return Ok(true);
            }
            if self.receive(&mut state, RecvFlags::DONTWAIT)?.is_some() {
                return Err(Breach::Mismatch.into());
            }
            if state.readable.contains(&handle) {
                continue;
            }
            drop(state);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.wait(left.min(SLICE))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_protocol::frame::HEADER_SIZE;
    use rustix::net::{SendAncillaryMessage, recv, socketpair};
    use std::os::fd::AsFd;
    use std::thread::JoinHandle;

    /// What a scripted server does with one request.
    type Script = Box<dyn Fn(&Request, &[u8]) -> Vec<(Reply, Vec<u8>)> + Send>;

    /// A server that follows the script for each request in turn, then hangs up.
    fn scripted(script: Vec<Script>) -> (Socket, JoinHandle<()>) {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let server = std::thread::spawn(move || {
            for step in script {
                let mut room = vec![0; MAX_FRAME];
                let (length, _) = recv(&theirs, &mut room, RecvFlags::empty()).unwrap();
                let (request, payload) = Request::decode(&room[..length]).unwrap();
                for (reply, payload) in step(&request, payload) {
                    let bytes = [&reply.encode()[..], &payload].concat();
                    rustix::net::send(&theirs, &bytes, SendFlags::NOSIGNAL).unwrap();
                }
            }
        });
        (Socket::over(ours), server)
    }

    fn result(result: i64, payload: &'static [u8]) -> Script {
        Box::new(move |request, _| {
            vec![(Reply { tag: request.tag, result, handle: 0 }, payload.to_vec())]
        })
    }

    fn event(handle: u32) -> (Reply, Vec<u8>) {
        (Reply { tag: EVENT_TAG, result: 1, handle }, Vec::new())
    }

    #[test]
    fn requests_are_what_the_protocol_says() {
        let (socket, server) = scripted(vec![Box::new(|request, payload| {
            assert_eq!((request.kind, request.handle, request.argument), (1, 3, 1));
            assert_eq!(payload, b"devices/0000--00--04.0");
            vec![(Reply { tag: request.tag, result: 7, handle: 0 }, Vec::new())]
        })]);
        let opened = socket.open(Some(Handle(3)), "devices/0000--00--04.0", true).unwrap();
        assert_eq!(opened, Handle(7));
        server.join().unwrap();
        assert!(matches!(socket.open(None, "status", false), Err(Error::Disconnected)));
    }

    #[test]
    fn error_numbers_are_the_refusals_of_the_operation() {
        let (socket, server) = scripted(vec![
            result(-16, b""),
            result(-22, b""),
            result(-11, b""),
            result(-77, b""),
            result(i64::MIN, b""),
        ]);
        let open = || socket.open(None, "devices/x", true).unwrap_err();
        assert_eq!(open().refusal(), Some(Refusal::NotOwner));
        assert_eq!(open().refusal(), Some(Refusal::SplitGroup));
        let unread = socket.read(Handle(0), &mut [0; 128]).unwrap_err();
        assert_eq!(unread.refusal(), Some(Refusal::NotReady));
        assert!(matches!(open(), Error::Errno(Errno(77))));
        assert!(matches!(open(), Error::Breach(Breach::Value)));
        server.join().unwrap();
    }

    #[test]
    fn an_event_on_the_way_to_a_reply_is_kept_for_who_waits() {
        let (socket, server) = scripted(vec![
            Box::new(|request, _| {
                vec![event(4), (Reply { tag: request.tag, result: 0, handle: 0 }, vec![]), event(5)]
            }),
            result(0, b""),
        ]);
        // Asked for before the first wait: the answer to it says that nothing is readable yet.
        assert!(socket.wait_readable(Handle(4), Duration::from_secs(5)).unwrap());
        // The event of the other handle came later and is not lost, though it is stale when asked about.
        socket.close(Handle(9));
        assert!(socket.state().readable.contains(&5));
        server.join().unwrap();
    }

    #[test]
    fn a_thread_that_waits_does_not_keep_others_from_asking() {
        let (asked, wait) = std::sync::mpsc::channel();
        let (socket, server) = scripted(vec![
            Box::new(move |request, _| {
                asked.send(()).unwrap();
                vec![(Reply { tag: request.tag, result: 0, handle: 0 }, Vec::new())]
            }),
            Box::new(|request, _| {
                vec![event(4), (Reply { tag: request.tag, result: 2, handle: 0 }, b"ok".to_vec())]
            }),
        ]);
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| socket.wait_readable(Handle(4), Duration::from_secs(5)).unwrap());
            wait.recv().unwrap();
            // This request is the one that receives the event.
            let mut out = [0; 2];
            assert_eq!(socket.read(Handle(8), &mut out).unwrap(), 2);
            assert!(waiting.join().unwrap());
        });
        server.join().unwrap();
    }

    #[test]
    fn answers_that_break_the_protocol_are_errors() {
        let (socket, server) = scripted(vec![
            Box::new(|request, _| {
                vec![(Reply { tag: request.tag + 1, result: 0, handle: 0 }, Vec::new())]
            }),
            result(3, b"abc"),
            result(1 << 32, b""),
            result(4096, b""),
            result(2, b"\xff\n"),
        ]);
        let breach = |error: Error| match error {
            Error::Breach(breach) => breach,
            other => panic!("{other:?}"),
        };
        assert_eq!(breach(socket.open(None, "x", false).unwrap_err()), Breach::Mismatch);
        assert_eq!(breach(socket.read(Handle(0), &mut [0; 2]).unwrap_err()), Breach::Length);
        assert_eq!(breach(socket.open(None, "x", false).unwrap_err()), Breach::Value);
        assert_eq!(breach(socket.map(Handle(0)).unwrap_err()), Breach::Memory);
        assert_eq!(breach(socket.names(Handle(0)).unwrap_err()), Breach::Value);
        server.join().unwrap();
    }

    #[test]
    fn memory_comes_as_descriptors_in_order() {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let server = std::thread::spawn(move || {
            let mut room = [0; HEADER_SIZE];
            recv(&theirs, &mut room, RecvFlags::empty()).unwrap();
            let (request, _) = Request::decode(&room).unwrap();
            let files: Vec<OwnedFd> = (0..MAX_DESCRIPTORS as u64)
                .map(|index| {
                    let flags = rustix::fs::MemfdFlags::CLOEXEC;
                    let file = rustix::fs::memfd_create("part", flags).unwrap();
                    rustix::io::pwrite(&file, &index.to_le_bytes(), 0).unwrap();
                    rustix::fs::ftruncate(&file, 4096).unwrap();
                    file
                })
                .collect();
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let space = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
            let mut space = vec![MaybeUninit::uninit(); space];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            assert!(rights.push(SendAncillaryMessage::ScmRights(&files)));
            let result = i64::try_from(MAX_DESCRIPTORS * 4096).unwrap();
            let reply = Reply { tag: request.tag, result, handle: 0 }.encode();
            let flags = SendFlags::NOSIGNAL;
            sendmsg(&theirs, &[IoSlice::new(&reply)], &mut rights, flags).unwrap();
        });
        let memory = Socket::over(ours).map(Handle(0)).unwrap();
        server.join().unwrap();
        for index in 0..MAX_DESCRIPTORS as u64 {
            assert_eq!(memory.read_u64(index * 4096), Some(index));
        }
    }
}
