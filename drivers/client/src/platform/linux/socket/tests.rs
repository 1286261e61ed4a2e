//! The client's side of the socket, against scripted servers.

use super::*;
use iommu_protocol::frame::HEADER_SIZE;
use rustix::net::{SendAncillaryMessage, recv, socketpair};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

/// Reaction of a scripted server to one request.
type Script = Box<dyn Fn(&Request, &[u8]) -> Vec<(Reply, Vec<u8>)> + Send>;

/// A server that follows the script for each request in turn, then hangs up.
fn scripted(script: Vec<Script>) -> (Socket, JoinHandle<()>) {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let server = std::thread::spawn(move || {
        for step in script {
            let mut room = vec![0; MAX_FRAME];
            let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
            let asked = poll(&mut [PollFd::new(&theirs, PollFlags::IN)], Some(&timeout));
            assert_eq!(asked, Ok(1), "no request came");
            let (length, _) = recv(&theirs, &mut room, RecvFlags::empty()).unwrap();
            let (request, payload) = Request::decode(&room[..length]).unwrap();
            for (reply, payload) in step(&request, payload) {
                let bytes = [&reply.encode()[..], &payload].concat();
                rustix::net::send(&theirs, &bytes, SendFlags::NOSIGNAL).unwrap();
            }
        }
    });
    (Socket::over(ours), server)
}

fn result(result: i64, payload: &'static [u8]) -> Script {
    Box::new(move |request, _| {
        vec![(Reply { tag: request.tag, result, handle: 0 }, payload.to_vec())]
    })
}

fn event(handle: u32) -> (Reply, Vec<u8>) {
    (Reply { tag: EVENT_TAG, result: 1, handle }, Vec::new())
}

#[test]
fn requests_are_what_the_protocol_says() {
    let (socket, server) = scripted(vec![Box::new(|request, payload| {
        assert_eq!((request.kind, request.handle, request.argument), (1, 3, 1));
        assert_eq!(payload, b"devices/0000--00--04.0");
        vec![(Reply { tag: request.tag, result: 7, handle: 0 }, Vec::new())]
    })]);
    let opened = socket.open(Some(Handle(3)), "devices/0000--00--04.0", true).unwrap();
    assert_eq!(opened, Handle(7));
    server.join().unwrap();
    assert!(matches!(socket.open(None, "status", false), Err(Error::Disconnected)));
}

#[test]
fn error_numbers_are_the_refusals_of_the_operation() {
    let (socket, server) = scripted(vec![
        result(-16, b""),
        result(-22, b""),
        result(-11, b""),
        result(-16, b""),
        result(-77, b""),
        result(i64::MIN, b""),
    ]);
    let open = || socket.open(None, "devices/x", true).unwrap_err();
    assert_eq!(open().refusal(), Some(Refusal::NotOwner));
    assert_eq!(open().refusal(), Some(Refusal::Alignment));
    let unread = socket.read(Handle(0), &mut [0; 128]).unwrap_err();
    assert_eq!(unread.refusal(), Some(Refusal::NotReady));
    // The reset of a unit that is up is not about an owner.
    assert_eq!(socket.write(Handle(0), b"reset").unwrap_err().refusal(), Some(Refusal::Busy));
    assert!(matches!(open(), Error::Errno(Errno(77))));
    assert!(matches!(open(), Error::ProtocolError(ProtocolError::Value)));
    server.join().unwrap();
}

#[test]
fn an_event_on_the_way_to_a_reply_is_kept_for_who_waits() {
    let (socket, server) = scripted(vec![
        Box::new(|request, _| {
            vec![event(4), (Reply { tag: request.tag, result: 0, handle: 0 }, vec![]), event(5)]
        }),
        result(0, b""),
    ]);
    // The event is requested before the first wait. The reply to that request says that nothing is readable yet.
    assert!(socket.wait_readable(Handle(4), Duration::from_secs(5)).unwrap());
    // The event of the other handle came later. It is not lost, though it may be stale when that handle is waited
    // for.
    socket.close(Handle(9));
    assert!(socket.state().readable.contains(&5));
    server.join().unwrap();
}

