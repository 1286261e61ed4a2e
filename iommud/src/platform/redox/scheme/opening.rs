//! Opens paths: the result is an open handle, or a claim that waits.

use syscall::error::{EBADF, EINVAL, Error, Result};

use redox_scheme::CallerCtx;

use super::{IommuScheme, ROOT, SESSION_CLIENT, Window, refused};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::platform::redox::claims::wait_of;
use crate::policy::ClientId;
use crate::server::{Caller, Handle, Opened};

impl<U: Unit, B: BufferMemory<Share = Window>> IommuScheme<U, B> {
    /// Enters the results of decided claims. Called after each event and each tick, before kept requests are polled.
    pub fn answer_claims(&mut self) {
        while self.server.has_claims()
            && let Some(now) = self.claims.now()
            && let Some((ticket, answer)) = self.server.next_answer(now)
        {
            match (self.claims.decide(ticket, answer), answer) {
                (Some(claim), Ok(session)) => self.enter(session, claim.client, claim.process),
                (None, Ok(session)) => self.server.close(session),
                (_, Err(_)) => {}
            }
        }
    }

    /// Whether claims wait, or their results. Then the loop must wake for them.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.server.has_claims()
    }

    /// Opens a path and returns the number of the open handle or claim.
    pub(super) fn open(
        &mut self,
        at: usize,
        path: &str,
        write: bool,
        caller: &CallerCtx,
    ) -> Result<usize> {
        // The name space's server leaves a slash in front of the path. Programs put one behind names of directories.
        let (path, wait) = wait_of(path.trim_matches('/'))?;
        if wait.is_some() && !write {
            return Err(Error::new(EINVAL));
        }
        let at = if at == ROOT { None } else { Some(self.handle(at)?) };
        let session = at.and_then(|at| self.clients.get(&at).copied());
        let client = match session {
            Some(client) => client,
            // The name space manager opens for others, as process 0: nobody can be told from another. What programs hold
            // is limited by the system.
            None => self.new_client(),
        };
        let who = Caller { client, uid: caller.uid };
        let opened = self.open_within(who, at, path, (write, wait), caller.pid)?;
        if session.is_none() {
            self.last_client = client.0;
        }
        Ok(opened)
    }

    /// Opens a path at once, or enters a claim that waits. The call itself never waits.
    fn open_within(
        &mut self,
        who: Caller,
        at: Option<Handle>,
        path: &str,
        (write, wait): (bool, Option<Nanos>),
        process: usize,
    ) -> Result<usize> {
        let may_wait = self.claims.has_room(process);
        let times = wait.filter(|_| may_wait).and_then(|wait| Some((self.claims.now()?, wait)));
        let opened = match times {
            Some(times) => self.server.open_within(who, at, path, times),
            None => self.server.open(who, at, path, write).map(Opened::Now),
        };
        match opened.map_err(refused)? {
            Opened::Now(opened) => {
                if write && !self.server.is_control(opened) {
                    self.enter(opened, who.client, process);
                }
                usize::try_from(opened.0).map_err(|_| Error::new(EBADF))
            }
            Opened::Later(ticket) => self.claims.add(ticket, who.client, process),
        }
    }

    /// Enters a session, and the process that opened it. The name space manager opens paths for others, as process 0.
    fn enter(&mut self, session: Handle, client: ClientId, process: usize) {
        self.clients.insert(session, client);
        if let Ok(process @ 1..) = u32::try_from(process) {
            self.server.set_process(client, process);
        }
    }

    /// Whether this client has a session, or a claim that may become one.
    fn is_client(&self, client: ClientId) -> bool {
        self.clients.values().any(|other| *other == client) || self.claims.has_client(client)
    }

    /// The number of a client for a new session: the next one that no open session or claim has.
    pub(super) fn new_client(&self) -> ClientId {
        let mut number = self.last_client;
        loop {
            number = SESSION_CLIENT | number.wrapping_add(1);
            if !self.is_client(ClientId(number)) {
                return ClientId(number);
            }
        }
    }
}
