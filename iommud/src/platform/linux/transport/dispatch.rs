//! Answers one request frame with one reply frame, in the same buffer.

use std::os::fd::OwnedFd;

use iommu_protocol::frame::{
    EVENT_TAG, HEADER_SIZE, Kind, OPEN_WAIT_SHIFT, OPEN_WRITE, READABLE, ROOT, Reply, Request,
    STALE,
};
use iommu_protocol::{Errno, Refusal};

use super::connection::{Connection, Ended};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::platform::linux::reply_cache::Change;
use crate::server::{Handle, Opened, Server};

/// File type bits of a POSIX mode.
const MODE_TYPE: u32 = 0o170_000;

/// The payload of a frame: first of the request, then of the reply in its place.
struct Payload<'room> {
    /// The buffer, with room for the longest payload.
    room: &'room mut [u8],
    /// Bytes of the request's payload.
    asked: usize,
}

impl Payload<'_> {
    /// The request's payload.
    fn request(&self) -> &[u8] {
        self.room.get(..self.asked).unwrap_or_default()
    }

    /// A buffer for a reply of `bytes` bytes. It is at least as long as the request, which stays in it. The rest is
    /// cleared, because frames of other clients were there before.
    fn reply(&mut self, bytes: u64) -> Result<&mut [u8], Refusal> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > self.room.len() {
            return Err(Refusal::BadLength);
        }
        let room = self.room.get_mut(..bytes.max(self.asked)).unwrap_or_default();
        room.get_mut(self.asked..).unwrap_or_default().fill(0);
        Ok(room)
    }
}

/// The result of a request, the length of the reply's payload, and descriptors to send.
struct Answer {
    result: i64,
    length: usize,
    descriptors: Vec<OwnedFd>,
}

impl Answer {
    fn number(result: impl TryInto<i64>) -> Self {
        Self::bytes(result, 0)
    }

    fn bytes(result: impl TryInto<i64>, length: usize) -> Self {
        let result = result.try_into().unwrap_or(i64::MAX);
        Self { result, length, descriptors: Vec::new() }
    }
}

/// A reply frame to send: its length, the descriptors to send with it, and what the request did to a number.
pub(super) struct Outcome {
    pub(super) length: usize,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) change: Option<Change>,
}

impl Outcome {
    /// A reply without payload.
    pub(super) fn plain(change: Option<Change>) -> Self {
        Self { length: HEADER_SIZE, descriptors: Vec::new(), change }
    }
}

/// Carries out the request in the first `length` bytes of `room`, and puts the reply in its place. `room` is large
/// enough for the longest frame. `None` when the request is a claim that waits: [`claimed`] answers it later.
///
/// # Errors
/// `Garbage` when the frame is not a request, or has the tag of events.
pub(super) fn answer<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    room: &mut [u8],
    length: usize,
    now: impl FnOnce() -> Nanos,
) -> Result<Option<Outcome>, Ended> {
    let frame = room.get(..length).unwrap_or_default();
    let (request, _) = Request::decode(frame).map_err(|_| Ended::Garbage)?;
    if request.tag == EVENT_TAG {
        return Err(Ended::Garbage);
    }
    let (header, room) = room.split_first_chunk_mut::<HEADER_SIZE>().ok_or(Ended::Garbage)?;
    let mut payload = Payload { room, asked: length - HEADER_SIZE };
    let answer = if is_stale(connection, &request) {
        Ok(stale(connection, &request))
    } else if request.kind == Kind::Open as u16 {
        match open(server, connection, &request, payload.request(), now) {
            Ok(Opened::Now(handle)) => number(server, connection, handle),
            Ok(Opened::Later(ticket)) => {
                connection.claims.push((ticket, request.tag));
                return Ok(None);
            }
            Err(refusal) => Err(refusal),
        }
    } else {
        carry_out(server, connection, &request, &mut payload)
    };
    let answer = answer.unwrap_or_else(refused);
    *header = Reply { tag: request.tag, result: answer.result, handle: 0 }.encode();
    let length = HEADER_SIZE + answer.length;
    let change = change(request.kind, request.handle, answer.result);
    Ok(Some(Outcome { length, descriptors: answer.descriptors, change }))
}

/// What a request that was answered with `result` did to a number.
fn change(kind: u16, handle: u32, result: i64) -> Option<Change> {
    let number = u32::try_from(result).ok()?;
    match Kind::from_code(kind)? {
        Kind::Open => Some(Change::Opened(number)),
        Kind::Close => Some(Change::Closed(handle)),
        _ => None,
    }
}

/// Whether a request names a handle that ended with an earlier server.
fn is_stale(connection: &Connection, request: &Request) -> bool {
    let imported = || {
        let number = u32::try_from(request.argument);
        request.kind == Kind::Import as u16 && number.is_ok_and(|it| connection.is_stale(it))
    };
    connection.is_stale(request.handle) || imported()
}

/// Answers a request on such a handle.
fn stale(connection: &mut Connection, request: &Request) -> Answer {
    if request.kind == Kind::Close as u16 {
        connection.remove(request.handle);
        return Answer::number(0);
    }
    let Errno(number) = STALE;
    Answer::number(-i64::from(number))
}

/// The reply to a request that two servers died of.
pub(super) fn deadly(tag: u64) -> Reply {
    Reply { tag, result: refused(Refusal::UnitFailed).result, handle: 0 }
}

