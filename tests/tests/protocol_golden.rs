//! The protocol's bytes, written by hand from the documented layout. All numbers are little-endian. Every field has a
//! different value, which exposes a swapped or shifted field. A change that breaks one of these tests breaks every
//! installed client.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::fmt::Debug;

use iommu_protocol::fault::{FaultAccess, FaultRecord, RECORD_SIZE, WORDS_SIZE};
use iommu_protocol::frame;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, Batch, BatchItem, BufferRequest, BufferResult,
    Empty, Grant, MAX_BATCH, MAX_LIST, MAX_PAYLOAD, Map, MapFlags, MapList, MapResult, Operation,
    QueryResult, Region, RegionKind, RegionsResult, ReplyHeader, RequestHeader, SessionFlags,
    Short, Unmap, VERSION, Wire, parse_header,
};

/// Decodes hexadecimal digits; blanks are ignored.
fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// The structure encodes to these bytes and they decode to it. One byte less is refused.
fn golden<W: Wire + PartialEq + Debug>(structure: &W, text: &str) {
    let expected = bytes(text);
    assert_eq!(expected.len(), W::SIZE, "{structure:?}");
    let mut out = vec![0xaa; W::SIZE + 3];
    structure.encode(&mut out).unwrap();
    assert_eq!(out[..W::SIZE], expected, "{structure:?}");
    assert_eq!(out[W::SIZE..], [0xaa; 3], "bytes behind the structure are left alone");
    assert_eq!(W::decode(&out).as_ref(), Ok(structure));
    assert_eq!(W::decode(&expected[..W::SIZE - 1]), Err(Short));
    let mut short = vec![0xaa; W::SIZE - 1];
    assert_eq!(structure.encode(&mut short), Err(Short));
    assert!(short.iter().all(|byte| *byte == 0xaa), "nothing is written to a buffer too short");
}

#[test]
fn headers() {
    let request =
        RequestHeader { version: 1, operation: 4, length: 48, cookie: 0x1122_3344_5566_7788 };
    golden(&request, "0100 0400 30000000 8877665544332211");
    let reply = ReplyHeader {
        version: 1,
        operation: 9,
        length: 0x0102_0304,
        cookie: 0x1122_3344_5566_7788,
        refusal: 0x0506,
        reserved: 0,
        item: 0x0708_090a,
    };
    golden(&reply, "0100 0900 04030201 8877665544332211 0605 0000 0a090807");
}

#[test]
fn query() {
    golden(&Empty { reserved: 0 }, "0000000000000000");
    let result = QueryResult {
        flags: 0x0102_0304,
        group: 0x0506_0708,
        generation: 0x090a_0b0c,
        segment: 0x0d0e,
        requester: 0x0f10,
        iova_first: 0x1112_1314_1516_1718,
        iova_last: 0x2122_2324_2526_2728,
        page_sizes: 0x3132_3334_3536_3738,
        memory_left: 0x4142_4344_4546_4748,
        mappings_left: 0x5152_5354,
        faults_lost: 0x6162_6364,
    };
    golden(
        &result,
        "04030201 08070605 0c0b0a09 0e0d 100f 1817161514131211 2827262524232221
         3837363534333231 4847464544434241 54535251 64636261",
    );
}

#[test]
fn buffers() {
    let request = Allocate {
        length: 0x0102_0304_0506_0708,
        alignment: 0x1112_1314_1516_1718,
        boundary: 0x2122_2324_2526_2728,
        access: 0x3132_3334,
        flags: 0x4142_4344,
    };
    golden(&request, "0807060504030201 1817161514131211 2827262524232221 34333231 44434241");
    let result = AllocateResult {
        iova: 0x0102_0304_0506_0708,
        length: 0x1112_1314_1516_1718,
        slot: 0x2122_2324,
        reserved: 0,
    };
    golden(&result, "0807060504030201 1817161514131211 24232221 00000000");
    golden(&BufferRequest { slot: 0x0102_0304, reserved: 0 }, "04030201 00000000");
    let result = BufferResult {
        iova: 0x0102_0304_0506_0708,
        length: 0x1112_1314_1516_1718,
        mappings: 0x2122_2324,
        iotlb_entries: 0x3132_3334,
    };
    golden(&result, "0807060504030201 1817161514131211 24232221 34333231");
}

