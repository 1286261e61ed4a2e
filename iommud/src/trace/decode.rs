//! Records of a file as requests, events and facts. Any bytes are read without a panic.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Access, AllocateFlags, MapFlags};

use super::fact::{Fact, holds};
use super::record::{FRUGAL, ITEM_OUTCOME, Kind, RECORD_BYTES, Record, Status, high, low};
use super::ring::MARK;
use super::seal::Seal;
use super::snapshot::{Snapshot, TableBytes, VERSION};
use crate::addr::{Iova, PhysAddr, PhysRange};
use crate::policy::{
    Allocate, AllocateRequest, BatchRequest, BufferId, Claim, ClientId, DomainId, Event, Hold,
    Import, ImportShared, ListRequest, MapRequest, Owed, SessionId, UnitIndex,
};
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::tags::TagRecord;

/// What a record says.
#[derive(Clone, Debug)]
pub enum Said {
    /// A server starts on this machine.
    Life(Box<Snapshot>),
    /// An event.
    Event(Event),
    /// A device is claimed.
    Claim(Claim),
    /// A buffer is allocated.
    Allocate(Allocate),
    /// A buffer is given to a session of its client.
    Import(Import),
    /// A buffer is given to a session of any client.
    ImportShared(ImportShared),
    /// A descriptor of a buffer is opened.
    Hold(Hold),
    /// Elements of a batch, or one that is alone.
    Batch(SessionId, Vec<BatchRequest>),
    /// A map of pages.
    MapList(SessionId, ListRequest),
    /// A fact.
    Fact(Fact),
    /// The records of one write end. Whoever reads them compares.
    Seal(Seal),
}

/// A record and those of its list.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index of the first record in the file.
    pub index: usize,
    /// Number of records.
    pub records: usize,
    /// Its kind.
    pub kind: Kind,
    /// Number of the first record in its life.
    pub number: u32,
    /// Time in milliseconds since the server's loop began.
    pub milliseconds: u32,
    /// What it says.
    pub said: Said,
    /// Word 6: an address, or the number of an object.
    pub value: u64,
    /// How it ended.
    pub status: Status,
    /// The address of each element of a batch.
    pub addresses: Vec<Iova>,
}

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// No kind has this code.
    Kind(u64),
    /// A field has a value that no server writes.
    Field(&'static str),
    /// Its list has this many records, and so many follow.
    Short {
        /// Records of the list.
        wanted: u64,
        /// Records that follow.
        left: u64,
    },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(code) => write!(f, "no kind of record has the code {code}"),
            Self::Field(name) => write!(f, "{name}: a value that no server writes"),
            Self::Short { wanted, left } => {
                write!(f, "its list has {wanted} records, and {left} follow")
            }
        }
    }
}

/// The records in the bytes of a file. Bytes behind the last whole record are left out.
#[must_use]
pub fn records(bytes: &[u8]) -> Vec<Record> {
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    let of = |bytes: &[u8; RECORD_BYTES]| {
        let (words, _) = bytes.as_chunks::<8>();
        let mut record = [0; 8];
        record.iter_mut().zip(words).for_each(|(to, from)| *to = u64::from_le_bytes(*from));
        record
    };
    records.iter().map(of).collect()
}

/// Reads the entry that begins at record `index`.
///
/// # Errors
/// The record is not one that a server writes, or `index` is not one of the records.
pub fn read(records: &[Record], index: usize) -> Result<Entry, Unreadable> {
    let (record, rest) = records
        .get(index..)
        .and_then(|left| left.split_first())
        .ok_or(Unreadable::Short { wanted: 1, left: 0 })?;
    let [first, number, .., value, status] = *record;
    let code = first & 0xff;
    let kind = u8::try_from(code).ok().and_then(Kind::from_code).ok_or(Unreadable::Kind(code))?;
    let mut list = List { rest, taken: 0 };
    let said = said(kind, record, &mut list)?;
    let list = rest.get(..list.taken).unwrap_or_default();
    let addresses = match (kind, &said) {
        (Kind::One, _) => [Iova(value)].to_vec(),
        (Kind::Batch, _) => list.iter().map(|record| Iova(record[ITEM_OUTCOME])).collect(),
        _ => Vec::new(),
    };
    Ok(Entry {
        index,
        records: 1 + list.len(),
        kind,
        number: low(number),
        milliseconds: high(number),
        said,
        value,
        status: Status::from_bits(status).ok_or(Unreadable::Field("state"))?,
        addresses,
    })
}

