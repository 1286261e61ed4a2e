//! Well-formed requests with impossible values: they are refused as documented, and change nothing.

use iommu_protocol::Refusal;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, BatchItem, BufferRequest, Empty, MapFlags,
    MapList, MapResult, Operation, ReplyHeader, Unmap, Wire,
};

use super::input::{Scene, batch, item, list, map_list, scene};
use iommud_tests::stack::request;

#[test]
fn bad_ranges_are_refused() {
    let mut scene = scene();
    let fixed = MapFlags::FIXED.bits();
    let last = scene.stack.query(scene.session).unwrap().iova_last;
    let mapped = scene.iova;
    let at = |scene: &Scene, iova, length| {
        scene.map(|map| (map.flags, map.iova, map.length) = (fixed, iova, length))
    };
    let of = |scene: &Scene, offset, length| {
        scene.map(|map| (map.offset, map.length) = (offset, length))
    };
    let cases = [
        ("empty", of(&scene, 0, 0), Refusal::Range),
        ("one byte", of(&scene, 0, 1), Refusal::Alignment),
        ("unaligned length", of(&scene, 0, 0x1001), Refusal::Alignment),
        ("unaligned offset", of(&scene, 0x800, 0x1000), Refusal::Alignment),
        ("behind the buffer", of(&scene, 0x5000, 0x1000), Refusal::Range),
        ("across its end", of(&scene, 0x4000, 0x2000), Refusal::Range),
        ("more than all", of(&scene, 0, 0x6000), Refusal::Range),
        ("far beyond", of(&scene, 1 << 62, 0x1000), Refusal::Range),
        ("overflow", of(&scene, !0xfff, 0x2000), Refusal::Range),
        ("overflow by length", of(&scene, 0x1000, !0xfff), Refusal::Range),
        ("unaligned address", at(&scene, 0x4000_0800, 0x1000), Refusal::Alignment),
        ("address overflow", at(&scene, !0xfff, 0x2000), Refusal::Range),
        ("beyond the space", at(&scene, (last & !0xfff) + 0x1000, 0x1000), Refusal::Range),
        ("across its end", at(&scene, last & !0xfff, 0x2000), Refusal::Range),
        ("the interrupt window", at(&scene, 0xfee0_0000, 0x1000), Refusal::Reserved),
        ("into the window", at(&scene, 0xfedf_f000, 0x2000), Refusal::Reserved),
        ("out of the window", at(&scene, 0xfeef_f000, 0x2000), Refusal::Reserved),
        ("mapped already", at(&scene, mapped, 0x1000), Refusal::Mapped),
        ("partly mapped", at(&scene, mapped + 0x4000, 0x2000), Refusal::Mapped),
    ];
    for (what, map, expected) in cases {
        scene.refused(what, Operation::Map, &map, expected);
        let item = BatchItem {
            operation: Operation::Map.code(),
            reserved: 0,
            flags: map.flags,
            slot: map.slot,
            access: map.access,
            offset: map.offset,
            length: map.length,
            iova: map.iova,
        };
        // The same as the second item of a batch whose first item is valid.
        let first = self::item(&scene, 0x1000);
        scene.refused_at(what, &batch(&[first, item]), expected, 1);
    }
    let unmaps = [
        (0, 0x1000, Refusal::NotMapped),
        (mapped, 0x1000, Refusal::NotMapped),
        (mapped + 0x1000, 0x4000, Refusal::NotMapped),
        (mapped, 0x6000, Refusal::NotMapped),
        (mapped, 0, Refusal::Range),
        (mapped, !0xfff, Refusal::Range),
        (mapped + 1, 0x5000, Refusal::Alignment),
        (mapped, 0x4fff, Refusal::Alignment),
        (!0xfff, 0x2000, Refusal::Range),
    ];
    for (iova, length, expected) in unmaps {
        let what = format!("unmap {iova:#x} + {length:#x}");
        scene.refused(&what, Operation::Unmap, &Unmap { iova, length }, expected);
    }
    for iova in [0xfee0_0000, 0xfedf_f000] {
        let what = "unmap of the interrupt window";
        let bytes = request(Operation::Unmap, &Unmap { iova, length: 0x2000 });
        let reply = scene.stack.raw(scene.session, &bytes, 64).unwrap();
        let refusal = Refusal::from_code(ReplyHeader::decode(&reply).unwrap().refusal);
        assert!(matches!(refusal, Some(Refusal::Reserved | Refusal::NotMapped)), "{what}");
    }
    scene.stack.snapshot().assert_same(&scene.before, "");
}

