//! The loop.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use iommu_protocol::frame::{EVENT_TAG, MAX_FRAME, READABLE, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;

use super::connection::{Connection, Ended};
use super::dispatch::{Outcome, answer, claimed};
use super::listener::Listener;
use super::wire_log::{Direction, WireLog};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::policy::ClientId;
use crate::server::{Caller, Server};

/// The most clients at a time; further ones are hung up on.
pub const MOST_CONNECTIONS: usize = 256;

/// How often units are asked for faults.
const TICK: Duration = Duration::from_millis(10);

/// How a turn of the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There may be more to do.
    Continue,
    /// A signal asks the server to end.
    Stop,
}

/// The server behind its socket.
pub struct Transport<U: Unit, B: BufferMemory> {
    server: Server<U, B>,
    listener: Option<Listener>,
    stop: Option<OwnedFd>,
    connections: BTreeMap<ClientId, Connection>,
    next_client: u32,
    next_tick: Instant,
    started: Instant,
    /// Whose request was the last one.
    served: ClientId,
    wire: WireLog,
    /// Where a request is received, and its reply made in its place.
    room: Box<[u8]>,
}

/// What poll(2) found.
struct Ready {
    stop: bool,
    arrived: bool,
    clients: Vec<(ClientId, PollFlags)>,
}

impl<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>> Transport<U, B> {
    /// A server without clients, listening on nothing.
    pub fn new(server: Server<U, B>, wire: WireLog) -> Self {
        Self {
            server,
            listener: None,
            stop: None,
            connections: BTreeMap::new(),
            next_client: 1,
            next_tick: Instant::now(),
            started: Instant::now(),
            served: ClientId(0),
            wire,
            room: vec![0; MAX_FRAME].into(),
        }
    }

    /// Takes connections from `listener` from now on.
    pub fn listen(&mut self, listener: Listener) {
        self.listener = Some(listener);
    }

    /// Ends the loop when `stop` becomes readable.
    pub fn stop_on(&mut self, stop: OwnedFd) {
        self.stop = Some(stop);
    }

    /// The server behind the socket.
    pub fn server(&mut self) -> &mut Server<U, B> {
        &mut self.server
    }