/// The records behind the first one of an entry.
struct List<'a> {
    rest: &'a [Record],
    taken: usize,
}

impl<'a> List<'a> {
    /// Takes the records of `count` elements, `each` to a record.
    fn take(&mut self, count: u32, each: u64) -> Result<&'a [Record], Unreadable> {
        let left = self.rest.get(self.taken..).unwrap_or_default();
        let wanted = u64::from(count).div_ceil(each);
        let found = usize::try_from(wanted).ok().and_then(|wanted| left.get(..wanted));
        let count = u64::try_from(left.len()).unwrap_or(u64::MAX);
        let found = found.ok_or(Unreadable::Short { wanted, left: count })?;
        self.taken += found.len();
        Ok(found)
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, Unreadable> {
        let words = self.take(length, 64)?.iter().flatten();
        let bytes = words.flat_map(|word| word.to_le_bytes());
        Ok(bytes.take(usize::try_from(length).unwrap_or(usize::MAX)).collect())
    }

    fn ranges(&mut self, count: u32) -> Result<Vec<PhysRange>, Unreadable> {
        let words = self.take(count, 4)?.iter().flatten();
        let words: Vec<u64> = words.copied().collect();
        let (pairs, _) = words.as_chunks::<2>();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        pairs.iter().take(count).map(|[first, last]| range(*first, *last)).collect()
    }

    fn halves(&mut self, count: u32) -> Result<Vec<u32>, Unreadable> {
        let words = self.take(count, 16)?.iter().flatten();
        let halves = words.flat_map(|word| [low(*word), high(*word)]);
        Ok(halves.take(usize::try_from(count).unwrap_or(usize::MAX)).collect())
    }
}

fn range(first: u64, last: u64) -> Result<PhysRange, Unreadable> {
    PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).ok_or(Unreadable::Field("range"))
}

fn said(kind: Kind, record: &Record, list: &mut List<'_>) -> Result<Said, Unreadable> {
    let [first, _, a, b, c, d, ..] = *record;
    let object = high(first);
    let session = SessionId(object);
    Ok(match kind {
        Kind::Claim => Said::Claim(Claim {
            client: ClientId(object),
            address: address(a),
            parent: (b >> 32 != 0).then_some(SessionId(low(b))),
        }),
        Kind::Allocate => Said::Allocate(Allocate(session, allocate([a, b, c], list)?)),
        Kind::Import => Said::Import(Import(session, BufferId(low(a)))),
        Kind::ImportShared => Said::ImportShared(ImportShared(session, BufferId(low(a)))),
        Kind::Hold => Said::Hold(Hold(session, Slot(low(a)))),
        Kind::One => Said::Batch(session, [item([a, b, c, d])?].to_vec()),
        Kind::Batch => {
            let records = list.take(low(a), 1)?.iter();
            let items = records.map(|[a, b, c, d, ..]| item([*a, *b, *c, *d]));
            Said::Batch(session, items.collect::<Result<_, _>>()?)
        }
        Kind::MapList => {
            let (access, flags, slot) = mapping(b)?;
            let pages = list.halves(low(a))?;
            Said::MapList(session, ListRequest { slot, access, flags, iova: Iova(c), pages })
        }
        Kind::Seal => Said::Seal(Seal { records: a, sum: b }),
        Kind::Life => Said::Life(Box::new(snapshot([a, b, c, d], list)?)),
        Kind::Pool
        | Kind::Tags
        | Kind::FoundOff
        | Kind::CutOff
        | Kind::Installed
        | Kind::Lost
        | Kind::NotAdmitted => Said::Fact(fact(kind, object, [a, b], list)?),
        _ => {
            let event = event(kind, object, [a, b, c], list)?;
            let frugal = first & FRUGAL != 0;
            Said::Event(if frugal { Event::Frugally(Box::new(event)) } else { event })
        }
    })
}