#[test]
fn a_thread_that_waits_does_not_keep_others_from_asking() {
    let (asked, wait) = std::sync::mpsc::channel();
    let (socket, server) = scripted(vec![
        Box::new(move |request, _| {
            asked.send(()).unwrap();
            vec![(Reply { tag: request.tag, result: 0, handle: 0 }, Vec::new())]
        }),
        Box::new(|request, _| {
            vec![event(4), (Reply { tag: request.tag, result: 2, handle: 0 }, b"ok".to_vec())]
        }),
    ]);
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| socket.wait_readable(Handle(4), Duration::from_secs(5)).unwrap());
        wait.recv().unwrap();
        // This request receives the event.
        let mut out = [0; 2];
        assert_eq!(socket.read(Handle(8), &mut out).unwrap(), 2);
        assert!(waiting.join().unwrap());
    });
    server.join().unwrap();
}

/// A waiting claim blocks no other thread: others send requests and receive replies and events meanwhile.
#[test]
fn a_claim_that_waits_does_not_keep_others_from_asking() {
    let (asked, wait) = std::sync::mpsc::channel();
    let claim = std::sync::Arc::new(std::sync::Mutex::new(0));
    let first = claim.clone();
    let number = |tag, result| (Reply { tag, result, handle: 0 }, Vec::new());
    let (socket, server) = scripted(vec![
        Box::new(move |request, _| {
            assert_eq!(request.argument, 1 | 60_000 << 32);
            *first.lock().unwrap() = request.tag;
            asked.send(()).unwrap();
            vec![]
        }),
        Box::new(move |request, _| vec![number(request.tag, 0), event(4)]),
        Box::new(move |request, _| vec![number(*claim.lock().unwrap(), 7), number(request.tag, 9)]),
    ]);
    let minute = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let claiming = scope.spawn(|| socket.open_within(None, "devices/x", minute).unwrap());
        wait.recv().unwrap();
        assert!(socket.wait_readable(Handle(4), Duration::MAX).unwrap());
        assert!(!claiming.is_finished());
        assert_eq!(socket.open(None, "status", false).unwrap(), Handle(9));
        assert_eq!(claiming.join().unwrap(), Handle(7));
    });
    server.join().unwrap();
}

/// Replies come in another order than requests: each of many threads gets its own.
#[test]
fn every_thread_gets_its_own_answer() {
    const THREADS: usize = 8;
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let script = |_| -> Script {
        let asked = asked.clone();
        Box::new(move |request, _| {
            let mut asked = asked.lock().unwrap();
            asked.push((request.tag, request.handle));
            if asked.len() < THREADS {
                return Vec::new();
            }
            let reply = |(tag, handle): (u64, u32)| {
                let payload = handle.to_le_bytes().to_vec();
                vec![event(handle), (Reply { tag, result: 4, handle: 0 }, payload)]
            };
            asked.drain(..).rev().flat_map(reply).collect()
        })
    };
    let (socket, server) = scripted((0..50 * THREADS).map(script).collect());
    std::thread::scope(|scope| {
        for handle in (1..).take(THREADS) {
            let socket = &socket;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut out = [0; 4];
                    assert_eq!(socket.read(Handle(handle), &mut out).unwrap(), 4);
                    assert_eq!(u32::from_le_bytes(out), handle);
                }
            });
        }
    });
    server.join().unwrap();
    assert!(matches!(socket.read(Handle(1), &mut [0; 4]), Err(Error::Disconnected)));
}

/// If the server hangs up, every thread gets an error.
#[test]
fn every_thread_learns_that_the_server_is_gone() {
    let (socket, server) =
        scripted((0..3).map(|_| -> Script { Box::new(|_, _| vec![]) }).collect());
    std::thread::scope(|scope| {
        let ask = || socket.open(None, "x", false);
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        for asking in asking {
            assert!(matches!(asking.join().unwrap(), Err(Error::Disconnected)));
        }
    });
    server.join().unwrap();
}

