//! Bad input: every refusal is the documented one, and changes nothing, tables bit for bit.

use iommu_protocol::Refusal;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, Batch, BatchItem, BufferRequest, Empty, Grant, Map, MapList,
    Operation, ReplyHeader, RequestHeader, Unmap, Wire,
};
use iommud::policy::Mode;
use iommud::server::Handle;

use super::{Bed, devices, start};
use iommud_tests::machine::Watch;
use iommud_tests::stack::{Snapshot, request};

/// A client with a mapped buffer of five pages, and a neighbour whose device must not be disturbed.
pub(crate) struct Scene {
    pub(crate) stack: Bed,
    pub(crate) session: Handle,
    pub(crate) slot: u32,
    pub(crate) iova: u64,
    neighbour: Handle,
    neighbours_slot: u32,
    pub(crate) before: Snapshot,
}

pub(crate) fn scene() -> Scene {
    let mut stack = start(Mode::Compat);
    let [device, other, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x5000).unwrap();
    let neighbour = stack.claim(2, other).unwrap();
    stack.attach(neighbour).unwrap();
    // Two buffers, so that the neighbour has a slot that the client does not have.
    stack.allocate(neighbour, 0x1000).unwrap();
    let theirs = stack.allocate(neighbour, 0x3000).unwrap();
    let share = stack.share(2, neighbour, theirs.slot).unwrap();
    stack.machine.watch(Watch {
        unit: 0,
        source: other.requester.0,
        iova: theirs.iova + 0x1000,
        write: true,
        granted: share.segments.iter().map(|s| (s.first().0, s.length())).collect(),
        must_pass: true,
    });
    let before = stack.snapshot();
    Scene {
        stack,
        session,
        slot: buffer.slot,
        iova: buffer.iova,
        neighbour,
        neighbours_slot: theirs.slot,
        before,
    }
}

impl Scene {
    /// Sends a request. It must be refused with this code, at this item, and change nothing.
    pub(crate) fn refused_at(&mut self, what: &str, bytes: &[u8], expected: Refusal, item: u32) {
        let before = self.stack.query(self.session).unwrap();
        let reply = self.stack.raw(self.session, bytes, 65536).unwrap();
        let header = ReplyHeader::decode(&reply).unwrap();
        assert_eq!(Refusal::from_code(header.refusal), Some(expected), "{what}");
        assert_eq!(header.item, item, "{what}");
        assert_eq!((reply.len(), header.length), (24, 24), "{what}: a refusal has no result");
        assert_eq!(self.stack.query(self.session).unwrap(), before, "{what}");
        self.stack.snapshot().assert_same(&self.before, what);
        self.stack.machine.assert_clean();
    }

    pub(crate) fn refused(
        &mut self,
        what: &str,
        operation: Operation,
        body: &impl Wire,
        expected: Refusal,
    ) {
        self.refused_at(what, &request(operation, body), expected, 0);
    }

    /// Builds a map of the whole buffer, modified by `change`.
    pub(crate) fn map(&self, change: impl FnOnce(&mut Map)) -> Map {
        let access = Access::all().bits();
        let mut map = Map { slot: self.slot, access, length: 0x5000, ..Map::default() };
        change(&mut map);
        map
    }
}

/// Returns the bytes of one valid request of each operation.
fn good(scene: &Scene) -> Vec<(Operation, Vec<u8>)> {
    let buffer = BufferRequest { slot: scene.slot, reserved: 0 };
    let access = Access::all().bits();
    let allocate = Allocate { length: 0x1000, access, ..Allocate::default() };
    let grant = Grant { slot: scene.slot, access, length: 0x1000, ..Grant::default() };
    let empty = Empty::default();
    let unmap = Unmap { iova: scene.iova, length: 0x5000 };
    vec![
        (Operation::Query, request(Operation::Query, &empty)),
        (Operation::Attach, request(Operation::Attach, &empty)),
        (Operation::Detach, request(Operation::Detach, &empty)),
        (Operation::Allocate, request(Operation::Allocate, &allocate)),
        (Operation::Release, request(Operation::Release, &buffer)),
        (Operation::QueryBuffer, request(Operation::QueryBuffer, &buffer)),
        (Operation::Map, request(Operation::Map, &scene.map(|_| ()))),
        (Operation::Unmap, request(Operation::Unmap, &unmap)),
        (Operation::Batch, batch(&[item(scene, 0x1000)])),
        (Operation::Grant, request(Operation::Grant, &grant)),
        (Operation::Revoke, request(Operation::Revoke, &Grant { access: 0, ..grant })),
        (Operation::Regions, request(Operation::Regions, &empty)),
        (Operation::MapList, list(&map_list(scene), &[4, 1, 3])),
    ]
}

