//! Messages to the server, and messages to a client.

use iommu_protocol::fault::{FaultRecord, RECORD_SIZE};
use iommu_protocol::frame;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::path::{Path, SessionPath};
use iommu_protocol::wire::{
    Allocate, Batch, BatchItem, BufferRequest, Empty, Grant, Map, MapList, Operation,
    RequestHeader, Unmap, Wire, parse_header,
};

/// Decodes frames, requests and fault records. Encoding an accepted one returns the same bytes.
pub fn messages(data: &[u8]) {
    let mut payload = data;
    if let Ok((request, rest)) = frame::Request::decode(data) {
        assert_eq!(request.encode(), data[..frame::HEADER_SIZE]);
        payload = rest;
    }
    if let Ok((reply, _)) = frame::Reply::decode(data) {
        assert_eq!(reply.encode(), data[..frame::HEADER_SIZE]);
    }
    request(payload);
    if payload.len() >= 2 {
        // Sets the current version, which random bytes seldom have.
        let mut current = payload.to_vec();
        current[..2].copy_from_slice(&iommu_protocol::wire::VERSION.to_le_bytes());
        request(&current);
    }
    for record in data.chunks_exact(RECORD_SIZE) {
        fault(record);
    }
}

fn request(payload: &[u8]) {
    let Ok((header, operation, body)) = parse_header(payload) else { return };
    assert_eq!(Operation::from_code(header.operation), Some(operation));
    assert!(usize::try_from(header.length).unwrap() <= payload.len());
    assert_eq!(usize::try_from(header.length).unwrap(), RequestHeader::SIZE + body.len());
    match operation {
        Operation::Allocate => same::<Allocate>(body),
        Operation::Release | Operation::QueryBuffer => same::<BufferRequest>(body),
        Operation::Map => same::<Map>(body),
        Operation::MapList => same::<MapList>(body),
        Operation::Unmap => same::<Unmap>(body),
        Operation::Grant | Operation::Revoke => same::<Grant>(body),
        Operation::Batch => {
            same::<Batch>(body);
            body[Batch::SIZE..].chunks_exact(BatchItem::SIZE).for_each(same::<BatchItem>);
        }
        Operation::Query | Operation::Attach | Operation::Detach | Operation::Regions => {
            same::<Empty>(body);
        }
    }
}

fn same<W: Wire>(bytes: &[u8]) {
    let mut out = vec![0; W::SIZE];
    W::decode(bytes).unwrap().encode(&mut out).unwrap();
    assert_eq!(out, bytes[..W::SIZE]);
}

fn fault(bytes: &[u8]) {
    if let Ok(record) = FaultRecord::decode(bytes) {
        assert_eq!(FaultRecord::decode(&record.encode()), Ok(record));
        assert!(!record.to_string().is_empty());
    }
}

/// Parses paths of the scheme. Writing an accepted one returns the same text.
pub fn paths(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(path) = Path::parse(text) {
        assert_eq!(path.to_string(), text);
    }
    if let Some(path) = SessionPath::parse(text) {
        assert_eq!(path.to_string(), text);
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string(), text);
    }
}