    /// How many clients are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.connections.len()
    }

    /// Serves a client that is connected to the other end of `socket`, as the user whom the kernel saw
    /// connect.
    ///
    /// # Errors
    /// The socket is not a Unix socket, or there are [`MOST_CONNECTIONS`] clients already.
    pub fn adopt(&mut self, socket: OwnedFd) -> io::Result<ClientId> {
        let uid = socket_peercred(&socket)?.uid.as_raw();
        self.adopt_as(socket, uid)
    }

    /// As [`Transport::adopt`], for a client whose user is known in another way.
    ///
    /// # Errors
    /// As [`Transport::adopt`].
    pub fn adopt_as(&mut self, socket: OwnedFd, uid: u32) -> io::Result<ClientId> {
        if self.connections.len() >= MOST_CONNECTIONS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        let client = self.free_number();
        self.connections.insert(client, Connection::new(socket, Caller { client, uid }));
        Ok(client)
    }

    /// Serves until told to stop. Then every session is closed, every group put back under its policy,
    /// and every connection ended; units go on translating.
    ///
    /// # Errors
    /// What poll(2) reports; the same has been done then.
    pub fn run(mut self) -> io::Result<()> {
        let ended = loop {
            match self.turn(None) {
                Ok(End::Continue) => {}
                Ok(End::Stop) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.listener = None;
        self.server.shutdown();
        ended
    }

    /// Waits for something to happen, at most `longest` and at most until the next tick, and handles it.
    ///
    /// # Errors
    /// What poll(2) reports.
    pub fn turn(&mut self, longest: Option<Duration>) -> io::Result<End> {
        let mut ready = self.wait(longest)?;
        if ready.stop {
            return Ok(End::Stop);
        }
        let ended = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        for (client, flags) in &ready.clients {
            if flags.intersects(ended) {
                self.end(*client, Ended::HangUp);
            }
        }
        // On from where the last turn ended. Else who has a low number would be answered before those that were not
        // ready in time for that turn, and be ready in time for the next.
        let next = ready.clients.partition_point(|(client, _)| *client <= self.served);
        ready.clients.rotate_left(next);
        for (client, flags) in ready.clients {
            if flags.contains(PollFlags::OUT) {
                self.attempt(client, Connection::flush);
            }
            if flags.contains(PollFlags::IN) {
                self.serve(client);
            }
        }
        if ready.arrived {
            self.accept();
        }
        if self.next_tick <= Instant::now() {
            self.server.tick();
            self.next_tick = Instant::now() + TICK;
            self.answer_claims();
            self.announce();
        }
        Ok(End::Continue)
    }

    fn wait(&self, longest: Option<Duration>) -> io::Result<Ready> {
        let until_tick = self.next_tick.saturating_duration_since(Instant::now());
        let timeout = longest.unwrap_or(TICK).min(until_tick);
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let special =
            [self.stop.as_ref().map(OwnedFd::as_fd), self.listener.as_ref().map(Listener::as_fd)];
        let mut polled: Vec<PollFd<'_>> = special
            .iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let clients = self.connections.values().map(interest);
        polled.extend(clients);
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut found = polled.iter().map(PollFd::revents);
        let mut next =
            |present: bool| present && found.next().is_some_and(|flags| !flags.is_empty());
        let [stop, arrived] = special.map(|fd| next(fd.is_some()));
        let clients = self.connections.keys().copied().zip(found);
        Ok(Ready {
            stop,
            arrived,
            clients: clients.filter(|(_, flags)| !flags.is_empty()).collect(),
        })
    }

    /// Takes one frame of a client.
    fn serve(&mut self, client: ClientId) {
        self.served = client;
        if let Err(ended) = self.exchange(client) {
            self.end(client, ended);
        }
        self.answer_claims();
        self.announce();
    }

    /// Receives a request of a client that has taken all replies, and answers it.
    fn exchange(&mut self, client: ClientId) -> Result<(), Ended> {
        let connection = self.connections.get_mut(&client);
        let Some(connection) = connection.filter(|connection| connection.is_quiet()) else {
            return Ok(());
        };
        let Some(length) = connection.receive(&mut self.room)? else { return Ok(()) };
        self.wire.note(client, Direction::FromClient, self.room.get(..length).unwrap_or_default());
        let now = || since(self.started);
        let answered = answer(&mut self.server, connection, &mut self.room, length, now)?;
        let Some(Outcome { length, descriptors }) = answered else { return Ok(()) };
        let frame = self.room.get(..length).unwrap_or_default();
        self.wire.note(client, Direction::ToClient, frame);
        connection.send(frame, descriptors)
    }

    /// Answers claims that have waited long enough.
    fn answer_claims(&mut self) {
        while self.server.has_claims()
            && let Some((ticket, result)) = self.server.next_answer(since(self.started))
        {
            let found = self.connections.iter_mut().find_map(|(client, connection)| {
                let at = connection.claims.iter().position(|(known, _)| *known == ticket)?;
                let (_, tag) = connection.claims.remove(at);
                Some((*client, claimed(&mut self.server, connection, tag, result)))
            });
            if let Some((client, reply)) = found {
                self.send(client, reply);
            } else if let Ok(handle) = result {
                self.server.close(handle);
            }
        }
    }

    /// Tells clients of handles that became readable.
    fn announce(&mut self) {
        while let Some(handle) = self.server.next_ready() {
            let found = self.connections.iter_mut().find_map(|(client, connection)| {
                let number = connection.number(handle)?;
                let opened = connection.handle(number)?;
                Some((*client, number, std::mem::replace(&mut opened.told, true)))
            });
            if let Some((client, number, false)) = found {
                let result = i64::try_from(READABLE).unwrap_or(i64::MAX);
                let event = Reply { tag: EVENT_TAG, result, handle: number };
                self.send(client, event);
            }
        }
    }

    /// Sends a frame without a payload.
    fn send(&mut self, client: ClientId, reply: Reply) {
        let frame = reply.encode();
        self.wire.note(client, Direction::ToClient, &frame);
        self.attempt(client, |connection| connection.send(&frame, Vec::new()));
    }

    fn attempt(
        &mut self,
        client: ClientId,
        action: impl FnOnce(&mut Connection) -> Result<(), Ended>,
    ) {
        if let Some(Err(ended)) = self.connections.get_mut(&client).map(action) {
            self.end(client, ended);
        }
    }

    /// Closes every handle of a client, then its connection.
    fn end(&mut self, client: ClientId, why: Ended) {
        let Some(connection) = self.connections.remove(&client) else { return };
        match why {
            Ended::HangUp => {}
            Ended::Garbage => log::warn!("client {}: sent what is not a frame", client.0),
            Ended::Overflow => log::warn!("client {}: does not read", client.0),
            Ended::Socket(error) => log::warn!("client {}: {error}", client.0),
        }
        let claims: Vec<_> = connection.claims.iter().map(|(ticket, _)| *ticket).collect();
        self.server.forget_claims(&claims);
        for handle in connection.handles() {
            self.server.close(handle);
        }
    }

    fn accept(&mut self) {
        let accepted = self.listener.as_ref().map(Listener::accept);
        match accepted {
            Some(Ok(socket)) => {
                if let Err(error) = self.adopt(socket) {
                    log::warn!("a client was turned away: {error}");
                }
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                log::warn!("no connection could be accepted: {error}");
            }
            _ => {}
        }
    }

    /// A number that no client has.
    fn free_number(&mut self) -> ClientId {
        while self.connections.contains_key(&ClientId(self.next_client)) {
            self.next_client = self.next_client.wrapping_add(1);
        }
        let number = ClientId(self.next_client);
        self.next_client = self.next_client.wrapping_add(1);
        number
    }
}

/// Nanoseconds since the start of the loop.
fn since(started: Instant) -> Nanos {
    Nanos(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

fn interest(connection: &Connection) -> PollFd<'_> {
    let quiet = connection.is_quiet();
    PollFd::new(connection, if quiet { PollFlags::IN } else { PollFlags::OUT })
}
