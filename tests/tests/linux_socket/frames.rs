//! Tests frames byte by byte: the replies, errors that end a connection, and fairness between clients.

use std::os::fd::OwnedFd;

use iommu_protocol::frame::{EVENT_TAG, HEADER_SIZE, MAX_FRAME, ROOT, Request};
use iommud::hw::{Nanos, UnitError};
use iommud::platform::linux::transport::{MOST_CONNECTIONS, WireLog};
use iommud::policy::UnitIndex;
use iommud::server::UnitStart;
use iommud_tests::stack::{Functions, endpoint};
use rustix::net::SendFlags;

use crate::harness::{DEVICES, Loop, Raw, functions, pair, server, turn};
use crate::units::with_unit;

// The protocol's numbers, written out: see protocol/src/frame.rs.
const OPEN: u16 = 1;
const CLOSE: u16 = 2;
const READ: u16 = 3;
const CALL: u16 = 4;
const GETDENTS: u16 = 5;
const STAT: u16 = 6;
const FEVENT: u16 = 7;
const MMAP: u16 = 8;
const IMPORT: u16 = 9;
const WRITE: u16 = 10;

#[test]
fn texts_are_read_on_and_on() {
    let mut looped = server(WireLog::off());
    let client = Raw::join(&mut looped);
    assert_eq!(client.ask(&mut looped, OPEN, ROOT, 0, b"status").0, 0);
    let (length, first) = client.ask(&mut looped, READ, 0, 4, &[]);
    assert_eq!((length, first.len()), (4, 4));
    let (length, rest) = client.ask(&mut looped, READ, 0, 60_000, &[]);
    assert!(length > 0);
    let whole = [first, rest].concat();
    assert_eq!(client.ask(&mut looped, READ, 0, 60_000, &[]), (0, vec![]));
    assert!(String::from_utf8(whole.clone()).unwrap().contains("absent"));
    let (zero, stat) = client.ask(&mut looped, STAT, 0, 0, &[]);
    let words: Vec<u64> =
        stat.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!((zero, words), (0, vec![whole.len() as u64, 0o100_400, 0o100_000]));
    assert_eq!(client.ask(&mut looped, CLOSE, 0, 0, &[]).0, 0);
    assert_eq!(client.ask(&mut looped, READ, 0, 4, &[]).0, -9);
}

#[test]
fn handle_numbers_are_the_connections_own() {
    let mut looped = server(WireLog::off());
    let (first, second) = (Raw::join(&mut looped), Raw::join(&mut looped));
    for (client, path) in [(&first, "units"), (&first, "devices"), (&second, "devices")] {
        client.request(OPEN, ROOT, 0, path.as_bytes());
        turn(&mut looped);
    }
    assert_eq!(first.receive().unwrap().unwrap().0.result, 0);
    assert_eq!(first.receive().unwrap().unwrap().0.result, 1);
    assert_eq!(second.receive().unwrap().unwrap().0.result, 0);
    assert_eq!(first.ask(&mut looped, GETDENTS, 0, 0, &[]), (0, vec![]));
    let names = DEVICES.map(|name| format!("{name}\n")).concat();
    assert_eq!(second.ask(&mut looped, GETDENTS, 0, 0, &[]), (3, names.into_bytes()));
    assert_eq!(second.ask(&mut looped, GETDENTS, 0, 3, &[]), (0, vec![]));
    assert_eq!(second.ask(&mut looped, GETDENTS, 1, 0, &[]).0, -9, "the other's number");
    // A closed number is reused, and then refers to the new object.
    assert_eq!(first.ask(&mut looped, CLOSE, 0, 0, &[]).0, 0);
    assert_eq!(first.ask(&mut looped, OPEN, ROOT, 0, b"metrics").0, 0);
    assert!(first.ask(&mut looped, READ, 0, 100, &[]).0 > 0);
}

/// The log of frames shows the order of service, in the first word of each line with `>`.
#[test]
fn a_turn_goes_on_where_the_last_one_ended() {
    let path = std::env::temp_dir().join(format!("iommud-turns-{}", std::process::id()));
    let mut looped = server(WireLog::create(&path).unwrap());
    let clients = [(); 3].map(|()| Raw::join(&mut looped));
    for ready in [&[0, 1][..], &[0, 2], &[0, 1, 2]] {
        ready.iter().for_each(|at| clients[*at].request(OPEN, ROOT, 0, b"status"));
        turn(&mut looped);
    }
    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let served: Vec<_> = log.lines().filter_map(|line| Some(line.split_once(" > ")?.0)).collect();
    assert_eq!(served, ["1", "2", "3", "1", "2", "3", "1"]);
}

