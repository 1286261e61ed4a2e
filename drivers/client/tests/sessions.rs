//! Requests of a driver to its session, other than for lasting memory: events, grants, batches and constraints. Also
//! the errors of refused requests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::time::{Duration, Instant};

use iommu_client::{
    Access, Batch, BufferOptions, Device, DmaBuffer, DmaPool, Error, FaultAccess, Placement,
    PoolOptions, Refusal, RegionKind, ScatterList, SegmentLimits, SessionFlags,
};
use iommud_tests::model::{DEVICES, Model};

const NAME: &str = DEVICES[1];
const BOTH: Access = Access::READ.union(Access::WRITE);

/// An attached device reaches the mappings of its session; a detached one does not.
#[test]
fn a_device_reaches_memory_between_attach_and_detach() {
    let model = Model::new();
    let device = Device::open(&model.connection(), NAME).unwrap();
    let buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    let at = buffer.iova();
    assert_eq!(device.open_member(device.address()).unwrap_err().refusal(), Some(Refusal::Busy));
    let permission = device.attach().unwrap();
    assert_eq!(permission.address(), device.address());
    model.device_write(device.address(), at, &[7]).unwrap();
    assert_eq!(buffer.get(0).unwrap(), 7);
    device.detach(permission).unwrap();
    let mut found = [0];
    buffer.read(0, &mut found).unwrap();
    let _ = model.device_write(device.address(), at, &[9]);
    assert_eq!(
        (found, buffer.get(0).unwrap()),
        ([7], 7),
        "the buffer is out of the device's reach"
    );
}

/// A fault is an event of its device's session. Each is reported once, the oldest first.
#[test]
fn a_fault_is_told_to_its_driver() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let started = Instant::now();
    assert_eq!(device.wait_fault(Duration::from_millis(20)).unwrap(), None);
    assert!(started.elapsed() >= Duration::from_millis(20));
    model.device_write(device.address(), 0x0bad_0000, &[1]).unwrap_err();
    model.device_read(device.address(), 0x0bad_1000, 1).unwrap_err();
    let first = device.wait_fault(Duration::MAX).unwrap().expect("a fault");
    assert_eq!((first.address, first.access), (Some(0x0bad_0000), FaultAccess::Write));
    assert_eq!(first.source, device.address());
    let rest: Vec<_> = device.faults().map(|fault| fault.unwrap().address).collect();
    assert_eq!(rest, [Some(0x0bad_1000)]);
    assert_eq!(device.next_fault().unwrap(), None);
}

/// A grant is for its pages and its direction, and ends when dropped.
#[test]
fn a_grant_is_a_range_for_a_while() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let at = device.address();
    let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let buffer = device.allocate(16384, options).unwrap();
    let page = |index: u64| buffer.iova() + index * 4096;
    assert!(model.device_read(at, page(1), 1).is_err());
    {
        let grant = buffer.grant(4096..8192, Access::WRITE).unwrap();
        assert_eq!(grant.iova(), page(1));
        let again = buffer.grant(4096..12288, Access::WRITE).unwrap_err();
        assert_eq!(again.refusal(), Some(Refusal::Mapped));
        let other = buffer.grant(8192..12288, Access::READ).unwrap();
        model.device_write(at, page(1), &[5]).unwrap();
        assert!(model.device_read(at, other.iova(), 1).is_ok());
        for (index, write) in [(0, false), (3, false), (2, true)] {
            let reached = match write {
                true => model.device_write(at, page(index), &[1]).is_ok(),
                false => model.device_read(at, page(index), 1).is_ok(),
            };
            assert!(!reached, "page {index}");
        }
    }
    assert!((0..4).all(|index| model.device_read(at, page(index), 1).is_err()));
    assert_eq!(buffer.get(4096).unwrap(), 5);
}

/// The device has just the requested access to a buffer, or to the blocks of a pool.
#[test]
fn memory_may_be_for_one_direction() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    for (access, reads, writes) in
        [(Access::READ, true, false), (Access::WRITE, false, true), (BOTH, true, true)]
    {
        let options = BufferOptions { access, ..BufferOptions::default() };
        let buffer = device.allocate(4096, options).unwrap();
        let pool = DmaPool::new(&device, PoolOptions { access, ..PoolOptions::default() }).unwrap();
        let block = pool.take(100).unwrap();
        for iova in [buffer.iova(), block.iova()] {
            assert_eq!(model.device_read(device.address(), iova, 1).is_ok(), reads, "{access:?}");
            assert_eq!(model.device_write(device.address(), iova, &[1]).is_ok(), writes);
        }
    }
}

/// A dropped buffer is out of the device's reach, even if the unit has cached its address.
#[test]
fn what_is_dropped_is_out_of_reach() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let buffer = device.allocate(8192, BufferOptions::default()).unwrap();
    let iova = buffer.iova();
    model.device_write(device.address(), iova + 4096, &[1]).unwrap();
    drop(buffer);
    for at in [iova, iova + 4096] {
        assert!(model.device_write(device.address(), at, &[1]).is_err());
    }
    assert_eq!(model.reach(device.address()), []);
}

