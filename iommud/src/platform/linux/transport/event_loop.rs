//! The event loop of the server behind its socket.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use iommu_protocol::frame::{EVENT_TAG, MAX_FRAME, READABLE, Reply};
use rustix::event::epoll::{Event, EventFlags};
use rustix::net::sockopt::socket_peercred;

use super::connection::{Connection, Ended};
use super::dispatch::claimed;
use super::epoll::{Waits, What, has};
use super::listener::Listener;
use super::wire_log::{Direction, WireLog};
use crate::hw::{BufferMemory, Clock, Nanos, Unit};
use crate::platform::MonotonicClock;
use crate::platform::linux::link::Link;
use crate::platform::linux::places::{MOST_CONNECTIONS, Places};
use crate::platform::linux::reply_cache::{NoCache, ReplyCache};
use crate::platform::linux::trace_file::TraceFile;
use crate::platform::linux::uevent::Uevents;
use crate::policy::ClientId;
use crate::server::{Caller, Server};
use crate::trace::Ring;

/// The most events at once: one of each client, and those of the listener, of functions, of the keeper and of the stop
/// request.
const MOST_EVENTS: usize = MOST_CONNECTIONS + 4;

/// Time between two polls of the units for faults.
const TICK: Nanos = Nanos(10_000_000);

/// The result of one turn of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The loop goes on.
    Continue,
    /// The server must end: the stop descriptor became readable.
    Stop,
}

/// Brings units up again. See [`Transport::recover_by`].
pub type Recover<U, B> = Box<dyn FnMut(&mut Server<U, B>, Nanos)>;

/// The server behind its socket.
pub struct Transport<U: Unit, B: BufferMemory> {
    pub(super) server: Server<U, B>,
    pub(super) waits: Waits,
    /// Events of the current turn. Empty between turns.
    events: Vec<Event>,
    listener: Option<Listener>,
    /// The descriptor of [`Transport::stop_on`]. It stays a source while it is open.
    stop: Option<OwnedFd>,
    functions: Option<Uevents>,
    /// See [`Transport::recover_by`].
    recover: Option<Recover<U, B>>,
    pub(super) connections: Places<Connection>,
    /// See [`Transport::keep_with`].
    pub(super) keeper: Option<Link>,
    pub(super) cache: Box<dyn ReplyCache>,
    next_tick: Nanos,
    /// Started with the loop.
    pub(super) clock: MonotonicClock,
    /// The client whose request was served last.
    served: ClientId,
    pub(super) wire: WireLog,
    trace: Option<TraceFile>,
    /// Buffer of a request, in which its reply is made.
    pub(super) room: Box<[u8]>,
    /// Buffer of a reply that an earlier server recorded.
    pub(super) answers: Box<[u8]>,
}

impl<U: Unit, B: BufferMemory<Share = Vec<OwnedFd>>> Transport<U, B> {
    /// A server without clients and without a listener.
    ///
    /// # Errors
    /// The error of epoll_create(2).
    pub fn new(server: Server<U, B>, wire: WireLog) -> io::Result<Self> {
        Ok(Self {
            server,
            waits: Waits::new()?,
            events: Vec::with_capacity(MOST_EVENTS),
            listener: None,
            stop: None,
            functions: None,
            recover: None,
            connections: Places::new(),
            keeper: None,
            cache: Box::new(NoCache),
            next_tick: Nanos(0),
            clock: MonotonicClock::new(),
            served: ClientId(0),
            wire,
            trace: None,
            room: vec![0; MAX_FRAME].into(),
            answers: vec![0; MAX_FRAME].into(),
        })
    }