#[test]
fn nonsense_is_answered_with_an_error_number() {
    let mut looped = server(WireLog::off());
    let client = Raw::join(&mut looped);
    let open = client.ask(&mut looped, OPEN, ROOT, 0, b"status");
    assert_eq!(open.0, 0);
    let requests: &[(u16, u32, u64, &[u8], i64)] = &[
        (0, 0, 0, b"", -38),
        (10, 0, 0, b"", -38),
        (u16::MAX, 0, 0, b"", -38),
        (OPEN, ROOT, 2, b"status", -71),
        (OPEN, ROOT, u64::MAX, b"status", -71),
        (OPEN, ROOT, 0, b"nothing", -2),
        (OPEN, ROOT, 0, b"\xff\xfe", -2),
        (OPEN, ROOT, 0, b"status\0", -2),
        (OPEN, ROOT, 0, b"../status", -2),
        (OPEN, ROOT, 1, b"status", -1),
        (OPEN, 5, 0, b"status", -9),
        (OPEN, 0, 0, b"status", -2),
        (CLOSE, 5, 0, b"", -9),
        (CLOSE, 0, 1, b"", -71),
        (CLOSE, 0, 0, b"x", -90),
        (CLOSE, ROOT, 0, b"", -9),
        (READ, 5, 1, b"", -9),
        (READ, 0, u64::MAX, b"", -90),
        (READ, 0, 65_537, b"", -90),
        (READ, 0, 1, b"x", -90),
        (CALL, 0, 100, b"", -38),
        (CALL, 0, u64::MAX, b"", -90),
        (CALL, 5, 100, b"", -9),
        (GETDENTS, 0, 0, b"", -38),
        (STAT, 5, 0, b"", -9),
        (STAT, 0, 1, b"", -71),
        (FEVENT, 0, 2, b"", -71),
        (FEVENT, 5, 1, b"", -9),
        (MMAP, 0, 0, b"", -38),
        (MMAP, 0, 4096, b"", -71),
        (IMPORT, 0, 0, b"", -38),
        (IMPORT, 0, 5, b"", -9),
        (IMPORT, 0, 1 << 32, b"", -9),
    ];
    for (kind, handle, argument, payload, errno) in requests {
        let (result, body) = client.ask(&mut looped, *kind, *handle, *argument, payload);
        let what = format!("{kind} {handle} {argument} {payload:x?}");
        assert_eq!((result, body), (*errno, vec![]), "{what}");
    }
    assert!(client.ask(&mut looped, READ, 0, 10, &[]).0 == 10, "the open handle was not harmed");
}

#[test]
fn what_is_not_a_frame_ends_its_connection_and_no_other() {
    let mut looped = server(WireLog::off());
    let witness = Raw::join(&mut looped);
    let mut padded = [0; HEADER_SIZE];
    padded[31] = 1;
    let mut padded_kind = [0; HEADER_SIZE];
    padded_kind[2] = 1;
    let mut event = [0; HEADER_SIZE];
    event[8..16].copy_from_slice(&EVENT_TAG.to_le_bytes());
    let garbage: [&[u8]; 7] =
        [b"", b"x", &[0; HEADER_SIZE - 1], &padded, &padded_kind, &event, &[0; MAX_FRAME + 1]];
    for bytes in garbage {
        let client = Raw::join(&mut looped);
        assert_eq!(looped.clients(), 2);
        client.send(bytes);
        turn(&mut looped);
        assert_eq!(client.receive(), Some(Err(())), "{} bytes", bytes.len());
        assert_eq!(looped.clients(), 1);
        assert_eq!(witness.ask(&mut looped, OPEN, ROOT, 0, b"status").0, 0);
        assert_eq!(witness.ask(&mut looped, CLOSE, 0, 0, b"").0, 0);
    }
    let longest = Raw::join(&mut looped);
    longest.send(&[0; MAX_FRAME]);
    turn(&mut looped);
    assert_eq!(longest.receive().unwrap().unwrap().0.result, -38, "the longest frame is one");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let mut looped = server(WireLog::off());
    let (stuck, busy) = (Raw::join(&mut looped), Raw::join(&mut looped));
    assert_eq!(stuck.ask(&mut looped, OPEN, ROOT, 0, b"devices").0, 0);
    // Each request has a reply of 77 bytes. Together they exceed the socket buffers and the queue by far.
    let mut sent = 0;
    for round in 0..6000 {
        let header = Request { kind: GETDENTS, handle: 0, tag: 7, argument: 0 }.encode();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if rustix::net::send(&stuck.0, &header, flags).is_ok() {
            sent += 1;
            turn(&mut looped);
        }
        if round % 20 == 0 {
            assert_eq!(busy.ask(&mut looped, OPEN, ROOT, 0, b"units").0, 0);
            assert_eq!(busy.ask(&mut looped, CLOSE, 0, 0, b"").0, 0);
        }
    }
    assert_eq!(looped.clients(), 2);
    // Once it reads again, it finds exactly one reply to each request.
    let mut found = 0;
    for _ in 0..3 * sent {
        while let Some(reply) = stuck.receive() {
            assert!(reply.unwrap().0.result >= 0);
            found += 1;
        }
        turn(&mut looped);
    }
    assert_eq!(found, sent);
    assert!(sent > 200, "only {sent} requests were stuck");
}

