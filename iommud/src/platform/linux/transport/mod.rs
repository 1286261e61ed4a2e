//! Serves the scheme over a Unix socket of sequenced packets: frames of [`iommu_protocol::frame`].
//!
//! One thread waits in epoll_wait(2) for all sources, and handles one event at a time:
//!
//! ```text
//!   SIGTERM, SIGINT -> the loop ends
//!   ended connection -> close all its handles       before any request of the same turn: a client that saw
//!                                                   the other process end finds its device free
//!   one frame of each connection -> Server -> reply -> socket, or output queue when it has no room;
//!                                                   the frame is taken when the socket has its reply
//!   new connection -> accepted, by the keeper if there is one
//!   the kernel reports functions that came or went -> Server::rescan
//!   10 ms passed -> Server::tick, Server::recover_units
//!   after each of them: Server::next_ready -> event frames
//! ```
//!
//! No handler blocks. The loop does not read from a connection while the client leaves replies unread. So the queue
//! of a connection holds one reply, and at most one event for each watched handle. If the queue still grows past
//! [`QUEUE_LIMIT`], the connection ends. So a client that does not read delays only itself.
//!
//! Frames that a client may send, and the answers:
//!
//! | frame | answer |
//! |---|---|
//! | empty, longer than `MAX_FRAME`, without a whole header, with padding set, tag `EVENT_TAG` | the connection ends: nothing that follows could be trusted |
//! | kind unknown | ENOSYS |
//! | argument or payload where the kind takes none, undefined flags | EPROTO, EMSGSIZE |
//! | handle unknown | EBADF |
//! | handle that ended with an earlier server | ESTALE, and 0 for its close |
//! | the request that two servers died of | EIO |
//! | path that is not UTF-8 or names nothing | ENOENT |
//! | anything else | the result of [`crate::server::Server`]: a refusal as its errno |
//!
//! A keeper accepts connections and holds them, and each step of a request is recorded for the next server: see
//! [`crate::platform::linux::reply_cache`].
//!
//! The kernel drops descriptors that a client sends with a frame: the server provides no buffer for them.

mod connection;
mod dispatch;
mod epoll;
mod event_loop;
mod exchange;
mod kept;
mod listener;
mod wire_log;

pub use super::places::MOST_CONNECTIONS;
pub use connection::QUEUE_LIMIT;
pub use event_loop::{End, Recover, Transport};
pub use listener::Listener;
pub use wire_log::WireLog;
