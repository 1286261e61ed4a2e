//! Connections that the keeper accepts and holds. They outlive the server.

use std::io;
use std::os::fd::OwnedFd;

use super::connection::Ended;
use super::epoll::What;
use super::event_loop::Transport;
use crate::hw::{BufferMemory, Unit};
use crate::platform::linux::link::{Link, Message};
use crate::platform::linux::reply_cache::{ReplyCache, Resumed, Waiting};
use crate::policy::ClientId;

impl<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>> Transport<U, B> {
    /// Serves clients that the keeper at the other end of `link` holds, and records their requests in `cache`. The
    /// keeper accepts connections from now on.
    ///
    /// # Errors
    /// The error of epoll_ctl(2), or of sendmsg(2).
    pub fn keep_with(&mut self, link: Link, cache: Box<dyn ReplyCache>) -> io::Result<()> {
        self.waits.add(What::Keeper, &link)?;
        self.cache = cache;
        link.send_soon(Message::Serving, None)?;
        self.keeper = Some(link);
        Ok(())
    }

    /// Takes over clients that the keeper hands over.
    pub(super) fn hear_keeper(&mut self) {
        while let Some(link) = &self.keeper {
            match link.receive() {
                Ok(Some((Message::Client(client), Some(socket)))) => self.resume(client, socket),
                Ok(Some((message, _))) => log::warn!("keeper: {message:?} was not expected"),
                Ok(None) => return,
                Err(error) => {
                    // The end of the keeper is a request to stop, which comes as a signal.
                    log::warn!("keeper: {error}");
                    self.waits.remove(link);
                    self.keeper = None;
                }
            }
        }
    }

    /// Serves a client where an earlier server ended, if there was one.
    fn resume(&mut self, client: ClientId, socket: OwnedFd) {
        let Resumed { plain, numbers, waiting } = self.cache.resume(client);
        if let Err(error) = self.adopt_numbered(client, socket) {
            log::warn!("client {}: turned away: {error}", client.0);
            return self.forget(client);
        }
        if plain {
            // It could not tell the second of two replies from that of another request.
            return self.end(client, Ended::HangUp);
        }
        if let Some(connection) = self.connections.get_mut(client) {
            numbers.iter().for_each(|number| connection.add_stale(*number));
        }
        // Whoever waits for one of them learns that it ended.
        numbers.into_iter().for_each(|number| self.announce_to(client, number));
        for claim in waiting {
            match claim {
                Waiting::Answered(reply) => self.send_to_claim(client, &reply),
                Waiting::Asked(frame) => self.claim_again(client, &frame),
            }
        }
    }

    /// Ends the records of a client that is gone. The keeper drops its connection.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.cache.forget(client);
        let sent = self.keeper.as_ref().map(|link| link.send_soon(Message::Gone(client), None));
        if let Some(Err(error)) = sent {
            log::warn!("keeper: client {} stays: {error}", client.0);
        }
    }
}
