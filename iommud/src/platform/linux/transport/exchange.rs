//! One request from its frame to its reply, each step recorded before the next: see
//! [`crate::platform::linux::reply_cache`].

use std::os::fd::OwnedFd;

use iommu_protocol::frame::{Reply, Request};

use super::connection::Ended;
use super::dispatch::{Outcome, answer, deadly};
use super::event_loop::Transport;
use super::wire_log::Direction;
use crate::hw::{BufferMemory, Clock, Unit};
use crate::platform::linux::reply_cache::Known;
use crate::policy::ClientId;

impl<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>> Transport<U, B> {
    /// Answers one request of a client. Does nothing while replies to the client are queued.
    pub(super) fn exchange(&mut self, client: ClientId) -> Result<(), Ended> {
        let connection = self.connections.get_mut(client);
        let Some(connection) = connection.filter(|connection| connection.is_quiet()) else {
            return Ok(());
        };
        let Some(length) = connection.peek(&mut self.room)? else { return Ok(()) };
        connection.untaken = true;
        let frame = self.room.get(..length).unwrap_or_default();
        self.wire.note(client, Direction::FromClient, frame);
        let (request, _) = Request::decode(frame).map_err(|_| Ended::Garbage)?;
        match self.cache.begin(client, request.tag, self.answers.as_mut()) {
            Known::New => self.carry_out(client, length),
            Known::Sent => self.settle(client),
            Known::Answered(length) => {
                let frame = self.answers.get(..length).unwrap_or_default();
                self.wire.note(client, Direction::ToClient, frame);
                connection.send(frame, Vec::new())?;
                self.settle(client)
            }
            Known::Deadly => {
                log::error!("client {}: two servers died of a request, it is refused", client.0);
                let room = self.room.first_chunk_mut().ok_or(Ended::Garbage)?;
                *room = deadly(request.tag).encode();
                self.deliver(client, Outcome::plain(None))
            }
        }
    }

    /// Carries out the request in the first `length` bytes of the buffer.
    fn carry_out(&mut self, client: ClientId, length: usize) -> Result<(), Ended> {
        let Some(connection) = self.connections.get_mut(client) else { return Ok(()) };
        let now = || self.clock.now();
        match answer(&mut self.server, connection, &mut self.room, length, now)? {
            Some(outcome) => self.deliver(client, outcome),
            None => {
                self.cache.waits(client, self.room.get(..length).unwrap_or_default());
                self.settle(client)
            }
        }
    }

    /// Records and sends the reply in the buffer.
    fn deliver(&mut self, client: ClientId, outcome: Outcome) -> Result<(), Ended> {
        let Outcome { length, descriptors, change } = outcome;
        let Some(connection) = self.connections.get_mut(client) else { return Ok(()) };
        let frame = self.room.get(..length).unwrap_or_default();
        // Descriptors cannot be recorded: the next server answers with those that it has.
        let recorded = Some(frame).filter(|_| descriptors.is_empty());
        self.cache.answered(client, recorded, change);
        self.wire.note(client, Direction::ToClient, frame);
        connection.send(frame, descriptors)?;
        self.settle(client)
    }

    /// Takes the request from the socket if the socket took its reply. Waits for requests then, else for room.
    pub(super) fn settle(&mut self, client: ClientId) -> Result<(), Ended> {
        let Some(connection) = self.connections.get_mut(client) else { return Ok(()) };
        if connection.is_quiet() {
            if std::mem::take(&mut connection.untaken) {
                self.cache.sent(client);
                connection.take()?;
            }
            for tag in connection.answered_claims.drain(..) {
                self.cache.claim_sent(client, tag);
            }
        }
        self.waits.follow(client, connection)
    }

    /// Carries out a claim that waited when an earlier server died.
    pub(super) fn claim_again(&mut self, client: ClientId, frame: &[u8]) {
        let Some(room) = self.room.get_mut(..frame.len()) else { return };
        room.copy_from_slice(frame);
        let Some(connection) = self.connections.get_mut(client) else { return };
        let now = || self.clock.now();
        match answer(&mut self.server, connection, &mut self.room, frame.len(), now) {
            Ok(Some(Outcome { length, change, .. })) => {
                let reply = self.room.get(..length).unwrap_or_default().to_vec();
                self.cache.claimed(client, &reply, change);
                self.send_to_claim(client, &reply);
            }
            // It still waits, and is recorded.
            Ok(None) => {}
            Err(ended) => self.end(client, ended),
        }
    }

    /// Sends the recorded reply to a claim that waited.
    pub(super) fn send_to_claim(&mut self, client: ClientId, reply: &[u8]) {
        if let Some(connection) = self.connections.get_mut(client)
            && let Ok((Reply { tag, .. }, _)) = Reply::decode(reply)
        {
            connection.answered_claims.push(tag);
            self.send(client, reply);
        }
    }
}
