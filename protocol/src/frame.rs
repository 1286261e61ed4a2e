//! Scheme operations as frames of a Unix sequenced-packet socket, for platforms without schemes.
//!
//! A request frame holds one operation. It is answered by exactly one reply frame with the same tag. A reply to
//! [`Kind::Mmap`] carries the buffer's memory as file descriptors. Mapped whole, one behind the other, they begin
//! with the buffer's bytes. The server also sends [`EVENT_TAG`] frames without a request, when a handle for which
//! readiness was requested becomes readable. Handle numbers are local to the connection. The end of the connection
//! closes all of its handles, and shows the server that the client is dead.
//!
//! A connection of a client with [`NUMBERED`] tags outlives a server that a keeper started. The next server answers
//! each request that has no answer yet. It may send an answer once more; the client ignores the second one. Handles
//! that the next server does not know keep their numbers until the client closes them, and are answered [`STALE`].

use crate::status::Errno;
use crate::wire::Short;

/// Bytes of the header of a request frame and of a reply frame.
pub const HEADER_SIZE: usize = 32;

/// The longest frame: header and payload.
pub const MAX_FRAME: usize = HEADER_SIZE + crate::wire::MAX_PAYLOAD;

/// The most descriptors in one reply (unix(7), SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

/// The tag of frames that announce readiness; no request may use it.
pub const EVENT_TAG: u64 = u64::MAX;

/// The bit in the tags of a client that ignores the second of two replies with the same tag. Such a client uses each
/// tag once.
pub const NUMBERED: u64 = 1 << 62;

/// The error number of a request on a handle that ended with an earlier server (ESTALE). Closing it succeeds.
pub const STALE: Errno = Errno(116);

/// The handle for absolute paths, in place of the one that a path is relative to.
pub const ROOT: u32 = u32::MAX;

/// Readiness bit of [`Kind::Fevent`] and of event frames: the handle can be read without waiting.
pub const READABLE: u64 = 1;

/// Flag bit of [`Kind::Open`] in `argument`: open for writing, which claims a device.
pub const OPEN_WRITE: u64 = 1;

/// Position in `argument` of [`Kind::Open`] of the milliseconds that a claim may wait for its unit, 32 bits. Only
/// with [`OPEN_WRITE`]. With 0 the claim is refused at once if the unit is not ready.
pub const OPEN_WAIT_SHIFT: u32 = 32;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// The scheme operation a frame carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $code,)* }

        impl Kind {
            /// The kind with this code.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Payload: a path relative to `handle`. `argument`: flags, and how long a claim may wait. Result: a new handle.
    /// The reply to a waiting claim comes after replies to requests that were sent later.
    Open = 1;
    /// Result: 0.
    Close = 2;
    /// `argument`: most bytes wanted. Result and payload: the bytes that were read. A session without fault records
    /// gives EAGAIN.
    Read = 3;
    /// Payload: a request of [`crate::wire`]. `argument`: room for the reply. Payload back: the reply.
    Call = 4;
    /// `argument`: index of the first entry wanted. Payload back: names, each ended by a line feed.
    GetDents = 5;
    /// Payload back: size, mode, kind as three u64.
    Stat = 6;
    /// Requests event frames. `argument`: the bits wanted. Result: the bits that are set now.
    Fevent = 7;
    /// `handle` is a buffer. Result: its length; 1 to [`MAX_DESCRIPTORS`] descriptors come with the reply.
    Mmap = 8;
    /// `handle` is a session, `argument` a buffer handle of this connection. Result: the buffer's slot in
    /// that session.
    Import = 9;
    /// Payload: the bytes to write. Result: how many of them were taken. For `units/N` and `rescan`, see
    /// [`crate::path`].
    Write = 10;
}

/// A frame from client to server: 32 bytes, then the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// A [`Kind`] code.
    pub kind: u16,
    /// The handle the operation is on.
    pub handle: u32,
    /// Chosen by the client, returned in the reply.
    pub tag: u64,
    /// Depends on the kind.
    pub argument: u64,
}

/// A frame from server to client: 32 bytes, then the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's tag, or [`EVENT_TAG`].
    pub tag: u64,
    /// A value, or the negative of an errno. In an event frame: the bits that are set.
    pub result: i64,
    /// In an event frame: the handle. Else 0.
    pub handle: u32,
}

impl Request {
    /// The header's bytes: kind, 2 zero bytes, handle, tag, argument, 8 zero bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        join(u64::from(self.kind) | u64::from(self.handle) << 32, self.tag, self.argument)
    }

    /// Splits a frame into header and payload. Padding must be zero.
    ///
    /// # Errors
    /// `Short` when the frame has no header or padding is set.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), Short> {
        let ([first, tag, argument], payload) = split(frame)?;
        let [k0, k1, 0, 0, h0, h1, h2, h3] = first.to_le_bytes() else { return Err(Short) };
        let request = Self {
            kind: u16::from_le_bytes([k0, k1]),
            handle: u32::from_le_bytes([h0, h1, h2, h3]),
            tag,
            argument,
        };
        Ok((request, payload))
    }
}

impl Reply {
    /// The header's bytes: tag, result, handle, 4 zero bytes, 8 zero bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        join(self.tag, u64::from_le_bytes(self.result.to_le_bytes()), u64::from(self.handle))
    }

    /// Splits a frame into header and payload. Padding must be zero.
    ///
    /// # Errors
    /// `Short` when the frame has no header or padding is set.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), Short> {
        let ([tag, result, handle], payload) = split(frame)?;
        let handle = u32::try_from(handle).map_err(|_| Short)?;
        let result = i64::from_le_bytes(result.to_le_bytes());
        Ok((Self { tag, result, handle }, payload))
    }
}

fn join(a: u64, b: u64, c: u64) -> [u8; HEADER_SIZE] {
    let mut out = [0; HEADER_SIZE];
    for (to, from) in out.chunks_exact_mut(8).zip([a, b, c]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    out
}

fn split(frame: &[u8]) -> Result<([u64; 3], &[u8]), Short> {
    let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().ok_or(Short)?;
    let mut words = header.chunks_exact(8).map(|chunk| chunk.try_into().map(u64::from_le_bytes));
    let mut next = || words.next().and_then(Result::ok).ok_or(Short);
    let head = [next()?, next()?, next()?];
    if next()? == 0 { Ok((head, payload)) } else { Err(Short) }
}
