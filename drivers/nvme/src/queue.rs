//! Requests under way.

use iommu_client::{DeviceMemory, DmaBlock, DmaPool, ScatterList};

use crate::error::{Error, Status};
use crate::identify::NamespaceInfo;
use crate::pointer::DataPointer;
use crate::prp;
use crate::rings::Rings;
use crate::spec::{self, Command, Completion, PAGE};

/// The operation of a request on a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The controller writes memory.
    Read,
    /// The controller reads memory.
    Write,
    /// The controller makes earlier writes durable.
    Flush,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Identifier of the namespace, from 1.
    pub namespace: u32,
    /// The operation.
    pub operation: Operation,
    /// First block; ignored by flush.
    pub first: u64,
    /// Number of blocks; ignored by flush.
    pub blocks: u64,
}

/// A request that the controller has completed, and its memory.
#[derive(Debug)]
pub struct Done<D> {
    /// The request.
    pub request: Request,
    /// Its memory, which the controller no longer uses.
    pub data: D,
    /// The result.
    pub result: Result<(), Status>,
}

/// A request's memory until the request has ended.
struct InFlight<D> {
    request: Request,
    data: D,
    /// Lists of addresses.
    lists: Vec<DmaBlock>,
}

/// A queue of requests. The identifier of a command is its index in `slots`.
pub(crate) struct Queue<D> {
    pub(crate) rings: Rings,
    slots: Vec<Option<InFlight<D>>>,
    free: Vec<u16>,
    /// The tail of the submission ring, when the controller was not told of it.
    tail: Option<u16>,
}

impl<D: DeviceMemory> Queue<D> {
    /// Makes a queue for `entries - 1` requests.
    pub(crate) fn new(rings: Rings) -> Self {
        let count = rings.entries() - 1;
        let slots = (0..count).map(|_| None).collect();
        Self { rings, slots, free: (0..count).rev().collect(), tail: None }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Takes the new tail of the submission ring, for the doorbell, if there is one.
    pub(crate) const fn take_tail(&mut self) -> Option<u16> {
        self.tail.take()
    }

    /// Writes a request into the ring. If it is refused, its memory comes back.
    pub(crate) fn submit(
        &mut self,
        request: Request,
        data: D,
        namespace: &NamespaceInfo,
        pool: &DmaPool,
    ) -> Result<(), (Error, D)> {
        let Some(slot) = self.free.pop() else { return Err((Error::Full, data)) };
        match encode(&request, &data, namespace, pool) {
            Ok((command, lists)) => {
                if let Some(place) = self.slots.get_mut(usize::from(slot)) {
                    *place = Some(InFlight { request, data, lists });
                }
                self.tail = Some(self.rings.push(slot, &command));
                Ok(())
            }
            Err(error) => {
                self.free.push(slot);
                Err((error, data))
            }
        }
    }

    /// Ends the request of a completion. Its memory is returned to the caller only now.
    pub(crate) fn complete(&mut self, completion: Completion) -> Result<Done<D>, Error> {
        let Completion { command, status, .. } = completion;
        let slot = self.slots.get_mut(usize::from(command)).and_then(Option::take);
        let InFlight { request, data, lists } = slot.ok_or(Error::ProtocolError { command })?;
        drop(lists);
        self.free.push(command);
        let result = if status == 0 { Ok(()) } else { Err(Status(status)) };
        Ok(Done { request, data, result })
    }

    /// Identifiers of the commands under way.
    pub(crate) fn identifiers(&self) -> impl Iterator<Item = u16> {
        let taken = |(number, slot): (u16, &Option<_>)| slot.as_ref().map(|_| number);
        (0..).zip(&self.slots).filter_map(taken)
    }

    /// Ends all requests, none of which counts as carried out. The controller is disabled, so it uses no memory.
    pub(crate) fn abort(&mut self) -> Vec<(Request, D)> {
        self.rings.clear();
        self.tail = None;
        let count = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        self.free = (0..count).rev().collect();
        let taken = self.slots.iter_mut().filter_map(Option::take);
        taken.map(|InFlight { request, data, .. }| (request, data)).collect()
    }
}

fn encode<D: DeviceMemory>(
    request: &Request,
    data: &D,
    namespace: &NamespaceInfo,
    pool: &DmaPool,
) -> Result<(Command, Vec<DmaBlock>), Error> {
    let Request { first, blocks, .. } = *request;
    let opcode = match request.operation {
        Operation::Flush => {
            return Ok((spec::command(spec::FLUSH, namespace.id, 0, 0, [0; 3]), Vec::new()));
        }
        Operation::Read => spec::READ,
        Operation::Write => spec::WRITE,
    };
    let (size, most) = (namespace.blocks, namespace.most_blocks);
    let inside = first.checked_add(blocks).is_some_and(|end| end <= size);
    let count = blocks.checked_sub(1).and_then(|count| u16::try_from(count).ok());
    let (Some(count), true) = (count, inside && blocks <= most) else {
        return Err(Error::Range { first, blocks, size, most });
    };
    let length = blocks * namespace.block_size;
    let mut list = ScatterList::new();
    let too_short = Error::Memory { iova: data.iova(), length: data.length() };
    list.push(data, 0..length).map_err(|_| too_short)?;
    // Two pages are in the command in either form.
    let block = if namespace.sgl && length > 2 * PAGE {
        DataPointer::block(data.iova(), length)
    } else {
        None
    };
    let pointer = block.map_or_else(|| prp::build(&list, pool), Ok)?;
    let DataPointer { words: [pointer1, pointer2], kind, lists } = pointer;
    let [low, high] = spec::halves(first);
    let words = [low, high, u32::from(count)];
    Ok((spec::command(opcode | kind, namespace.id, pointer1, pointer2, words), lists))
}