#[test]
fn bad_lists_are_refused() {
    let mut scene = scene();
    let (good, mapped) = (map_list(&scene), scene.iova);
    let fixed = |iova| MapList { flags: MapFlags::FIXED.bits(), iova, ..good };
    let last = scene.stack.query(scene.session).unwrap().iova_last;
    let three = [4, 1, 3];
    let cases = [
        ("the page behind the buffer", good, [0, 5, 9], Refusal::Range, 1),
        ("a page far beyond", good, [0, 1, u32::MAX], Refusal::Range, 2),
        ("no such slot", MapList { slot: 77, ..good }, three, Refusal::BadHandle, 0),
        ("no access", MapList { access: 0, ..good }, three, Refusal::BadAccess, 0),
        ("unknown access", MapList { access: 4, ..good }, three, Refusal::BadAccess, 0),
        ("unknown flags", MapList { flags: 4, ..good }, three, Refusal::BadReserved, 0),
        ("address unasked", MapList { iova: 0x1000, ..good }, three, Refusal::BadReserved, 0),
        ("too few pages", MapList { count: 4, ..good }, three, Refusal::BadLength, 0),
        ("too many pages", MapList { count: 2, ..good }, three, Refusal::BadLength, 0),
        ("none", MapList { count: 0, ..good }, three, Refusal::Range, 0),
        ("unaligned address", fixed(0x4000_0800), three, Refusal::Alignment, 0),
        ("page 0", fixed(0), three, Refusal::Range, 0),
        ("across the end", fixed(last & !0xfff), three, Refusal::Range, 0),
        ("overflow", fixed(!0xfff), three, Refusal::Range, 0),
        ("into the window", fixed(0xfedf_f000), three, Refusal::Reserved, 0),
        ("mapped already", fixed(mapped), three, Refusal::Mapped, 0),
        ("mapped at its end", fixed(mapped + 0x4000), three, Refusal::Mapped, 0),
    ];
    for (what, request, pages, expected, item) in cases {
        scene.refused_at(what, &list(&request, &pages), expected, item);
    }
}

/// Only the whole list can be unmapped, and the buffer outlives it.
#[test]
fn a_list_ends_as_it_was_made() {
    let mut scene = scene();
    let device = super::devices()[0].requester.0;
    let bytes = list(&map_list(&scene), &[4, 1, 3]);
    let reply = scene.stack.raw(scene.session, &bytes, 65536).unwrap();
    let at = MapResult::decode(&reply[ReplyHeader::SIZE..]).unwrap().iova;
    let left = scene.stack.query(scene.session).unwrap().mappings_left;
    let reached = |scene: &Scene, page: u64| scene.stack.machine.probe(0, device, page, false);
    for (number, page) in [(0, 4), (1, 1), (2, 3)] {
        let through = reached(&scene, scene.iova + page * 0x1000);
        assert!(through.is_some());
        assert_eq!(reached(&scene, at + number * 0x1000), through, "page {number}");
    }
    scene.before = scene.stack.snapshot();
    for (iova, length) in [(at, 0x1000), (at + 0x1000, 0x1000), (at, 0x4000), (at + 0x1000, 0x2000)]
    {
        let what = format!("unmap {iova:#x} + {length:#x}");
        let unmap = Unmap { iova, length };
        scene.refused(&what, Operation::Unmap, &unmap, Refusal::NotMapped);
    }
    scene.stack.unmap(scene.session, at, 0x3000).unwrap();
    assert_eq!(scene.stack.query(scene.session).unwrap().mappings_left, left + 3);
    assert!((0..3).all(|page| reached(&scene, at + page * 0x1000).is_none()));
    scene.stack.raw(scene.session, &bytes, 65536).unwrap();
    scene.stack.release(scene.session, scene.slot).unwrap();
    let view = scene.stack.query(scene.session).unwrap();
    assert_eq!(view.mappings_left, left + 4, "all pages and the buffer's own mapping");
    assert!((0..3).all(|page| reached(&scene, at + page * 0x1000).is_none()));
    scene.stack.machine.assert_clean();
}

#[test]
fn bad_allocations_are_refused() {
    let mut scene = scene();
    let of = |length, alignment, boundary, access, flags| Allocate {
        length,
        alignment,
        boundary,
        access,
        flags,
    };
    let cases = [
        (of(0, 0, 0, 3, 0), Refusal::Range),
        (of(1, 0, 0, 3, 0), Refusal::Alignment),
        (of(0x1800, 0, 0, 3, 0), Refusal::Alignment),
        (of(u64::MAX, 0, 0, 3, 0), Refusal::Alignment),
        (of(!0xfff, 0, 0, 3, 0), Refusal::Quota),
        (of(1 << 50, 0, 0, 3, 0), Refusal::Quota),
        (of(0x1000, 0x3000, 0, 3, 0), Refusal::Alignment),
        (of(0x1000, u64::MAX, 0, 3, 0), Refusal::Alignment),
        (of(0x2000, 0, 0x1000, 3, 0), Refusal::Alignment),
        (of(0x1000, 0, 0x3000, 3, 0), Refusal::Alignment),
        (of(0x1000, 0, 0, 0, 0), Refusal::BadAccess),
        (of(0x1000, 0, 0, 4, 0), Refusal::BadAccess),
        (of(0x1000, 0, 0, u32::MAX, 0), Refusal::BadAccess),
        (of(0x1000, 0, 0, 3, 4), Refusal::BadReserved),
        // Below 4 GiB only address 0 is a multiple of 1 TiB, and it is never assigned.
        (of(0x1000, 1 << 40, 0, 3, 0), Refusal::NoSpace),
    ];
    for (allocate, expected) in cases {
        scene.refused(&format!("{allocate:x?}"), Operation::Allocate, &allocate, expected);
    }
}