/// Two devices share a buffer. Each reaches it at the addresses where its own session has mapped it, until it unmaps
/// it.
#[test]
fn a_buffer_may_be_for_two_devices() {
    let model = Model::new();
    let connection = model.connection();
    let [first, second] = [0, 1].map(|index| Device::open(&connection, DEVICES[index]).unwrap());
    let _permissions = [&first, &second].map(|device| device.attach().unwrap());
    let mut buffer = first.allocate(8192, BufferOptions::default()).unwrap();
    buffer.set(4096, 7).unwrap();
    let import = second.import(&buffer).unwrap();
    assert_eq!(import.buffer().iova(), buffer.iova());
    assert_eq!(model.reach(second.address()), []);
    let at = Placement::At(0x7_0000_0000);
    let mapping = import.slot().map(4096..8192, Access::READ, at).unwrap();
    assert_eq!((mapping.iova(), mapping.length()), (0x7_0000_0000, 4096));
    assert_eq!(model.device_read(second.address(), mapping.iova(), 1), Ok(vec![7]));
    assert!(model.device_write(second.address(), mapping.iova(), &[1]).is_err());
    assert!(model.device_read(first.address(), mapping.iova(), 1).is_err());
    // The mapping is never dropped. It ends with the import all the same.
    std::mem::forget(mapping);
    drop(import);
    assert!(model.device_read(second.address(), 0x7_0000_0000, 1).is_err());
    model.device_write(first.address(), buffer.iova(), &[9]).unwrap();
    assert_eq!(buffer.get(0).unwrap(), 9);
    // Over another connection, the buffer's number is that of another buffer, or of none.
    let stranger = Device::open(&model.connection(), DEVICES[2]).unwrap();
    assert_eq!(stranger.import(&buffer).unwrap_err().refusal(), Some(Refusal::BadHandle));
}

/// A device claimed through another's session shares that session's owner and addresses.
#[test]
fn a_second_device_may_share_the_first_ones_addresses() {
    let model = Model::new();
    let (first, _permission) = model.attached();
    let mut buffer = first.allocate(4096, BufferOptions::default()).unwrap();
    buffer.set(0, 7).unwrap();
    let address = DEVICES[2].parse().unwrap();
    let second = first.open_member(address).unwrap();
    let _second_permission = second.attach().unwrap();
    assert_eq!(model.device_read(address, buffer.iova(), 1), Ok(vec![7]));
    assert_eq!(model.reach(address), model.reach(first.address()));
    let other = Device::claim(&model.connection(), address).unwrap_err();
    assert_eq!(other.refusal(), Some(Refusal::NotOwner));
    let other = Device::open(&model.connection(), DEVICES[0]).unwrap();
    let taken = other.open_member(address).unwrap_err();
    assert_eq!(taken.refusal(), Some(Refusal::NotOwner));
}

/// If one item is refused, none of the others takes effect.
#[test]
fn a_batch_is_all_or_nothing() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let buffer = device.allocate(65536, BufferOptions::default()).unwrap();
    let left = device.query().unwrap().mappings_left;
    let refused = Batch::new()
        .map(buffer.slot(), 0..4096, BOTH, Placement::Below4G)
        .map(buffer.slot(), 4096..8192, BOTH, Placement::Anywhere)
        .map(buffer.slot(), 0..1 << 20, BOTH, Placement::Below4G)
        .run(&device);
    let Err(Error::RefusedItem { refusal: Refusal::Range, item: 2 }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refused.unwrap_err().to_string(), format!("item 2: {}", Refusal::Range));
    assert_eq!(device.query().unwrap().mappings_left, left);
    let iovas = Batch::new()
        .map(buffer.slot(), 0..4096, BOTH, Placement::At(0x1_2345_6000))
        .map(buffer.slot(), 4096..8192, Access::READ, Placement::Below4G)
        .run(&device)
        .unwrap();
    assert_eq!(iovas[0], 0x1_2345_6000);
    assert!(iovas[1] < 1 << 32);
    model.device_write(device.address(), iovas[0], &[3]).unwrap();
    assert!(model.device_write(device.address(), iovas[1], &[3]).is_err());
    assert_eq!(buffer.get(0).unwrap(), 3);
}

