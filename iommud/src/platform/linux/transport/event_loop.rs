//! The loop.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use iommu_protocol::frame::{EVENT_TAG, MAX_FRAME, READABLE, Reply};
use rustix::event::epoll::{Event, EventFlags};
use rustix::net::sockopt::socket_peercred;

use super::connection::{Connection, Ended};
use super::connections::{Connections, MOST_CONNECTIONS};
use super::dispatch::{Outcome, answer, claimed};
use super::epoll::{Waits, What, has};
use super::listener::Listener;
use super::wire_log::{Direction, WireLog};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::platform::linux::uevent::Uevents;
use crate::policy::ClientId;
use crate::server::{Caller, Server};

/// What may be found at once: of each client, of the listener, of functions and of what stops the loop.
const MOST_EVENTS: usize = MOST_CONNECTIONS + 3;

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

/// What brings units up again; see [`Transport::recover_by`].
pub type Recover<U, B> = Box<dyn FnMut(&mut Server<U, B>, Nanos)>;

/// The server behind its socket.
pub struct Transport<U: Unit, B: BufferMemory> {
    server: Server<U, B>,
    waits: Waits,
    /// What was found: empty between turns.
    events: Vec<Event>,
    listener: Option<Listener>,
    /// Open while it is waited for.
    stop: Option<OwnedFd>,
    functions: Option<Uevents>,
    /// Brings units up again.
    recover: Option<Recover<U, B>>,
    connections: Connections,
    next_tick: Instant,
    started: Instant,
    /// Whose request was the last one.
    served: ClientId,
    wire: WireLog,
    /// Where a request is received, and its reply made in its place.
    room: Box<[u8]>,
}

impl<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>> Transport<U, B> {
    /// A server without clients, listening on nothing.
    ///
    /// # Errors
    /// What epoll_create(2) reports.
    pub fn new(server: Server<U, B>, wire: WireLog) -> io::Result<Self> {
        Ok(Self {
            server,
            waits: Waits::new()?,
            events: Vec::with_capacity(MOST_EVENTS),
            listener: None,
            stop: None,
            functions: None,
            recover: None,
            connections: Connections::new(),
            next_tick: Instant::now(),
            started: Instant::now(),
            served: ClientId(0),
            wire,
            room: vec![0; MAX_FRAME].into(),
        })
    }

    /// Takes connections from `listener` from now on.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn listen(&mut self, listener: Listener) -> io::Result<()> {
        self.waits.add(What::Arrival, &listener)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Ends the loop when `stop` becomes readable.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn stop_on(&mut self, stop: OwnedFd) -> io::Result<()> {
        self.waits.add(What::Stop, &stop)?;
        self.stop = Some(stop);
        Ok(())
    }

