//! Clients that count frames.

use std::fs::File;
use std::os::fd::OwnedFd;

use iommu_protocol::frame::{EVENT_TAG, MAX_FRAME, NUMBERED, ROOT, Reply, Request};
use iommud::platform::linux::keeper;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::harness::DEVICES;
use crate::place::{CLAIM_POINTS, POINTS};
use crate::processes::{Kept, MISSING, until};

// The protocol's numbers, written out: see protocol/src/frame.rs.
const OPEN: u16 = 1;
const CLOSE: u16 = 2;
const STAT: u16 = 6;
const STALE: i64 = -116;
const NO_DEVICE: i64 = -19;
const IO_ERROR: i64 = -5;

/// A client that numbers its requests.
struct Client {
    socket: OwnedFd,
    tag: u64,
}

impl Client {
    fn of(kept: &Kept) -> Self {
        Self { socket: kept.connect(), tag: NUMBERED }
    }

    fn send(&mut self, kind: u16, handle: u32, argument: u64, payload: &[u8]) -> u64 {
        self.tag += 1;
        let header = Request { kind, handle, tag: self.tag, argument }.encode();
        let bytes = [&header[..], payload].concat();
        assert_eq!(send(&self.socket, &bytes, SendFlags::NOSIGNAL), Ok(bytes.len()));
        self.tag
    }