#[test]
fn a_batch_is_all_or_nothing() {
    let mut scene = scene();
    let good = item(&scene, 0x2000);
    let unmap = |iova, length| BatchItem {
        operation: Operation::Unmap.code(),
        iova,
        length,
        ..BatchItem::default()
    };
    let cases: [(Vec<BatchItem>, Refusal, u32); 6] = [
        (vec![good, good, unmap(0x1000, 0x1000)], Refusal::NotMapped, 2),
        (vec![good, BatchItem { slot: 77, ..good }], Refusal::BadHandle, 1),
        (vec![unmap(scene.iova, 0x5000), unmap(scene.iova, 0x5000)], Refusal::NotMapped, 1),
        (vec![good, BatchItem { operation: 4, ..good }], Refusal::BadOperation, 1),
        (
            vec![good; 40].into_iter().chain([BatchItem { access: 0, ..good }]).collect(),
            Refusal::BadAccess,
            40,
        ),
        (
            vec![
                unmap(scene.iova, 0x5000),
                good,
                BatchItem { flags: 1, iova: 0xfee0_0000, ..good },
            ],
            Refusal::Reserved,
            2,
        ),
    ];
    for (items, expected, index) in cases {
        scene.refused_at(&format!("{expected:?}"), &batch(&items), expected, index);
    }
    // Too many items, none, or a number that differs from the header's count.
    scene.refused_at("too many", &batch(&vec![good; 1025]), Refusal::Range, 0);
    scene.refused_at("none", &batch(&[]), Refusal::Range, 0);
    let mut lying = batch(&[good, good]);
    lying[16] = 3;
    scene.refused_at("one more", &lying, Refusal::BadLength, 0);
    lying[16] = 1;
    scene.refused_at("one fewer", &lying, Refusal::BadLength, 0);
    // Addresses unmapped by an item are free only after the batch. Until the unit is invalidated they lead to the old
    // memory.
    let again =
        BatchItem { flags: MapFlags::FIXED.bits(), iova: scene.iova, ..item(&scene, 0x5000) };
    let bytes = batch(&[unmap(scene.iova, 0x5000), again]);
    scene.refused_at("mapped again", &bytes, Refusal::Mapped, 1);
}

#[test]
fn a_replayed_request_changes_nothing_more() {
    let mut scene = scene();
    scene.stack.attach(scene.session).unwrap();
    scene.stack.snapshot().assert_same(&scene.before, "attached already");
    let map = scene.map(|map| {
        (map.flags, map.iova, map.length) = (MapFlags::FIXED.bits(), 0x1_4000_0000, 0x2000);
    });
    let bytes = request(Operation::Map, &map);
    scene.stack.raw(scene.session, &bytes, 64).unwrap();
    scene.before = scene.stack.snapshot();
    scene.refused_at("map again", &bytes, Refusal::Mapped, 0);
    scene.stack.unmap(scene.session, 0x1_4000_0000, 0x2000).unwrap();
    scene.before = scene.stack.snapshot();
    let unmap = Unmap { iova: 0x1_4000_0000, length: 0x2000 };
    scene.refused("unmap again", Operation::Unmap, &unmap, Refusal::NotMapped);
    scene.stack.release(scene.session, scene.slot).unwrap();
    scene.before = scene.stack.snapshot();
    let release = BufferRequest { slot: scene.slot, reserved: 0 };
    scene.refused("release again", Operation::Release, &release, Refusal::BadHandle);
    scene.stack.detach(scene.session).unwrap();
    scene.before = scene.stack.snapshot();
    assert_eq!(scene.stack.detach(scene.session), Ok(()), "once more");
    scene.stack.snapshot().assert_same(&scene.before, "");
}

/// Allocates a buffer of five pages whose addresses are reserved, with nothing mapped.
fn unmapped(scene: &mut Scene) -> AllocateResult {
    let (access, flags) = (Access::all().bits(), AllocateFlags::UNMAPPED.bits());
    let allocate = Allocate { length: 0x5000, access, flags, ..Allocate::default() };
    let buffer = scene.stack.call(scene.session, Operation::Allocate, &allocate).unwrap();
    scene.before = scene.stack.snapshot();
    buffer
}