    /// Accepts connections from `listener` from now on.
    ///
    /// # Errors
    /// The error of epoll_ctl(2).
    pub fn listen(&mut self, listener: Listener) -> io::Result<()> {
        self.waits.add(What::Arrival, &listener)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Ends the loop when `stop` becomes readable.
    ///
    /// # Errors
    /// The error of epoll_ctl(2).
    pub fn stop_on(&mut self, stop: OwnedFd) -> io::Result<()> {
        self.waits.add(What::Stop, &stop)?;
        self.stop = Some(stop);
        Ok(())
    }

    /// Walks configuration space again when the kernel reports that functions came or went.
    ///
    /// # Errors
    /// The error of epoll_ctl(2).
    pub fn hear_of_functions(&mut self, uevents: Uevents) -> io::Result<()> {
        self.waits.add(What::Functions, &uevents)?;
        self.functions = Some(uevents);
        Ok(())
    }

    /// Calls `recover` after each tick, with the time since the loop began. `recover` calls
    /// [`Server::recover_units`].
    pub fn recover_by(&mut self, recover: Recover<U, B>) {
        self.recover = Some(recover);
    }

    /// Writes the records of the server to `trace`.
    pub fn trace_to(&mut self, trace: TraceFile) {
        self.trace = Some(trace);
    }

    /// Calls `write` with the trace and the ring of the server, if events are recorded.
    fn with_trace(&mut self, write: impl FnOnce(&mut TraceFile, &mut Ring)) {
        if let Some(trace) = &mut self.trace
            && let Some(ring) = self.server.trace()
        {
            write(trace, ring);
        }
    }

    /// The server behind the socket.
    pub fn server(&mut self) -> &mut Server<U, B> {
        &mut self.server
    }

    /// The number of connected clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.connections.len()
    }

    /// Serves the client at the other end of `socket`. The client's user is the one that the kernel recorded when it
    /// connected.
    ///
    /// # Errors
    /// The socket is not a Unix socket, there are already [`MOST_CONNECTIONS`] clients, or ioctl(2) or epoll_ctl(2)
    /// fails.
    pub fn adopt(&mut self, socket: OwnedFd) -> io::Result<ClientId> {
        let client = self.free_number()?;
        self.adopt_numbered(client, socket)?;
        Ok(client)
    }

    /// Serves a client like [`Transport::adopt`], under this number.
    pub(super) fn adopt_numbered(&mut self, client: ClientId, socket: OwnedFd) -> io::Result<()> {
        let peer = socket_peercred(&socket)?;
        self.insert(socket, Caller { client, uid: peer.uid.as_raw() })?;
        if let Ok(process) = u32::try_from(peer.pid.as_raw_nonzero().get()) {
            self.server.set_process(client, process);
        }
        Ok(())
    }

    /// Serves a client like [`Transport::adopt`], with the user id `uid`.
    ///
    /// # Errors
    /// There are already [`MOST_CONNECTIONS`] clients, or ioctl(2) or epoll_ctl(2) fails.
    pub fn adopt_as(&mut self, socket: OwnedFd, uid: u32) -> io::Result<ClientId> {
        let client = self.free_number()?;
        self.insert(socket, Caller { client, uid })?;
        Ok(client)
    }

    fn free_number(&self) -> io::Result<ClientId> {
        self.connections.free_number().ok_or(io::ErrorKind::QuotaExceeded.into())
    }

