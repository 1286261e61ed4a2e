//! A play of clients, devices and units on a server that records.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{
    Allocate, AllocateFlags, AllocateResult, Batch, BatchItem, Empty, Grant, Map, MapList,
    MapResult, Operation, RequestHeader, Unmap, Wire,
};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::Nanos;
use iommud::policy::ClientId;
use iommud::server::{Caller, Handle};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Layout, Trouble};
use iommud_tests::stack::{Setup, Stack, endpoint, request};

/// Nanoseconds of one `relax` while a unit stalls, so that a wait ends after a few reads of the clock.
const LONG: u64 = 400_000_000;

/// First byte and length of the memory for buffers that is added while the first server runs.
const ADDED: (u64, u64) = (40 << 20, 2 << 20);

fn device(number: u8) -> PciAddress {
    PciAddress::new(0, 0, number, 0).unwrap()
}

/// Devices 3 to 6; 3 is behind the first unit, all others behind the second.
fn setup() -> Setup {
    Setup {
        functions: (3..7).map(|number| endpoint(0, number, 0)).collect(),
        behind_first: vec![device(3)],
        layout: Layout {
            ram: vec![(0, 128 << 20)],
            tables: (16 << 20, 16 << 20),
            buffers: (64 << 20, 32 << 20),
            ..Layout::default()
        },
        left: vec![(32 << 20, 2 << 20)],
        // It comes later.
        off: vec![1],
        recorded: true,
        policy: "# compat for every device\n",
        ..Setup::default()
    }
}

/// Plays, and returns the trace of two lives: the first server dies.
pub(crate) fn play<T: UnderTest>(subject: &T) -> Vec<u8> {
    let subjects = std::slice::from_ref(subject);
    let mut stack = Stack::start(subjects, setup());
    stack.arrive(subject, 1).unwrap();
    let range = PhysRange::new(PhysAddr(32 << 20), 2 << 20).unwrap();
    assert!(stack.server.memory_returned(range));
    let (first, other) = memory(&mut stack);
    sharing(&mut stack, first, other);
    refusals(&mut stack, first);
    hot_plug(&mut stack);
    stalls(&mut stack, other);
    storm(&mut stack, first);
    let mut bytes = stack.trace();
    stack.machine.orphan_buffers();
    stack.setup.off = Vec::new();
    stack.setup.left = vec![ADDED];
    stack.reboot(subjects);
    let session = stack.claim(1, device(3)).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x4000).unwrap();
    assert!(stack.device_write(device(3), buffer.iova, &[1]).is_ok());
    stack.give_back(session);
    stack.server.shutdown();
    bytes.extend(stack.trace());
    bytes
}

fn send<T: UnderTest, R: Wire>(
    stack: &mut Stack<T>,
    session: Handle,
    operation: Operation,
    body: &impl Wire,
) -> R {
    stack.call(session, operation, body).unwrap()
}

/// Sends a request with a list behind its structure.
fn send_list<T: UnderTest>(
    stack: &mut Stack<T>,
    session: Handle,
    operation: Operation,
    body: &impl Wire,
    list: &[u8],
) {
    let mut bytes = request(operation, body);
    bytes.extend(list);
    let length = u32::try_from(bytes.len()).unwrap();
    let header = RequestHeader { version: 1, operation: operation.code(), length, cookie: 7 };
    header.encode(&mut bytes).unwrap();
    let reply = stack.raw(session, &bytes, 4096).unwrap();
    assert_eq!(iommu_protocol::wire::ReplyHeader::decode(&reply).unwrap().refusal, 0);
}

/// Two clients map, unmap, grant and revoke.
fn memory<T: UnderTest>(stack: &mut Stack<T>) -> (Handle, Handle) {
    let first = stack.claim(1, device(3)).unwrap();
    let other = stack.claim(2, device(4)).unwrap();
    for session in [first, other] {
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x1_0000).unwrap();
        let iova = stack.map(session, buffer.slot, 0x3000, 0x2000).unwrap();
        stack.unmap(session, iova, 0x2000).unwrap();
        let item = |offset| BatchItem {
            operation: Operation::Map.code(),
            slot: buffer.slot,
            access: 3,
            offset,
            length: 0x1000,
            ..BatchItem::default()
        };
        let items: Vec<u8> =
            [0, 0x2000, 0x5000].into_iter().flat_map(|at| encoded(&item(at))).collect();
        let batch = Batch { count: 3, reserved: 0 };
        send_list(stack, session, Operation::Batch, &batch, &items);
        let list = MapList { slot: buffer.slot, access: 1, count: 3, ..MapList::default() };
        let pages: Vec<u8> = [5_u32, 0, 9].into_iter().flat_map(u32::to_le_bytes).collect();
        send_list(stack, session, Operation::MapList, &list, &pages);
        let flags = AllocateFlags::UNMAPPED.bits();
        let body = Allocate { length: 0x8000, access: 3, flags, ..Allocate::default() };
        let reserved: AllocateResult = send(stack, session, Operation::Allocate, &body);
        let grant = Grant { slot: reserved.slot, access: 3, offset: 0x1000, length: 0x3000 };
        let _: MapResult = send(stack, session, Operation::Grant, &grant);
        let _: Empty = send(stack, session, Operation::Revoke, &Grant { access: 0, ..grant });
        stack.release(session, reserved.slot).unwrap();
    }
    (first, other)
}