#[test]
fn connections_are_limited_and_a_place_becomes_free() {
    let mut looped = server(WireLog::off());
    let mut clients: Vec<_> = (0..MOST_CONNECTIONS).map(|_| Raw::join(&mut looped)).collect();
    let (_ours, theirs) = pair();
    assert!(looped.adopt_as(theirs, 0).is_err());
    clients.pop();
    turn(&mut looped);
    assert_eq!(looped.clients(), MOST_CONNECTIONS - 1);
    let again = Raw::join(&mut looped);
    assert_eq!(again.ask(&mut looped, OPEN, ROOT, 0, b"status").0, 0);
}

#[test]
fn the_end_of_a_client_comes_before_requests_of_the_same_turn() {
    let mut looped = server(WireLog::off());
    // The client with the lower number would be served first.
    let (heir, owner) = (Raw::join(&mut looped), Raw::join(&mut looped));
    let path = format!("devices/{}", DEVICES[0]);
    assert_eq!(owner.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, 0);
    assert_eq!(heir.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, -16);
    drop(owner);
    assert_eq!(heir.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, 0);
}

#[test]
fn ten_thousand_opens_end_in_a_quota_and_a_hang_up_returns_everything() {
    let mut looped = server(WireLog::off());
    let greedy = Raw::join(&mut looped);
    let mut refused = 0;
    for _ in 0..10_000 {
        match greedy.ask(&mut looped, OPEN, ROOT, 0, b"status").0 {
            0.. => {}
            errno => {
                assert_eq!(errno, -122);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && refused < 10_000);
    let other = Raw::join(&mut looped);
    assert_eq!(other.ask(&mut looped, OPEN, ROOT, 0, b"status").0, 0);
    drop(greedy);
    turn(&mut looped);
    assert_eq!(looped.clients(), 1);
    let metrics = other.ask(&mut looped, OPEN, ROOT, 0, b"metrics").0;
    let number = u32::try_from(metrics).unwrap();
    let text = other.ask(&mut looped, READ, number, 60_000, b"").1;
    let text = String::from_utf8(text).unwrap();
    let handles = text.lines().find_map(|line| line.strip_prefix("handles "));
    assert_eq!(handles.map(str::trim), Some("1"), "{text}");
}

#[test]
fn users_other_than_0_are_refused() {
    let mut looped = server(WireLog::off());
    let (ours, theirs) = pair();
    looped.adopt_as(theirs, 1000).unwrap();
    let client = Raw(ours);
    for path in ["status", "faults", "devices/0000--00--04.0", ""] {
        assert_eq!(client.ask(&mut looped, OPEN, ROOT, 0, path.as_bytes()).0, -1, "{path}");
    }
    assert_eq!(client.ask(&mut looped, OPEN, ROOT, 1, b"devices/0000--00--04.0").0, -1);
}

/// Returns both ends of a connection made by a user other than 0. That is the user who runs the tests, or for user 0
/// a thread that drops its rights.
fn pair_of_another_user() -> (OwnedFd, OwnedFd) {
    let other = || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(12345);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        pair()
    };
    std::thread::spawn(other).join().unwrap()
}

/// The server takes a client's user id from the kernel, not from the client.
#[test]
fn a_peer_is_the_user_whom_the_kernel_saw_connect() {
    let mut looped = server(WireLog::off());
    let (ours, theirs) = pair_of_another_user();
    looped.adopt(theirs).unwrap();
    let stranger = Raw(ours);
    let open = |client: &Raw, looped: &mut Loop, path: &str, flags| {
        client.ask(looped, OPEN, ROOT, flags, path.as_bytes()).0
    };
    // EPERM.
    let denied = -1;
    let claim = format!("devices/{}", DEVICES[0]);
    assert_eq!(open(&stranger, &mut looped, "status", 0), denied);
    assert_eq!(open(&stranger, &mut looped, &claim, 1), denied);
    let root = Raw::join(&mut looped);
    assert!(open(&root, &mut looped, "status", 0) >= 0);
    assert!(open(&root, &mut looped, &claim, 1) >= 0);
}

/// Requests of an administrator are in the payload of a frame, and its result is their length.
#[test]
fn administrators_write_reset_and_rescan() {
    let (mut looped, ..) = with_unit(UnitStart::Failed(UnitError::Dead));
    let (ours, theirs) = pair();
    looped.adopt_as(theirs, 1000).unwrap();
    let (stranger, root) = (Raw(ours), Raw::join(&mut looped));
    for path in [&b"units/0"[..], b"rescan", b"groups/0"] {
        assert_eq!(stranger.ask(&mut looped, OPEN, ROOT, 1, path).0, -1);
    }
    assert_eq!(root.ask(&mut looped, OPEN, ROOT, 1, b"units/1").0, -2);
    assert_eq!(root.ask(&mut looped, OPEN, ROOT, 1, b"units/0"), (0, vec![]));
    for word in [&b""[..], b"rese", b"reset\n\n", b"reset now", b"release", b"1"] {
        assert_eq!(root.ask(&mut looped, WRITE, 0, 0, word), (-38, vec![]), "{word:?}");
    }
    assert_eq!(looped.server().recover_units(Nanos(0)), None, "no word but the right one");
    assert_eq!(root.ask(&mut looped, WRITE, 0, 1, b"reset").0, -71, "an argument");
    assert_eq!(root.ask(&mut looped, WRITE, 7, 0, b"reset").0, -9, "no handle");
    assert_eq!(root.ask(&mut looped, WRITE, 0, 0, b"reset"), (5, vec![]));
    assert_eq!(looped.server().recover_units(Nanos(0)), Some(UnitIndex(0)));
    looped.server().unit_not_arrived(UnitIndex(0), &UnitError::Dead);
    assert_eq!(root.ask(&mut looped, READ, 0, 64, b"").0, -38);
    // Whoever has a handle of the root connection's, another connection's frames do not name it.
    assert_eq!(stranger.ask(&mut looped, WRITE, 0, 0, b"reset").0, -9);

    assert_eq!(root.ask(&mut looped, OPEN, ROOT, 1, b"rescan").0, 1);
    assert_eq!(root.ask(&mut looped, WRITE, 1, 0, b"1").0, -95, "nothing can be walked");
    let found = Functions::default();
    functions().into_iter().for_each(|function| found.plug(function));
    found.plug(endpoint(0, 9, 0));
    looped.server().discover_with(Box::new(found.clone()));
    let new = b"devices/0000--00--09.0";
    assert_eq!(root.ask(&mut looped, OPEN, ROOT, 0, new).0, -2);
    assert_eq!(root.ask(&mut looped, WRITE, 1, 0, b"any word"), (8, vec![]));
    assert_eq!((root.ask(&mut looped, OPEN, ROOT, 0, new).0, found.walks()), (2, 1));
    for word in [&b"reset"[..], b"1"] {
        assert_eq!(root.ask(&mut looped, WRITE, 2, 0, word).0, -38, "a text");
    }
}

#[test]
fn administrators_release_a_group() {
    let mut looped = server(WireLog::off());
    let (owner, admin) = (Raw::join(&mut looped), Raw::join(&mut looped));
    let path = format!("devices/{}", DEVICES[1]);
    assert_eq!(admin.ask(&mut looped, OPEN, ROOT, 0, path.as_bytes()).0, 0);
    let text = String::from_utf8(admin.ask(&mut looped, READ, 0, 60_000, b"").1).unwrap();
    let group = text.lines().find_map(|line| line.strip_prefix("group: ")).unwrap();
    let group = format!("groups/{group}");
    assert_eq!(owner.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, 0);
    for word in [&b"reset"[..], b"release"] {
        assert_eq!(owner.ask(&mut looped, WRITE, 0, 0, word).0, -38, "a session takes none");
    }
    assert_eq!(admin.ask(&mut looped, OPEN, ROOT, 1, b"groups/4000").0, -2);
    assert_eq!(admin.ask(&mut looped, OPEN, ROOT, 1, group.as_bytes()).0, 1);
    for word in [&b""[..], b"releas", b"release now", b"reset"] {
        assert_eq!(admin.ask(&mut looped, WRITE, 1, 0, word).0, -38, "{word:?}");
    }
    assert_eq!(owner.ask(&mut looped, FEVENT, 0, 1, b"").0, 0);
    assert_eq!(admin.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, -16, "still owned");
    admin.request(WRITE, 1, 0, b"release");
    turn(&mut looped);
    assert_eq!(admin.receive().unwrap().unwrap().0.result, 7);
    let (event, _) = owner.receive().expect("the owner is told").unwrap();
    assert_eq!((event.tag, event.handle, event.result), (EVENT_TAG, 0, 1));
    assert_eq!(owner.ask(&mut looped, READ, 0, 128, b"").0, -19);
    assert_eq!(admin.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, 2, "the next owner");
    assert_eq!(owner.ask(&mut looped, CLOSE, 0, 0, b"").0, 0);
    assert_eq!(owner.ask(&mut looped, OPEN, ROOT, 1, path.as_bytes()).0, -16, "and it stays so");
}
