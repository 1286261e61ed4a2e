//! One frame in, one reply out.

use std::os::fd::OwnedFd;

use iommu_protocol::frame::{
    EVENT_TAG, Kind, OPEN_WAIT_SHIFT, OPEN_WRITE, READABLE, ROOT, Reply, Request,
};
use iommu_protocol::wire::MAX_PAYLOAD;
use iommu_protocol::{Errno, Refusal};

use super::connection::{Connection, Ended, Outgoing};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::server::{Handle, Opened, Server};

/// File type bits of a POSIX mode.
const MODE_TYPE: u32 = 0o170_000;

/// What a request comes to: the result and the payload.
struct Answer {
    result: i64,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Answer {
    const fn plain(result: i64) -> Self {
        Self { result, payload: Vec::new(), descriptors: Vec::new() }
    }

    fn number(result: impl TryInto<i64>) -> Self {
        Self::plain(result.try_into().unwrap_or(i64::MAX))
    }

    const fn bytes(result: i64, payload: Vec<u8>) -> Self {
        Self { result, payload, descriptors: Vec::new() }
    }
}

/// Carries out the request in `frame`. `None` when it is a claim that waits: [`claimed`] answers it.
///
/// # Errors
/// `Garbage` when it is no request, or one that cannot be answered.
pub(super) fn answer<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    frame: &[u8],
    now: impl FnOnce() -> Nanos,
) -> Result<Option<Outgoing>, Ended> {
    let (request, payload) = Request::decode(frame).map_err(|_| Ended::Garbage)?;
    if request.tag == EVENT_TAG {
        return Err(Ended::Garbage);
    }
    let answer = if request.kind == Kind::Open as u16 {
        match open(server, connection, &request, payload, now) {
            Ok(Opened::Now(handle)) => number(server, connection, handle),
            Ok(Opened::Later(ticket)) => {
                connection.claims.push((ticket, request.tag));
                return Ok(None);
            }
            Err(refusal) => Err(refusal),
        }
    } else {
        carry_out(server, connection, &request, payload)
    };
    Ok(Some(outgoing(request.tag, answer)))
}

/// The answer to a claim that waited.
pub(super) fn claimed<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    tag: u64,
    result: Result<Handle, Refusal>,
) -> Outgoing {
    outgoing(tag, result.and_then(|handle| number(server, connection, handle)))
}

fn outgoing(tag: u64, answer: Result<Answer, Refusal>) -> Outgoing {
    let answer = answer.unwrap_or_else(|refusal| {
        let Errno(number) = refusal.errno();
        Answer::plain(-i64::from(number))
    });
    let reply = Reply { tag, result: answer.result, handle: 0 };
    let mut outgoing = Outgoing::new(reply, &answer.payload);
    outgoing.descriptors = answer.descriptors;
    outgoing
}

fn carry_out<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>>(
    server: &mut Server<U, B>,
    connection: &mut Connection,
    request: &Request,
    payload: &[u8],
) -> Result<Answer, Refusal> {
    let kind = Kind::from_code(request.kind).ok_or(Refusal::BadOperation)?;
    if !payload.is_empty() && !matches!(kind, Kind::Open | Kind::Call) {
        return Err(Refusal::BadLength);
    }
    if request.argument != 0 && matches!(kind, Kind::Close | Kind::Stat | Kind::Mmap) {
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
            Ok(Answer::plain(0))
        }
        Kind::Read => {
            let answer = read(server, handle, opened.position, request.argument)?;
            opened.position = opened.position.saturating_add(answer.result.unsigned_abs());
            Ok(answer)
        }
        Kind::Call => call(server, handle, payload, request.argument),
        Kind::GetDents => names(server, handle, request.argument),
        Kind::Stat => {
            let stat = server.stat(handle)?;
            let words = [stat.size, stat.mode.into(), (stat.mode & MODE_TYPE).into()];
            Ok(Answer::bytes(0, words.iter().flat_map(|word| word.to_le_bytes()).collect()))
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

/// Gives a new handle its number in the connection.
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

fn room(argument: u64) -> Result<usize, Refusal> {
    usize::try_from(argument).ok().filter(|room| *room <= MAX_PAYLOAD).ok_or(Refusal::BadLength)
}

fn read<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    handle: Handle,
    position: u64,
    wanted: u64,
) -> Result<Answer, Refusal> {
    let mut bytes = vec![0; room(wanted)?];
    let length = server.read(handle, position, &mut bytes)?;
    bytes.truncate(length);
    Ok(Answer { payload: bytes, ..Answer::number(length) })
}

fn call<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    handle: Handle,
    request: &[u8],
    reply_room: u64,
) -> Result<Answer, Refusal> {
    let mut payload = request.to_vec();
    payload.resize(room(reply_room)?.max(request.len()), 0);
    let length = server.call(handle, &mut payload, request.len())?;
    payload.truncate(length);
    Ok(Answer { payload, ..Answer::number(length) })
}

/// As many names as fit, each ended by a line feed; the result is their number.
fn names<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    handle: Handle,
    first: u64,
) -> Result<Answer, Refusal> {
    let first = usize::try_from(first).unwrap_or(usize::MAX);
    let mut payload = Vec::new();
    let mut count = 0_i64;
    server.names(handle, first, &mut |name| {
        let fits = payload.len() + name.len() < MAX_PAYLOAD;
        if fits {
            payload.extend_from_slice(name.as_bytes());
            payload.push(b'\n');
            count += 1;
        }
        fits
    })?;
    Ok(Answer::bytes(count, payload))
}
