//! Literal records, and records that are read back.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use super::*;
use crate::addr::{Iova, PhysAddr, PhysRange};
use crate::policy::{
    Allocate, AllocateRequest, Batch, BatchRequest, BufferId, Claim, ClientId, DomainId, Event,
    Hold, Holds, Import, ImportShared, ListRequest, MapList, MapRequest, Owed, SessionId,
    UnitIndex,
};
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::tags::{HeldTags, TagSpan};

fn ring() -> Ring {
    Ring::new(vec![[0; 8]; 65].leak()).unwrap()
}

fn taken(ring: &mut Ring) -> Vec<Record> {
    let mut out = Vec::new();
    ring.take(|piece| out.extend_from_slice(piece));
    out
}

/// The records of a request.
fn written(request: &impl Traced) -> Vec<Record> {
    let mut recorder = Recorder::from(ring());
    recorder.begin(request);
    taken(recorder.ring().unwrap())
}

/// The records of a fact.
fn of_fact(fact: &Fact) -> Vec<Record> {
    let mut ring = ring();
    fact.write(&mut ring);
    taken(&mut ring)
}

fn range(first: u64, last: u64) -> PhysRange {
    PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).unwrap()
}

fn map() -> MapRequest {
    MapRequest {
        slot: Slot(5),
        offset: 0x3000,
        length: 0x2000,
        iova: Iova(0x7000),
        access: Access::READ,
        flags: MapFlags::FIXED,
    }
}

fn function() -> PciFunction {
    PciFunction {
        address: PciAddress { segment: 2, requester: RequesterId(0x0318) },
        vendor: 0x8086,
        device: 0x1572,
        class: 0x0002_0000,
        kind: FunctionKind::DownstreamPort(Buses { secondary: 4, subordinate: 6 }),
        multifunction: true,
        acs: Some(0x1d),
        acs_capability: 0x5f,
        hot_plug: true,
    }
}

fn capabilities() -> UnitCapabilities {
    UnitCapabilities {
        levels: LevelSet::THREE | LevelSet::FOUR,
        page_sizes: PageSizes::SIZE_4K | PageSizes::SIZE_2M,
        coherent: true,
        forces_snoop: false,
        caches_absent: true,
        publishes: false,
        last_tag: 0x1234,
        pass_through: true,
        physical_bits: 46,
        iova_bits: 48,
        deepens: true,
    }
}

fn session(items: &[BatchRequest]) -> Vec<Record> {
    written(&Batch(SessionId(9), items))
}

#[test]
fn one_element_is_one_record() {
    let (iova, slot) = (Iova(0x7000), Slot(5));
    let one = |word, offset, length, iova| [[0x9_0000_0025, 0, word, offset, length, iova, 0, 0]];
    assert_eq!(session(&[BatchRequest::Map(map())]), one(0x5_0001_0101, 0x3000, 0x2000, 0x7000));
    let grant = MapRequest { access: Access::all(), flags: MapFlags::empty(), ..map() };
    assert_eq!(session(&[BatchRequest::Grant(grant)]), one(0x5_0000_0303, 0x3000, 0x2000, 0x7000));
    let unmap = BatchRequest::Unmap { iova, length: 0x4000 };
    assert_eq!(session(&[unmap]), one(2, 0, 0x4000, 0x7000));
    let revoke = BatchRequest::Revoke { slot, offset: 0x1000, length: 0x4000 };
    assert_eq!(session(&[revoke]), one(0x5_0000_0004, 0x1000, 0x4000, 0));
}

