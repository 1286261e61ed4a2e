//! Tests of the server over units and memory that do what a test sets.

mod calls;
mod fake;
mod faults;
mod functions;
mod lines;
mod memory;
mod paths;
mod texts;
mod units;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::path::Path;
use iommu_protocol::wire::{Access, Allocate, Empty, Operation, ReplyHeader, RequestHeader, Wire};

use super::{Budget, Caller, Handle, Server, Startup, TableState, UnitStart};
use crate::addr::{PhysAddr, PhysRange};
use crate::hw::testing::TestMemory;
use crate::policy::{ClientId, Config, Mode};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::{FunctionKind, PciFunction};

pub(in crate::server) use fake::FakeUnit;
use fake::{Buffers, Bus, Done, fault};

/// The server under test.
pub(in crate::server) type Tested = Server<FakeUnit, Buffers>;

/// An administrator.
const ROOT: Caller = Caller { client: ClientId(1), uid: 0 };

/// The address of function 0 of a device on bus 0.
fn address(segment: u16, device: u8) -> PciAddress {
    PciAddress::new(segment, 0, device, 0).unwrap()
}

/// An endpoint that is a group of its own.
fn endpoint(address: PciAddress) -> PciFunction {
    PciFunction {
        address,
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        kind: FunctionKind::RootComplexEndpoint,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    }
}

/// A machine with 2 GiB of memory under `strict`. Each unit has a segment of its own, with its number and two devices:
/// 03.0 and 04.0.
pub(in crate::server) fn machine(
    units: impl IntoIterator<Item = UnitStart<FakeUnit>>,
) -> Startup<FakeUnit, Buffers> {
    let units: Vec<_> = units.into_iter().collect();
    let segments = || 0..u16::try_from(units.len()).unwrap();
    let unit = |segment: u16| UnitDescription {
        kind: UnitKind::Vtd,
        segment,
        registers: Ok(range(0xfed9_0000 + 0x1000 * u64::from(segment), 0x1000)),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    let devices = segments().flat_map(|segment| [3, 4].map(|device| address(segment, device)));
    Startup {
        config: Config { default: Mode::Strict, ..Config::default() },
        table: TableState::Parsed("DMAR"),
        firmware: Firmware { units: segments().map(unit).collect(), ..Firmware::default() },
        functions: devices.map(endpoint).collect(),
        units,
        ram: vec![range(0, 2 << 30)],
        own: Vec::new(),
        left: Vec::new(),
        memory: TestMemory::new(),
        buffers: Buffers::default(),
        budget: Budget::default(),
    }
}

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// A server over one unit that is up.
fn one() -> (Tested, FakeUnit) {
    let unit = FakeUnit::default();
    (Server::start(machine([UnitStart::Ready(unit.clone())])), unit)
}

/// Opens a device for a driver.
fn claim(server: &mut Tested, device: PciAddress) -> Handle {
    server.open(ROOT, None, &format!("devices/{device}"), true).unwrap()
}

/// A request with a whole header, and its reply: the length that the server returns, and all bytes of the payload.
fn call(
    server: &mut Tested,
    handle: Handle,
    (operation, body): (Operation, &impl Wire),
    room: usize,
) -> (Result<usize, super::Refusal>, Vec<u8>) {
    let request = encoded(operation, body);
    let mut payload = request.clone();
    payload.resize(room, 0xee);
    let length = server.call(handle, &mut payload, request.len());
    (length, payload)
}

fn encoded<W: Wire>(operation: Operation, body: &W) -> Vec<u8> {
    let mut bytes = vec![0; RequestHeader::SIZE + W::SIZE];
    let length = u32::try_from(bytes.len()).unwrap();
    let header = RequestHeader { version: 1, operation: operation.code(), length, cookie: 7 };
    header.encode(&mut bytes).unwrap();
    body.encode(&mut bytes[RequestHeader::SIZE..]).unwrap();
    bytes
}

/// Carries out a request. Returns the code of the refusal, or 0.
fn done(server: &mut Tested, handle: Handle, operation: Operation, body: &impl Wire) -> u16 {
    let (length, payload) = call(server, handle, (operation, body), 256);
    assert!(length.is_ok());
    ReplyHeader::decode(&payload).unwrap().refusal
}

fn attach(server: &mut Tested, session: Handle) {
    assert_eq!(done(server, session, Operation::Attach, &Empty::default()), 0);
}

fn allocate(server: &mut Tested, session: Handle, length: u64) {
    let request = Allocate { length, access: Access::all().bits(), ..Allocate::default() };
    assert_eq!(done(server, session, Operation::Allocate, &request), 0);
}

/// A number of the metrics. Nothing is opened for it.
fn metric(server: &mut Tested, name: &str) -> u64 {
    let text = server.text(Path::Metrics).unwrap();
    let values: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .collect();
    assert_eq!(values.len(), 1, "{name}: {text}");
    values[0]
}