#[test]
fn mappings() {
    let map = Map {
        slot: 0x0102_0304,
        access: 0x0506_0708,
        offset: 0x1112_1314_1516_1718,
        length: 0x2122_2324_2526_2728,
        iova: 0x3132_3334_3536_3738,
        flags: 0x4142_4344,
        reserved: 0,
    };
    golden(
        &map,
        "04030201 08070605 1817161514131211 2827262524232221 3837363534333231 44434241 00000000",
    );
    golden(&MapResult { iova: 0x0102_0304_0506_0708 }, "0807060504030201");
    let unmap = Unmap { iova: 0x0102_0304_0506_0708, length: 0x1112_1314_1516_1718 };
    golden(&unmap, "0807060504030201 1817161514131211");
    let grant = Grant {
        slot: 0x0102_0304,
        access: 0x0506_0708,
        offset: 0x1112_1314_1516_1718,
        length: 0x2122_2324_2526_2728,
    };
    golden(&grant, "04030201 08070605 1817161514131211 2827262524232221");
    golden(&Batch { count: 0x0102_0304, reserved: 0 }, "04030201 00000000");
    let item = BatchItem {
        operation: 0x0102,
        reserved: 0,
        flags: 0x0304_0506,
        slot: 0x0708_090a,
        access: 0x0b0c_0d0e,
        offset: 0x1112_1314_1516_1718,
        length: 0x2122_2324_2526_2728,
        iova: 0x3132_3334_3536_3738,
    };
    golden(
        &item,
        "0201 0000 06050403 0a090807 0e0d0c0b 1817161514131211 2827262524232221 3837363534333231",
    );
    let grant = BatchItem {
        operation: Operation::Grant.code(),
        slot: 0x0102_0304,
        access: Access::WRITE.bits(),
        offset: 0x1112_1314_1516_1000,
        length: 0x2122_2324_2526_2000,
        ..BatchItem::default()
    };
    golden(
        &grant,
        "0a00 0000 00000000 04030201 02000000 0010161514131211 0020262524232221 0000000000000000",
    );
    let revoke = BatchItem { operation: Operation::Revoke.code(), access: 0, ..grant };
    golden(
        &revoke,
        "0b00 0000 00000000 04030201 00000000 0010161514131211 0020262524232221 0000000000000000",
    );
}

#[test]
fn lists() {
    let list = MapList {
        slot: 0x0102_0304,
        access: 0x0506_0708,
        flags: 0x090a_0b0c,
        count: 0x0d0e_0f10,
        iova: 0x1112_1314_1516_1718,
    };
    golden(&list, "04030201 08070605 0c0b0a09 100f0e0d 1817161514131211");
}

#[test]
fn regions() {
    golden(&RegionsResult { count: 0x0102_0304, reserved: 0 }, "04030201 00000000");
    let region = Region {
        first: 0xfee0_0000,
        last: 0xfeef_ffff,
        kind: RegionKind::Interrupt as u32,
        reserved: 0,
    };
    golden(&region, "0000e0fe00000000 ffffeffe00000000 02000000 00000000");
    assert_eq!((RegionKind::Firmware as u32, RegionKind::Exclusion as u32), (1, 3));
}