    /// Walks configuration space again when the kernel tells of functions that came or went.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn hear_of_functions(&mut self, uevents: Uevents) -> io::Result<()> {
        self.waits.add(What::Functions, &uevents)?;
        self.functions = Some(uevents);
        Ok(())
    }

    /// Has `recover` called after each tick, with the time: it calls [`Server::recover_units`].
    pub fn recover_by(&mut self, recover: Recover<U, B>) {
        self.recover = Some(recover);
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
    /// The socket is not a Unix socket, there are [`MOST_CONNECTIONS`] clients already, or what epoll_ctl(2) reports.
    pub fn adopt(&mut self, socket: OwnedFd) -> io::Result<ClientId> {
        let peer = socket_peercred(&socket)?;
        let client = self.adopt_as(socket, peer.uid.as_raw())?;
        if let Ok(process) = u32::try_from(peer.pid.as_raw_nonzero().get()) {
            self.server.set_process(client, process);
        }
        Ok(client)
    }

    /// As [`Transport::adopt`], for a client whose user is known in another way.
    ///
    /// # Errors
    /// As [`Transport::adopt`].
    pub fn adopt_as(&mut self, socket: OwnedFd, uid: u32) -> io::Result<ClientId> {
        let client = self.connections.free_number().ok_or(io::ErrorKind::QuotaExceeded)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.waits.add(What::Client(client), &socket)?;
        self.connections.insert(socket, Caller { client, uid });
        Ok(client)
    }

    /// Serves until told to stop. Then every session is closed, every group put back under its policy,
    /// and every connection ended; units go on translating.
    ///
    /// # Errors
    /// What epoll_wait(2) reports; the same has been done then.
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
    /// What epoll_wait(2) reports.
    pub fn turn(&mut self, longest: Option<Duration>) -> io::Result<End> {
        let mut events = std::mem::take(&mut self.events);
        let end = self.wait(longest, &mut events).map(|()| self.handle(&mut events));
        events.clear();
        self.events = events;
        end
    }

    fn wait(&self, longest: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let until_tick = self.next_tick.saturating_duration_since(Instant::now());
        self.waits.wait(longest.unwrap_or(TICK).min(until_tick), events)
    }

    /// Handles what was found: of clients first, in order.
    fn handle(&mut self, events: &mut [Event]) -> End {
        let is_client = |event: &Event| matches!(What::of(event), What::Client(_));
        let (clients, others) = events.split_at_mut(events.partition_point(is_client));
        let found = |what| others.iter().any(|event| What::of(event) == what);
        if found(What::Stop) {
            return End::Stop;
        }
        self.serve_all(clients);
        if found(What::Arrival) {
            self.accept();
        }
        if found(What::Functions) && self.functions.as_mut().is_some_and(Uevents::changed) {
            self.server.rescan();
            self.answer_claims();
            self.announce();
        }
        if self.next_tick <= Instant::now() {
            self.server.tick();
            if let Some(recover) = &mut self.recover {
                recover(&mut self.server, since(self.started));
            }
            self.next_tick = Instant::now() + TICK;
            self.answer_claims();
            self.announce();
        }
        End::Continue
    }

    fn serve_all(&mut self, events: &mut [Event]) {
        for event in &*events {
            if let What::Client(client) = What::of(event)
                && has(event, EventFlags::HUP | EventFlags::ERR)
            {
                self.end(client, Ended::HangUp);
            }
        }
        // On from where the last turn ended. Else who has a low number would be answered before those that were not
        // ready in time for that turn, and be ready in time for the next.
        let was = |event: &Event| matches!(What::of(event), What::Client(it) if it <= self.served);
        events.rotate_left(events.partition_point(was));
        for event in &*events {
            let What::Client(client) = What::of(event) else { continue };
            if has(event, EventFlags::OUT) {
                self.attempt(client, Connection::flush);
            }
            if has(event, EventFlags::IN) {
                self.serve(client);
            }
        }
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
        let connection = self.connections.get_mut(client);
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
        connection.send(frame, descriptors)?;
        self.waits.follow(client, connection)
    }

    /// Answers claims that have waited long enough.
    fn answer_claims(&mut self) {
        while self.server.has_claims()
            && let Some((ticket, result)) = self.server.next_answer(since(self.started))
        {
            let found = self.connections.iter_mut().find_map(|connection| {
                let at = connection.claims.iter().position(|(known, _)| *known == ticket)?;
                let (_, tag) = connection.claims.remove(at);
                let client = connection.caller.client;
                Some((client, claimed(&mut self.server, connection, tag, result)))
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
            let found = self.connections.iter_mut().find_map(|connection| {
                let number = connection.number(handle)?;
                let opened = connection.handle(number)?;
                let told = std::mem::replace(&mut opened.told, true);
                Some((connection.caller.client, number, told))
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
        let Some(connection) = self.connections.get_mut(client) else { return };
        let done = action(connection).and_then(|()| self.waits.follow(client, connection));
        if let Err(ended) = done {
            self.end(client, ended);
        }
    }

    /// Closes every handle of a client, then its connection.
    fn end(&mut self, client: ClientId, why: Ended) {
        let Some(connection) = self.connections.remove(client) else { return };
        self.waits.remove(&connection);
        match why {
            Ended::HangUp => {}
            Ended::Garbage => log::warn!("client {}: sent what is not a frame", client.0),
            Ended::Overflow => log::warn!("client {}: does not read", client.0),
            Ended::Socket(error) => log::warn!("client {}: {error}", client.0),
        }
        let claims: Vec<_> = connection.claims.iter().map(|(ticket, _)| *ticket).collect();
        self.server.forget_claims(&claims);
        self.server.forget_process(client);
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
}

/// Nanoseconds since the start of the loop.
fn since(started: Instant) -> Nanos {
    Nanos(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
