//! The memory of requests, and how strictly the controller is confined to it.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use iommu_client::{
    Device, DeviceMemory, Direction, DmaBlock, DmaPool, Error as ClientError, Exposure, Granted,
    PoolOptions, Slot, TransferOptions, TransferQueue,
};

use crate::error::Error;
use crate::queue::{Operation, Request};

/// Bytes of the longest block of a pool, unless a request is longer.
const BLOCK: u64 = 128 << 10;

/// How strictly a controller is confined to the memory of its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confine {
    /// It reaches the memory of all requests all the time, in both directions.
    #[default]
    Pool,
    /// It reaches the pages of a request while that is under way, in its direction.
    Transfer,
    /// The same. In the rest of the last page it finds zeros, and what it writes there is dropped.
    PageExact,
}

impl Confine {
    /// Every mode, the strictest last.
    pub const ALL: [Self; 3] = [Self::Pool, Self::Transfer, Self::PageExact];

    const fn name(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Transfer => "transfer",
            Self::PageExact => "page-exact",
        }
    }
}

impl fmt::Display for Confine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Confine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or("not pool, transfer or page-exact")
    }
}

/// The memory of a request while it is the driver's.
#[derive(Debug)]
pub enum Data {
    /// Of a request that moves no data.
    None,
    /// A block that the controller reaches all the time.
    Block(DmaBlock),
    /// A slot that the controller does not reach.
    Slot(Slot),
}

impl Data {
    /// Its length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Block(block) => block.length(),
            Self::Slot(slot) => slot.length(),
        }
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`ClientError::Outside`]; nothing is copied then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ClientError> {
        match self {
            Self::None => Err(ClientError::Outside),
            Self::Block(block) => block.write(offset, bytes),
            Self::Slot(slot) => slot.write(offset, bytes),
        }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`ClientError::Outside`]; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ClientError> {
        match self {
            Self::None => Err(ClientError::Outside),
            Self::Block(block) => block.read(offset, bytes),
            Self::Slot(slot) => slot.read(offset, bytes),
        }
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        match self {
            Self::None => {}
            Self::Block(block) => block.fill(byte),
            Self::Slot(slot) => slot.fill(byte),
        }
    }

    /// All of its bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Block(block) => block.to_vec(),
            Self::Slot(slot) => slot.to_vec(),
        }
    }
}

/// The memory of a request while it is the controller's.
#[derive(Debug)]
pub enum LentData {
    /// Of a request that moves no data.
    None,
    /// A block that the controller reaches all the time.
    Block(DmaBlock),
    /// Pages that the controller reaches for this request.
    Granted(Granted),
}

impl DeviceMemory for LentData {
    fn iova(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Block(block) => block.iova(),
            Self::Granted(granted) => granted.iova(),
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Block(block) => block.length(),
            Self::Granted(granted) => granted.length(),
        }
    }
}

/// Gives requests their memory, lends it to the controller, and gets it back.
///
/// ```text
/// take --> Data --lend--> (queued) --flush--> LentData, by `ready` --finished--> (queued) --flush--> Data, by `returned`
/// ```
///
/// From a pool all of it is free. From a transfer queue a flush is one call to the server, whatever it lends and gets
/// back; until then the controller reaches nothing of what is lent, and nothing of what is finished is given back.
#[derive(Debug)]
pub struct DataSource {
    kind: Kind,
    depth: usize,
    /// Requests whose memory is to be granted, and those whose memory is to be revoked, in the order of the queue.
    granting: VecDeque<Request>,
    revoking: VecDeque<Request>,
    ready: VecDeque<(Request, LentData)>,
    returned: VecDeque<(Request, Data)>,
}

#[derive(Debug)]
enum Kind {
    Pool(DmaPool),
    Queue(TransferQueue),
}

impl DataSource {
    /// Memory for `depth` requests at once, each of at most `longest` bytes.
    ///
    /// # Errors
    /// The errors of [`TransferQueue::new`] and [`DmaPool::new`].
    pub fn new(
        device: &Device,
        confine: Confine,
        depth: usize,
        longest: u64,
    ) -> Result<Self, Error> {
        let exposure = match confine {
            Confine::Pool => return Self::of(Kind::Pool(pool(device, longest)?), depth),
            Confine::Transfer => Exposure::Pages,
            Confine::PageExact => Exposure::Bytes,
        };
        // A flush revokes the requests that have ended, and grants as many others.
        let slots = depth.saturating_mul(2);
        let options = TransferOptions { slots, slot_bytes: longest, exposure, above_4g: true };
        Self::of(Kind::Queue(TransferQueue::new(device, options)?), depth)
    }

