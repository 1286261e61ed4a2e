//! Clients of the library against the real server: sessions, memory, and the ends of clients.

use std::time::{Duration, Instant};

use iommu_client::platform::linux::Socket;
use iommu_client::transport::Transport;
use iommu_client::{BufferOptions, Connection, Device, Error, Refusal, RegionKind, SessionFlags};
use iommud::platform::linux::transport::WireLog;

use crate::harness::{DEVICES, MEMORY, PAGES, Running};

const MIB: u64 = 1 << 20;

/// Returns the value of `name` in `metrics`.
fn metric(connection: &Connection, name: &str) -> u64 {
    let text = connection.text("metrics").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
}

/// Retries until the server has noticed the test's action.
fn soon<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_session_from_open_to_close() {
    let running = Running::start();
    let connection = running.connect();
    let names = connection.names("devices").unwrap();
    assert_eq!(names, DEVICES);
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let before = device.query().unwrap();
    assert_eq!(before.address, device.address());
    assert_eq!(before.flags, SessionFlags::empty(), "neither attached nor confined");
    let permission = device.attach().unwrap();
    assert_eq!(permission.address(), device.address());
    assert_eq!(device.query().unwrap().flags, SessionFlags::ATTACHED);
    let regions = device.regions().unwrap();
    assert!(regions.iter().all(|region| region.kind == RegionKind::Interrupt), "{regions:?}");

    let mut buffer = device.allocate(8192, BufferOptions::default()).unwrap();
    assert_eq!(buffer.length(), 8192);
    // Without a unit the I/O address is the physical address.
    assert!((MEMORY..MEMORY + PAGES * 2 * MIB).contains(&buffer.iova()));
    assert_eq!(buffer.iova_at(8191), Some(buffer.iova() + 8191));
    assert_eq!(buffer.iova_at(8192), None);
    let mut bytes = [1; 8192];
    buffer.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8192]);
    buffer.write(4090, b"across pages").unwrap();
    assert!(matches!(buffer.write(8190, b"across"), Err(Error::Outside)));
    assert_eq!(metric(&connection, "buffer_bytes"), 8192);
    // Buffers are allocated in huge pages.
    assert_eq!(before.memory_left - device.query().unwrap().memory_left, 2 * MIB);

    drop(buffer);
    assert_eq!(device.query().unwrap().memory_left, before.memory_left);
    device.detach(permission).unwrap();
    drop(device);
    assert_eq!(metric(&connection, "sessions"), 0);
    assert_eq!(metric(&connection, "buffer_bytes"), 0);
}

#[test]
fn a_second_owner_waits_for_the_end_of_the_first_process() {
    let running = Running::start();
    let second = running.connect();
    let socket = running.socket();
    let process = socket.try_clone().unwrap();
    let first = Connection::over(Socket::over(socket));
    let device = Device::open(&first, DEVICES[1]).unwrap();
    let mut buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    buffer.write(0, b"of the first owner").unwrap();
    let refused = Device::open(&second, DEVICES[1]).unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::NotOwner));
    let other = Device::open(&second, DEVICES[2]).unwrap();
    assert_eq!(metric(&second, "sessions"), 2);
    // As when the process is killed: the socket ends without a request.
    rustix::net::shutdown(&process, rustix::net::Shutdown::Both).unwrap();
    let device = soon("the device becomes free", || Device::open(&second, DEVICES[1]).ok());
    assert_eq!(metric(&second, "sessions"), 2);
    assert_eq!(metric(&second, "buffer_bytes"), 0);
    // A client's whole quota is free and cleared, including the first owner's page.
    let all = device.allocate(12 * MIB, BufferOptions::default()).unwrap();
    for page in 0..6 {
        let mut bytes = [1; 18];
        all.read(page * 2 * MIB, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 18]);
    }
    drop(other);
}

#[test]
fn whatever_the_order_of_drops_the_session_ends_last() {
    let running = Running::start();
    let connection = running.connect();
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    drop(device);
    assert_eq!(metric(&connection, "sessions"), 1);
    drop(buffer);
    assert_eq!(metric(&connection, "sessions"), 0);
    assert_eq!(metric(&connection, "buffer_bytes"), 0);
    assert_eq!(metric(&connection, "handles"), 0);
}

