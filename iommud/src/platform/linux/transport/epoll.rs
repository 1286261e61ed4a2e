//! The sources of events that the loop waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::connection::{Connection, Ended};
use crate::policy::ClientId;

/// Numbers of the sources that are not clients. Clients' numbers have 32 bits.
const STOP: u64 = u64::MAX;
const ARRIVAL: u64 = u64::MAX - 1;
const FUNCTIONS: u64 = u64::MAX - 2;
const KEEPER: u64 = u64::MAX - 3;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A request to stop.
    Stop,
    /// A new connection.
    Arrival,
    /// Functions that came or went.
    Functions,
    /// Messages of the keeper.
    Keeper,
    /// A client: its requests, or room in its socket for queued frames.
    Client(ClientId),
}

impl What {
    const fn number(self) -> u64 {
        match self {
            Self::Stop => STOP,
            Self::Arrival => ARRIVAL,
            Self::Functions => FUNCTIONS,
            Self::Keeper => KEEPER,
            Self::Client(ClientId(number)) => number as u64,
        }
    }

    /// The source of an event.
    pub(super) fn of(event: &Event) -> Self {
        match u32::try_from(event.data.u64()) {
            Ok(number) => Self::Client(ClientId(number)),
            Err(_) if event.data.u64() == STOP => Self::Stop,
            Err(_) if event.data.u64() == FUNCTIONS => Self::Functions,
            Err(_) if event.data.u64() == KEEPER => Self::Keeper,
            Err(_) => Self::Arrival,
        }
    }
}

/// Whether the event has any of these flags.
pub(super) fn has(event: &Event, flags: EventFlags) -> bool {
    let found = event.flags;
    found.intersects(flags)
}

/// All sources that the loop waits for. A file stays a source until it is closed.
#[derive(Debug)]
pub(super) struct Waits {
    epoll: OwnedFd,
}

impl Waits {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Adds a source, which is ready when it is readable.
    pub(super) fn add(&self, what: What, source: impl AsFd) -> io::Result<()> {
        let data = EventData::new_u64(what.number());
        Ok(epoll::add(&self.epoll, source, data, EventFlags::IN)?)
    }

    /// Selects what the loop waits for on a connection: room in the socket while frames are queued, requests
    /// otherwise.
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

    /// Removes a source, even if another process has it open.
    pub(super) fn remove(&self, source: impl AsFd) {
        // This cannot fail: the source was added, and is removed only once.
        let _ = epoll::delete(&self.epoll, source);
    }

    /// Waits at most `longest` for events, and appends them to `events`, up to its capacity. Events of clients come
    /// first, in order of their numbers.
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