    fn of(kind: Kind, depth: usize) -> Result<Self, Error> {
        let (granting, revoking) = (VecDeque::new(), VecDeque::new());
        let (ready, returned) = (VecDeque::new(), VecDeque::new());
        Ok(Self { kind, depth, granting, revoking, ready, returned })
    }

    /// The most requests at once.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Takes memory for a request of `length` bytes, which may be none.
    ///
    /// # Errors
    /// The errors of [`DmaPool::take`] and [`TransferQueue::take`].
    pub fn take(&self, length: u64) -> Result<Data, Error> {
        Ok(match &self.kind {
            _ if length == 0 => Data::None,
            Kind::Pool(pool) => Data::Block(pool.take(length)?),
            Kind::Queue(queue) => Data::Slot(queue.take(length)?),
        })
    }

    /// Queues the memory of a request for the controller. It is ready after the next flush.
    ///
    /// # Errors
    /// The errors of [`TransferQueue::grant`].
    pub fn lend(&mut self, request: Request, data: Data) -> Result<(), Error> {
        match (data, &mut self.kind) {
            (Data::None, _) => self.ready.push_back((request, LentData::None)),
            (Data::Block(block), _) => self.ready.push_back((request, LentData::Block(block))),
            (Data::Slot(slot), Kind::Queue(queue)) => {
                queue.grant(slot, direction(&request))?;
                self.granting.push_back(request);
            }
            (Data::Slot(_), Kind::Pool(_)) => return Err(ClientError::OtherQueue.into()),
        }
        Ok(())
    }

    /// Queues the memory of a request that has ended. It is returned after the next flush.
    ///
    /// # Errors
    /// The errors of [`TransferQueue::finished`].
    pub fn finished(&mut self, request: Request, data: LentData) -> Result<(), Error> {
        match (data, &mut self.kind) {
            (LentData::None, _) => self.returned.push_back((request, Data::None)),
            (LentData::Block(block), _) => self.returned.push_back((request, Data::Block(block))),
            (LentData::Granted(granted), Kind::Queue(queue)) => {
                queue.finished(granted)?;
                self.revoking.push_back(request);
            }
            (LentData::Granted(_), Kind::Pool(_)) => return Err(ClientError::OtherQueue.into()),
        }
        Ok(())
    }

    /// Has the controller lose and get what is queued. At most one call to the server, and none if nothing is queued.
    ///
    /// # Errors
    /// The errors of [`TransferQueue::flush`]: nothing has changed then.
    pub fn flush(&mut self) -> Result<(), Error> {
        let Kind::Queue(queue) = &mut self.kind else { return Ok(()) };
        let flushed = queue.flush();
        while let Some(granted) = queue.granted() {
            let request = self.granting.pop_front();
            self.ready.extend(request.map(|request| (request, LentData::Granted(granted))));
        }
        while let Some(slot) = queue.returned() {
            let request = self.revoking.pop_front();
            self.returned.extend(request.map(|request| (request, Data::Slot(slot))));
        }
        Ok(flushed?)
    }

    /// The next request whose memory the controller reaches.
    pub fn ready(&mut self) -> Option<(Request, LentData)> {
        self.ready.pop_front()
    }

    /// The next request that has ended and whose memory is the driver's again.
    pub fn returned(&mut self) -> Option<(Request, Data)> {
        self.returned.pop_front()
    }

    /// Forgets requests that a failed run has left behind. Their memory is free again.
    pub(crate) fn clear(&mut self) -> Result<(), Error> {
        self.ready.clear();
        if let Kind::Queue(queue) = &mut self.kind {
            drop(queue.withdraw());
            self.granting.clear();
            self.flush()?;
        }
        self.returned.clear();
        Ok(())
    }
}

fn pool(device: &Device, longest: u64) -> Result<DmaPool, Error> {
    let largest = longest.max(BLOCK).next_power_of_two();
    let options = PoolOptions { largest, chunk: 2 << 20, above_4g: true, ..Default::default() };
    Ok(DmaPool::new(device, options)?)
}

/// The direction of a request that moves data.
const fn direction(request: &Request) -> Direction {
    match request.operation {
        Operation::Read => Direction::FromDevice,
        Operation::Write | Operation::Flush => Direction::ToDevice,
    }
}