/// Code, request size and result size of every operation, and its payload size: the longer of 16 + request and 24 +
/// result.
#[test]
fn operations() {
    let table = [
        (1, Operation::Query, 8, 56, 80),
        (2, Operation::Attach, 8, 8, 32),
        (3, Operation::Detach, 8, 8, 32),
        (4, Operation::Allocate, 32, 24, 48),
        (5, Operation::Release, 8, 8, 32),
        (6, Operation::QueryBuffer, 8, 24, 48),
        (7, Operation::Map, 40, 8, 56),
        (8, Operation::Unmap, 16, 8, 32),
        (9, Operation::Batch, 8, 8, 32),
        (10, Operation::Grant, 24, 8, 40),
        (11, Operation::Revoke, 24, 8, 40),
        (12, Operation::Regions, 8, 8, 32),
        (13, Operation::MapList, 24, 8, 40),
    ];
    assert_eq!(Operation::ALL.len(), table.len());
    for (code, operation, request, result, payload) in table {
        assert_eq!(Operation::from_code(code), Some(operation));
        assert_eq!(operation.code(), code);
        assert_eq!(operation.request_size(), request, "{operation:?}");
        assert_eq!(operation.result_size(), result, "{operation:?}");
        assert_eq!(operation.payload_size(), payload, "{operation:?}");
    }
    for code in [0, 14, 0x0100, u16::MAX] {
        assert_eq!(Operation::from_code(code), None);
    }
    assert_eq!((VERSION, MAX_BATCH, MAX_LIST, MAX_PAYLOAD), (1, 1024, 8192, 65536));
    // A full batch fits: the request has 16 + 8 + 1024 * 40 bytes, the reply 24 + 8 + 1024 * 8.
    const { assert!(RequestHeader::SIZE + Batch::SIZE + MAX_BATCH * BatchItem::SIZE == 40_984) };
    const { assert!(ReplyHeader::SIZE + Empty::SIZE + MAX_BATCH * MapResult::SIZE == 8_224) };
    const { assert!(RequestHeader::SIZE + MapList::SIZE + MAX_LIST * 4 <= MAX_PAYLOAD) };
}

#[test]
fn flag_bits() {
    assert_eq!((Access::READ.bits(), Access::WRITE.bits(), Access::all().bits()), (1, 2, 3));
    assert_eq!(AllocateFlags::ABOVE_4G.bits(), 1);
    assert_eq!(AllocateFlags::UNMAPPED.bits(), 2);
    assert_eq!(AllocateFlags::all().bits(), 3);
    assert_eq!(MapFlags::FIXED.bits(), 1);
    assert_eq!(MapFlags::ABOVE_4G.bits(), 2);
    assert_eq!(MapFlags::all().bits(), 3);
    assert_eq!(SessionFlags::ATTACHED.bits(), 1);
    assert_eq!(SessionFlags::CONFINED.bits(), 2);
    assert_eq!(SessionFlags::UNIT_FAILED.bits(), 4);
    assert_eq!(SessionFlags::FAULTS.bits(), 8);
    assert_eq!(SessionFlags::SILENCED.bits(), 16);
    assert_eq!(SessionFlags::UNQUIESCED.bits(), 32);
    assert_eq!(SessionFlags::all().bits(), 63);
}