#[test]
fn a_buffer_of_many_pages_is_one_piece_for_the_client() {
    let running = Running::start();
    let transport = Socket::over(running.socket());
    let connection = Connection::over(transport);
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let mut buffer = device.allocate(5 * MIB, BufferOptions::default()).unwrap();
    for at in [0, 2 * MIB - 3, 4 * MIB - 3, 5 * MIB - 6] {
        buffer.write(at, &at.to_le_bytes()[..6]).unwrap();
    }
    for at in [2 * MIB - 3, 4 * MIB - 3, 5 * MIB - 6] {
        let mut bytes = [0; 6];
        buffer.read(at, &mut bytes).unwrap();
        assert_eq!(bytes, at.to_le_bytes()[..6]);
    }
}

#[test]
fn two_shares_of_a_buffer_are_the_same_memory() {
    let running = Running::start();
    let transport = Socket::over(running.socket());
    let session = transport.open(None, &format!("devices/{}", DEVICES[0]), true).unwrap();
    let mut request = Vec::new();
    // Version 1, operation 4 (allocate), 48 bytes; 4096 bytes, access read and write.
    for word in [1 | 4 << 16 | 48 << 32, 0, 4096, 0, 0, 3_u64] {
        request.extend(word.to_le_bytes());
    }
    let length = transport.call(session, &mut request, 48).unwrap();
    assert_eq!((length, &request[16..18]), (48, &[0, 0][..]));
    let slot = u32::from_le_bytes(request[40..44].try_into().unwrap());
    let open = || transport.open(Some(session), &format!("buffers/{slot}"), true).unwrap();
    let (first, second) = (open(), open());
    let mut one = transport.map(first).unwrap();
    let other = transport.map(second).unwrap();
    one.write(100, b"seen by both").unwrap();
    let mut bytes = [0; 12];
    other.read(100, &mut bytes).unwrap();
    assert_eq!(&bytes, b"seen by both");
}

#[test]
fn refusals_reach_the_client_as_such() {
    let running = Running::start();
    let connection = running.connect();
    let refused = |result: Result<Device, Error>| result.unwrap_err().refusal();
    assert!(matches!(Device::open(&connection, "0000:00:04.0"), Err(Error::BadName)));
    assert_eq!(refused(Device::open(&connection, "0000--00--1f.7")), Some(Refusal::NotProbed));
    let text = connection.text("nothing").unwrap_err();
    assert_eq!(text.refusal(), Some(Refusal::NotFound));
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let allocate = |length| {
        device.allocate(length, BufferOptions::default()).map(drop).unwrap_err().refusal().unwrap()
    };
    assert_eq!(allocate(0), Refusal::Range);
    assert_eq!(allocate(100), Refusal::Alignment);
    assert_eq!(allocate(PAGES * 2 * MIB), Refusal::Quota);
    let odd = BufferOptions { alignment: 4097, ..BufferOptions::default() };
    assert_eq!(device.allocate(4096, odd).unwrap_err().refusal(), Some(Refusal::Alignment));
    assert_eq!(metric(&connection, "buffer_bytes"), 0);
}

#[test]
fn waiting_for_a_fault_that_does_not_come_ends() {
    let running = Running::start();
    let connection = running.connect();
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let start = Instant::now();
    assert!(device.wait_fault(Duration::from_millis(120)).unwrap().is_none());
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(120) && waited < Duration::from_secs(2), "{waited:?}");
}

#[test]
fn a_server_that_is_gone_is_an_error_and_not_a_hang() {
    let running = Running::start();
    let connection = running.connect();
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let mut buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    drop(running);
    assert!(matches!(device.query(), Err(Error::Disconnected)));
    assert!(matches!(device.wait_fault(Duration::from_secs(5)), Err(Error::Disconnected)));
    buffer.write(0, b"the memory is still there").unwrap();
    drop(buffer);
    drop(device);
}

#[test]
fn the_wire_log_has_every_byte_of_every_frame() {
    let path = std::env::temp_dir().join(format!("iommud-wire-{}", std::process::id()));
    let file = path.clone();
    let running = Running::start_with(move || WireLog::create(&file).unwrap());
    let connection = running.connect();
    let status = connection.text("status").unwrap();
    drop(running);
    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let opens = log.lines().filter(|line| line.contains(" > 0100"));
    assert_eq!(opens.map(|line| line.ends_with(&hex(b"status"))).collect::<Vec<_>>(), [true]);
    assert!(
        log.lines().any(|line| line.contains(" < ") && line.ends_with(&hex(status.as_bytes())))
    );
}
