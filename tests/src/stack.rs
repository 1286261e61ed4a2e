//! The whole server over software units: what a client does goes in as the bytes of scheme calls, what its
//! device does goes through the unit.

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::{
    Access, Allocate, AllocateResult, BufferRequest, Empty, Map, MapResult, Operation, QueryResult,
    ReplyHeader, RequestHeader, Unmap, Wire,
};
use iommu_protocol::{Refusal, fault::FaultRecord, fault::RECORD_SIZE};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{ClientId, Config};
use iommud::server::{Caller, Handle, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::{
    DeviceScope, Firmware, ReservedRegion, ScopeKind, UnitDescription, UnitKind,
};
use iommud::topology::pci::{FunctionKind, PciFunction};

use crate::conformance::UnderTest;
use crate::machine::{BufferShare, Buffers, Denied, Layout, Machine};

/// The administrator, who only looks.
const ADMINISTRATOR: Caller = Caller { client: ClientId(u32::MAX), uid: 0 };

/// Space between the register pages of units.
const REGISTERS: u64 = 0xfed9_0000;

/// What a stack is made of.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The policy.
    pub config: Config,
    /// The functions of the machine.
    pub functions: Vec<PciFunction>,
    /// Devices behind the first unit; all others are behind the last. One unit when empty.
    pub behind_first: Vec<PciAddress>,
    /// What firmware reserves.
    pub reserved: Vec<ReservedRegion>,
    /// Memory of buffers is the system's until it is taken; else it is the server's from the start.
    pub take_memory: bool,
    /// What memory there is.
    pub layout: Layout,
}

/// An endpoint integrated in the root complex: a group of its own.
///
/// # Panics
/// When there is no such address.
#[must_use]
pub fn endpoint(bus: u8, device: u8, function: u8) -> PciFunction {
    PciFunction {
        address: PciAddress::new(0, bus, device, function).unwrap(),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        kind: FunctionKind::RootComplexEndpoint,
        multifunction: false,
        acs: None,
        acs_capability: 0,
    }
}

/// A scope that names one endpoint on its own bus.
#[must_use]
pub fn scope(address: PciAddress) -> DeviceScope {
    let RequesterId(_) = address.requester;
    DeviceScope {
        kind: ScopeKind::Endpoint,
        start_bus: address.requester.bus(),
        path: vec![(address.requester.device(), address.requester.function())],
    }
}

/// A machine with a running server.
pub struct Stack<T: UnderTest> {
    /// The machine.
    pub machine: Machine,
    /// The server.
    pub server: Server<T::Unit, Buffers>,
    /// The setup it was started with.
    pub setup: Setup,
}

/// All that a refused request must leave as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Tables of each unit, word by word.
    pub tables: Vec<Vec<(u64, Vec<u64>)>>,
    /// Frames in use for tables.
    pub frames: usize,
    /// Buffers whose memory is in use.
    pub buffers: Vec<u32>,
    /// What the scheme tells: status, units, groups, devices, and the metrics that are no counters.
    pub texts: String,
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
    pairs.iter().map(|(start, length)| PhysRange::new(PhysAddr(*start), *length).unwrap()).collect()
}

/// What firmware says of the units of a setup.
fn firmware(setup: &Setup) -> Firmware {
    let unit = |index: u64, include_all, scopes| UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(REGISTERS + index * 0x1000), 0x1000).unwrap()),
        include_all,
        scopes,
        entries: Vec::new(),
    };
    let mut units = Vec::new();
    if !setup.behind_first.is_empty() {
        units.push(unit(0, false, setup.behind_first.iter().map(|at| scope(*at)).collect()));
    }
    units.push(unit(1, true, Vec::new()));
    Firmware { units, reserved: setup.reserved.clone(), ..Firmware::default() }
}

impl<T: UnderTest> Stack<T> {
    /// Starts a server on a machine of this setup, with one subject a unit (the last is repeated).
    #[must_use]
    pub fn start(subjects: &[T], setup: Setup) -> Self {
        Self::start_prepared(subjects, setup, |_| ())
    }

    /// As [`Stack::start`], after something was done to the machine.
    ///
    /// # Panics
    /// When there are more units than subjects, and none.
    #[must_use]
    pub fn start_prepared(subjects: &[T], setup: Setup, prepare: impl FnOnce(&Machine)) -> Self {
        let machine = Machine::new(setup.layout.clone());
        let firmware = firmware(&setup);
        let subject = |index: usize| subjects.get(index).or(subjects.last()).unwrap();
        for index in 0..firmware.units.len() {
            subject(index).add(&machine);
        }
        prepare(&machine);
        let mut memory = machine.tables();
        let units = (0..firmware.units.len())
            .map(|index| match subject(index).bring_up(&machine, index, &mut memory) {
                Ok(unit) => UnitStart::Ready(unit),
                Err(error) => UnitStart::Failed(error),
            })
            .collect();
        let mut own = vec![setup.layout.tables];
        if !setup.take_memory {
            own.push(setup.layout.buffers);
        }
        let server = Server::start(Startup {
            config: setup.config.clone(),
            table: TableState::Parsed("DMAR"),
            firmware,
            units,
            functions: setup.functions.clone(),
            ram: ranges(&setup.layout.ram),
            own: ranges(&own),
            left: Vec::new(),
            memory,
            buffers: machine.buffers(),
        });
        Self { machine, server, setup }
    }