fn event(
    kind: Kind,
    object: u32,
    [a, b, c]: [u64; 3],
    list: &mut List<'_>,
) -> Result<Event, Unreadable> {
    let (session, unit, buffer) = (SessionId(object), UnitIndex(object), BufferId(object));
    Ok(match kind {
        Kind::UnitReady => Event::UnitReady(unit, capabilities([a, b])?),
        Kind::UnitFailed => Event::UnitFailed(unit),
        Kind::Proved => Event::Proved,
        Kind::FunctionAdded => Event::FunctionAdded(function([a, b, c])?),
        Kind::FunctionsAdded => {
            let of = |[a, b, c, ..]: &Record| function([*a, *b, *c]);
            Event::FunctionsAdded(list.take(low(a), 1)?.iter().map(of).collect::<Result<_, _>>()?)
        }
        Kind::FunctionRemoved => Event::FunctionRemoved(address(a)),
        Kind::FunctionsRemoved => {
            let records = list.take(low(a), 1)?.iter();
            Event::FunctionsRemoved(records.map(|record| address(record[0])).collect())
        }
        Kind::MemoryTaken => Event::MemoryTaken(range(a, b)?),
        Kind::MemoryReturned => Event::MemoryReturned(range(a, b)?),
        Kind::Storm => Event::Storm(unit, requester(a)),
        Kind::Attach => Event::Attach(session),
        Kind::Detach => Event::Detach(session),
        Kind::Release => Event::Release(session, Slot(low(a))),
        Kind::Drop => Event::Drop(buffer),
        Kind::Close => Event::Close(session),
        Kind::Shutdown => Event::Shutdown,
        Kind::SettleEntry => Event::Settle(Owed::Entry(unit, requester(a))),
        Kind::SettleBuffer => Event::Settle(Owed::Buffer(buffer)),
        Kind::SettleRegions => Event::Settle(Owed::Regions(DomainId(object))),
        other => return Err(Unreadable::Kind(u64::from(other.code()))),
    })
}

fn fact(
    kind: Kind,
    object: u32,
    [a, b]: [u64; 2],
    list: &mut List<'_>,
) -> Result<Fact, Unreadable> {
    let unit = UnitIndex(object);
    Ok(match kind {
        Kind::Pool => Fact::Pool(a, b),
        Kind::Tags => {
            let count = usize::try_from(low(a)).unwrap_or(usize::MAX);
            let codes = list.take(low(a), 8)?.iter().flatten().take(count);
            let units = codes.map(|code| holds(*code).ok_or(Unreadable::Field("holds")));
            let last = u16::try_from(high(a)).map_err(|_| Unreadable::Field("tag"))?;
            Fact::Tags(TagRecord::from_bits(b).held, units.collect::<Result<_, _>>()?, last)
        }
        Kind::FoundOff => Fact::FoundOff(unit),
        Kind::CutOff => Fact::CutOff(address(a)),
        Kind::Installed => Fact::Installed(unit, capabilities([a, b])?),
        Kind::Lost => Fact::Lost(unit),
        _ => {
            let code = u16::try_from(b).ok().and_then(Refusal::from_code);
            let refusal = code.ok_or(Unreadable::Field("refusal"))?;
            Fact::NotAdmitted(SessionId(object), a, refusal)
        }
    })
}

fn requester(word: u64) -> RequesterId {
    RequesterId(half(word))
}

/// Bits 15:0.
fn half(word: u64) -> u16 {
    u16::try_from(word & 0xffff).unwrap_or(0)
}

/// Bits 7:0.
fn byte(word: u64) -> u8 {
    u8::try_from(word & 0xff).unwrap_or(0)
}

fn address(word: u64) -> PciAddress {
    PciAddress { segment: half(word >> 16), requester: requester(word) }
}

/// Access, flags and slot of a mapping.
fn mapping(word: u64) -> Result<(Access, MapFlags, Slot), Unreadable> {
    let access = Access::from_bits(u32::from(byte(word >> 8)));
    let flags = MapFlags::from_bits(u32::from(half(word >> 16)));
    let access = access.ok_or(Unreadable::Field("access"))?;
    Ok((access, flags.ok_or(Unreadable::Field("flags"))?, Slot(high(word))))
}

