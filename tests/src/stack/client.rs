//! Requests of clients, and accesses of their devices.

use iommu_protocol::Refusal;
use iommu_protocol::fault::{FaultRecord, RECORD_SIZE};
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{
    Access, Allocate, AllocateResult, BufferRequest, Empty, Map, MapResult, Operation, QueryResult,
    ReplyHeader, RequestHeader, Unmap, Wire,
};
use iommud::policy::ClientId;
use iommud::server::{Caller, Handle};

use super::Stack;
use crate::conformance::UnderTest;
use crate::machine::{BufferShare, Denied};

impl<T: UnderTest> Stack<T> {
    /// A client opens its device.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn claim(&mut self, client: u32, device: PciAddress) -> Result<Handle, Refusal> {
        let caller = Caller { client: ClientId(client), uid: 0 };
        self.server.open(caller, None, &format!("devices/{device}"), true)
    }

    /// Sends the bytes of a request, with room for a reply of `room` bytes, and returns the reply's.
    ///
    /// # Errors
    /// The server's refusal, when there is no reply.
    pub fn raw(&mut self, handle: Handle, request: &[u8], room: usize) -> Result<Vec<u8>, Refusal> {
        let mut payload = request.to_vec();
        payload.resize(room.max(request.len()), 0xee);
        let length = self.server.call(handle, &mut payload, request.len())?;
        payload.truncate(length);
        Ok(payload)
    }

    /// Sends a request and decodes the reply. The reply's header must match the request.
    ///
    /// # Errors
    /// The refusal in the reply, or the server's refusal when there is no reply.
    ///
    /// # Panics
    /// When the reply is malformed.
    pub fn call<R: Wire>(
        &mut self,
        handle: Handle,
        operation: Operation,
        body: &impl Wire,
    ) -> Result<R, Refusal> {
        let request = request(operation, body);
        let reply = self.raw(handle, &request, operation.payload_size())?;
        let header = ReplyHeader::decode(&reply).expect("a header");
        assert_eq!(usize::try_from(header.length), Ok(reply.len()));
        assert_eq!((header.version, header.operation), (1, operation.code()));
        assert_eq!((header.cookie, header.reserved), (COOKIE, 0));
        match header.refusal {
            0 => Ok(R::decode(&reply[ReplyHeader::SIZE..]).expect("a result")),
            code => {
                assert_eq!(reply.len(), ReplyHeader::SIZE, "a refusal has no result");
                Err(Refusal::from_code(code).expect("a known refusal"))
            }
        }
    }

    /// Puts a device into its session's domain.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn attach(&mut self, session: Handle) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Attach, &Empty::default()).map(drop)
    }

    /// Gives a device back to its policy.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn detach(&mut self, session: Handle) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Detach, &Empty::default()).map(drop)
    }

    /// Detaches and closes, so that the device goes back to its policy. (A session that ends while attached leaves
    /// its device blocked.)
    ///
    /// # Panics
    /// When the server refuses.
    pub fn give_back(&mut self, session: Handle) {
        self.detach(session).expect("detach");
        self.server.close(session);
    }

    /// Queries a session.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn query(&mut self, session: Handle) -> Result<QueryResult, Refusal> {
        self.call(session, Operation::Query, &Empty::default())
    }

    /// Allocates a buffer that may be read and written.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn allocate(&mut self, session: Handle, length: u64) -> Result<AllocateResult, Refusal> {
        let access = Access::all().bits();
        self.call(session, Operation::Allocate, &Allocate { length, access, ..Allocate::default() })
    }

    /// Releases a buffer.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn release(&mut self, session: Handle, slot: u32) -> Result<(), Refusal> {
        let request = BufferRequest { slot, reserved: 0 };
        self.call::<Empty>(session, Operation::Release, &request).map(drop)
    }

    /// Maps part of a buffer for reading and writing, anywhere.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn map(
        &mut self,
        session: Handle,
        slot: u32,
        offset: u64,
        length: u64,
    ) -> Result<u64, Refusal> {
        let access = Access::all().bits();
        let map = Map { slot, access, offset, length, ..Map::default() };
        self.call::<MapResult>(session, Operation::Map, &map).map(|result| result.iova)
    }

    /// Ends a mapping.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn unmap(&mut self, session: Handle, iova: u64, length: u64) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Unmap, &Unmap { iova, length }).map(drop)
    }

    /// Maps a buffer into the client's process.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn share(
        &mut self,
        client: u32,
        session: Handle,
        slot: u32,
    ) -> Result<BufferShare, Refusal> {
        let caller = Caller { client: ClientId(client), uid: 0 };
        let buffer = self.server.open(caller, Some(session), &format!("buffers/{slot}"), true)?;
        let share = self.server.share(buffer).map(|(share, _)| share);
        self.server.close(buffer);
        share
    }

    /// A device writes.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn device_write(&self, device: PciAddress, iova: u64, bytes: &[u8]) -> Result<(), Denied> {
        self.machine.device_write(self.unit_of(device), device.requester.0, iova, bytes)
    }

    /// A device reads.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn device_read(
        &self,
        device: PciAddress,
        iova: u64,
        length: usize,
    ) -> Result<Vec<u8>, Denied> {
        let mut out = vec![0; length];
        self.machine.device_read(self.unit_of(device), device.requester.0, iova, &mut out)?;
        Ok(out)
    }

    /// The same as [`Stack::device_read`], with the no-snoop attribute.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn device_read_no_snoop(
        &self,
        device: PciAddress,
        iova: u64,
        length: usize,
    ) -> Result<Vec<u8>, Denied> {
        let mut out = vec![0; length];
        let (unit, source) = (self.unit_of(device), device.requester.0);
        self.machine.device_read_no_snoop(unit, source, iova, &mut out)?;
        Ok(out)
    }

    /// Unread fault records of a session.
    ///
    /// # Panics
    /// When the server returns anything but fault records.
    pub fn faults(&mut self, session: Handle) -> Vec<FaultRecord> {
        self.server.tick();
        let mut out = [0; 8 * RECORD_SIZE];
        let mut records = Vec::new();
        loop {
            match self.server.read(session, 0, &mut out) {
                Ok(length) => records.extend(
                    out[..length]
                        .chunks(RECORD_SIZE)
                        .map(|bytes| FaultRecord::decode(bytes).expect("a record")),
                ),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NotReady);
                    return records;
                }
            }
        }
    }
}

/// The cookie of every request in these tests.
const COOKIE: u64 = 0x0123_4567_89ab_cdef;

/// The bytes of a request.
///
/// # Panics
/// When the structure is too long.
#[must_use]
pub fn request(operation: Operation, body: &impl Wire) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    body.encode(&mut bytes[RequestHeader::SIZE..]).unwrap();
    let length = RequestHeader::SIZE + size_of_wire(body);
    let header = RequestHeader {
        version: 1,
        operation: operation.code(),
        length: u32::try_from(length).unwrap(),
        cookie: COOKIE,
    };
    header.encode(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn size_of_wire<W: Wire>(_: &W) -> usize {
    W::SIZE
}