fn grant(slot: u32, offset: u64, length: u64) -> BatchItem {
    let (operation, access) = (Operation::Grant.code(), Access::READ.bits());
    BatchItem { operation, slot, access, offset, length, ..BatchItem::default() }
}

fn revoke(slot: u32, offset: u64, length: u64) -> BatchItem {
    let operation = Operation::Revoke.code();
    BatchItem { operation, access: 0, ..grant(slot, offset, length) }
}

/// Runs a batch that must succeed. Returns the addresses in its reply.
fn addresses(scene: &mut Scene, items: &[BatchItem]) -> Vec<u64> {
    let reply = scene.stack.raw(scene.session, &batch(items), 65536).unwrap();
    assert_eq!(ReplyHeader::decode(&reply).unwrap().refusal, 0);
    let results = reply[ReplyHeader::SIZE + Empty::SIZE..].chunks_exact(MapResult::SIZE);
    results.map(|bytes| MapResult::decode(bytes).unwrap().iova).collect()
}

/// Grants and revokes in a batch are as strict as those by requests of their own.
#[test]
fn grants_and_revokes_in_a_batch_are_all_or_nothing() {
    let mut scene = scene();
    let AllocateResult { slot, iova, .. } = unmapped(&mut scene);
    let first = [grant(slot, 0, 0x1000), grant(slot, 0x2000, 0x2000)];
    assert_eq!(addresses(&mut scene, &first), [iova, iova + 0x2000]);
    scene.before = scene.stack.snapshot();
    let good = grant(slot, 0x1000, 0x1000);
    let back = revoke(slot, 0, 0x1000);
    let whole = scene.slot;
    let cases = [
        ("flags of a grant", BatchItem { flags: 1, ..good }, Refusal::BadReserved),
        ("address of a grant", BatchItem { iova, ..good }, Refusal::BadReserved),
        ("reserved", BatchItem { reserved: 1, ..good }, Refusal::BadReserved),
        ("no access", BatchItem { access: 0, ..good }, Refusal::BadAccess),
        ("unknown access", BatchItem { access: 4, ..good }, Refusal::BadAccess),
        ("empty", grant(slot, 0x1000, 0), Refusal::Range),
        ("half a page", grant(slot, 0x1000, 0x800), Refusal::Alignment),
        ("inside of a page", grant(slot, 0x1800, 0x1000), Refusal::Alignment),
        ("behind the buffer", grant(slot, 0x5000, 0x1000), Refusal::Range),
        ("across its end", grant(slot, 0x4000, 0x2000), Refusal::Range),
        ("overflow", grant(slot, !0xfff, 0x2000), Refusal::Range),
        ("granted already", grant(slot, 0x3000, 0x1000), Refusal::Mapped),
        ("granted by the same batch", good, Refusal::Mapped),
        ("no slot", grant(99, 0, 0x1000), Refusal::BadHandle),
        ("a buffer mapped as a whole", grant(whole, 0, 0x1000), Refusal::BadOperation),
        ("flags of a revoke", BatchItem { flags: 1, ..back }, Refusal::BadReserved),
        ("address of a revoke", BatchItem { iova, ..back }, Refusal::BadReserved),
        ("access of a revoke", BatchItem { access: 1, ..back }, Refusal::BadReserved),
        ("an empty revoke", revoke(slot, 0, 0), Refusal::Range),
        ("a part of a grant", revoke(slot, 0x2000, 0x1000), Refusal::NotMapped),
        ("not granted", revoke(slot, 0x4000, 0x1000), Refusal::NotMapped),
        ("overflow of a revoke", revoke(slot, !0xfff, 0x2000), Refusal::Range),
        ("no slot to revoke of", revoke(99, 0, 0x1000), Refusal::BadHandle),
        ("of a whole buffer", revoke(whole, 0, 0x5000), Refusal::BadOperation),
    ];
    for (what, bad, expected) in cases {
        scene.refused_at(what, &batch(&[good, bad]), expected, 1);
    }
    // A revoke of the same batch leaves its pages reserved until the unit is invalidated.
    let again = [back, grant(slot, 0, 0x1000)];
    scene.refused_at("revoked in the same batch", &batch(&again), Refusal::Mapped, 1);
    scene.refused_at("revoked twice", &batch(&[back, back]), Refusal::NotMapped, 1);
    // An unmap ends no grant.
    let unmap = BatchItem { slot: 0, offset: 0, iova, operation: Operation::Unmap.code(), ..back };
    scene.refused_at("unmapped", &batch(&[unmap]), Refusal::NotMapped, 0);
    assert_eq!(addresses(&mut scene, &[back, good]), [0, iova + 0x1000]);
    assert_eq!(addresses(&mut scene, &[grant(slot, 0, 0x1000)]), [iova]);
}