fn item([a, offset, length, iova]: [u64; 4]) -> Result<BatchRequest, Unreadable> {
    let (access, flags, slot) = mapping(a)?;
    let iova = Iova(iova);
    let map = MapRequest { slot, offset, length, iova, access, flags };
    match a & 0xff {
        1 => Ok(BatchRequest::Map(map)),
        2 => Ok(BatchRequest::Unmap { iova, length }),
        3 => Ok(BatchRequest::Grant(map)),
        4 => Ok(BatchRequest::Revoke { slot, offset, length }),
        _ => Err(Unreadable::Field("operation")),
    }
}

fn allocate([a, length, c]: [u64; 3], list: &mut List<'_>) -> Result<AllocateRequest, Unreadable> {
    let flags = AllocateFlags::from_bits(u32::from(half(c >> 16)));
    let access = Access::from_bits(u32::from(byte(c >> 8)));
    let power = |shift: u32, name| match byte(c >> shift) {
        0xff => Ok(0),
        bits => 1_u64.checked_shl(u32::from(bits)).ok_or(Unreadable::Field(name)),
    };
    Ok(AllocateRequest {
        buffer: BufferId(high(a)),
        segments: list.ranges(low(a))?,
        length,
        alignment: power(32, "alignment")?,
        boundary: power(40, "boundary")?,
        access: access.ok_or(Unreadable::Field("access"))?,
        flags: flags.ok_or(Unreadable::Field("flags"))?,
    })
}

fn function([ids, class, acs]: [u64; 3]) -> Result<PciFunction, Unreadable> {
    let buses = Buses { secondary: byte(class >> 40), subordinate: byte(class >> 48) };
    Ok(PciFunction {
        address: address(ids),
        vendor: half(ids >> 32),
        device: half(ids >> 48),
        class: low(class),
        kind: function_kind(byte(class >> 32), buses).ok_or(Unreadable::Field("kind"))?,
        multifunction: class >> 56 & 1 != 0,
        acs: (acs >> 32 & 1 != 0).then_some(half(acs)),
        acs_capability: half(acs >> 16),
        hot_plug: class >> 57 & 1 != 0,
    })
}

const fn function_kind(code: u8, buses: Buses) -> Option<FunctionKind> {
    Some(match code {
        1 => FunctionKind::Endpoint,
        2 => FunctionKind::RootComplexEndpoint,
        3 => FunctionKind::Conventional,
        4 => FunctionKind::RootPort(buses),
        5 => FunctionKind::UpstreamPort(buses),
        6 => FunctionKind::DownstreamPort(buses),
        7 => FunctionKind::ExpressToConventional(buses),
        8 => FunctionKind::ConventionalToExpress(buses),
        9 => FunctionKind::ConventionalBridge(buses),
        10 => FunctionKind::EventCollector,
        _ => return None,
    })
}

fn capabilities([pages, sizes]: [u64; 2]) -> Result<UnitCapabilities, Unreadable> {
    let flag = |at: u32| sizes >> (40 + at) & 1 != 0;
    Ok(UnitCapabilities {
        levels: LevelSet::from_bits(byte(sizes >> 32)).ok_or(Unreadable::Field("levels"))?,
        page_sizes: PageSizes::from_bits(pages).ok_or(Unreadable::Field("page sizes"))?,
        coherent: flag(0),
        forces_snoop: flag(1),
        caches_absent: flag(2),
        publishes: flag(3),
        last_tag: half(sizes),
        pass_through: flag(4),
        physical_bits: byte(sizes >> 16),
        iova_bits: byte(sizes >> 24),
        deepens: flag(5),
    })
}

fn snapshot([a, b, c, d]: [u64; 4], list: &mut List<'_>) -> Result<Snapshot, Unreadable> {
    if d != MARK || c & 0xffff_ffff != VERSION {
        return Err(Unreadable::Field("format"));
    }
    let (ram, own) = (list.ranges(low(a))?, list.ranges(high(a))?);
    let policy = String::from_utf8(list.bytes(low(b))?);
    let table = TableBytes::of(c >> 32, list.bytes(high(b))?);
    Ok(Snapshot {
        policy: policy.map_err(|_| Unreadable::Field("policy"))?,
        table: table.ok_or(Unreadable::Field("table"))?,
        ram,
        own,
    })
}
