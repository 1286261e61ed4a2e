//! What the loop waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::connection::{Connection, Ended};
use crate::policy::ClientId;

/// Numbers of what is no client: theirs have 32 bits.
const STOP: u64 = u64::MAX;
const ARRIVAL: u64 = u64::MAX - 1;
const FUNCTIONS: u64 = u64::MAX - 2;

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A request to stop.
    Stop,
    /// A new connection.
    Arrival,
    /// Functions that came or went.
    Functions,
    /// Requests of a client, or room for what it has not taken.
    Client(ClientId),
}

impl What {
    const fn number(self) -> u64 {
        match self {
            Self::Stop => STOP,
            Self::Arrival => ARRIVAL,
            Self::Functions => FUNCTIONS,
            Self::Client(ClientId(number)) => number as u64,
        }
    }

    /// What something was found of.
    pub(super) fn of(event: &Event) -> Self {
        match u32::try_from(event.data.u64()) {
            Ok(number) => Self::Client(ClientId(number)),
            Err(_) if event.data.u64() == STOP => Self::Stop,
            Err(_) if event.data.u64() == FUNCTIONS => Self::Functions,
            Err(_) => Self::Arrival,
        }
    }
}

/// Whether any of these was found.
pub(super) fn has(event: &Event, flags: EventFlags) -> bool {
    let found = event.flags;
    found.intersects(flags)
}

/// Everything that is waited for. A file is waited for until it is closed.
#[derive(Debug)]
pub(super) struct Waits {
    epoll: OwnedFd,
}

impl Waits {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Waits until there is something to be read, too.
    pub(super) fn add(&self, what: What, source: impl AsFd) -> io::Result<()> {
        let data = EventData::new_u64(what.number());
        Ok(epoll::add(&self.epoll, source, data, EventFlags::IN)?)
    }

    /// Waits for requests of a client that has taken everything, else for room for what it has not.
    pub(super) fn follow(
        &self,
        client: ClientId,
        connection: &mut Connection,
    ) -> Result<(), Ended> {
        let stuck = !connection.is_quiet();
        if stuck == connection.stuck {
            return Ok(());
        }
        connection.stuck = stuck;
        let flags = if stuck { EventFlags::OUT } else { EventFlags::IN };
        let data = EventData::new_u64(What::Client(client).number());
        epoll::modify(&self.epoll, &*connection, data, flags).map_err(Ended::Socket)
    }

    /// Waits for nothing of a connection any more, whoever else has its socket open.
    pub(super) fn remove(&self, connection: &Connection) {
        // It is there: it was added, and is removed once.
        let _ = epoll::delete(&self.epoll, connection);
    }

    /// Waits for something, at most so long, and adds what is found to `events`, of clients in order of their numbers
    /// and then of the others; no more than there is room for.
    pub(super) fn wait(&self, longest: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&longest)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        events.sort_unstable_by_key(|event| event.data.u64());
        Ok(())
    }
}