/// Code and errno of every refusal. The errnos are Linux's (asm-generic/errno.h), which Redox shares:
/// ENODEV 19, EAGAIN 11, EBUSY 16, ENOTCONN 107, EACCES 13, ERANGE 34, EINVAL 22, EDQUOT 122, ENOMEM 12,
/// ENOSPC 28, ENXIO 6, EIO 5, EOPNOTSUPP 95, EPROTONOSUPPORT 93, ENOSYS 38, EMSGSIZE 90, EPROTO 71,
/// EBADF 9, EEXIST 17, ENOENT 2, EPERM 1.
#[test]
fn refusals() {
    let table = [
        (1, Refusal::NotProbed, 19),
        (2, Refusal::NotReady, 11),
        (3, Refusal::NotOwner, 16),
        (5, Refusal::Busy, 16),
        (6, Refusal::Reserved, 13),
        (7, Refusal::Range, 34),
        (8, Refusal::Alignment, 22),
        (9, Refusal::Quota, 122),
        (10, Refusal::NoMemory, 12),
        (11, Refusal::NoSpace, 28),
        (12, Refusal::NoUnit, 6),
        (13, Refusal::UnitFailed, 5),
        (14, Refusal::Unsupported, 95),
        (15, Refusal::BadVersion, 93),
        (16, Refusal::BadOperation, 38),
        (17, Refusal::BadLength, 90),
        (18, Refusal::BadReserved, 71),
        (19, Refusal::BadHandle, 9),
        (20, Refusal::Mapped, 17),
        (21, Refusal::NotMapped, 2),
        (22, Refusal::Permission, 1),
        (23, Refusal::NotFound, 2),
        (25, Refusal::BadAccess, 22),
        (26, Refusal::Full, 12),
    ];
    assert_eq!(Refusal::ALL.len(), table.len());
    for (code, refusal, errno) in table {
        assert_eq!(Refusal::from_code(code), Some(refusal));
        assert_eq!((refusal.code(), refusal.errno().0), (code, errno), "{refusal:?}");
    }
    // These refusal codes were never used and stay unused.
    assert_eq!((Refusal::from_code(4), Refusal::from_code(24)), (None, None));
}

#[test]
fn frames() {
    let request = frame::Request {
        kind: frame::Kind::Import as u16,
        handle: 0x0102_0304,
        tag: 0x1112_1314_1516_1718,
        argument: 0x2122_2324_2526_2728,
    };
    let golden = bytes("0900 0000 04030201 1817161514131211 2827262524232221 0000000000000000");
    assert_eq!(request.encode()[..], golden);
    let with_payload = [&golden[..], b"abc"].concat();
    assert_eq!(frame::Request::decode(&with_payload), Ok((request, &b"abc"[..])));
    for at in [2, 3, 24, 31] {
        let mut padded = golden.clone();
        padded[at] = 1;
        assert_eq!(frame::Request::decode(&padded), Err(Short), "byte {at} is padding");
    }
    assert_eq!(frame::Request::decode(&golden[..31]), Err(Short));

    let reply = frame::Reply { tag: 0x1112_1314_1516_1718, result: -16, handle: 0x0102_0304 };
    let golden = bytes("1817161514131211 f0ffffffffffffff 04030201 00000000 0000000000000000");
    assert_eq!(reply.encode()[..], golden);
    assert_eq!(frame::Reply::decode(&golden), Ok((reply, &[][..])));
    for at in [20, 23, 24, 31] {
        let mut padded = golden.clone();
        padded[at] = 1;
        assert_eq!(frame::Reply::decode(&padded), Err(Short), "byte {at} is padding");
    }
    assert_eq!(frame::Reply::decode(&golden[..31]), Err(Short));

    let kinds =
        ["Open", "Close", "Read", "Call", "GetDents", "Stat", "Fevent", "Mmap", "Import", "Write"];
    for (code, name) in (1..).zip(kinds) {
        assert_eq!(format!("{:?}", frame::Kind::from_code(code).unwrap()), name);
    }
    assert_eq!((frame::Kind::from_code(0), frame::Kind::from_code(11)), (None, None));
    assert_eq!((frame::HEADER_SIZE, frame::MAX_FRAME), (32, 65568));
    assert_eq!((frame::EVENT_TAG, frame::ROOT), (u64::MAX, u32::MAX));
    assert_eq!((frame::READABLE, frame::OPEN_WRITE), (1, 1));
}

fn record() -> FaultRecord {
    let source = PciAddress::new(0x0a0b, 0x3a, 0x1f, 7).unwrap();
    let address = Some(0x1112_1314_1516_1718);
    let words = "no write permission";
    let mut record =
        FaultRecord::new(0x0102_0304_0506_0708, source, address, FaultAccess::Write, 0x0005, words);
    record.lost = 0x2122_2324;
    record
}