/// A ring of many pages is one range of addresses, wherever its pages lie. Every constraint is kept, alone and
/// together with others.
#[test]
fn a_ring_is_contiguous_where_it_is_wanted() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let length = 1 << 20;
    for options in [
        BufferOptions::default(),
        BufferOptions { alignment: 2 << 20, ..BufferOptions::default() },
        BufferOptions { boundary: 1 << 20, ..BufferOptions::default() },
        BufferOptions { above_4g: true, alignment: 4 << 20, ..BufferOptions::default() },
    ] {
        let mut ring = DmaBuffer::<[u8]>::zeroed_slice_with(&device, length, options).unwrap();
        let (first, last) = (ring.iova(), ring.iova() + (length as u64 - 1));
        assert!(first.is_multiple_of(options.alignment.max(4096)));
        assert!(options.boundary == 0 || first / options.boundary == last / options.boundary);
        assert_eq!(first >= 1 << 32, options.above_4g, "{first:#x}");
        for (page, number) in (0..length).step_by(4096).zip(1_u32..) {
            ring.copy_from(page, &number.to_le_bytes()).unwrap();
        }
        for (page, number) in (first..=last).step_by(4096).zip(1_u32..) {
            let seen = model.device_read(device.address(), page, 4).unwrap();
            assert_eq!(seen, number.to_le_bytes());
        }
    }
    let narrow = BufferOptions { boundary: 4096, ..BufferOptions::default() };
    let refused = device.allocate(8192, narrow).unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Alignment));
}

/// A device that gets the segments of a list one by one finds the bytes of the list.
#[test]
fn a_scatter_list_is_what_the_device_finds() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let mut parts: Vec<_> =
        (0..3).map(|_| device.allocate(8192, BufferOptions::default()).unwrap()).collect();
    for (part, fill) in parts.iter_mut().zip([0x11, 0x22, 0x33]) {
        part.fill(0, 8192, fill).unwrap();
    }
    let mut list = ScatterList::new();
    list.push(&parts[2], 100..5000).unwrap().push(&parts[0], 0..1).unwrap();
    list.push(&parts[1], 4096..8192).unwrap();
    let limits = SegmentLimits { longest: 1000, boundary: 4096 };
    let mut seen = Vec::new();
    for segment in list.segments(limits) {
        assert!(segment.length <= 1000);
        assert_eq!(segment.iova / 4096, (segment.iova + segment.length - 1) / 4096);
        let length = usize::try_from(segment.length).unwrap();
        seen.extend(model.device_read(device.address(), segment.iova, length).unwrap());
    }
    assert_eq!(seen, [vec![0x33; 4900], vec![0x11], vec![0x22; 4096]].concat());
}

/// A permission belongs to its session: it detaches no other device, and no other session of the device. It comes
/// back, and stays valid.
#[test]
fn a_permission_detaches_the_device_that_it_is_of() {
    let model = Model::new();
    let (first, permission) = model.attached();
    let second = first.open_member(DEVICES[2].parse().unwrap()).unwrap();
    let other = second.attach().unwrap();
    let reach = model.reach(second.address());
    let failed = second.detach(permission).unwrap_err();
    let Error::OtherPermission { of, device } = failed.error else { panic!("{failed:?}") };
    assert_eq!((of, device), (first.address(), second.address()));
    assert_eq!(failed.to_string(), format!("the permission is for {of}, not for {device}"));
    assert_eq!(model.reach(second.address()), reach, "nothing has changed");
    assert!(second.query().unwrap().flags.contains(SessionFlags::ATTACHED));
    first.detach(failed.permission).unwrap();
    second.detach(other).unwrap();
    // The device is opened again. The permission of an earlier session is of no use.
    let stale = first.attach().unwrap();
    drop((first, second));
    let (again, permission) = model.attached();
    let failed = again.detach(stale).unwrap_err();
    assert_eq!(failed.to_string(), format!("the permission is of another session of {NAME}"));
    again.detach(permission).unwrap();
    // If the server refuses, the permission comes back, too.
    let permission = again.attach().unwrap();
    model.kill_clients();
    assert_eq!(again.detach(permission).unwrap_err().permission.address(), again.address());
}

/// Impossible requests are refused in words, and leave everything as it was.
#[test]
fn refusals_say_what_is_wrong() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let refusal = |error: Error| (error.refusal(), error.to_string());
    let taken = refusal(Device::open(&model.connection(), NAME).unwrap_err());
    assert_eq!(taken.0, Some(Refusal::NotOwner));
    let unknown = refusal(Device::open(&model.connection(), "0000--00--1e.7").unwrap_err());
    assert_eq!(unknown.0, Some(Refusal::NotProbed));
    assert!(matches!(Device::open(&model.connection(), "04.0"), Err(Error::BadName)));
    let odd = refusal(device.allocate(5, BufferOptions::default()).unwrap_err());
    assert_eq!(odd.0, Some(Refusal::Alignment));
    assert_ne!(taken.1, unknown.1);
    let regions = device.regions().unwrap();
    assert!(regions.iter().any(|region| region.kind == RegionKind::Interrupt
        && (region.first, region.last) == (0xfee0_0000, 0xfeef_ffff)));
    let buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    let window = buffer.slot().map(0..4096, BOTH, Placement::At(0xfee0_0000)).unwrap_err();
    assert_eq!(refusal(window).0, Some(Refusal::Reserved));
    model.kill_clients();
    assert!(device.query().is_err());
}
