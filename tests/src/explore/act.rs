//! Events of an exploration: a client's next request, or an event of the machine.

use iommu_protocol::Refusal;

use super::scene::Device;

/// A client: C1 is 0.
pub type Client = usize;

/// One event of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Opens a device for writing.
    Claim(Device),
    /// Opens a device for writing. Waits for its unit if the unit is not up yet.
    ClaimWithin(Device),
    /// Opens a device under the session on another one: both share one owner and one domain.
    ClaimUnder(Device, Device),
    /// Reads the scheme's text about a device.
    Look(Device),
    /// Attaches the device to the session's domain.
    Attach(Device),
    /// Returns the device to its policy.
    Detach(Device),
    /// Allocates a buffer of this many pages and maps it.
    Allocate(Device, u64),
    /// Maps the first page of the first buffer again.
    Map(Device),
    /// Maps the first page of the first buffer at this address.
    MapFixed(Device, u64),
    /// Unmaps the oldest mapping.
    Unmap(Device),
    /// Unmaps a page at this address, mapped or not.
    UnmapAt(Device, u64),
    /// Releases the first buffer.
    Release(Device),
    /// Maps three pages of the first buffer in one request. The reply overwrites the request's bytes.
    Batch(Device),
    /// Maps these pages of the first buffer, in this order, as one range. The range starts at this address, or
    /// anywhere when it is 0.
    List(Device, u64, &'static [u32]),
    /// Allocates a buffer of this many pages without mapping any.
    Reserve(Device, u64),
    /// Grants the device this page of the first reserved buffer.
    Grant(Device, u64),
    /// Revokes the page.
    Revoke(Device, u64),
    /// Imports the first buffer of this client's session on a device. The owner exports it.
    Import(Device, Client, Device),
    /// Guesses objects of another client: its handle, its slots, its addresses.
    Guess(Device, Client),
    /// Closes a session.
    Close(Device),
    /// Ends a client's process: all its sessions close.
    Die(Client),
    /// A unit that was late is brought up.
    Arrive(usize),
    /// A function appears.
    Added(Device),
    /// A function disappears.
    Removed(Device),
    /// A function was reset: the bus announces it a second time.
    Reset(Device),
    /// A unit's queue stalls after this many descriptors.
    Stall(usize, u64),
    /// The queue resumes.
    Recover(usize),
    /// An administrator makes the server bring this unit up again.
    Again(usize),
    /// A unit dies.
    Kill(usize),
    /// The server dies and another one replaces it.
    Restart,
    /// A device tries a hundred addresses outside its grants.
    Storm(Device),
    /// The deadlines of all waiting claims pass.
    Expire,
    /// The server takes faults, as the loop does when it is idle.
    Tick,
}

/// A failure injected into an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The allocation of a table frame fails after this many successes.
    Table(u64),
    /// The allocation of a buffer fails.
    Buffer,
    /// Every allocation of tables and buffers fails.
    Exhausted,
    /// This unit dies after this many actions of the CPU.
    Dies(usize, u64),
    /// The queue of this unit stalls after this many descriptors.
    Stalls(usize, u64),
    /// The successor of a dead server dies after this many actions of the CPU, and a third server follows.
    ServerDies(u64),
}

/// An event, with the failure injected into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event.
    pub act: Act,
    /// The failure.
    pub failure: Option<Failure>,
}

impl From<Act> for Event {
    fn from(act: Act) -> Self {
        Self { act, failure: None }
    }
}

/// Memory in pieces: first byte and length of each.
pub type Segments = Vec<(u64, u64)>;

/// The result of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The event succeeded.
    Done,
    /// A session: its handle, and the ids of its device.
    Session {
        /// The handle.
        handle: u32,
        /// The group and the generation of the device, from the query of the session.
        ids: (u32, u32),
    },
    /// The claim waits, under this ticket. The answer comes later.
    Waits(u64),
    /// Group and generation in the text about a device; `None` when the device does not exist.
    Looked(Option<(u32, u32)>),
    /// A buffer, with its memory as recorded by the machine.
    Buffer {
        /// Its slot.
        slot: u32,
        /// Address of its mapping.
        iova: u64,
        /// Its memory.
        memory: Segments,
    },
    /// A buffer without mappings.
    Reserved {
        /// Its slot.
        slot: u32,
        /// The address at which its first page is mapped when it is granted.
        iova: u64,
        /// Its memory.
        memory: Segments,
    },
    /// Pages were mapped as one range, which starts at this address.
    Listed(u64),
    /// A buffer was imported under this slot.
    Imported(u32),
    /// New mappings, one page each: address and offset in the first buffer.
    Mapped(Vec<(u64, u64)>),
    /// The request was refused.
    Refused(Refusal),
    /// Every guess was refused.
    AllRefused,
    /// This guess was accepted.
    Accepted(&'static str),
}

/// One client's requests in order, or a series of events of the machine.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The client; `None` for the machine.
    pub client: Option<Client>,
    /// The events, in order.
    pub events: Vec<Event>,
}

/// Builds the stream of a client (C1 is `number` 1).
#[must_use]
pub fn client(number: usize, acts: &[Act]) -> Stream {
    Stream { client: Some(number - 1), events: acts.iter().map(|act| (*act).into()).collect() }
}

/// Builds a stream of events of the machine.
#[must_use]
pub fn machine(acts: &[Act]) -> Stream {
    Stream { client: None, events: acts.iter().map(|act| (*act).into()).collect() }
}

impl Stream {
    /// Injects a failure into the `index`-th event.
    #[must_use]
    pub fn with_failure(mut self, index: usize, failure: Failure) -> Self {
        self.events[index].failure = Some(failure);
        self
    }
}
