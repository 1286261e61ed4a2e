//! Frames in the clients' format, and sockets for them.

use std::os::fd::{AsFd, OwnedFd};

use iommu_protocol::frame::{HEADER_SIZE, Kind, OPEN_WRITE, ROOT, Reply, Request};
use iommu_protocol::wire::{Empty, Operation, ReplyHeader, Wire};
use iommud_tests::stack::request;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::machine::function;

/// Bytes before the body of a request.
const HEAD: usize = 16;

/// The longest frame used.
pub const LONGEST: usize = 256;

/// Returns the two ends of a connection.
pub fn connection() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    pair.expect("sockets")
}

fn frame(kind: Kind, handle: u32, argument: u64, payload: &[u8]) -> Vec<u8> {
    let header = Request { kind: kind as u16, handle, tag: 1, argument }.encode();
    [&header[..], payload].concat()
}

/// Encodes the request that opens the session of one of the devices, by its number.
pub fn open(number: u16) -> Vec<u8> {
    let path = format!("devices/{}", function(number * 8 + 8).address);
    frame(Kind::Open, ROOT, OPEN_WRITE, path.as_bytes())
}

/// Encodes a call on handle 0, the session of each client.
pub fn call<W: Wire>(operation: Operation, body: &W) -> Vec<u8> {
    let mut bytes = vec![0; HEAD + W::SIZE];
    bytes[..4].copy_from_slice(&request(operation, &Empty::default())[..4]);
    bytes[4..8].copy_from_slice(&((HEAD + W::SIZE) as u32).to_le_bytes());
    body.encode(&mut bytes[HEAD..]).expect("fits");
    frame(Kind::Call, 0, 64, &bytes)
}

pub fn put(socket: impl AsFd, frame: &[u8]) {
    send(socket, frame, SendFlags::NOSIGNAL).expect("sent");
}

/// Receives a reply and returns its body.
pub fn take(socket: impl AsFd, room: &mut [u8; LONGEST], flags: RecvFlags) -> &[u8] {
    let (_, length) = recv(socket, &mut room[..], flags).expect("answered");
    let (reply, payload) = Reply::decode(&room[..length]).expect("a reply");
    assert!(reply.result >= 0, "{}", reply.result);
    let Some(header) = payload.get(..ReplyHeader::SIZE) else { return &[] };
    assert_eq!(ReplyHeader::decode(header).expect("a header").refusal, 0);
    &room[HEADER_SIZE + ReplyHeader::SIZE..length]
}
