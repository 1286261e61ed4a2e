//! The reply cache: what a server records of each client's connection, for the next server.
//!
//! A request stays in its socket until it is answered. Each step is recorded before the next one:
//!
//! ```text
//! look at the frame -> begin -> carry out -> answered: the reply, and the handle that it opened or closed
//!    -> send -> sent -> take the frame from the socket
//! ```
//!
//! So the next server finds the frame again, or it was answered. A frame whose reply is recorded is not carried out
//! again: its reply is sent once more, unless it surely was sent. A claim that waits is recorded with its frame, which
//! is taken at once, and with its reply.

mod shared;

use crate::policy::ClientId;

pub use shared::{Incompatible, SharedCache, VERSION};

/// The most handles that a connection can have.
pub const MOST_HANDLES: u32 = 4096;

/// What a request did to the numbers of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A number names a handle.
    Opened(u32),
    /// A number names nothing.
    Closed(u32),
}

/// What is known of the frame that a server is about to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: it is carried out.
    New,
    /// Its reply, of this many bytes, was put into the room. It may have been sent.
    Answered(usize),
    /// It was answered, and the reply was sent.
    Sent,
    /// Two servers died carrying it out.
    Deadly,
}

/// A claim that waited when the server died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It has no answer. Its frame.
    Asked(Vec<u8>),
    /// It was answered. The frame of its reply, which may have been sent.
    Answered(Vec<u8>),
}

/// What an earlier server left of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// The client has made requests, and does not ignore the second of two replies.
    pub plain: bool,
    /// Numbers in use.
    pub numbers: Vec<u32>,
    /// Claims that waited.
    pub waiting: Vec<Waiting>,
}

/// Records of connections that outlive the server.
pub trait ReplyCache {
    /// What an earlier server left of a client's connection. Begins the records of a new client.
    fn resume(&mut self, client: ClientId) -> Resumed;

    /// Records that the request with this tag is about to be carried out. Returns what is known of it; `room` gets
    /// its reply.
    fn begin(&mut self, client: ClientId, tag: u64, room: &mut [u8]) -> Known;

    /// Records the reply to the request that was begun, and its change, both or neither. `None` for a
    /// reply that is made anew when it is needed again.
    fn answered(&mut self, client: ClientId, reply: Option<&[u8]>, change: Option<Change>);

    /// Records that the client's socket took the reply to the request that was begun.
    fn sent(&mut self, client: ClientId);

    /// Records a claim that waits, whose frame is taken from the socket now.
    fn waits(&mut self, client: ClientId, frame: &[u8]);

    /// Records the reply to a claim that waited, and its change, both or neither.
    fn claimed(&mut self, client: ClientId, reply: &[u8], change: Option<Change>);

    /// Records that the client's socket took the reply to the claim with this tag.
    fn claim_sent(&mut self, client: ClientId, tag: u64);

    /// Ends the records of a client that is gone.
    fn forget(&mut self, client: ClientId);
}

/// The records of a server without a keeper: connections end with it.
#[derive(Debug)]
pub struct NoCache;

impl ReplyCache for NoCache {
    fn resume(&mut self, _: ClientId) -> Resumed {
        Resumed::default()
    }
    fn begin(&mut self, _: ClientId, _: u64, _: &mut [u8]) -> Known {
        Known::New
    }
    fn answered(&mut self, _: ClientId, _: Option<&[u8]>, _: Option<Change>) {}
    fn sent(&mut self, _: ClientId) {}
    fn waits(&mut self, _: ClientId, _: &[u8]) {}
    fn claimed(&mut self, _: ClientId, _: &[u8], _: Option<Change>) {}
    fn claim_sent(&mut self, _: ClientId, _: u64) {}
    fn forget(&mut self, _: ClientId) {}
}
