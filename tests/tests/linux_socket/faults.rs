//! Faults of a device behind a software unit, delivered to the process that owns the device.

use std::time::{Duration, Instant};

use iommu_client::platform::linux::Socket;
use iommu_client::{BufferOptions, Connection, Device, FaultAccess, SessionFlags};
use iommu_protocol::frame::{EVENT_TAG, ROOT};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::vtd::VtdUnit;
use iommud::platform::linux::memory::{HugeBuffers, Taken};
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::policy::Config;
use iommud::server::{Budget, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::{Firmware, UnitDescription, UnitKind};
use iommud_tests::machine::{Machine, Registers, SoftClock, Tables};
use iommud_tests::vtd::{self, Vtd};

use crate::harness::{DEVICES, Pages, Raw, functions, pair, take, turn};

const OPEN: u16 = 1;
const READ: u16 = 3;
const CALL: u16 = 4;
const FEVENT: u16 = 7;

/// Requester id of the first device, 00:04.0.
const SOURCE: u16 = 4 << 3;

type Confined = Transport<VtdUnit<Registers, SoftClock, Tables>, HugeBuffers<Pages>>;

/// Starts a server in front of one software unit with 8 fault records.
fn confined(left: Vec<PhysRange>) -> (Machine, Confined) {
    let machine = Machine::default();
    let unit = Vtd::add(&machine, vtd::Config::default());
    let mut memory = machine.tables();
    let hardware =
        VtdUnit::bring_up(machine.registers(unit), machine.clock(), &mut memory, 46).unwrap();
    let Taken { buffers, ranges, .. } = take();
    let description = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    let firmware =
        Firmware { host_address_width: Some(46), units: vec![description], ..Firmware::default() };
    let server = Server::start(Startup {
        config: Config::default(),
        table: TableState::Parsed("DMAR"),
        firmware,
        units: vec![UnitStart::Ready(hardware)],
        functions: functions(),
        ram: Vec::new(),
        own: ranges,
        left,
        memory,
        buffers,
        budget: Budget::default(),
    });
    (machine, Transport::new(server, WireLog::off()).unwrap())
}

/// Runs the loop until it has polled the unit again.
fn tick(looped: &mut Confined) {
    let until = Instant::now() + Duration::from_millis(25);
    while Instant::now() < until {
        turn(looped);
    }
}

#[test]
fn an_event_goes_once_to_the_owner_until_it_looks() {
    let (machine, mut looped) = confined(Vec::new());
    let (other, owner) = (Raw::join(&mut looped), Raw::join(&mut looped));
    let path = |index: usize| format!("devices/{}", DEVICES[index]).into_bytes();
    assert_eq!(other.ask(&mut looped, OPEN, ROOT, 1, &path(1)).0, 0);
    // The owner's session has a different number on its own socket than in the server.
    assert_eq!(owner.ask(&mut looped, OPEN, ROOT, 0, b"status").0, 0);
    assert_eq!(owner.ask(&mut looped, OPEN, ROOT, 1, &path(0)).0, 1);
    // Version 1, operation 2 (attach), 24 bytes.
    let attach: Vec<u8> =
        [1 | 2 << 16 | 24 << 32, 0, 0_u64].iter().flat_map(|word| word.to_le_bytes()).collect();
    let (length, reply) = owner.ask(&mut looped, CALL, 1, 64, &attach);
    assert_eq!((length, &reply[16..18]), (32, &[0, 0][..]));
    assert_eq!(other.ask(&mut looped, FEVENT, 0, 1, &[]).0, 0);
    assert_eq!(owner.ask(&mut looped, FEVENT, 1, 1, &[]).0, 0);
    assert_eq!(owner.ask(&mut looped, READ, 1, 128, &[]).0, -11);

    for page in 1..4 {
        machine.device_write(0, SOURCE, page << 12, &[1; 8]).unwrap_err();
        tick(&mut looped);
    }
    let (event, payload) = owner.receive().unwrap().unwrap();
    assert_eq!((event.tag, event.handle, event.result), (EVENT_TAG, 1, 1));
    assert!(payload.is_empty());
    assert_eq!(owner.receive(), None, "told once");
    assert_eq!(other.receive(), None);

    let (length, records) = owner.ask(&mut looped, READ, 1, 1000, &[]);
    assert_eq!((length, records.len()), (384, 384));
    // Bytes 8..16 of a record are the address, 18..20 the requester id: see protocol/src/fault.rs.
    let addresses = records.chunks(128).map(|record| record[9] >> 4);
    assert_eq!(addresses.collect::<Vec<_>>(), [1, 2, 3]);
    assert!(records.chunks(128).all(|record| record[18..20] == SOURCE.to_le_bytes()));

    machine.device_write(0, SOURCE, 0x5000, &[1; 8]).unwrap_err();
    tick(&mut looped);
    assert_eq!(owner.receive().unwrap().unwrap().0.tag, EVENT_TAG, "it looked: told again");
    assert_eq!(owner.ask(&mut looped, FEVENT, 1, 1, &[]).0, 1, "readable now");
    assert_eq!(other.receive(), None);
}

#[test]
fn the_library_waits_for_the_fault_of_its_device() {
    let (machine, mut looped) = confined(Vec::new());
    let (ours, theirs) = pair();
    looped.adopt_as(theirs, 0).unwrap();
    let driver = std::thread::spawn(move || {
        let connection = Connection::over(Socket::over(ours));
        let device = Device::open(&connection, DEVICES[0]).unwrap();
        let permission = device.attach().unwrap();
        let flags = device.query().unwrap().flags;
        assert_eq!(flags, SessionFlags::ATTACHED | SessionFlags::CONFINED);
        let buffer = device.allocate(4096, BufferOptions::default()).unwrap();
        assert!(device.next_fault().unwrap().is_none());
        let first = device.wait_fault(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((first.source, first.address), (device.address(), Some(0x9000)));
        assert_eq!(first.access, FaultAccess::Write);
        assert!(!first.words().is_empty());
        assert!(device.next_fault().unwrap().is_none());
        drop(buffer);
        device.detach(permission).unwrap();
    });
    let mut tried = false;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !driver.is_finished() && Instant::now() < deadline {
        turn(&mut looped);
        // The driver is attached and has its buffer, so it is waiting.
        if !tried && machine.sources(0, iommud_tests::machine::Through::Tables).contains(&SOURCE) {
            tick(&mut looped);
            machine.device_write(0, SOURCE, 0x9000, &[1; 64]).unwrap_err();
            tried = true;
        }
    }
    driver.join().unwrap();
    assert!(tried);
}

#[test]
fn memory_of_an_earlier_server_is_out_of_reach_until_it_is_returned() {
    const LEFT: u64 = 0x30_0000;
    let left = PhysRange::new(PhysAddr(LEFT), 0x20_0000).unwrap();
    let (machine, mut looped) = confined(vec![left]);
    let write = |at| machine.device_write(0, SOURCE, at, &[1; 8]).is_ok();
    assert!(write(LEFT - 8) && write(LEFT + 0x20_0000), "compat maps what is around");
    assert!(!write(LEFT) && !write(LEFT + 0x20_0000 - 8));
    looped.server().memory_returned(left);
    assert!(write(LEFT) && write(LEFT + 0x20_0000 - 8));
    // The server's own memory is never mapped.
    let own = take().ranges;
    assert!(own.iter().all(|range| machine.probe(0, SOURCE, range.first().0, true).is_none()));
}