/// Returns a batch item that maps the first bytes of the buffer.
pub(crate) fn item(scene: &Scene, length: u64) -> BatchItem {
    BatchItem {
        operation: Operation::Map.code(),
        slot: scene.slot,
        access: Access::READ.bits(),
        length,
        ..BatchItem::default()
    }
}

/// Returns a list of three pages of the buffer.
pub(crate) fn map_list(scene: &Scene) -> MapList {
    let access = Access::READ.bits();
    MapList { slot: scene.slot, access, count: 3, ..MapList::default() }
}

pub(crate) fn list(list: &MapList, pages: &[u32]) -> Vec<u8> {
    let mut bytes = request(Operation::MapList, list);
    bytes.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

pub(crate) fn batch(items: &[BatchItem]) -> Vec<u8> {
    let header = Batch { count: u32::try_from(items.len()).unwrap(), reserved: 0 };
    let mut bytes = request(Operation::Batch, &header);
    for item in items {
        let mut out = vec![0; BatchItem::SIZE];
        item.encode(&mut out).unwrap();
        bytes.extend(out);
    }
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn requests_of_the_wrong_length_are_refused() {
    let mut scene = scene();
    for (operation, bytes) in good(&scene) {
        // Tries every truncation, with a matching length in the header and with a wrong one.
        for length in 0..bytes.len() {
            let what = format!("{operation:?} cut to {length}");
            scene.refused_at(&what, &bytes[..length], Refusal::BadLength, 0);
            if length >= RequestHeader::SIZE {
                let mut cut = bytes[..length].to_vec();
                cut[4..8].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
                let what = format!("{operation:?} of {length}");
                scene.refused_at(&what, &cut, Refusal::BadLength, 0);
            }
        }
        for longer in [1, 8, 40, 60_000] {
            let mut long = bytes.clone();
            long.resize(bytes.len() + longer, 0);
            let length = u32::try_from(long.len()).unwrap();
            long[4..8].copy_from_slice(&length.to_le_bytes());
            let what = format!("{operation:?} and {longer} bytes");
            scene.refused_at(&what, &long, Refusal::BadLength, 0);
        }
        for lie in [0, 15, u32::MAX] {
            let mut lying = bytes.clone();
            lying[4..8].copy_from_slice(&lie.to_le_bytes());
            let what = format!("{operation:?} that says {lie}");
            scene.refused_at(&what, &lying, Refusal::BadLength, 0);
        }
    }
}

#[test]
fn unknown_versions_and_operations_are_refused() {
    let mut scene = scene();
    for (operation, bytes) in good(&scene) {
        for version in [0, 2, 0x0100, u16::MAX] {
            let mut other = bytes.clone();
            other[..2].copy_from_slice(&version.to_le_bytes());
            scene.refused_at(&format!("{operation:?}"), &other, Refusal::BadVersion, 0);
        }
        for code in [0, 14, 0x0100, u16::MAX] {
            let mut other = bytes.clone();
            other[2..4].copy_from_slice(&code.to_le_bytes());
            scene.refused_at(&format!("{operation:?}"), &other, Refusal::BadOperation, 0);
        }
    }
}

#[test]
fn reserved_bytes_and_flags_are_refused() {
    let mut scene = scene();
    let one = Empty { reserved: 1 << 63 };
    for operation in [Operation::Query, Operation::Attach, Operation::Detach, Operation::Regions] {
        scene.refused("reserved", operation, &one, Refusal::BadReserved);
    }
    for operation in [Operation::Release, Operation::QueryBuffer] {
        let body = BufferRequest { slot: scene.slot, reserved: 0x100 };
        scene.refused("reserved", operation, &body, Refusal::BadReserved);
    }
    let map = scene.map(|map| map.reserved = 1);
    scene.refused("reserved", Operation::Map, &map, Refusal::BadReserved);
    for flags in [4, 8, 1 << 31] {
        let map = scene.map(|map| map.flags = flags);
        scene.refused("flags", Operation::Map, &map, Refusal::BadReserved);
        let allocate = Allocate { length: 0x1000, access: 3, flags, ..Allocate::default() };
        scene.refused("flags", Operation::Allocate, &allocate, Refusal::BadReserved);
    }
    let map = scene.map(|map| map.iova = 0x1000);
    scene.refused("an address without FIXED", Operation::Map, &map, Refusal::BadReserved);
    let revoke = Grant { slot: scene.slot, access: 1, length: 0x1000, ..Grant::default() };
    scene.refused("access of a revoke", Operation::Revoke, &revoke, Refusal::BadReserved);
    let mut bytes = batch(&[item(&scene, 0x1000)]);
    bytes[16 + 4] = 1;
    scene.refused_at("batch", &bytes, Refusal::BadReserved, 0);
    let bad = BatchItem { reserved: 1, ..item(&scene, 0x1000) };
    let bytes = batch(&[item(&scene, 0x1000), bad]);
    scene.refused_at("item", &bytes, Refusal::BadReserved, 1);
}

#[test]
fn slots_and_handles_of_others_mean_nothing() {
    let mut scene = scene();
    let theirs = scene.neighbours_slot;
    assert_ne!(theirs, scene.slot);
    for slot in [theirs, 99, u32::MAX] {
        let body = BufferRequest { slot, reserved: 0 };
        scene.refused("release", Operation::Release, &body, Refusal::BadHandle);
        scene.refused("query", Operation::QueryBuffer, &body, Refusal::BadHandle);
        let map = scene.map(|map| map.slot = slot);
        scene.refused("map", Operation::Map, &map, Refusal::BadHandle);
        let grant = Grant { slot, access: 3, length: 0x1000, ..Grant::default() };
        scene.refused("grant", Operation::Grant, &grant, Refusal::BadHandle);
        scene.refused(
            "revoke",
            Operation::Revoke,
            &Grant { access: 0, ..grant },
            Refusal::BadHandle,
        );
    }
    // A buffer mapped as a whole accepts no grant, and a range without a grant accepts no revoke.
    let grant = Grant { slot: scene.slot, access: 3, length: 0x1000, ..Grant::default() };
    let reply = scene.stack.raw(scene.session, &request(Operation::Grant, &grant), 64).unwrap();
    assert_ne!(ReplyHeader::decode(&reply).unwrap().refusal, 0);
    scene.stack.snapshot().assert_same(&scene.before, "");
    // Handles that are not sessions, are closed, or never existed.
    let caller = iommud::server::Caller { client: iommud::policy::ClientId(1), uid: 0 };
    let text = scene.stack.server.open(caller, None, "status", false).unwrap();
    let query = request(Operation::Query, &Empty::default());
    assert_eq!(scene.stack.raw(text, &query, 128), Err(Refusal::BadOperation));
    assert_eq!(scene.stack.server.import(text, text), Err(Refusal::BadOperation));
    assert_eq!(scene.stack.server.share(text).err(), Some(Refusal::BadOperation));
    scene.stack.server.close(text);
    scene.stack.server.close(text);
    for handle in [text, Handle(0x7fff_ffff), Handle(u32::MAX)] {
        assert_eq!(scene.stack.raw(handle, &query, 128), Err(Refusal::BadHandle));
        assert_eq!(scene.stack.server.read(handle, 0, &mut [0; 128]), Err(Refusal::BadHandle));
        assert_eq!(scene.stack.server.stat(handle).err(), Some(Refusal::BadHandle));
        assert_eq!(scene.stack.server.watch(handle, 1), Err(Refusal::BadHandle));
        assert_eq!(scene.stack.server.share(handle).err(), Some(Refusal::BadHandle));
        assert_eq!(scene.stack.server.import(handle, handle), Err(Refusal::BadHandle));
        assert_eq!(scene.stack.server.import(scene.neighbour, handle), Err(Refusal::BadHandle));
        scene.stack.server.close(handle);
    }
    scene.stack.snapshot().assert_same(&scene.before, "");
}

#[test]
fn payloads_without_room_for_the_reply_change_nothing() {
    let mut scene = scene();
    for (operation, bytes) in good(&scene) {
        let needed = ReplyHeader::SIZE + operation.result_size();
        for room in 0..needed.min(bytes.len()) {
            let mut payload = bytes[..room].to_vec();
            let refused = scene.stack.server.call(scene.session, &mut payload, bytes.len());
            assert_eq!(refused, Err(Refusal::BadLength), "{operation:?} in {room}");
        }
        if bytes.len() < needed {
            // The request fits, but its result does not.
            let mut payload = bytes.clone();
            payload.resize(needed - 1, 0);
            let length = scene.stack.server.call(scene.session, &mut payload, bytes.len());
            if length.is_ok() {
                let header = ReplyHeader::decode(&payload).unwrap();
                assert_eq!(Refusal::from_code(header.refusal), Some(Refusal::BadLength));
            }
        }
        scene.stack.snapshot().assert_same(&scene.before, &format!("{operation:?}"));
    }
    // A batch whose results must fit behind the header.
    let items = vec![item(&scene, 0x1000); 3];
    let mut bytes = batch(&items);
    let length = bytes.len();
    bytes.truncate(length);
    let mut payload = bytes.clone();
    let done = scene.stack.server.call(scene.session, &mut payload, length).unwrap();
    assert_eq!(done, 24 + 8 + 3 * 8, "three items have room: 40 bytes each came, 8 go");
}

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let mut scene = scene();
    let mut seed = 0x5eed_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..3000 {
        let length = usize::try_from(random() % 200).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
        // Three of four rounds get a valid header, so that the body is parsed.
        if round % 4 != 0 {
            let operation =
                Operation::ALL[usize::try_from(random()).unwrap() % Operation::ALL.len()];
            let size = operation.request_size();
            bytes.resize(RequestHeader::SIZE + size, 0xa5);
            let header = RequestHeader {
                version: 1,
                operation: operation.code(),
                length: u32::try_from(bytes.len()).unwrap(),
                cookie: random(),
            };
            header.encode(&mut bytes).unwrap();
        }
        let reply = scene.stack.raw(scene.session, &bytes, 65536).unwrap();
        let header = ReplyHeader::decode(&reply).unwrap();
        assert_ne!(header.refusal, 0, "{bytes:x?}");
        if round % 100 == 0 {
            scene.stack.snapshot().assert_same(&scene.before, &format!("round {round}"));
        }
    }
    scene.stack.snapshot().assert_same(&scene.before, "");
    scene.stack.machine.assert_clean();
    let _ = AllocateFlags::UNMAPPED;
}

#[test]
fn bad_paths_and_callers_are_refused() {
    let mut scene = scene();
    let caller = |uid| iommud::server::Caller { client: iommud::policy::ClientId(3), uid };
    let [_, _, device, ..] = devices();
    let device = format!("devices/{device}");
    for (path, write, uid, expected) in [
        ("nowhere", false, 0, Refusal::NotFound),
        ("status/", false, 0, Refusal::NotFound),
        ("devices/0000--00--09.0", true, 0, Refusal::NotProbed),
        ("devices/0000--00--09.0", false, 0, Refusal::NotFound),
        ("devices/0000:00:03.0", true, 0, Refusal::NotFound),
        ("units/1", false, 0, Refusal::NotFound),
        ("units/4294967295", false, 0, Refusal::NotFound),
        ("groups/99", false, 0, Refusal::NotFound),
        ("status", true, 0, Refusal::Permission),
        ("devices", true, 0, Refusal::Permission),
        ("status", false, 1000, Refusal::Permission),
        (device.as_str(), true, 1000, Refusal::Permission),
        ("", false, 1000, Refusal::Permission),
    ] {
        let opened = scene.stack.server.open(caller(uid), None, path, write);
        assert_eq!(opened, Err(expected), "{path} {write} {uid}");
    }
    for path in ["buffers/99", "buffers/-1", "status", "", "devices/0000--00--04.0"] {
        let opened = scene.stack.server.open(caller(0), Some(scene.session), path, true);
        assert!(opened.is_err(), "{path}");
    }
    let huge = "x".repeat(1 << 20);
    assert_eq!(scene.stack.server.open(caller(0), None, &huge, false), Err(Refusal::NotFound));
    scene.stack.snapshot().assert_same(&scene.before, "");
}

/// Whoever was handed one session, as another user, claims no second device with it.
#[test]
fn a_session_of_another_user_claims_no_second_device() {
    let mut scene = scene();
    let caller = |uid| iommud::server::Caller { client: iommud::policy::ClientId(1), uid };
    let [.., free] = devices();
    let path = format!("devices/{free}");
    let at = Some(scene.session);
    let claimed = scene.stack.server.open(caller(1000), at, &path, true);
    assert_eq!(claimed, Err(Refusal::Permission));
    scene.stack.snapshot().assert_same(&scene.before, "refused");
    assert!(scene.stack.server.open(caller(0), at, &path, true).is_ok(), "it was free");
}
