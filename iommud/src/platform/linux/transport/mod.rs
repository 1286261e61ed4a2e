//! The scheme over a Unix socket of sequenced packets: frames of [`iommu_protocol::frame`].
//!
//! One thread waits in epoll_wait(2) for everything at once and takes one thing at a time:
//!
//! ```text
//!   SIGTERM, SIGINT -> the loop ends
//!   ended connection -> close all its handles       before any request of the same turn: whoever has seen
//!                                                   a process end finds its device free
//!   one frame of each connection -> Server -> reply -> socket, or output queue when it has no room
//!   new connection
//!   functions came or went, says the kernel -> Server::rescan
//!   10 ms passed -> Server::tick, Server::recover_units
//!   after each of them: Server::next_ready -> event frames
//! ```
//!
//! Nothing in the loop waits. A connection whose output is not taken is not read either, so its queue holds
//! one reply and at most one event a watched handle; a queue that still grows past [`QUEUE_LIMIT`] ends its
//! connection. A client that does not read thus holds up nobody but itself.
//!
//! What a client may send, and what becomes of it:
//!
//! | frame | answer |
//! |---|---|
//! | empty, longer than `MAX_FRAME`, without a whole header, with padding set, tag `EVENT_TAG` | the connection ends: nothing that follows could be trusted |
//! | kind unknown | ENOSYS |
//! | argument or payload where the kind takes none, undefined flags | EPROTO, EMSGSIZE |
//! | handle unknown | EBADF |
//! | path that is not UTF-8 or names nothing | ENOENT |
//! | anything else | what [`crate::server::Server`] says: a refusal as its errno |
//!
//! Descriptors that a client sends along are dropped by the kernel: the server offers no room for them.

mod connection;
mod connections;
mod dispatch;
mod epoll;
mod event_loop;
mod listener;
mod wire_log;

pub use connection::QUEUE_LIMIT;
pub use connections::MOST_CONNECTIONS;
pub use event_loop::{End, Recover, Transport};
pub use listener::Listener;
pub use wire_log::WireLog;