    fn insert(&mut self, socket: OwnedFd, caller: Caller) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.waits.add(What::Client(caller.client), &socket)?;
        self.connections.insert(caller.client, Connection::new(socket, caller));
        Ok(())
    }

    /// Serves until a request to stop. Then closes every session, puts every group back under its policy, and ends
    /// every connection. Units go on translating.
    ///
    /// # Errors
    /// The error of epoll_wait(2). The server was shut down in the same way.
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
        self.with_trace(TraceFile::finish);
        ended
    }

    /// Waits for events, at most `longest` and at most until the next tick, and handles them.
    ///
    /// # Errors
    /// The error of epoll_wait(2).
    pub fn turn(&mut self, longest: Option<Duration>) -> io::Result<End> {
        let mut events = std::mem::take(&mut self.events);
        let end = self.wait(longest, &mut events).map(|()| self.handle(&mut events));
        events.clear();
        self.events = events;
        end
    }

    fn wait(&mut self, longest: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let until_tick = self.next_tick.0.saturating_sub(self.clock.now().0);
        let until_tick = Duration::from_nanos(until_tick);
        self.waits.wait(longest.map_or(until_tick, |longest| longest.min(until_tick)), events)
    }

    /// Handles the events of one turn, those of clients first. A request to stop comes before all others.
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
        if found(What::Keeper) {
            self.hear_keeper();
        }
        if found(What::Functions) && self.functions.as_mut().is_some_and(Uevents::changed) {
            self.server.rescan();
            self.answer_claims();
            self.announce();
        }
        if self.next_tick <= self.clock.now() {
            self.server.tick();
            if let Some(recover) = &mut self.recover {
                recover(&mut self.server, self.clock.now());
            }
            self.next_tick = Nanos(self.clock.now().0.saturating_add(TICK.0));
            self.answer_claims();
            self.announce();
            self.with_trace(TraceFile::write_due);
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
        // Starts after the client that was served last. Otherwise clients with low numbers have an advantage: they
        // are served before clients that missed the last turn, and are then ready in time for the next one.
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

    /// Serves one frame of a client, and sends replies and events that result from it.
    fn serve(&mut self, client: ClientId) {
        self.served = client;
        if let Err(ended) = self.exchange(client) {
            self.end(client, ended);
        }
        self.answer_claims();
        self.announce();
        self.with_trace(TraceFile::write_due);
    }

    /// Answers waiting claims that are decided.
    fn answer_claims(&mut self) {
        while self.server.has_claims()
            && let Some((ticket, result)) = self.server.next_answer(self.clock.now())
        {
            let found = self.connections.iter_mut().find_map(|(client, connection)| {
                let at = connection.claims.iter().position(|(known, _)| *known == ticket)?;
                let (_, tag) = connection.claims.remove(at);
                Some((client, claimed(&mut self.server, connection, tag, result)))
            });
            if let Some((client, (reply, change))) = found {
                self.cache.claimed(client, &reply.encode(), change);
                self.send_to_claim(client, &reply.encode());
            } else if let Ok(handle) = result {
                self.server.close(handle);
            }
        }
    }

    /// Sends clients events for handles that became readable.
    fn announce(&mut self) {
        while let Some(handle) = self.server.next_ready() {
            let found = self.connections.iter_mut().find_map(|(client, connection)| {
                let number = connection.number(handle)?;
                let opened = connection.handle(number)?;
                let told = std::mem::replace(&mut opened.told, true);
                Some((client, number, told))
            });
            if let Some((client, number, false)) = found {
                self.announce_to(client, number);
            }
        }
    }

    /// Sends a client the event that a handle is readable.
    pub(super) fn announce_to(&mut self, client: ClientId, number: u32) {
        let result = i64::try_from(READABLE).unwrap_or(i64::MAX);
        self.send(client, &Reply { tag: EVENT_TAG, result, handle: number }.encode());
    }

    /// Sends a frame that answers no request in the socket.
    pub(super) fn send(&mut self, client: ClientId, frame: &[u8]) {
        self.wire.note(client, Direction::ToClient, frame);
        self.attempt(client, |connection| connection.send(frame, Vec::new()));
    }

    fn attempt(
        &mut self,
        client: ClientId,
        action: impl FnOnce(&mut Connection) -> Result<(), Ended>,
    ) {
        let Some(connection) = self.connections.get_mut(client) else { return };
        if let Err(ended) = action(connection).and_then(|()| self.settle(client)) {
            self.end(client, ended);
        }
    }

    /// Ends a connection: drops its waiting claims and closes its handles. The socket is closed last.
    pub(super) fn end(&mut self, client: ClientId, why: Ended) {
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
        connection.hang_up();
        self.forget(client);
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
