//! What the keeper holds so that it outlives servers: the socket that clients connect to, their connections, the reply
//! cache, and pins of buffers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::PollFlags;

use super::replace::control_path;
use crate::platform::linux::link::{Link, Message};
use crate::platform::linux::memory::PageName;
use crate::platform::linux::places::Places;
use crate::platform::linux::reply_cache::SharedCache;
use crate::platform::linux::transport::Listener;
use crate::policy::ClientId;

/// What outlives servers, and the link to the one that runs.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// Bound when the first server answers requests.
    pub(super) listener: Option<Listener>,
    /// Where programs arrive that are to replace the server's.
    pub(super) control: Option<Listener>,
    /// Who asks for a replacement.
    pub(super) asking: Option<Link>,
    /// The program that is to replace the server's.
    pub(super) wanted: Option<OwnedFd>,
    clients: Places<OwnedFd>,
    pins: BTreeMap<PageName, OwnedFd>,
    cache: OwnedFd,
    pub(super) link: Option<Link>,
    /// Clients that the server has not got yet.
    unsent: VecDeque<ClientId>,
    /// The server answers requests.
    pub(super) serves: bool,
}

impl Held {
    /// Holds nothing. Clients will connect to `path`.
    ///
    /// # Errors
    /// The reply cache cannot be made.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            path,
            listener: None,
            control: None,
            asking: None,
            wanted: None,
            clients: Places::new(),
            pins: BTreeMap::new(),
            cache: SharedCache::create()?,
            link: None,
            unsent: VecDeque::new(),
            serves: false,
        })
    }

    /// Begins with a new server, which gets everything. Returns its end of the link.
    ///
    /// # Errors
    /// The link cannot be made.
    pub(super) fn begin(&mut self) -> io::Result<OwnedFd> {
        let (link, server) = Link::pair()?;
        link.send(Message::Cache, Some(self.cache.as_fd()))?;
        self.link = Some(link);
        self.serves = false;
        self.unsent = self.clients.iter_mut().map(|(client, _)| client).collect();
        Ok(server)
    }

    /// What to wait for on the link.
    pub(super) fn awaited(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Takes what the server sent, accepts clients, and hands them to the server. Waits for nothing.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        while let Some(link) = &self.link {
            match link.receive() {
                Ok(Some((message, descriptor))) => self.take(message, descriptor)?,
                Ok(None) => break,
                Err(error) => {
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        log::error!("keeper: the server's message: {error}");
                    }
                    self.link = None;
                }
            }
        }
        self.accept();
        self.hand_over();
        self.hear_of_programs();
        Ok(())
    }

    /// Hears who asks for a replacement, one after the other.
    fn hear_of_programs(&mut self) {
        if self.asking.is_none() {
            let accepted = self.control.as_ref().and_then(|control| control.accept().ok());
            self.asking = accepted.map(Link::over);
        }
        match self.asking.as_ref().map(Link::receive) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some((Message::Replace, Some(program))))) => self.wanted = Some(program),
            // It is gone, or sent something else.
            Some(_) => self.asking = None,
        }
    }

    /// Answers who asked for a replacement.
    pub(super) fn replaced(&mut self, done: bool) {
        if let Some(link) = self.asking.take()
            && let Err(error) = link.send(Message::Replaced(done), None)
        {
            log::warn!("keeper: a replacement is not reported: {error}");
        }
    }

    fn take(&mut self, message: Message, descriptor: Option<OwnedFd>) -> io::Result<()> {
        match (message, descriptor) {
            (Message::Serving, _) => {
                self.serves = true;
                if self.listener.is_none() {
                    self.control = Some(Listener::bind(&control_path(&self.path))?);
                    self.listener = Some(Listener::bind(&self.path)?);
                }
            }
            (Message::Gone(client), _) => {
                self.clients.remove(client);
            }
            (Message::Pin(page), Some(pin)) => {
                self.pins.insert(page, pin);
            }
            (Message::Unpin(page), _) => {
                self.pins.remove(&page);
            }
            (Message::UnpinServer(server), _) => self.pins.retain(|page, _| page.server != server),
            (other, _) => log::error!("keeper: {other:?} was not expected"),
        }
        Ok(())
    }

    /// Accepts clients that wait. Further ones than there are places are turned away.
    fn accept(&mut self) {
        while let Some(accepted) = self.listener.as_ref().map(Listener::accept) {
            match accepted {
                Ok(socket) => match self.clients.free_number() {
                    Some(client) => {
                        self.clients.insert(client, socket);
                        self.unsent.push_back(client);
                    }
                    None => log::warn!("keeper: a client was turned away: there are too many"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("keeper: no connection was accepted: {error}"),
            }
        }
    }

    /// Hands clients over, as many as the link has room for.
    fn hand_over(&mut self) {
        let Some(link) = &self.link else { return };
        while let Some(&client) = self.unsent.front() {
            // One that ended before the server got it is gone without it.
            if let Some(socket) = self.clients.get_mut(client)
                && let Err(error) = link.send(Message::Client(client), Some(socket.as_fd()))
            {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("keeper: client {} is not handed over: {error}", client.0);
                }
                return;
            }
            self.unsent.pop_front();
        }
    }
}
