//! What may come next: a client's next request, or something that happens to the machine.

use iommu_protocol::Refusal;

use super::scene::Device;

/// A client: C1 is 0.
pub type Client = usize;

/// One event of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Opens a device for writing.
    Claim(Device),
    /// Opens a device for writing, and waits for its unit if that is not up yet.
    ClaimWithin(Device),
    /// Opens a device under the session on another one: one owner, one domain.
    ClaimUnder(Device, Device),
    /// Reads what the scheme tells of a device.
    Look(Device),
    /// Puts the device into the session's domain.
    Attach(Device),
    /// Puts the device back under policy.
    Detach(Device),
    /// Allocates a buffer of so many pages, mapped.
    Allocate(Device, u64),
    /// Maps the first page of the first buffer once more.
    Map(Device),
    /// Maps the first page of the first buffer at this address.
    MapFixed(Device, u64),
    /// Ends the oldest mapping.
    Unmap(Device),
    /// Unmaps a page at this address, whatever is there.
    UnmapAt(Device, u64),
    /// Gives up the first buffer.
    Release(Device),
    /// Maps three pages of the first buffer in one request, whose bytes the reply overwrites.
    Batch(Device),
    /// Maps these pages of the first buffer, in this order, as one range: at this address, or at any (0).
    List(Device, u64, &'static [u32]),
    /// Allocates a buffer of so many pages, of which nothing is mapped.
    Reserve(Device, u64),
    /// Lets the device reach this page of the first such buffer.
    Grant(Device, u64),
    /// Takes the page back.
    Revoke(Device, u64),
    /// Takes over the first buffer of this client's session on a device, which hands it on.
    Import(Device, Client, Device),
    /// Names objects of another client: its handle, its slots, its addresses.
    Guess(Device, Client),
    /// Closes a session.
    Close(Device),
    /// A client's process ends: all its sessions close.
    Die(Client),
    /// A unit that was late comes up.
    Arrive(usize),
    /// A function appears.
    Added(Device),
    /// A function goes away.
    Removed(Device),
    /// A function was reset: the bus announces it again.
    Reset(Device),
    /// A unit's queue stops after so many descriptors.
    Stall(usize, u64),
    /// The queue goes on.
    Recover(usize),
    /// An administrator has this unit brought up again.
    Again(usize),
    /// A unit is gone.
    Kill(usize),
    /// The server dies and another one takes its place.
    Restart,
    /// A device tries a hundred addresses that it was not granted.
    Storm(Device),
    /// The deadlines of all claims that wait pass.
    Expire,
    /// Faults are taken, as the loop does when it is idle.
    Tick,
}

/// What goes wrong while an event is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The allocation of a table frame after this many.
    Table(u64),
    /// The allocation of a buffer.
    Buffer,
    /// Every allocation, of tables and of buffers.
    Exhausted,
    /// This unit dies after so many actions of the CPU.
    Dies(usize, u64),
    /// The queue of this unit stops after so many descriptors.
    Stalls(usize, u64),
    /// The server that takes the place of a dead one dies after so many actions of the CPU, and a third one follows.
    ServerDies(u64),
}

/// An event, and what goes wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happens.
    pub act: Act,
    /// What goes wrong.
    pub failure: Option<Failure>,
}

impl From<Act> for Event {
    fn from(act: Act) -> Self {
        Self { act, failure: None }
    }
}

/// Memory piece by piece: first byte and length.
pub type Segments = Vec<(u64, u64)>;

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// A session: its handle, and the ids by which its device is known.
    Session {
        /// The handle.
        handle: u32,
        /// The group and the generation of the device, as the session is told them.
        ids: (u32, u32),
    },
    /// No answer yet: the claim waits, under this number.
    Waits(u64),
    /// What the text says of a device: group and generation; `None` when there is no such device.
    Looked(Option<(u32, u32)>),
    /// A buffer, with its memory as the machine knows it.
    Buffer {
        /// Its slot.
        slot: u32,
        /// Where it is mapped.
        iova: u64,
        /// Its memory.
        memory: Segments,
    },
    /// A buffer of which nothing is mapped: the address of its first page, once it is granted.
    Reserved {
        /// Its slot.
        slot: u32,
        /// Where its first page is mapped when it is.
        iova: u64,
        /// Its memory.
        memory: Segments,
    },
    /// Pages were mapped as one range, from this address on.
    Listed(u64),
    /// A buffer was taken over, under this slot.
    Imported(u32),
    /// New mappings, one page each: address and offset in the first buffer.
    Mapped(Vec<(u64, u64)>),
    /// Refused.
    Refused(Refusal),
    /// Every guess was refused.
    AllRefused,
    /// This guess was not.
    Accepted(&'static str),
}

/// Who does what: a client's requests in order, or a series of things that happen.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Whose requests; `None` for the machine.
    pub client: Option<Client>,
    /// In order.
    pub events: Vec<Event>,
}

/// The requests of a client.
#[must_use]
pub fn client(number: usize, acts: &[Act]) -> Stream {
    Stream { client: Some(number - 1), events: acts.iter().map(|act| (*act).into()).collect() }
}

/// Things that happen to the machine, in order.
#[must_use]
pub fn machine(acts: &[Act]) -> Stream {
    Stream { client: None, events: acts.iter().map(|act| (*act).into()).collect() }
}

impl Stream {
    /// Lets the `index`-th event go wrong.
    #[must_use]
    pub fn with_failure(mut self, index: usize, failure: Failure) -> Self {
        self.events[index].failure = Some(failure);
        self
    }
}