fn encoded(item: &BatchItem) -> Vec<u8> {
    let mut bytes = vec![0; BatchItem::SIZE];
    item.encode(&mut bytes).unwrap();
    bytes
}

/// A buffer is given to another session of its client, and to another client.
fn sharing<T: UnderTest>(stack: &mut Stack<T>, first: Handle, other: Handle) {
    let caller = Caller { client: ClientId(1), uid: 0 };
    let buffer = stack.server.open(caller, Some(first), "buffers/0", true).unwrap();
    let second = stack.claim(1, device(5)).unwrap();
    stack.attach(second).unwrap();
    let slot = stack.server.import(second, buffer).unwrap();
    stack.map(second, slot, 0, 0x4000).unwrap();
    let slot = stack.server.bring(other, buffer).unwrap();
    stack.map(other, slot, 0, 0x1000).unwrap();
    stack.server.close(buffer);
    stack.detach(second).unwrap();
    stack.server.close(second);
}

/// Requests that policy refuses, and one that fails for lack of memory.
fn refusals<T: UnderTest>(stack: &mut Stack<T>, first: Handle) {
    assert_eq!(stack.claim(2, device(3)), Err(Refusal::NotOwner));
    assert_eq!(stack.unmap(first, 0x7000_0000, 0x1000), Err(Refusal::NotMapped));
    assert_eq!(stack.allocate(first, 1 << 40).err(), Some(Refusal::Quota));
    let map = Map {
        slot: 0,
        access: 3,
        length: 0x1000,
        iova: 0x40_0000_0000 - 0x1000,
        flags: 1,
        ..Map::default()
    };
    stack.machine.fail_table_allocations(0, 1);
    let refused = stack.call::<MapResult>(first, Operation::Map, &map).err();
    assert_eq!(refused, Some(Refusal::NoMemory));
    stack.machine.fail_table_allocations(0, 0);
    let mapped: MapResult = send(stack, first, Operation::Map, &map);
    stack.unmap(first, mapped.iova, 0x1000).unwrap();
    let unmap = Unmap { iova: mapped.iova, length: 0x1000 };
    assert!(stack.call::<Empty>(first, Operation::Unmap, &unmap).is_err());
}

/// One function comes and goes, then two at once.
fn hot_plug<T: UnderTest>(stack: &mut Stack<T>) {
    stack.server.function_arrived(endpoint(0, 8, 0)).unwrap();
    stack.server.function_gone(device(8));
    let functions = stack.discover();
    [9, 10].into_iter().for_each(|number| functions.plug(endpoint(0, number, 0)));
    stack.server.rescan().unwrap();
    [9, 10].into_iter().for_each(|number| functions.pull(device(number)));
    stack.server.rescan().unwrap();
}

/// The second unit stalls, fails, and comes back.
fn stalls<T: UnderTest>(stack: &mut Stack<T>, other: Handle) {
    stack.machine.set_relax(LONG);
    stack.machine.trouble(1, Trouble::StallQueueAfter(0));
    let iova = stack.map(other, 0, 0, 0x1000);
    let refused = iova.and_then(|iova| stack.unmap(other, iova, 0x1000));
    assert_eq!(refused, Err(Refusal::UnitFailed));
    stack.machine.trouble(1, Trouble::None);
    stack.machine.set_relax(1000);
    stack.machine.pass_time(LONG);
    stack.write("units/1", b"reset").unwrap();
    assert_eq!(stack.server.recover_units(Nanos(LONG)), None);
    stack.server.close(other);
    assert_eq!(stack.server.recover_units(Nanos(1 << 40)), None);
    let again = stack.claim(3, device(4)).unwrap();
    stack.attach(again).unwrap();
    stack.allocate(again, 0x2000).unwrap();
}

/// A device has faults until it is silenced.
fn storm<T: UnderTest>(stack: &mut Stack<T>, first: Handle) {
    for page in 0..40 {
        assert!(stack.device_write(device(3), 0x30_0000_0000 + page * 0x1000, &[1]).is_err());
        stack.server.tick();
    }
    let taken = PhysRange::new(PhysAddr(ADDED.0), ADDED.1).unwrap();
    let added = stack.server.add_buffers(taken, ADDED, |buffers, page| buffers.add(page));
    assert!(added.is_ok());
    stack.detach(first).unwrap();
    stack.attach(first).unwrap();
}
