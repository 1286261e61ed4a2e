//! Calls on sessions: room for replies, and counts.

use super::*;
use crate::server::Refusal;
use crate::topology::firmware::{DeviceScope, ReservedRegion, ScopeKind};
use iommu_protocol::wire::{Region, RegionsResult};

/// A region that firmware reserves for device 03.0 of segment 0.
pub(super) fn region(first: u64) -> ReservedRegion {
    ReservedRegion {
        segment: 0,
        range: range(first, 0x1000),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![DeviceScope { kind: ScopeKind::Endpoint, start_bus: 0, path: vec![(3, 0)] }],
        entries: Vec::new(),
    }
}

/// Four regions: a page of firmware's, and the addresses above memory on both sides of the interrupt window. A header
/// of 24 bytes, one of 8, and 24 for each region.
#[test]
fn regions_are_listed_by_their_addresses_where_all_have_room() {
    let mut startup = machine([UnitStart::Ready(FakeUnit::default())]);
    startup.firmware.reserved.push(region(0x10_0000));
    let mut server = Tested::start(startup);
    let session = claim(&mut server, address(0, 3));
    let request = (Operation::Regions, &Empty::default());
    let (length, reply) = call(&mut server, session, request, 128);
    assert_eq!(length, Ok(128));
    let header = ReplyHeader::decode(&reply).unwrap();
    assert_eq!((header.refusal, header.length, header.cookie), (0, 128, 7));
    assert_eq!(RegionsResult::decode(&reply[24..]), Ok(RegionsResult { count: 4, reserved: 0 }));
    let listed: Vec<_> = reply[32..]
        .chunks(24)
        .map(|bytes| Region::decode(bytes).unwrap())
        .map(|region| (region.first, region.last, region.kind, region.reserved))
        .collect();
    let expected = [
        (0x0010_0000, 0x0010_0fff, 1, 0),
        (0x8000_0000, 0xfedf_ffff, 4, 0),
        (0xfee0_0000, 0xfeef_ffff, 2, 0),
        (0xfef0_0000, 0xffff_ffff, 4, 0),
    ];
    assert_eq!(listed, expected);
    // With less room nothing is written behind the header, not even what would fit.
    for room in [32, 56, 104, 127] {
        let (length, reply) = call(&mut server, session, request, room);
        assert_eq!(length, Ok(24), "{room}");
        let header = ReplyHeader::decode(&reply).unwrap();
        assert_eq!(header.refusal, Refusal::BadLength.code(), "{room}");
        assert!(reply[24..].iter().all(|byte| *byte == 0xee), "{room}: {reply:x?}");
    }
}

/// A payload has room for a header at least, else there is no reply, and nothing counts as refused.
#[test]
fn a_payload_of_a_header_is_enough_for_a_refusal() {
    let (mut server, _) = one();
    let session = claim(&mut server, address(0, 3));
    let (length, reply) = call(&mut server, session, (Operation::Query, &Empty::default()), 24);
    assert_eq!(length, Ok(24));
    assert_eq!(ReplyHeader::decode(&reply).unwrap().refusal, Refusal::BadLength.code());
    assert_eq!(metric(&mut server, "refusals"), 1);
    for (bytes, length) in [(23, 16), (23, 23), (0, 0), (24, 25), (64, 65)] {
        let refused = server.call(session, &mut vec![0; bytes], length);
        assert_eq!(refused, Err(Refusal::BadLength), "{bytes} {length}");
    }
    assert_eq!(metric(&mut server, "refusals"), 1);
}

#[test]
fn opens_calls_refusals_and_plans_are_counted() {
    let (mut server, unit) = one();
    let counts = |server: &mut Tested| {
        ["opens", "calls", "refusals", "plans", "plans_undone"].map(|name| metric(server, name))
    };
    // Two functions were entered, and a unit was turned on.
    assert_eq!(counts(&mut server), [0, 0, 0, 3, 0]);
    let text = server.open(ROOT, None, "status", false).unwrap();
    for _ in 0..2 {
        assert_eq!(server.open(ROOT, None, "nowhere", false), Err(Refusal::NotFound));
    }
    assert_eq!(counts(&mut server), [3, 0, 2, 3, 0]);
    assert_eq!(server.write(text, b"reset"), Err(Refusal::BadOperation));
    let session = claim(&mut server, address(0, 3));
    assert_eq!(counts(&mut server), [4, 0, 3, 4, 0]);
    assert_eq!(done(&mut server, session, Operation::Query, &Empty::default()), 0);
    for _ in 0..2 {
        let code = done(&mut server, session, Operation::Query, &Empty { reserved: 1 });
        assert_eq!(code, Refusal::BadReserved.code());
    }
    assert_eq!(counts(&mut server), [4, 3, 5, 4, 0]);
    attach(&mut server, session);
    assert_eq!(counts(&mut server), [4, 4, 5, 5, 0]);
    // The unit stops in the middle of a plan, and a second one is its failure.
    unit.change(|unit| unit.dead = true);
    let code = done(&mut server, session, Operation::Detach, &Empty::default());
    assert_eq!(code, Refusal::UnitFailed.code());
    assert_eq!(counts(&mut server), [4, 5, 6, 7, 1]);
    // A handle that is no session is called, and gets no reply.
    let refused = server.call(text, &mut [0; 64], 24);
    assert_eq!(refused, Err(Refusal::BadOperation));
    assert_eq!(counts(&mut server), [4, 6, 6, 7, 1]);
}