    /// The next frame: its tag, result and handle. `None` when the connection has ended.
    fn receive(&self) -> Option<(u64, i64, u32)> {
        let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout));
        assert_eq!(ready, Ok(1), "no reply");
        let mut room = vec![0; MAX_FRAME];
        match recv(&self.socket, &mut room, RecvFlags::empty()) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => None,
            Ok((length, _)) => {
                let (reply, _) = Reply::decode(&room[..length]).unwrap();
                Some((reply.tag, reply.result, reply.handle))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a request and returns the result of its reply. Nothing else arrives but events, and a second reply to an
    /// earlier request, if its server was killed just after the first one.
    fn ask(&mut self, kind: u16, handle: u32, argument: u64, payload: &[u8]) -> i64 {
        let tag = self.send(kind, handle, argument, payload);
        loop {
            match self.receive().expect("hung up") {
                (of, result, _) if of == tag => return result,
                (of, ..) => assert!(of == EVENT_TAG || of < tag),
            }
        }
    }

    /// The next event.
    fn event(&mut self) -> (u64, i64, u32) {
        loop {
            match self.receive().expect("hung up") {
                event @ (EVENT_TAG, ..) => return event,
                (of, ..) => assert!(of <= self.tag),
            }
        }
    }

    fn open(&mut self, path: &str) -> i64 {
        self.ask(OPEN, ROOT, 0, path.as_bytes())
    }

    /// The results of all replies to a request that was sent. Replies that come twice come before that to the next
    /// request, whose number is returned too.
    fn replies(&mut self, tag: u64) -> (Vec<i64>, i64) {
        let mut results = Vec::new();
        // The claim that waits is answered after later requests: they are sent when it was answered.
        loop {
            match self.receive().expect("hung up") {
                (EVENT_TAG, ..) => {}
                (of, result, _) if of == tag => {
                    results.push(result);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        let next = self.send(OPEN, ROOT, 0, b"status");
        loop {
            match self.receive().expect("hung up") {
                (of, result, _) if of == tag => results.push(result),
                (of, result, _) if of == next => return (results, result),
                (EVENT_TAG, ..) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The server dies at each point of the second of three requests. How often that request was carried out is counted
/// in a file that outlives servers. A server that dies between the request and its record leaves no trace: without a
/// store of what it decided, all that it did has ended with it, and the next one carries the request out.
pub(crate) fn every_point() {
    let expected = [(1, 1), (1, 1), (2, 1), (1, 1), (1, 2), (1, 1)];
    for (point, (carried_out, replies)) in POINTS.into_iter().zip(expected) {
        let kept = Kept::start(&[&format!("{point} 1")]);
        let mut client = Client::of(&kept);
        assert_eq!(client.open("metrics"), 0, "{point}");
        let first = kept.server();
        let path = format!("devices/{MISSING}");
        let tag = client.send(OPEN, ROOT, 1, path.as_bytes());
        let (results, next) = client.replies(tag);
        assert_eq!(results, vec![NO_DEVICE; replies], "{point}");
        assert_eq!(next, 1, "{point}: the number of the dead server's handle stays taken");
        assert_eq!(kept.looks(), carried_out, "{point}");
        assert_ne!(first, kept.server(), "{point}: no server died");
    }
}

/// The same for a claim that waits for its unit. The last two claims were granted by the server that died.
pub(crate) fn every_point_of_a_claim() {
    const NEVER: &str = "100000";
    let expected = [
        (NEVER, 1, 0),
        (NEVER, 1, 0),
        (NEVER, 1, 0),
        ("60", 1, 0),
        ("60", 1, STALE),
        ("60", 2, STALE),
    ];
    for (point, (first, replies, session)) in CLAIM_POINTS.into_iter().zip(expected) {
        let kept = Kept::with(&[&format!("{point} 0")], &[first, "30"]);
        let mut client = Client::of(&kept);
        let server = until("a server", || kept.server());
        let path = format!("devices/{}", DEVICES[0]);
        let tag = client.send(OPEN, ROOT, 1 | 60_000 << 32, path.as_bytes());
        let (results, next) = client.replies(tag);
        assert_eq!((results, next), (vec![0; replies], 1), "{point}");
        assert_eq!(client.ask(STAT, 0, 0, &[]), session, "{point}");
        assert_ne!(Some(server), kept.server(), "{point}: no server died");
    }
}

pub(crate) fn deadly() {
    let kept = Kept::start(&["begin+ 1", "begin+ 0"]);
    let mut client = Client::of(&kept);
    assert_eq!(client.open("metrics"), 0);
    let path = format!("devices/{MISSING}");
    let tag = client.send(OPEN, ROOT, 1, path.as_bytes());
    assert_eq!(client.replies(tag), (vec![IO_ERROR], 1));
    assert_eq!(kept.looks(), 0, "it was never carried out");
    assert_eq!(client.ask(OPEN, ROOT, 1, path.as_bytes()), NO_DEVICE, "a new request is");
}

pub(crate) fn numbers() {
    let kept = Kept::start(&[]);
    let mut client = Client::of(&kept);
    let device = format!("devices/{}", DEVICES[0]);
    assert_eq!(client.open("devices"), 0);
    assert_eq!(client.ask(OPEN, ROOT, 1, device.as_bytes()), 1);
    assert_eq!(client.open("status"), 2);
    assert_eq!(client.open("metrics"), 3);
    assert_eq!(client.ask(CLOSE, 3, 0, &[]), 0);
    for _ in 0..2 {
        kept.kill_server();
        let events = [(); 3].map(|()| client.event());
        assert_eq!(events, [0, 1, 2].map(|number| (EVENT_TAG, 1, number)));
        for number in 0..3 {
            assert_eq!(client.ask(STAT, number, 0, &[]), STALE, "{number}");
        }
        assert_eq!(client.ask(STAT, 3, 0, &[]), -9, "it was closed");
    }
    assert_eq!(client.ask(OPEN, ROOT, 1, device.as_bytes()), 3, "the device is free");
    assert_eq!(client.ask(CLOSE, 1, 0, &[]), 0);
    assert_eq!(client.ask(STAT, 1, 0, &[]), -9);
    assert_eq!(client.ask(STAT, 3, 0, &[]), 0, "the new session is another one");
    assert_eq!(client.open("status"), 1, "a closed number is free");
}

pub(crate) fn plain() {
    let kept = Kept::start(&[]);
    let (mut old, mut idle) = (Client::of(&kept), Client::of(&kept));
    (old.tag, idle.tag) = (0, 0);
    assert_eq!(old.open("status"), 0);
    kept.kill_server();
    assert_eq!(old.receive(), None, "it cannot tell a second reply from another");
    assert_eq!(idle.open("status"), 0, "it has lost nothing");
}

pub(crate) fn dies_in_between() {
    let kept = Kept::start(&[]);
    let mut other = Client::of(&kept);
    assert_eq!(other.open("status"), 0);
    let before = kept.descriptors();
    let device = format!("devices/{}", DEVICES[0]);
    let mut client = Client::of(&kept);
    assert_eq!(client.ask(OPEN, ROOT, 1, device.as_bytes()), 0);
    assert_eq!(kept.descriptors(), before + 1, "the keeper has its connection");
    kept.hold(true);
    kept.kill_server();
    // A request that nobody waits for any more.
    client.send(CLOSE, 0, 0, &[]);
    drop(client);
    kept.hold(false);
    assert_eq!(other.ask(OPEN, ROOT, 1, device.as_bytes()), 1);
    until("the keeper drops its connection", || (kept.descriptors() == before).then_some(()));
}

pub(crate) fn comes_in_between() {
    let kept = Kept::start(&[]);
    drop(kept.connect());
    kept.hold(true);
    kept.kill_server();
    let mut client = Client::of(&kept);
    let tag = client.send(OPEN, ROOT, 0, b"status");
    kept.hold(false);
    assert_eq!(client.replies(tag), (vec![0], 1));
}

/// What the keeper answers to a request to replace its server by this program.
fn replace(kept: &Kept, program: &str) -> bool {
    keeper::replace(&kept.socket(), File::open(program).unwrap().into()).unwrap()
}

/// Another program goes on with the clients. One that does not know the records is refused, and one that does not serve
/// is followed by the old one.
pub(crate) fn replacement() {
    let kept = Kept::start(&[]);
    let mut client = Client::of(&kept);
    assert_eq!(client.open("status"), 0);
    let first = kept.server();
    assert!(!replace(&kept, "/bin/false"), "it does not know the records");
    assert_eq!((client.ask(STAT, 0, 0, &[]), kept.server()), (0, first), "the old one goes on");
    assert!(!replace(&kept, "/bin/true"), "it ends at once");
    assert_eq!(client.open("status"), 1);
    assert_eq!((client.ask(STAT, 0, 0, &[]), client.ask(STAT, 1, 0, &[])), (STALE, 0));
    let second = kept.server();
    assert_ne!(second, first);
    assert!(replace(&kept, "/proc/self/exe"));
    assert_ne!(kept.server(), second);
    assert_eq!((client.open("status"), client.ask(STAT, 1, 0, &[])), (2, STALE));
}