/// Makes the reply to a claim that waited, and finds what it did to a number.
pub(super) fn claimed<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    tag: u64,
    result: Result<Handle, Refusal>,
) -> (Reply, Option<Change>) {
    let answer = result.and_then(|handle| number(server, connection, handle));
    let result = answer.unwrap_or_else(refused).result;
    (Reply { tag, result, handle: 0 }, change(Kind::Open as u16, 0, result))
}

fn refused(refusal: Refusal) -> Answer {
    let Errno(number) = refusal.errno();
    Answer::number(-i64::from(number))
}

fn carry_out<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    request: &Request,
    payload: &mut Payload<'_>,
) -> Result<Answer, Refusal> {
    let kind = Kind::from_code(request.kind).ok_or(Refusal::BadOperation)?;
    if payload.asked > 0 && !matches!(kind, Kind::Open | Kind::Call | Kind::Write) {
        return Err(Refusal::BadLength);
    }
    if request.argument != 0 && matches!(kind, Kind::Close | Kind::Stat | Kind::Mmap | Kind::Write)
    {
        return Err(Refusal::BadReserved);
    }
    let opened = connection.handle(request.handle).ok_or(Refusal::BadHandle)?;
    let handle = opened.handle;
    if matches!(kind, Kind::Read | Kind::Fevent) {
        opened.told = false;
    }
    match kind {
        Kind::Open => Err(Refusal::BadOperation),
        Kind::Close => {
            connection.remove(request.handle);
            server.close(handle);
            Ok(Answer::number(0))
        }
        Kind::Read => {
            let room = payload.reply(request.argument)?;
            let length = server.read(handle, opened.position, room)?;
            opened.position = opened.position.saturating_add(length.try_into().unwrap_or(u64::MAX));
            Ok(Answer::bytes(length, length))
        }
        Kind::Call => {
            let asked = payload.asked;
            let length = server.call(handle, payload.reply(request.argument)?, asked)?;
            Ok(Answer::bytes(length, length))
        }
        Kind::Write => server.write(handle, payload.request()).map(Answer::number),
        Kind::GetDents => names(server, handle, request.argument, payload.room),
        Kind::Stat => {
            let stat = server.stat(handle)?;
            let words = [stat.size, stat.mode.into(), (stat.mode & MODE_TYPE).into()];
            let room = payload.room.chunks_exact_mut(8);
            room.zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
            Ok(Answer::bytes(0, size_of_val(&words)))
        }
        Kind::Fevent if request.argument & !READABLE != 0 => Err(Refusal::BadReserved),
        Kind::Fevent => server.watch(handle, request.argument).map(Answer::number),
        Kind::Mmap => {
            let (descriptors, length) = server.share(handle)?;
            Ok(Answer { descriptors, ..Answer::number(length) })
        }
        Kind::Import => {
            let number = u32::try_from(request.argument).map_err(|_| Refusal::BadHandle)?;
            let buffer = connection.handle(number).ok_or(Refusal::BadHandle)?.handle;
            server.import(handle, buffer).map(Answer::number)
        }
    }
}

fn open<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    request: &Request,
    path: &[u8],
    now: impl FnOnce() -> Nanos,
) -> Result<Opened, Refusal> {
    let wait = request.argument >> OPEN_WAIT_SHIFT;
    let flags = request.argument ^ wait << OPEN_WAIT_SHIFT;
    let write = flags & OPEN_WRITE != 0;
    if flags & !OPEN_WRITE != 0 || wait != 0 && !write {
        return Err(Refusal::BadReserved);
    }
    let at = match request.handle {
        ROOT => None,
        number => Some(connection.handle(number).ok_or(Refusal::BadHandle)?.handle),
    };
    let path = std::str::from_utf8(path).map_err(|_| Refusal::NotFound)?;
    let caller = connection.caller;
    if wait == 0 {
        return server.open(caller, at, path, write).map(Opened::Now);
    }
    server.open_within(caller, at, path, (now(), Nanos(wait.saturating_mul(1_000_000))))
}

/// Assigns a number of the connection to a new handle. Closes the handle when no number is left.
fn number<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    handle: Handle,
) -> Result<Answer, Refusal> {
    connection.add(handle).map(Answer::number).ok_or_else(|| {
        server.close(handle);
        Refusal::Quota
    })
}

/// Writes as many names as fit from number `first` on, each ended by a line feed. The result is the count of names.
fn names<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    handle: Handle,
    first: u64,
    room: &mut [u8],
) -> Result<Answer, Refusal> {
    let first = usize::try_from(first).unwrap_or(usize::MAX);
    let (mut length, mut count) = (0, 0_i64);
    server.names(handle, first, &mut |name| {
        let end = length + name.len();
        let Some((feed, text)) = room.get_mut(length..=end).and_then(<[u8]>::split_last_mut) else {
            return false;
        };
        text.copy_from_slice(name.as_bytes());
        *feed = b'\n';
        (length, count) = (end + 1, count + 1);
        true
    })?;
    Ok(Answer::bytes(count, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_made_where_nothing_of_an_earlier_frame_is_left() {
        let mut room = [0xee; 32];
        let mut payload = Payload { room: &mut room, asked: 4 };
        assert_eq!(payload.request(), [0xee; 4]);
        let reply = payload.reply(16).unwrap();
        assert_eq!((&reply[..4], &reply[4..]), (&[0xee; 4][..], &[0; 12][..]));
        assert_eq!(payload.reply(1).unwrap().len(), 4, "the request is in it");
        assert_eq!(payload.reply(32).unwrap().len(), 32);
        for more in [33, u64::MAX] {
            assert_eq!(payload.reply(more), Err(Refusal::BadLength));
        }
    }
}