#[test]
fn fault_records() {
    // "no write permission" is 19 bytes.
    let mut golden = bytes(
        "0807060504030201 1817161514131211 0b0a ff3a 02 01 0500 24232221 13000000 0000000000000000
         6e6f207772697465207065726d697373696f6e",
    );
    golden.resize(128, 0);
    assert_eq!((RECORD_SIZE, WORDS_SIZE), (128, 88));
    assert_eq!(record().encode()[..], golden);
    assert_eq!(FaultRecord::decode(&golden), Ok(record()));
    assert_eq!(FaultRecord::decode(&golden[..127]), Err(Short));
    assert_eq!(FaultRecord::decode(&[&golden[..], &[0]].concat()), Err(Short));
    // An access above 2, a text longer than its field, and a text that is not UTF-8 are refused.
    for (at, value) in [(20, 3), (28, 89), (29, 1), (40, 0xff)] {
        let mut bad = golden.clone();
        bad[at] = value;
        assert_eq!(FaultRecord::decode(&bad), Err(Short), "byte {at} = {value}");
    }
    // Without the flag the address is ignored.
    golden[21] = 0;
    assert_eq!(FaultRecord::decode(&golden).unwrap().address, None);
    // A long text is cut between characters.
    let long = format!("{}é", "x".repeat(87));
    let source = PciAddress::new(0, 0, 4, 0).unwrap();
    let cut = FaultRecord::new(1, source, None, FaultAccess::Unknown, 0, &long);
    assert_eq!(cut.words(), "x".repeat(87));
    assert_eq!(FaultRecord::decode(&cut.encode()), Ok(cut));
}

/// Builds a request of `operation` with a zero body of `body` bytes and `length` in its header.
fn request(version: u16, operation: u16, body: usize, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    let mut out =
        [&version.to_le_bytes()[..], &operation.to_le_bytes(), &length.to_le_bytes()].concat();
    out.extend([0; 8]);
    out.extend(vec![0; body]);
    out
}

#[test]
fn headers_are_refused_for_what_is_wrong_with_them() {
    for operation in Operation::ALL {
        let (code, size) = (operation.code(), operation.request_size());
        let refused = |bytes: &[u8]| parse_header(bytes).err();
        let good = request(1, code, size, 16 + size);
        assert_eq!(parse_header(&good).unwrap().1, *operation);
        assert_eq!(parse_header(&good).unwrap().2.len(), size);
        for version in [0, 2, 0x0100, u16::MAX] {
            let bytes = request(version, code, size, 16 + size);
            assert_eq!(refused(&bytes), Some(Refusal::BadVersion), "{operation:?}");
        }
        // The header's length differs from the payload's; a body is too short; the header is incomplete.
        let short = request(1, code, size - 1, 16 + size);
        let lying = request(1, code, size, 16 + size - 1);
        let beyond = request(1, code, size, 16 + size + 1);
        let huge = request(1, code, size, 0xffff_ffff);
        for bytes in [short, lying, beyond, huge, request(1, code, size, 15), vec![1, 0, 4]] {
            assert_eq!(refused(&bytes), Some(Refusal::BadLength), "{operation:?}");
        }
        // A body that is too long, unless items may follow.
        let long = refused(&request(1, code, size + 8, 16 + size + 8));
        let items = matches!(operation, Operation::Batch | Operation::MapList);
        let expected = (!items).then_some(Refusal::BadLength);
        assert_eq!(long, expected, "{operation:?}");
    }
    for code in [0, 14, 0x0101, u16::MAX] {
        let bytes = request(1, code, 8, 24);
        assert_eq!(parse_header(&bytes).err(), Some(Refusal::BadOperation));
    }
    assert_eq!(parse_header(&[]).err(), Some(Refusal::BadLength));
    // The version is checked first, because it decides the meaning of the rest.
    assert_eq!(parse_header(&request(2, 99, 0, 0)).err(), Some(Refusal::BadVersion));
}