#[test]
fn answers_that_break_the_protocol_are_errors() {
    let (socket, server) = scripted(vec![
        Box::new(|request, _| {
            vec![(Reply { tag: request.tag + 1, result: 0, handle: 0 }, Vec::new())]
        }),
        result(3, b"abc"),
        result(1 << 32, b""),
        result(4096, b""),
        result(2, b"\xff\n"),
    ]);
    let breach = |error: Error| match error {
        Error::ProtocolError(breach) => breach,
        other => panic!("{other:?}"),
    };
    assert_eq!(breach(socket.open(None, "x", false).unwrap_err()), ProtocolError::Mismatch);
    assert_eq!(breach(socket.read(Handle(0), &mut [0; 2]).unwrap_err()), ProtocolError::Length);
    assert_eq!(breach(socket.open(None, "x", false).unwrap_err()), ProtocolError::Value);
    assert_eq!(breach(socket.map(Handle(0)).unwrap_err()), ProtocolError::Memory);
    assert_eq!(breach(socket.names(Handle(0)).unwrap_err()), ProtocolError::Value);
    server.join().unwrap();
}

#[test]
fn memory_comes_as_descriptors_in_order() {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let server = std::thread::spawn(move || {
        let mut room = [0; HEADER_SIZE];
        recv(&theirs, &mut room, RecvFlags::empty()).unwrap();
        let (request, _) = Request::decode(&room).unwrap();
        let files: Vec<OwnedFd> = (0..MAX_DESCRIPTORS as u64)
            .map(|index| {
                let flags = rustix::fs::MemfdFlags::CLOEXEC;
                let file = rustix::fs::memfd_create("part", flags).unwrap();
                rustix::io::pwrite(&file, &index.to_le_bytes(), 0).unwrap();
                rustix::fs::ftruncate(&file, 4096).unwrap();
                file
            })
            .collect();
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let space = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
        let mut space = vec![MaybeUninit::uninit(); space];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(rights.push(SendAncillaryMessage::ScmRights(&files)));
        let result = i64::try_from(MAX_DESCRIPTORS * 4096).unwrap();
        let reply = Reply { tag: request.tag, result, handle: 0 }.encode();
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&theirs, &[IoSlice::new(&reply)], &mut rights, flags).unwrap();
    });
    let memory = Socket::over(ours).map(Handle(0)).unwrap();
    server.join().unwrap();
    for index in 0..MAX_DESCRIPTORS as u64 {
        assert_eq!(memory.read_u64(index * 4096), Some(index));
    }
}

/// The next server sends a reply again when it cannot know that it was sent. A reply to no request is another matter.
#[test]
fn the_second_of_two_replies_is_ignored() {
    let twice: Script = Box::new(|request, _| {
        assert!(request.tag & NUMBERED != 0, "the server is told so");
        let reply = Reply { tag: request.tag, result: 3, handle: 0 };
        vec![(reply, Vec::new()), (Reply { result: 4, ..reply }, Vec::new())]
    });
    let unasked: Script = Box::new(|request, _| {
        vec![(Reply { tag: request.tag + 1, result: 3, handle: 0 }, Vec::new())]
    });
    let (socket, server) = scripted(vec![twice, result(7, b""), unasked]);
    assert_eq!(socket.open(None, "status", false).unwrap(), Handle(3));
    assert_eq!(socket.open(None, "status", false).unwrap(), Handle(7));
    let refused = socket.open(None, "status", false).unwrap_err();
    assert!(matches!(refused, Error::ProtocolError(ProtocolError::Mismatch)), "{refused:?}");
    server.join().unwrap();
}

#[test]
fn a_handle_of_a_dead_server_is_disconnected() {
    let (socket, server) = scripted(vec![result(-116, b""), result(-116, b"")]);
    assert!(matches!(socket.read(Handle(0), &mut [0; 8]), Err(Error::Disconnected)));
    assert!(matches!(socket.map(Handle(0)), Err(Error::Disconnected)));
    server.join().unwrap();
}
