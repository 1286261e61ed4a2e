//! Properties of the protocol's bytes, for any values.
#![allow(clippy::indexing_slicing, reason = "a test that meets the unexpected must stop")]

use iommu_protocol::fault::{FaultAccess, FaultRecord};
use iommu_protocol::frame;
use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::{
    Allocate, AllocateResult, Batch, BatchItem, BufferRequest, BufferResult, Empty, Grant, Map,
    MapResult, QueryResult, Region, RegionsResult, ReplyHeader, RequestHeader, Unmap, Wire,
    parse_header,
};
use proptest::prelude::*;

/// Any bytes decode to a structure, and it encodes to the same bytes.
fn there_and_back<W: Wire>(bytes: &[u8]) -> Result<(), TestCaseError> {
    let structure = W::decode(bytes).map_err(|_| TestCaseError::fail("too short"))?;
    let mut out = vec![0; W::SIZE];
    prop_assert!(structure.encode(&mut out).is_ok());
    prop_assert_eq!(&out[..], &bytes[..W::SIZE]);
    Ok(())
}

proptest! {
    #[test]
    fn structures_survive_both_ways(bytes in proptest::collection::vec(any::<u8>(), 56..80)) {
        there_and_back::<RequestHeader>(&bytes)?;
        there_and_back::<ReplyHeader>(&bytes)?;
        there_and_back::<Empty>(&bytes)?;
        there_and_back::<QueryResult>(&bytes)?;
        there_and_back::<Allocate>(&bytes)?;
        there_and_back::<AllocateResult>(&bytes)?;
        there_and_back::<BufferRequest>(&bytes)?;
        there_and_back::<BufferResult>(&bytes)?;
        there_and_back::<Map>(&bytes)?;
        there_and_back::<MapResult>(&bytes)?;
        there_and_back::<Unmap>(&bytes)?;
        there_and_back::<Grant>(&bytes)?;
        there_and_back::<Batch>(&bytes)?;
        there_and_back::<BatchItem>(&bytes)?;
        there_and_back::<RegionsResult>(&bytes)?;
        there_and_back::<Region>(&bytes)?;
    }

    #[test]
    fn frames_survive_both_ways(kind: u16, handle: u32, tag: u64, argument: u64, result: i64) {
        let request = frame::Request { kind, handle, tag, argument };
        let bytes = request.encode();
        prop_assert_eq!(frame::Request::decode(&bytes), Ok((request, &[][..])));
        let reply = frame::Reply { tag, result, handle };
        let bytes = reply.encode();
        prop_assert_eq!(frame::Reply::decode(&bytes), Ok((reply, &[][..])));
    }

    #[test]
    fn fault_records_survive_both_ways(
        sequence: u64,
        address: Option<u64>,
        segment: u16,
        requester: u16,
        access in prop_oneof![
            Just(FaultAccess::Unknown),
            Just(FaultAccess::Read),
            Just(FaultAccess::Write)
        ],
        reason: u16,
        lost: u32,
        words in ".{0,60}",
    ) {
        let source = PciAddress { segment, requester: RequesterId(requester) };
        let mut record = FaultRecord::new(sequence, source, address, access, reason, &words);
        record.lost = lost;
        prop_assert_eq!(FaultRecord::decode(&record.encode()), Ok(record));
        prop_assert!(words.starts_with(record.words()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_header(&bytes);
        let _ = FaultRecord::decode(&bytes);
        let _ = frame::Request::decode(&bytes);
        let _ = frame::Reply::decode(&bytes);
    }
}