    /// The unit in front of a device.
    #[must_use]
    pub fn unit_of(&self, device: PciAddress) -> usize {
        let first = self.setup.behind_first.contains(&device);
        usize::from(!first && !self.setup.behind_first.is_empty())
    }

    /// A client opens its device.
    ///
    /// # Errors
    /// The server's.
    pub fn claim(&mut self, client: u32, device: PciAddress) -> Result<Handle, Refusal> {
        let caller = Caller { client: ClientId(client), uid: 0 };
        self.server.open(caller, None, &format!("devices/{device}"), true)
    }

    /// Sends the bytes of a request, with room for a reply of `room` bytes, and returns the reply's.
    ///
    /// # Errors
    /// The server's, when there is no reply.
    pub fn raw(&mut self, handle: Handle, request: &[u8], room: usize) -> Result<Vec<u8>, Refusal> {
        let mut payload = request.to_vec();
        payload.resize(room.max(request.len()), 0xee);
        let length = self.server.call(handle, &mut payload, request.len())?;
        payload.truncate(length);
        Ok(payload)
    }

    /// Asks for something; the reply's header must fit the request.
    ///
    /// # Errors
    /// The refusal in the reply, or the server's when there is none.
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
    /// The server's.
    pub fn attach(&mut self, session: Handle) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Attach, &Empty::default()).map(drop)
    }

    /// Puts a device back under policy.
    ///
    /// # Errors
    /// The server's.
    pub fn detach(&mut self, session: Handle) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Detach, &Empty::default()).map(drop)
    }

    /// What a session knows of itself.
    ///
    /// # Errors
    /// The server's.
    pub fn query(&mut self, session: Handle) -> Result<QueryResult, Refusal> {
        self.call(session, Operation::Query, &Empty::default())
    }

    /// Allocates a buffer that may be read and written.
    ///
    /// # Errors
    /// The server's.
    pub fn allocate(&mut self, session: Handle, length: u64) -> Result<AllocateResult, Refusal> {
        let access = Access::all().bits();
        self.call(session, Operation::Allocate, &Allocate { length, access, ..Allocate::default() })
    }

    /// Gives a buffer up.
    ///
    /// # Errors
    /// The server's.
    pub fn release(&mut self, session: Handle, slot: u32) -> Result<(), Refusal> {
        let request = BufferRequest { slot, reserved: 0 };
        self.call::<Empty>(session, Operation::Release, &request).map(drop)
    }

    /// Maps part of a buffer for reading and writing, anywhere.
    ///
    /// # Errors
    /// The server's.
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
    /// The server's.
    pub fn unmap(&mut self, session: Handle, iova: u64, length: u64) -> Result<(), Refusal> {
        self.call::<Empty>(session, Operation::Unmap, &Unmap { iova, length }).map(drop)
    }

    /// Maps a buffer into the client's process.
    ///
    /// # Errors
    /// The server's.
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
    /// The unit's.
    pub fn device_write(&self, device: PciAddress, iova: u64, bytes: &[u8]) -> Result<(), Denied> {
        self.machine.device_write(self.unit_of(device), device.requester.0, iova, bytes)
    }

    /// A device reads.
    ///
    /// # Errors
    /// The unit's.
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

    /// Unread fault records of a session.
    ///
    /// # Panics
    /// When the server hands out something else.
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

    /// A text of the scheme, as the administrator reads it.
    ///
    /// # Panics
    /// When there is no such text.
    pub fn text(&mut self, path: &str) -> String {
        let handle = self.server.open(ADMINISTRATOR, None, path, false).expect(path);
        let mut out = vec![0; 1 << 20];
        let length = self.server.read(handle, 0, &mut out).expect(path);
        self.server.close(handle);
        out.truncate(length);
        String::from_utf8(out).expect("text")
    }

    /// The names in a directory of the scheme.
    ///
    /// # Panics
    /// When there is no such directory.
    pub fn names(&mut self, path: &str) -> Vec<String> {
        let handle = self.server.open(ADMINISTRATOR, None, path, false).expect(path);
        let mut names = Vec::new();
        let mut sink = |name: &str| {
            names.push(name.to_string());
            true
        };
        self.server.names(handle, 0, &mut sink).expect(path);
        self.server.close(handle);
        names
    }

    /// One number of the metrics.
    ///
    /// # Panics
    /// When there is no such number.
    pub fn metric(&mut self, name: &str) -> u64 {
        let text = self.text("metrics");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
        line.split(' ').nth(1).unwrap().parse().expect(name)
    }

    /// All that a refused request must leave as it was.
    pub fn snapshot(&mut self) -> Snapshot {
        let units = 1 + usize::from(!self.setup.behind_first.is_empty());
        let mut texts = self.text("status");
        for folder in ["units", "groups", "devices"] {
            for name in self.names(folder) {
                texts.push_str(&self.text(&format!("{folder}/{name}")));
            }
        }
        const COUNTERS: [&str; 7] =
            ["opens ", "calls ", "refusals ", "plans ", "plans_undone ", "handles ", "faults"];
        for line in self.text("metrics").lines() {
            if !COUNTERS.iter().any(|counter| line.starts_with(counter)) {
                texts.push_str(line);
                texts.push('\n');
            }
        }
        Snapshot {
            tables: (0..units).map(|unit| self.machine.table_content(unit)).collect(),
            frames: self.machine.table_frames(),
            buffers: self.machine.buffers_in_use(),
            texts,
        }
    }
}

/// What every request of these tests carries.
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