#[test]
fn elements_of_lists_have_records_of_their_own() {
    let unmap = |iova| BatchRequest::Unmap { iova: Iova(iova), length: 0x1000 };
    let expected = [
        [0x9_0000_0026, 0, 2, 0, 0, 0, 0, 0],
        [2, 0, 0x1000, 0x1000, 0, 0, 0, 0],
        [2, 0, 0x1000, 0x3000, 0, 0, 0, 0],
    ];
    assert_eq!(session(&[unmap(0x1000), unmap(0x3000)]), expected);
    let pages: Vec<u32> = (1..18).collect();
    let (slot, access, flags) = (Slot(5), Access::WRITE, MapFlags::ABOVE_4G);
    let list = ListRequest { slot, access, flags, iova: Iova(0), pages };
    let expected = [
        [0x9_0000_0027, 0, 17, 0x5_0002_0200, 0, 0, 0, 0],
        [
            0x2_0000_0001,
            0x4_0000_0003,
            0x6_0000_0005,
            0x8_0000_0007,
            0xa_0000_0009,
            0xc_0000_000b,
            0xe_0000_000d,
            0x10_0000_000f,
        ],
        [17, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(written(&MapList(SessionId(9), &list)), expected);
    let request = AllocateRequest {
        buffer: BufferId(3),
        segments: vec![range(0x10_0000, 0x10_ffff); 5],
        length: 0x5_0000,
        alignment: 0x1000,
        boundary: 0,
        access: Access::READ,
        flags: AllocateFlags::UNMAPPED,
    };
    let pair = [0x10_0000, 0x10_ffff];
    let expected = [
        [0x9_0000_0021, 0, 0x3_0000_0005, 0x5_0000, 0xff0c_0002_0100, 0, 0, 0],
        [pair[0], pair[1], pair[0], pair[1], pair[0], pair[1], pair[0], pair[1]],
        [pair[0], pair[1], 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(written(&Allocate(SessionId(9), request)), expected);
}

#[test]
fn events_and_facts_in_words() {
    let event = |event: Event| written(&event);
    let of = |first, words: [u64; 3]| [[first, 0, words[0], words[1], words[2], 0, 0, 0]];
    assert_eq!(event(Event::Attach(SessionId(9))), of(0x9_0000_000b, [0; 3]));
    let frugally = Event::Frugally(Box::new(Event::Close(SessionId(9))));
    assert_eq!(event(frugally), of(0x9_0000_010f, [0; 3]));
    let words = [0x1572_8086_0002_0318, 0x0306_0406_0002_0000, 0x1_005f_001d];
    assert_eq!(event(Event::FunctionAdded(function())), of(4, words));
    let ready = Event::UnitReady(UnitIndex(1), capabilities());
    assert_eq!(event(ready), of(0x1_0000_0001, [0x20_1000, 0x3518_302e_1234, 0]));
    let units = vec![Holds::Failed, Holds::Earlier];
    let held = HeldTags::Span(TagSpan { first: 2, last: 9 });
    let expected = [[66, 0, 0xff_0000_0002, 0x2_0009, 0, 0, 0, 1], [3, 1, 0, 0, 0, 0, 0, 0]];
    assert_eq!(of_fact(&Fact::Tags(held, units, 0xff)), expected);
}

/// What is read back is what was written: the same records come of it.
#[test]
fn every_request_is_read_back() {
    let (session, unit, buffer) = (SessionId(9), UnitIndex(1), BufferId(4));
    let gone = PciAddress { segment: 0xffff, requester: RequesterId(0xfffe) };
    let bridge = PciFunction { kind: FunctionKind::Conventional, acs: None, ..function() };
    let events = [
        Event::UnitReady(unit, capabilities()),
        Event::UnitFailed(unit),
        Event::Proved,
        Event::FunctionAdded(function()),
        Event::FunctionsAdded(vec![function(), bridge, function()]),
        Event::FunctionRemoved(gone),
        Event::FunctionsRemoved(vec![gone, function().address]),
        Event::MemoryTaken(range(0x1000, 0x1fff)),
        Event::MemoryReturned(range(0, u64::MAX)),
        Event::Storm(unit, RequesterId(7)),
        Event::Attach(session),
        Event::Detach(session),
        Event::Release(session, Slot(3)),
        Event::Drop(buffer),
        Event::Close(session),
        Event::Shutdown,
        Event::Settle(Owed::Entry(unit, RequesterId(7))),
        Event::Settle(Owed::Buffer(buffer)),
        Event::Settle(Owed::Regions(DomainId(6))),
        Event::Frugally(Box::new(Event::FunctionsRemoved(vec![gone]))),
    ];
    for event in events {
        let Ok(Entry { said: Said::Event(found), .. }) = read(&written(&event), 0) else {
            panic!("{event:?}");
        };
        assert_eq!(alloc::format!("{found:?}"), alloc::format!("{event:?}"));
    }
    let facts = [
        Fact::Pool(1 << 40, 4096),
        Fact::Tags(HeldTags::Everything, vec![Holds::Anything; 9], u16::MAX),
        Fact::FoundOff(unit),
        Fact::CutOff(gone),
        Fact::Installed(unit, capabilities()),
        Fact::Lost(unit),
        Fact::NotAdmitted(session, 1 << 33, Refusal::Quota),
    ];
    for fact in facts {
        let Ok(Entry { said: Said::Fact(found), .. }) = read(&of_fact(&fact), 0) else {
            panic!("{fact:?}");
        };
        assert_eq!(found, fact);
    }
    let claim = Claim { client: ClientId(2), address: gone, parent: Some(session) };
    let said = |records: Vec<Record>| alloc::format!("{:?}", read(&records, 0).unwrap().said);
    assert_eq!(said(written(&claim)), alloc::format!("Claim({claim:?})"));
    let free = Claim { parent: None, ..claim };
    assert_eq!(said(written(&free)), alloc::format!("Claim({free:?})"));
    let import = Import(session, buffer);
    assert_eq!(said(written(&import)), alloc::format!("Import({import:?})"));
    let import = ImportShared(session, buffer);
    assert_eq!(said(written(&import)), alloc::format!("ImportShared({import:?})"));
    let hold = Hold(session, Slot(8));
    assert_eq!(said(written(&hold)), alloc::format!("Hold({hold:?})"));
}

#[test]
fn a_snapshot_is_read_back() {
    let snapshot = Snapshot {
        policy: "default = \"strict\"\n".repeat(5),
        table: TableBytes::Ivrs((0..=254).collect()),
        ram: vec![range(0, 0x9_ffff); 5],
        own: vec![range(0x10_0000, 0x2f_ffff)],
    };
    let mut ring = ring();
    snapshot.write(&mut ring);
    let records = taken(&mut ring);
    assert_eq!(records[0][..6], [64, 0, 0x1_0000_0005, 0xff_0000_005f, 0x2_0000_0001, MARK]);
    let Ok(Entry { said: Said::Life(found), records: 10, .. }) = read(&records, 0) else {
        panic!("{:?}", read(&records, 0));
    };
    assert_eq!(*found, snapshot);
}

/// Any words are read or refused. A list that is longer than the file takes no memory.
#[test]
fn hostile_records_are_refused() {
    assert_eq!(read(&[], 0).err(), Some(Unreadable::Short { wanted: 1, left: 0 }));
    assert_eq!(read(&[[0; 8]], 0).err(), Some(Unreadable::Kind(0)));
    let short = |first, word| read(&[[first, 0, word, 0, 0, 0, 0, 0], [0; 8]], 0).err();
    let most = u64::from(u32::MAX);
    let expected = |wanted| Some(Unreadable::Short { wanted, left: 1 });
    assert_eq!(short(38, most), expected(most));
    assert_eq!(short(39, most), expected(most.div_ceil(16)));
    assert_eq!(short(33, most), expected(most.div_ceil(4)));
    assert_eq!(short(5, 2), expected(2));
    assert_eq!(short(66, most), expected(most.div_ceil(8)));
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state ^ state >> 33
    };
    let mut readable = 0;
    for round in 0..20_000 {
        let mut records = [[0; 8]; 4];
        records.iter_mut().flatten().for_each(|place| *place = word());
        records[0][0] = (records[0][0] & !0xff) | (round % 80);
        if round % 3 == 0 {
            records[0][2..].iter_mut().for_each(|word| *word &= 0x7);
        }
        readable += u32::from(read(&records, 0).is_ok());
    }
    assert!(readable > 1000, "only {readable} were read");
}
